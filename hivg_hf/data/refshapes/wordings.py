"""RefShapes wording: a meaning in words.

Three tables that never say the same: what every split but `text` says, what only `text` says, and what training may
say besides (`wordings="varied"`): more templates, and synonyms that no other split uses. Training never reads a
wording of `text`; a test enumerates them all.
"""

import re

import numpy as np

from .language import COUNTS, PLURAL, RANKS, Meaning, Phrase

NUMBERS = {**COUNTS, 5: "five", 6: "six"}  # a scene has at most six objects

_BY_DIRECTION = {
    "superlative": {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottom"},
    "far": {
        "left": "on the far left",
        "right": "on the far right",
        "top": "at the very top",
        "bottom": "at the very bottom",
    },
    "beside": {"left": "left of", "right": "right of", "top": "above", "bottom": "below"},
    "to": {"left": "to the left of", "right": "to the right of", "top": "higher than", "bottom": "lower than"},
    "its": {"left": "to its left", "right": "to its right", "top": "above it", "bottom": "below it"},
    "side": {"left": "on the left of", "right": "on the right of", "top": "above", "bottom": "below"},
    "farthest": {"left": "farthest left", "right": "farthest right", "top": "highest", "bottom": "lowest"},
    "toward": {"left": "left", "right": "right", "top": "up", "bottom": "down"},
}

# Every wording of the standard splits, its places filled by `_words`. Words of the paraphrases below all occur here,
# in other orders.
_WORDINGS = {
    "attribute": ["the {phrase}", "{phrase}", "{a_and_phrase}"],
    "extreme": [
        "the {superlative} {phrase}",
        "{superlative} {phrase}",
        "the {phrase} {far}",
        "the {phrase} that is {farthest}",
    ],
    "relation": [
        "the {phrase} {beside} the {anchor}",
        "{phrase} {beside} the {anchor}",
        "the {phrase} {to} the {anchor}",
        "the {phrase} that is {beside} the {anchor}",
    ],
    "ordinal": ["the {rank} {phrase} from the {direction}", "{rank} {phrase} from the {direction}"],
    "count": ["the {phrase} with {number} {anchor} {its}", "{phrase} that has {number} {anchor} {its}"],
    PLURAL: ["all the {phrases}{where}", "the {phrases}{where}", "all {phrases}{where}", "every {phrase}{where}"],
    "counted plural": [
        "the {number} {phrases}{where}",
        "{number} {phrases}{where}",
        "{both} {phrases}{where}",
        "{both} of the {phrases}{where}",
    ],
}

# Wordings that only the split `text` uses.
_PARAPHRASES = {
    "attribute": ["the {noun_of_adjectives} that is {adjectives}", "the one that is {a_phrase}"],
    "extreme": ["the {farthest} {phrase}", "the {phrase} that is {far}"],
    "relation": ["the {phrase} that is {to} the {anchor}", "{phrase} {side} {an_anchor}"],
    "ordinal": ["the {phrase} that is {rank} from the {direction}", "from the {direction} the {rank} {phrase}"],
    "count": ["the {phrase} that has {number} {anchor} {its}", "the one {phrase} with {number} {anchor} {its}"],
    PLURAL: ["each {phrase}{where}", "every one of the {phrases}{where}"],
    "counted plural": ["the {phrases}{where}, {number} of them", "the {number} that are {phrases}{where}"],
}

# Wordings that training may use besides.
_VARIED = {
    "attribute": [
        "{a_phrase}",
        "find the {phrase}",
        "the {phrase} in this picture",
        "the {phrase_in_color}",
        "the {reversed_phrase}",
        "{noun_first}",
    ],
    "extreme": [
        "the {phrase} nearest to the {direction} edge",
        "the {phrase} closest to the {direction} side",
        "of all {phrases}, the {superlative} one",
        "the {phrase} placed {far}",
        "find the {superlative} {phrase}",
    ],
    "relation": [
        "{a_phrase} {beside} the {anchor}",
        "the {phrase} placed {to} the {anchor}",
        "look {beside} the {anchor} for the {phrase}",
        "the {anchor} has the {phrase} {its}",
        "from the {anchor} go {toward} to the {phrase}",
    ],
    "ordinal": [
        "{phrase} number {rank_number} from the {direction}",
        "the {rank} {phrase} counting from the {direction}",
        "the {rank} of the {phrases} from the {direction}",
        "find the {rank} {phrase} from the {direction}",
    ],
    "count": [
        "the {phrase} with exactly {number} {anchor} {its}",
        "the {phrase} having {number} {anchor} {its}",
        "{a_phrase} with {number} {anchor} {its}",
    ],
    PLURAL: [
        "find all the {phrases}{where}",
        "all of the {phrases}{where}",
        "all {phrases}{where} in this picture",
    ],
    "counted plural": [
        "find the {number} {phrases}{where}",
        "{a_group} of {phrases}{where}",
        "all the {number} {phrases}{where}",
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


def _sayings(table: dict[str, list[str]], meaning: Meaning) -> list[str]:
    """Every wording of a meaning that a table has."""
    kind = "counted plural" if meaning.kind == PLURAL and meaning.number else meaning.kind
    words = _words(meaning)
    return [wording.format_map(words) for wording in table[kind]]


def _words(meaning: Meaning) -> dict[str, str]:
    """What stands in the places of the wordings."""
    phrase, adjectives = meaning.phrase, _adjectives(meaning.phrase)
    noun, noun_phrase, several = _noun(phrase), _noun_phrase(phrase), _noun_phrase(phrase, plural=True)
    and_words = " and ".join(adjectives)  # "small and red"
    words = {
        "phrase": noun_phrase,
        "phrases": several,
        "a_phrase": _article(noun_phrase),
        "a_and_phrase": _article(f"{and_words} {noun}".strip()),
        "adjectives": and_words or _article(noun),
        "noun_of_adjectives": noun if adjectives else "object",
        "noun_first": f"the {noun}, {and_words}" if adjectives else f"some {noun_phrase}",
        "reversed_phrase": " ".join([*reversed(adjectives), noun]),
        "phrase_in_color": _in_color(phrase),
        "where": "",
    }
    if meaning.direction is not None:
        words |= {place: said[meaning.direction] for place, said in _BY_DIRECTION.items()}
        words["direction"] = meaning.direction
    if meaning.anchor is not None:
        words["anchor"] = _noun_phrase(meaning.anchor, plural=meaning.kind == "count" and (meaning.number or 1) > 1)
        words["an_anchor"] = _article(words["anchor"])
        words["where"] = f" {words['beside']} the {words['anchor']}"
    if meaning.rank is not None:
        words |= {"rank": RANKS[meaning.rank], "rank_number": COUNTS[meaning.rank]}
    if meaning.number is not None:
        words["number"] = NUMBERS[meaning.number]
        words["both"] = "both" if meaning.number == 2 else f"all {words['number']}"
        words["a_group"] = "a pair" if meaning.number == 2 else "a group"
    return words


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


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
