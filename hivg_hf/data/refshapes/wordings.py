"""RefShapes wording: a meaning in words.

Three tables that never say the same: what every split but `text` says, what only `text` says, and what training may
say besides (`wordings="varied"`): more templates, and synonyms that no other split uses. Training never reads a
wording of `text`; a test enumerates them all.
"""

import re
from collections.abc import Callable

import numpy as np

from .language import COUNTS, PLURAL, RANKS, Meaning, Phrase

NUMBERS = {**COUNTS, 5: "five", 6: "six"}  # a scene has at most six objects

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
_TOWARD = {"left": "left", "right": "right", "top": "up", "bottom": "down"}

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
    # np_ is plural in both, and {_where} is empty without an anchor.
    PLURAL: [
        lambda m, np_, anchor: f"all the {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"the {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"all {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"every {_noun_phrase(m.phrase)}{_where(m, anchor)}",
    ],
    "counted plural": [
        lambda m, np_, anchor: f"the {NUMBERS[m.number]} {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"{NUMBERS[m.number]} {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"{_both(m)} {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"{_both(m)} of the {np_}{_where(m, anchor)}",
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
    PLURAL: [
        lambda m, np_, anchor: f"each {_noun_phrase(m.phrase)}{_where(m, anchor)}",
        lambda m, np_, anchor: f"every one of the {np_}{_where(m, anchor)}",
    ],
    "counted plural": [
        lambda m, np_, anchor: f"the {np_}{_where(m, anchor)}, {NUMBERS[m.number]} of them",
        lambda m, np_, anchor: f"the {NUMBERS[m.number]} that are {np_}{_where(m, anchor)}",
    ],
}

# Wordings that training may use besides.
_VARIED: dict[str, list[Wording]] = {
    "attribute": [
        lambda m, np_, _: _article(np_),
        lambda m, np_, _: f"find the {np_}",
        lambda m, np_, _: f"the {np_} in this picture",
        lambda m, np_, _: f"the {_in_color(m.phrase)}",
        lambda m, np_, _: f"the {' '.join([*reversed(_adjectives(m.phrase)), _noun(m.phrase)])}",
        lambda m, np_, _: f"the {_noun(m.phrase)}, {_and(m.phrase)}" if _adjectives(m.phrase) else f"some {np_}",
    ],
    "extreme": [
        lambda m, np_, _: f"the {np_} nearest to the {m.direction} edge",
        lambda m, np_, _: f"the {np_} closest to the {m.direction} side",
        lambda m, np_, _: f"of all {_noun_phrase(m.phrase, plural=True)}, the {_SUPERLATIVE[m.direction]} one",
        lambda m, np_, _: f"the {np_} placed {_FAR[m.direction]}",
        lambda m, np_, _: f"find the {_SUPERLATIVE[m.direction]} {np_}",
    ],
    "relation": [
        lambda m, np_, anchor: f"{_article(np_)} {_BESIDE[m.direction]} the {anchor}",
        lambda m, np_, anchor: f"the {np_} placed {_TO[m.direction]} the {anchor}",
        lambda m, np_, anchor: f"look {_BESIDE[m.direction]} the {anchor} for the {np_}",
        lambda m, np_, anchor: f"the {anchor} has the {np_} {_ITS[m.direction]}",
        lambda m, np_, anchor: f"from the {anchor} go {_TOWARD[m.direction]} to the {np_}",
    ],
    "ordinal": [
        lambda m, np_, _: f"{np_} number {COUNTS[m.rank]} from the {m.direction}",
        lambda m, np_, _: f"the {RANKS[m.rank]} {np_} counting from the {m.direction}",
        lambda m, np_, _: f"the {RANKS[m.rank]} of the {_noun_phrase(m.phrase, plural=True)} from the {m.direction}",
        lambda m, np_, _: f"find the {RANKS[m.rank]} {np_} from the {m.direction}",
    ],
    "count": [
        lambda m, np_, anchor: f"the {np_} with exactly {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
        lambda m, np_, anchor: f"the {np_} having {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
        lambda m, np_, anchor: f"{_article(np_)} with {COUNTS[m.number]} {anchor} {_ITS[m.direction]}",
    ],
    PLURAL: [
        lambda m, np_, anchor: f"find all the {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"all of the {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"all {np_}{_where(m, anchor)} in this picture",
    ],
    "counted plural": [
        lambda m, np_, anchor: f"find the {NUMBERS[m.number]} {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"{'a pair' if m.number == 2 else 'a group'} of {np_}{_where(m, anchor)}",
        lambda m, np_, anchor: f"all the {NUMBERS[m.number]} {np_}{_where(m, anchor)}",
    ],
}
_VARIED_SHARE = 0.5  # of varied expressions, how many take a template of `_VARIED`
_SYNONYM_SHARE = 0.15  # of the words that have synonyms, how many take one

# None of these words occurs in any other wording, so an expression with one of them is of no other split.
SYNONYMS = {
    "small": ("tiny",),
    "large": ("huge",),
    "solid": ("filled",),
    "striped": ("lined",),
    "outlined": ("hollow",),
    "purple": ("violet",),
    "cyan": ("turquoise",),
    "circle": ("disk", "dot"),
    "circles": ("disks", "dots"),
    "square": ("box",),
    "squares": ("boxes",),
    "ring": ("donut",),
    "rings": ("donuts",),
    "cross": ("plus",),
    "crosses": ("pluses",),
    "object": ("thing", "shape", "item"),
    "objects": ("things", "shapes", "items"),
}


def wording_count(kind: str, paraphrase: bool = False) -> int:
    """Number of wordings of a kind; a plural that says its number has as many as one that does not."""
    return len((_PARAPHRASES if paraphrase else _WORDINGS)[kind])


def varied_sayings(meaning: Meaning) -> list[str]:
    """The templates of `wordings="varied"` for a meaning, without synonyms."""
    return _sayings(_VARIED, meaning)


def say_varied(meaning: Meaning, rng: np.random.Generator) -> str:
    """Put a meaning into words as only training does: half of the templates are the usual ones."""
    table = _VARIED if rng.random() < _VARIED_SHARE else _WORDINGS
    sayings = _sayings(table, meaning)
    words = sayings[int(rng.integers(len(sayings)))].split(" ")
    for place, word in enumerate(words):
        choices = SYNONYMS.get(word.rstrip(","), ())
        if choices and rng.random() < _SYNONYM_SHARE:
            words[place] = choices[int(rng.integers(len(choices)))] + "," * word.endswith(",")
    return re.sub(r"\b(an?) (?=(\w+))", lambda found: f"{_article(found[2]).split()[0]} ", " ".join(words))


def say(meaning: Meaning, wording: int = 0, paraphrase: bool = False) -> str:
    """Put a meaning into words.

    Args:
        meaning: What to say.
        wording: Which of the `wording_count` ways.
        paraphrase: Use the ways that only the split `text` uses.
    """
    return _sayings(_PARAPHRASES if paraphrase else _WORDINGS, meaning)[wording]


def _sayings(table: dict[str, list[Wording]], meaning: Meaning) -> list[str]:
    """Every wording of a meaning that a table has."""
    is_plural = meaning.kind == PLURAL
    kind = "counted plural" if is_plural and meaning.number else meaning.kind
    noun_phrase = _noun_phrase(meaning.phrase, plural=is_plural)
    several = meaning.kind == "count" and (meaning.number or 1) > 1
    anchor = "" if meaning.anchor is None else _noun_phrase(meaning.anchor, plural=several)
    return [wording(meaning, noun_phrase, anchor) for wording in table[kind]]


def _where(meaning: Meaning, anchor: str) -> str:
    return f" {_BESIDE[meaning.direction]} the {anchor}" if anchor else ""


def _both(meaning: Meaning) -> str:
    return "both" if meaning.number == 2 else f"all {NUMBERS[meaning.number]}"


def _in_color(phrase: Phrase) -> str:
    """'small star in red', or the plain noun phrase where no color is said."""
    words = " ".join([*(word for word in _adjectives(phrase) if word != phrase.color), _noun(phrase)])
    return f"{words} in {phrase.color}" if phrase.color else words


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
