"""One word of an expression replaced by another of its attribute group: "the red car" -> "the blue car"."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

# Every text is one set of alternatives: "|" divides words that exclude each other, "," divides words for one thing.
WORD_GROUPS: Mapping[str, tuple[str, ...]] = {
    "color": (
        "red, crimson, maroon | orange | yellow, golden | green | blue, navy | purple, violet | pink | brown | black "
        "| white | gray, grey, silver | cyan, turquoise, teal | beige, tan | magenta",
        "dark | light",
        "solid | striped | outlined",
    ),
    "size": (
        "small, little, tiny | large, big, huge",
        "smaller | larger, bigger",
        "smallest | largest, biggest",
        "short | tall",
        "shorter | taller",
        "shortest | tallest",
        "thin | thick",
    ),
    "position": (
        "left | right | middle, center, centre",
        "leftmost | rightmost",
        "top, upper | bottom, lower",
        "topmost, uppermost, highest | bottommost, lowest",
        "front | back",
        "foreground | background",
        "first | second | third | fourth | fifth | last",
        "closest, nearest | farthest, furthest",
    ),
    "relation": (
        "left of | right of",
        "above, over, on top of | below, under, beneath, underneath",
        "in front of | behind",
        "inside | outside",
        "with | without",
    ),
    "category": (
        "man, guy, boy | woman, lady, girl",
        "men, guys, boys | women, ladies, girls",
        "dog, puppy | cat, kitten | horse, pony | cow | sheep | bird | elephant | giraffe | zebra | bear",
        "dogs | cats | horses | cows | birds | elephants | giraffes | zebras | bears",
        "car | truck | bus | motorcycle, motorbike | bicycle, bike | train | boat | airplane, plane",
        "cars | trucks | buses | motorcycles | bicycles, bikes | trains | boats | airplanes, planes",
        "chair | couch, sofa | table, desk | bed | bench",
        "cup, mug | bowl | plate | bottle | fork | knife | spoon",
        "laptop | keyboard | phone | tv, television",
        "pizza | sandwich | donut | cake | apple | banana | carrot | broccoli",
        "shirt | jacket, coat | dress | hat, cap | shorts",
        "umbrella | backpack | suitcase",
        "circle | square | triangle | star | ring | cross",
        "circles | squares | triangles | stars | rings | crosses",
    ),
}

# Far beyond any list of words; all of them are looked for at every place of every expression.
MOST_WORDS = 5_000
MOST_CHARACTERS = 100


class WordEdits:
    """Every way to replace one word (or "left of", "in front of") of an expression within its group.

    Args:
        groups: Those whose words may be replaced, of `WORD_GROUPS` and `words`.
        words: More words by group. A text with "|" is a set of alternatives of its own; texts without are further
            alternatives of the group's first set, or the set of a new group.

    Raises:
        ValueError: A group is not known, a set has one alternative only, or there are too many words.
    """

    def __init__(self, groups: Sequence[str], words: Mapping[str, Sequence[str]] | None = None) -> None:
        known = {name: list(sets) for name, sets in WORD_GROUPS.items()}
        for name, texts in (words or {}).items():
            sets = known.setdefault(name, [])
            alone = [text for text in texts if "|" not in text]
            sets += [text for text in texts if "|" in text]
            if alone and name in WORD_GROUPS:
                sets[0] = " | ".join([sets[0], *alone])
            elif alone:
                sets.append(" | ".join(alone))
        unknown = [name for name in groups if name not in known]
        if unknown:
            raise ValueError(f"there is no word group {', '.join(unknown)}; the groups are {', '.join(known)}.")
        # Term -> the sets that it stands in, each as all alternatives (lists of synonyms) and which of them it is.
        self._sets: dict[str, list[tuple[list[list[str]], int]]] = defaultdict(list)
        for name in dict.fromkeys(groups):
            for text in known[name]:
                self._add_set(name, text)
        terms = sorted(self._sets, key=len, reverse=True)  # "left of" before "left"
        self._terms = re.compile(rf"\b(?:{'|'.join(map(re.escape, terms))})\b", re.IGNORECASE) if terms else None

    def _add_set(self, name: str, text: str) -> None:
        alternatives = _alternatives(text)
        if len(alternatives) < 2 or not all(word for words in alternatives for word in words):
            raise ValueError(
                f"the word group {name} has {text!r}, expected at least two alternatives divided by '|', as in "
                "'thin | thick, fat'."
            )
        for number, words in enumerate(alternatives):
            for word in words:
                self._sets[word].append((alternatives, number))
        longest = max(len(word) for words in alternatives for word in words)
        if longest > MOST_CHARACTERS or len(self._sets) > MOST_WORDS:
            raise ValueError(
                f"the word groups have {len(self._sets):,} words, the longest in {name} of {longest:,} characters; at "
                f"most {MOST_WORDS:,} words of {MOST_CHARACTERS} characters are looked for in every expression."
            )

    def edits(self, expression: str, rng: np.random.Generator) -> Iterator[str]:
        """The expression with one word replaced, every way once, in random order."""
        found = [] if self._terms is None else list(self._terms.finditer(expression))
        ways = [
            (match, word)
            for match in found
            for alternatives, own in self._sets[match.group().lower()]
            for number, words in enumerate(alternatives)
            if number != own
            for word in words
        ]
        for number in rng.permutation(len(ways)):
            match, word = ways[number]
            before = expression[: match.start()]
            if article := re.search(r"\b(an?) $", before, re.IGNORECASE):
                before = before[: article.start()] + f"{article[1][0]}{'n' if word[0] in 'aeiou' else ''} "
            yield before + _in_case_of(match.group(), word) + expression[match.end() :]


def group_words(group: str) -> list[str]:
    """Every word of a group of `WORD_GROUPS`."""
    return [word for text in WORD_GROUPS[group] for words in _alternatives(text) for word in words]


def _alternatives(text: str) -> list[list[str]]:
    return [[word.strip().lower() for word in part.split(",")] for part in text.split("|")]


def _in_case_of(original: str, word: str) -> str:
    if len(original) > 1 and original.isupper():
        return word.upper()
    return word.capitalize() if original[0].isupper() else word
