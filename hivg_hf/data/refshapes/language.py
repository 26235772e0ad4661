"""RefShapes language: what an expression means, and which objects it names in a scene (wordings.py says it).

A `Meaning` is evaluated on the scene by `referents`, so that every expression is proved to name exactly one object (a
plural: exactly its objects, at least two), and `every_word_counts` proves that leaving out any attribute would no
longer name the same. Distances are centre distances relative to sqrt(area); what lies within `MARGIN` of a tie is
called unclear and never said.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .scenes import COLORS, FILLINGS, HELD_OUT_PAIRS, SHAPES, SIZES, Scene, SceneObject

KINDS = ("attribute", "extreme", "relation", "ordinal", "count")  # that name one object
PLURAL = "plural"
DIRECTIONS = ("left", "right", "top", "bottom")
ATTRIBUTES = ("size", "filling", "color", "shape")
MARGIN = 0.06
_TRIES = {"attribute": 8, "extreme": 12, "relation": 40, "ordinal": 12, "count": 40, PLURAL: 25}
# How plurals are tried, by share: "all the objects", "all the stars above the ring", two attributes or more ("all the
# red stars"), one or more. The second and third fit few scenes, so they are tried often.
_PLURAL_FORMS = {"everything": 0.01, "anchored": 0.5, "precise": 0.35, "any": 0.14}
_PHRASE_WEIGHTS = {"everything": (1.0,), "precise": (0.0, 0.0, 0.8, 0.2)}
_COUNTED = 0.4  # share of the plurals that say how many
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
        """Whether the phrase names a shape and color pair that only the split `compositional` renders."""
        return (self.shape, self.color) in HELD_OUT_PAIRS


@dataclass(frozen=True)
class Meaning:
    """What an expression says.

    `attribute`: the phrase alone. `extreme`: the one of `phrase` farthest to `direction`. `ordinal`: number `rank` of
    `phrase` counted from `direction`. `relation`: the one of `phrase` that lies to `direction` of `anchor`, which
    names one object. `count`: the one of `phrase` with exactly `number` objects of `anchor` on its `direction` side.
    `plural`: all of `phrase`, or all of them that lie to `direction` of `anchor`; there are `number` of them where it
    is given.
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
    if meaning.kind == PLURAL:
        named = candidates if meaning.anchor is None else _beyond(anchors, candidates, places)
        return named if not named or meaning.number in (None, len(named)) else None
    if meaning.kind == "relation":
        return _beyond(anchors, candidates, places)
    return _beyond_so_many(meaning.number, anchors, candidates, places)


def context(meaning: Meaning, scene: Scene) -> list[int]:
    """Return the objects that decide which one is named: the anchors, or all that are ordered by their places."""
    deciding = meaning.phrase if meaning.kind in ("extreme", "ordinal") else meaning.anchor
    return [i for i, item in enumerate(scene.objects) if deciding is not None and deciding.matches(item)]


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
    """Whether leaving out any attribute, or all but the phrase, would no longer name the same object or objects."""
    if meaning.kind == PLURAL:  # the number is said beside the attributes, never in place of one
        meaning = replace(meaning, number=None)
    named = referents(meaning, scene)
    if any(referents(replace(meaning, phrase=shorter), scene) == named for shorter in _shorter(meaning.phrase)):
        return False
    if meaning.kind == "attribute":
        return bool(meaning.phrase.said)
    if meaning.kind == PLURAL and meaning.anchor is None:
        return True
    if len(referents(Meaning("attribute", meaning.phrase), scene) or []) <= len(named or ()):
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


def find_plural(scene: Scene, rng: np.random.Generator, target: int) -> tuple[Meaning, tuple[int, ...]] | None:
    """Draw a plural that names the object `target` and at least one more, in which every word counts, and its objects.

    Returns:
        The meaning and the indices of all that it names, None where none was found.
    """
    form = str(rng.choice(list(_PLURAL_FORMS), p=list(_PLURAL_FORMS.values())))
    weights = _PHRASE_WEIGHTS.get(form, (0.0, 0.6, 0.35, 0.05))
    for _ in range(_TRIES[PLURAL]):
        meaning = Meaning(PLURAL, _draw_phrase(scene.objects[target], rng, weights, ()))
        if form == "anchored":
            anchor = _draw_phrase(_another(scene, target, rng), rng, (0.0, 0.45, 0.45, 0.1), ())
            meaning = replace(meaning, direction=DIRECTIONS[int(rng.integers(4))], anchor=anchor)
        named = referents(meaning, scene) or []
        is_counted = rng.random() < _COUNTED
        if target in named and len(named) > 1 and every_word_counts(meaning, scene):
            return replace(meaning, number=len(named) if is_counted else None), tuple(named)
    return None


def change_one_word(
    meaning: Meaning, scene: Scene, rng: np.random.Generator, colors: tuple[str, ...] = tuple(COLORS)
) -> Meaning | None:
    """Return the meaning with one word changed so that it names nothing in the scene, None if no change does that.

    Shape and color pairs that training never shows are not said either: their absence would give them away.
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
    # The number of a plural stays: "the three stars" where there are two is wrong about them, not about nothing.
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
    anchor = _draw_phrase(_another(scene, target, rng), rng, (0.0, 0.45, 0.45, 0.1), ())
    if kind == "relation":
        return Meaning(kind, phrase, direction, anchor)
    return Meaning(kind, phrase, direction, anchor, number=(1, 1, 2, 2, 3)[int(rng.integers(5))])


def _another(scene: Scene, target: int, rng: np.random.Generator) -> SceneObject:
    other = int(rng.integers(len(scene.objects) - 1))
    return scene.objects[other + (other >= target)]


def _draw_phrase(
    item: SceneObject, rng: np.random.Generator, weights: tuple[float, ...], required: tuple[str, ...]
) -> Phrase:
    """Draw the attributes to say: how many by `weights` (of 0, 1, 2, 3), then which, the shape most often."""
    count = int(np.searchsorted(np.cumsum(weights), rng.random()))
    # The smallest of exponentially distributed waiting times: a weighted draw without replacement.
    order = np.argsort(rng.exponential(size=4) / (0.17, 0.17, 0.23, 0.43))
    chosen = {*required, *(ATTRIBUTES[i] for i in order[: max(0, count - len(required))])}
    return Phrase(**{name: getattr(item, name) for name in chosen})
