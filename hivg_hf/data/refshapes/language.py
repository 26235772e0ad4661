"""RefShapes language: what an expression means, which objects it names in a scene, and how it is worded.

A `Meaning` is evaluated on the scene by `referents`, so that every expression is proved to name exactly one object,
and `every_word_counts` proves that leaving out any attribute would no longer name it. Distances are centre distances
relative to sqrt(area); what lies within `MARGIN` of a tie is called unclear and never said.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .scenes import COLORS, FILLINGS, HELD_OUT_PAIRS, SHAPES, SIZES, Scene, SceneObject

KINDS = ("attribute", "extreme", "relation", "ordinal", "count")
DIRECTIONS = ("left", "right", "top", "bottom")
ATTRIBUTES = ("size", "filling", "color", "shape")
MARGIN = 0.06
_TRIES = {"attribute": 8, "extreme": 12, "relation": 40, "ordinal": 12, "count": 40}
RANKS = {1: "first", 2: "second", 3: "third", 4: "fourth"}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Phrase:
    """Attributes that a noun phrase names; None is not said."""

    size: str | None = None
    filling: str | None = None
    color: str | None = None
    shape: str | None = None

    def matches(self, item: SceneObject) -> bool:
        """Whether the phrase is true of an object."""
        return all(getattr(self, name) in (None, getattr(item, name)) for name in ATTRIBUTES)

    @property
    def said(self) -> list[str]:
        """Names of the attributes that are said."""
        return [name for name in ATTRIBUTES if getattr(self, name) is not None]

    @property
    def is_held_out(self) -> bool:
        """Whether the phrase names a shape and colour pair that only the split `compositional` renders."""
        return (self.shape, self.color) in HELD_OUT_PAIRS


@dataclass(frozen=True)
class Meaning:
    """What an expression says.

    `attribute`: the phrase alone. `extreme`: the one of `phrase` farthest to `direction`. `ordinal`: number `rank` of
    `phrase` counted from `direction`. `relation`: the one of `phrase` that lies to `direction` of `anchor`, which
    names one object. `count`: the one of `phrase` with exactly `number` objects of `anchor` on its `direction` side.
    """

    kind: str
    phrase: Phrase
    direction: str | None = None
    anchor: Phrase | None = None
    rank: int | None = None
    number: int | None = None


def referents(meaning: Meaning, scene: Scene) -> list[int] | None:
    """Return the indices of the objects that a meaning names in a scene, None where that is unclear."""
    candidates = [i for i, item in enumerate(scene.objects) if meaning.phrase.matches(item)]
    if meaning.kind == "attribute":
        return candidates
    places = [_position(scene, i, meaning.direction or "") for i in range(len(scene.objects))]
    if meaning.kind in ("extreme", "ordinal"):
        return _at_rank(meaning.rank or 1, candidates, places)
    anchors = [i for i, item in enumerate(scene.objects) if meaning.anchor and meaning.anchor.matches(item)]
    if meaning.kind == "relation":
        return _beyond(anchors, candidates, places)
    return _beyond_so_many(meaning.number, anchors, candidates, places)


def _at_rank(rank: int, candidates: list[int], places: list[float]) -> list[int] | None:
    """The candidate that comes `rank`-th in the direction: "the second ring from the left"."""
    ordered = sorted(candidates, key=lambda i: -places[i])
    if len(ordered) < rank:
        return []
    clear = all(places[a] - places[b] >= MARGIN for a, b in pairwise(ordered[: rank + 1]))
    return [ordered[rank - 1]] if clear else None


def _beyond(anchors: list[int], candidates: list[int], places: list[float]) -> list[int] | None:
    """The candidates that lie beyond the one anchor: "the ring above the blue square"."""
    if len(anchors) > 1:
        return None
    gaps = [(i, places[i] - places[anchor]) for anchor in anchors for i in candidates if i != anchor]
    return None if any(abs(gap) < MARGIN for _, gap in gaps) else [i for i, gap in gaps if gap > 0]


def _beyond_so_many(
    number: int | None, anchors: list[int], candidates: list[int], places: list[float]
) -> list[int] | None:
    """The candidates that have so many anchors beyond them: "the ring with two squares above it"."""
    named = []
    for i in candidates:
        gaps = [places[anchor] - places[i] for anchor in anchors if anchor != i]
        if any(abs(gap) < MARGIN for gap in gaps):
            return None
        if sum(gap > 0 for gap in gaps) == number:
            named.append(i)
    return named


def every_word_counts(meaning: Meaning, scene: Scene) -> bool:
    """Whether leaving out any attribute, or all but the phrase, would no longer name the same single object."""
    named = referents(meaning, scene)
    if any(referents(replace(meaning, phrase=shorter), scene) == named for shorter in _shorter(meaning.phrase)):
        return False
    if meaning.kind == "attribute":
        return bool(meaning.phrase.said)
    if len(referents(Meaning("attribute", meaning.phrase), scene) or []) < 2:
        return False
    if meaning.anchor is None:
        return True
    return not any(referents(replace(meaning, anchor=shorter), scene) == named for shorter in _shorter(meaning.anchor))


def find_meaning(
    scene: Scene, kind: str, rng: np.random.Generator, target: int, required: tuple[str, ...] = ()
) -> Meaning | None:
    """Draw a meaning of a kind that names the object `target` alone and in which every word counts, else None.

    `required` are attributes that the phrase must say.
    """
    for _ in range(_TRIES[kind]):
        meaning = _draw_meaning(scene, kind, rng, target, required)
        if referents(meaning, scene) == [target] and every_word_counts(meaning, scene):
            return meaning
    return None


def change_one_word(
    meaning: Meaning, scene: Scene, rng: np.random.Generator, colors: tuple[str, ...] = tuple(COLORS)
) -> Meaning | None:
    """Return the meaning with one word changed so that it names nothing in the scene, None if no change does that.

    Shape and colour pairs that training never shows are not said either: their absence would give them away.
    """
    values = {"size": SIZES, "filling": FILLINGS, "color": colors, "shape": SHAPES}
    changed = [
        replace(meaning, **{part: replace(phrase, **{name: value})})
        for part in ("phrase", "anchor")
        if (phrase := getattr(meaning, part)) is not None
        for name in phrase.said
        for value in values[name]
        if value != getattr(phrase, name)
    ]
    if meaning.rank is not None:
        changed += [replace(meaning, rank=rank) for rank in RANKS if rank != meaning.rank]
    if meaning.kind == "relation":
        changed += [
            replace(meaning, direction=direction) for direction in DIRECTIONS if direction != meaning.direction
        ]
    for index in rng.permutation(len(changed)):
        candidate = changed[index]
        held_out = candidate.phrase.is_held_out or (candidate.anchor is not None and candidate.anchor.is_held_out)
        if not held_out and referents(candidate, scene) == []:
            return candidate
    return None


def _position(scene: Scene, index: int, direction: str) -> float:
    """How far an object lies to a side, relative to sqrt(area)."""
    item = scene.objects[index]
    along = item.center_x if direction in ("left", "right") else item.center_y
    return (-along if direction in ("left", "top") else along) / scene.scale


def _shorter(phrase: Phrase) -> list[Phrase]:
    return [replace(phrase, **{name: None}) for name in phrase.said]


def _draw_meaning(
    scene: Scene, kind: str, rng: np.random.Generator, target: int, required: tuple[str, ...]
) -> Meaning:
    item = scene.objects[target]
    if kind == "attribute":
        return Meaning(kind, _draw_phrase(item, rng, (0.0, 0.2, 0.45, 0.35), required))
    phrase = _draw_phrase(item, rng, (0.05, 0.5, 0.35, 0.1), required)
    direction = DIRECTIONS[int(rng.integers(4))]
    if kind == "extreme":
        return Meaning(kind, phrase, direction)
    if kind == "ordinal":
        return Meaning(kind, phrase, direction, rank=(1, 2, 2, 3)[int(rng.integers(4))])
    other = int(rng.integers(len(scene.objects) - 1))
    anchor = _draw_phrase(scene.objects[other + (other >= target)], rng, (0.0, 0.45, 0.45, 0.1), ())
    if kind == "relation":
        return Meaning(kind, phrase, direction, anchor)
    return Meaning(kind, phrase, direction, anchor, number=(1, 1, 2, 2, 3)[int(rng.integers(5))])


def _draw_phrase(
    item: SceneObject, rng: np.random.Generator, weights: tuple[float, ...], required: tuple[str, ...]
) -> Phrase:
    """Draw the attributes to say: how many by `weights` (of 0, 1, 2, 3), then which, the shape most often."""
    count = int(np.searchsorted(np.cumsum(weights), rng.random()))
    # The smallest of exponentially distributed waiting times: a weighted draw without replacement.
    order = np.argsort(rng.exponential(size=4) / (0.17, 0.17, 0.23, 0.43))
    chosen = {*required, *(ATTRIBUTES[i] for i in order[: max(0, count - len(required))])}
    return Phrase(**{name: getattr(item, name) for name in chosen})


# -- wording ----------------------------------------------------------------------------------------------------------

_SUPERLATIVE = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottom"}
_FAR = {
    "left": "on the far left",
    "right": "on the far right",
    "top": "at the very top",
    "bottom": "at the very bottom",
}
_BESIDE = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_TO = {"left": "to the left of", "right": "to the right of", "top": "higher than", "bottom": "lower than"}
_ITS = {"left": "to its left", "right": "to its right", "top": "above it", "bottom": "below it"}
_SIDE = {"left": "on the left of", "right": "on the right of", "top": "above", "bottom": "below"}
_FARTHEST = {"left": "farthest left", "right": "farthest right", "top": "highest", "bottom": "lowest"}

Wording = Callable[[Meaning, str, str], str]  # meaning, noun phrase, anchor's noun phrase -> words

# Every wording of the standard splits. Words of the paraphrases below all occur here, in other orders.
_WORDINGS: dict[str, list[Wording]] = {
    "attribute": [
        lambda m, np_, _: f"the {np_}",
        lambda m, np_, _: np_,
        lambda m, np_, _: _and_noun(m.phrase),
    ],
    "extreme": [
        lambda m, np_, _: f"the {_SUPERLATIVE[m.direction]} {np_}",
        lambda m, np_, _: f"{_SUPERLATIVE[m.direction]} {np_}",
        lambda m, np_, _: f"the {np_} {_FAR[m.direction]}",
        lambda m, np_, _: f"the {np_} that is {_FARTHEST[m.direction]}",
    ],
    "relation": [
        lambda m, np_, anchor: f"the {np_} {_BESIDE[m.direction]} the {anchor}",
        lambda m, np_, anchor: f"{np_} {_BESIDE[m.direction]} the {anchor}",
        lambda m, np_, anchor: f"the {np_} {_TO[m.direction]} the {anchor}",
        lambda m, np_, anchor: f"the {np_} that is {_BESIDE[m.direction]} the {anchor}",
    ],
    "ordinal": [
        lambda m, np_, _: f"the {RANKS[m.rank]} {np_} from the {m.direction}",
        lambda m, np_, _: f"{RANKS[m.rank]} {np_} from the {m.direction}",
    ],
    "count": [
        lambda m, np_, anchor: f"the {np_} with {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
        lambda m, np_, anchor: f"{np_} that has {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
    ],
}

# Wordings that only the split `text` uses.
_PARAPHRASES: dict[str, list[Wording]] = {
    "attribute": [
        lambda m, np_, _: f"the {_noun(m.phrase) if _adjectives(m.phrase) else 'object'} that is {_and(m.phrase)}",
        lambda m, np_, _: f"the one that is {_article(np_)}",
    ],
    "extreme": [
        lambda m, np_, _: f"the {_FARTHEST[m.direction]} {np_}",
        lambda m, np_, _: f"the {np_} that is {_FAR[m.direction]}",
    ],
    "relation": [
        lambda m, np_, anchor: f"the {np_} that is {_TO[m.direction]} the {anchor}",
        lambda m, np_, anchor: f"{np_} {_SIDE[m.direction]} {_article(anchor)}",
    ],
    "ordinal": [
        lambda m, np_, _: f"the {np_} that is {RANKS[m.rank]} from the {m.direction}",
        lambda m, np_, _: f"from the {m.direction} the {RANKS[m.rank]} {np_}",
    ],
    "count": [
        lambda m, np_, anchor: f"the {np_} that has {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
        lambda m, np_, anchor: f"the one {np_} with {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
    ],
}


def wording_count(kind: str, paraphrase: bool = False) -> int:
    """Number of wordings of a kind."""
    return len((_PARAPHRASES if paraphrase else _WORDINGS)[kind])


def say(meaning: Meaning, wording: int = 0, paraphrase: bool = False) -> str:
    """Put a meaning into words.

    Args:
        meaning: What to say.
        wording: Which of the `wording_count` ways.
        paraphrase: Use the ways that only the split `text` uses.
    """
    anchor = "" if meaning.anchor is None else _noun_phrase(meaning.anchor, plural=(meaning.number or 1) > 1)
    table = _PARAPHRASES if paraphrase else _WORDINGS
    return table[meaning.kind][wording](meaning, _noun_phrase(meaning.phrase), anchor)


def _noun(phrase: Phrase, plural: bool = False) -> str:
    noun = phrase.shape or "object"
    if not plural:
        return noun
    return noun + "es" if noun == "cross" else noun + "s"


def _adjectives(phrase: Phrase) -> list[str]:
    return [value for value in (phrase.size, phrase.filling, phrase.color) if value]


def _noun_phrase(phrase: Phrase, plural: bool = False) -> str:
    return " ".join([*_adjectives(phrase), _noun(phrase, plural)])


def _and(phrase: Phrase) -> str:
    """'small and red', or 'a star' where the phrase has no adjective."""
    return " and ".join(_adjectives(phrase)) or _article(_noun(phrase))


def _and_noun(phrase: Phrase) -> str:
    """'a small and red star'."""
    return _article(" ".join([" and ".join(_adjectives(phrase)), _noun(phrase)]).strip())


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
