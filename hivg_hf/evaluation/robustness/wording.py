"""Changes of an expression: those that keep what it means, and those that take a part of it away.

Kept meaning (`REWORDINGS`): upper case, typing errors, synonyms, a polite clause around it, shuffled words (which
many expressions survive: word order is not needed for 83.7 percent of RefCOCOg, Akula et al., ACL 2020).

Parts removed (`PARTS`): color, size, position, relation, category. What accuracy is left says which words a model
reads. A removed part may leave an expression that fits several objects: then a fall is right, and no fall is not.

Every function takes an expression and a random generator, and returns the changed expression, or None where the
change does not apply: such rows are left out on both sides of the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from hivg_hf.data.word_edits import group_words

Change = Callable[[str, np.random.Generator], str | None]

LEXICON = {part: frozenset(group_words(part)) for part in ("color", "size", "position")}

_RELATION = re.compile(
    r"\s+(?:(?:that|which|who) (?:is|are) )?(?:to the (?:left|right) of|(?:left|right) of|above|below|under|beneath|"
    r"over|next to|beside|near|behind|in front of|between|inside|on top of|closest to|with|holding|wearing)\b.*$",
    re.IGNORECASE,
)
_SYNONYMS = {
    "small": "little", "large": "big", "big": "large", "left": "left-hand", "right": "right-hand", "above": "over",
    "below": "beneath", "ring": "hoop", "leftmost": "furthest left", "rightmost": "furthest right", "man": "guy",
    "woman": "lady", "person": "human", "kid": "child", "child": "kid", "bike": "bicycle", "car": "automobile",
    "picture": "image", "biggest": "largest", "smallest": "tiniest", "circle": "disc", "next": "close",
    "topmost": "uppermost", "bottommost": "lowest", "largest": "biggest",
}  # fmt: skip
_CLAUSES = ("please show me {}", "I am looking for {}", "{}, if you can see it", "in this picture, {}")


def upper_case(expression: str, rng: np.random.Generator) -> str | None:
    return _if_changed(expression.upper(), expression)


def typing_errors(expression: str, rng: np.random.Generator) -> str | None:
    """In one word of five letters or more, two neighboring letters inside the word swap places."""
    words = expression.split()
    places = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not places:
        return None
    place = int(rng.choice(places))
    word = words[place]
    swaps = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    if not swaps:
        return None
    i = int(rng.choice(swaps))
    words[place] = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return " ".join(words)


def synonyms(expression: str, rng: np.random.Generator) -> str | None:
    """Every word that has a synonym in the table is replaced by it."""
    words = [_SYNONYMS.get(word.lower(), word) for word in expression.split()]
    return _if_changed(" ".join(words), expression)


def extra_clause(expression: str, rng: np.random.Generator) -> str | None:
    return str(rng.choice(_CLAUSES)).format(expression)


def word_order(expression: str, rng: np.random.Generator) -> str | None:
    words = expression.split()
    return _if_changed(" ".join(words[place] for place in rng.permutation(len(words))), expression)


def without(part: str) -> Change:
    """The change that removes a part of speech of `LEXICON` wherever it stands outside a relation."""

    def remove(expression: str, rng: np.random.Generator) -> str | None:
        head, relation = _split_relation(expression)
        words = [word for word in head.split() if word.lower().strip(",") not in LEXICON[part]]
        left = " ".join(words) + relation
        return _if_changed(left, expression) if _names_something(words) else None

    return remove


def without_relation(expression: str, rng: np.random.Generator) -> str | None:
    """What stands before "left of", "above", "with", ... alone."""
    head, relation = _split_relation(expression)
    return head if relation and _names_something(head.split()) else None


def without_category(expression: str, rng: np.random.Generator) -> str | None:
    """The last word before a relation, the noun in plain English order, becomes "thing"."""
    head, relation = _split_relation(expression)
    words = head.split()
    known = {word for group in LEXICON.values() for word in group}
    if not words or words[-1].lower() in known or words[-1].lower() in ("the", "a", "thing", "one"):
        return None
    return " ".join([*words[:-1], "thing"]) + relation


def _split_relation(expression: str) -> tuple[str, str]:
    found = _RELATION.search(expression)
    return (expression[: found.start()], found.group()) if found else (expression, "")


def _names_something(words: list[str]) -> bool:
    return any(word.lower() not in ("the", "a", "an") for word in words)


def _if_changed(changed: str, expression: str) -> str | None:
    return changed if changed != expression else None


REWORDINGS: dict[str, Change] = {
    function.__name__: function for function in (upper_case, typing_errors, synonyms, extra_clause, word_order)
}
PARTS: dict[str, Change] = {
    **{part: without(part) for part in LEXICON},
    "relation": without_relation,
    "category": without_category,
}
