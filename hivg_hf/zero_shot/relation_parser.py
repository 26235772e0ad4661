"""Reads an expression into noun phrases and what it says about places and sizes, by rules a page long.

    "the second cup from the left"         -> cup, rank 2 along the axis "left"
    "the largest dog left of the red car"  -> dog, largest, left of (red car)
    "star with two circles above it"       -> star with exactly 2 of (circles) above

Everything that no rule reads stays in the noun phrase, for CLIP to read: an expression without a known relation is
parsed into itself. ReCLIP (Subramanian et al., ACL 2022) parses with a dependency parser; these rules need none and
read the short English of RefCOCO and RefShapes, not clauses in general.
"""

import re
from dataclasses import dataclass

# Axes along which objects are ranked; the first on an axis is the farthest left, the largest, ...
CORNERS = ("top left", "top right", "bottom left", "bottom right")
AXES = ("left", "right", "top", "bottom", *CORNERS, "large", "small", "tall", "short", "center")
RELATIONS = ("left", "right", "above", "below", "larger", "smaller", "inside", "contains", "near", "between")

# Nouns that name no kind of object: every proposal is one.
ANYTHING = ("one", "ones", "object", "objects", "thing", "things", "item", "items")
NUMBERS = {
    **{"first": 1, "1st": 1, "second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4, "fifth": 5, "5th": 5},
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5},
}


@dataclass(frozen=True)
class Rank:
    """The `number`-th of its kind along `axis` (one of `AXES`), counted from 1."""

    axis: str
    number: int = 1


@dataclass(frozen=True)
class Relation:
    """`kind` (one of `RELATIONS`) to `anchor`; "between" has a `second` one.

    With `count`, exactly that many objects of `anchor` lie on the side `kind` of the object, as in "with two cups to
    its left".
    """

    kind: str
    anchor: "Query"
    second: "Query | None" = None
    count: int | None = None


@dataclass(frozen=True)
class Query:
    """A noun phrase and what is said about the object beside it."""

    noun: str
    rank: Rank | None = None
    relation: Relation | None = None

    @property
    def nouns(self) -> tuple[str, ...]:
        """This noun phrase and those of all anchors, each once."""
        parts = [self.noun]
        if self.relation is not None:
            for anchor in (self.relation.anchor, self.relation.second):
                parts += anchor.nouns if anchor is not None else ()
        return tuple(dict.fromkeys(parts))


def parse_expression(expression: str) -> Query:
    """Parse an expression.

    Raises:
        ValueError: the expression is blank.
    """
    text = _clean(expression)
    if not text:
        raise ValueError(f"Expected an expression that names an object, got {expression!r}.")
    return _parse(text)


# -- words of the rules -----------------------------------------------------------------------------------------------

_PICTURE = r"(?:picture|image|photo|photograph|screen|frame|scene)"
_SIDE = rf"(?P<side>{'|'.join(CORNERS)}|left|right|top|bottom)"
_FILLER = r"(?:(?:that|which|who) (?:is|are|lies|stands|sits) )?(?:(?:is|located|standing|sitting|placed) )?"
_LEFT_RIGHT = r"(?:(?:on|to|at) )?(?:the )?{}(?: side)? of"
# kind: what introduces the anchor. "in" and "on" are not among them: "the man in blue" names no second object.
_BEFORE_ANCHOR = {
    "between": r"(?:in )?between",
    "left": _LEFT_RIGHT.format("left"),
    "right": _LEFT_RIGHT.format("right"),
    "above": r"(?:directly )?(?:above|over|on top of|higher than)",
    "below": r"(?:directly )?(?:below|under|underneath|beneath|lower than)",
    "larger": r"(?:larger|bigger) than",
    "smaller": r"smaller than",
    "inside": r"(?:inside(?: of)?|within)",
    "contains": r"(?:containing|surrounding|enclosing)",
    "near": r"(?:next to|beside|besides|near|nearest(?: to)?|closest to|close to|adjacent to)",
}
_ANY_RELATION = re.compile(
    "|".join(rf"(?P<{kind}> {_FILLER}{words} )" for kind, words in _BEFORE_ANCHOR.items()), re.IGNORECASE
)
_COUNT = re.compile(
    r"^(?P<head>.+?) (?:with|that has|which has|having) (?:exactly )?(?P<number>one|two|three|four|five) "
    r"(?P<anchor>.+?) (?P<side>(?:to|on) (?:its|the|their) (?:left|right)(?: side)?|above(?: it)?|below(?: it)?)$"
)
_NUMBER = r"(?P<number>first|second|third|fourth|fifth|1st|2nd|3rd|4th|5th)"
_ORDINALS = (
    re.compile(rf"^{_NUMBER} (?P<noun>.+?) {_FILLER}(?:from|on|at) (?:the )?(?:far )?{_SIDE}$"),
    re.compile(rf"^(?P<noun>.+?) {_FILLER}(?:the )?{_NUMBER} (?:one )?from (?:the )?(?:far )?{_SIDE}$"),
    re.compile(rf"^from (?:the )?{_SIDE}(?: the)? {_NUMBER} (?P<noun>.+)$"),
    re.compile(rf"^{_NUMBER} from (?:the )?(?:far )?{_SIDE}(?: the)? (?P<noun>.+)$"),
)
_AXIS_OF_SIDE_PHRASE = re.compile(
    rf"^(?P<noun>.+?) {_FILLER}(?:"
    rf"(?:on|to|at|in|from)(?: the)?(?: (?:very|far|extreme|most))? {_SIDE}(?:most)?(?: side| corner| edge)?"
    rf"|(?:the )?(?:far|farthest|furthest) (?P<far>left|right)"
    r"|(?:the )?(?P<superlative>leftmost|rightmost|topmost|highest|lowest|bottommost"
    r"|largest|biggest|smallest|tallest)"
    rf"|(?:in|at)(?: the)? (?P<center>middle|center|centre)"
    rf")$"
)
_SUPERLATIVES = {
    **{"leftmost": "left", "far left": "left", "farthest left": "left", "furthest left": "left", "left most": "left"},
    **{"rightmost": "right", "far right": "right", "farthest right": "right", "furthest right": "right"},
    **{"right most": "right", "topmost": "top", "uppermost": "top", "highest": "top", "top": "top"},
    **{"bottommost": "bottom", "lowest": "bottom", "lowermost": "bottom", "bottom": "bottom"},
    **{"largest": "large", "biggest": "large", "bigger": "large", "larger": "large"},
    **{"smallest": "small", "smaller": "small", "tiniest": "small", "tallest": "tall", "shortest": "short"},
    **{"middle": "center", "center": "center", "centre": "center", "left": "left", "right": "right"},
    **{corner: corner for corner in CORNERS},
}
_SUPERLATIVE = re.compile(
    rf"^(?P<word>{'|'.join(sorted(_SUPERLATIVES, key=len, reverse=True))})(?: hand)?(?: side)? (?P<noun>.+)$"
)
# "left hand" is a part of a body, not the hand farthest left; CLIP may read it as it is.
_BODY = re.compile(r"^(?:hand|arm|leg|foot|eye|ear|shoulder|knee|elbow|shoe|wing)s?\b")


# After these "one" is the noun: "the one on the left".
_PLACE_WORDS = (
    r"(?:that|which|who|with|on|in|at|to|from|the|left|right|above|below|over|under|underneath|beneath|inside|within|next"
    r"|beside|besides|near|nearest|close|closest|adjacent|between|farthest|furthest|far|higher|lower|larger|bigger"
    r"|smaller|directly|containing|surrounding|enclosing|standing|sitting|located|placed|having)\b"
)

# -- rules ------------------------------------------------------------------------------------------------------------


def _clean(text: str) -> str:
    text = re.sub(r"\s+", " ", re.sub(r"[^\w\s'-]", " ", text.lower())).strip()
    text = re.sub(r"\bupper (?=left|right)", "top ", re.sub(r"\blower (?=left|right)", "bottom ", text))
    return re.sub(rf" (?:of|in) (?:the|this) {_PICTURE}$", "", text)  # relates the object to no other one


def _parse(text: str) -> Query:
    text = _bare(text)
    if match := _COUNT.match(text):
        side = next(side for side in ("left", "right", "above", "below") if side in match["side"].split())
        relation = Relation(side, _parse(match["anchor"]), count=NUMBERS[match["number"]])
        return _parse_head(match["head"], relation)
    for match in _ANY_RELATION.finditer(f" {text} "):
        head, rest = f" {text} "[: match.start()].strip(), f" {text} "[match.end() :].strip()
        if not head or not rest:
            continue
        kind = str(match.lastgroup)
        if kind != "between":
            return _parse_head(head, Relation(kind, _parse(rest)))
        first, _, second = rest.partition(" and ")
        if first and second:
            return _parse_head(head, Relation(kind, _parse(first), _parse(second)))
        return _parse_head(head, Relation(kind, _parse(rest), _parse(rest)))  # "between the cups": any two of them
    return _parse_head(text, None)


def _parse_head(text: str, relation: Relation | None) -> Query:
    """A noun phrase without its anchor: ordinal, superlative, side."""
    text = _bare(text)
    for pattern in _ORDINALS:
        if match := pattern.match(text):
            return Query(_bare(match["noun"]), Rank(match["side"], NUMBERS[match["number"]]), relation)
    if match := _AXIS_OF_SIDE_PHRASE.match(text):
        word = match["side"] or match["far"] or match["superlative"] or "center"
        return Query(_bare(match["noun"]), Rank(_SUPERLATIVES[word]), relation)
    match = _SUPERLATIVE.match(text)
    if match and not _BODY.match(match["noun"]):
        return Query(_bare(match["noun"]), Rank(_SUPERLATIVES[match["word"]]), relation)
    return Query(text, None, relation)


def _bare(text: str) -> str:
    """Without the article and the filler words at the ends."""
    text = re.sub(r"^(?:(?:the|a|an) )+", "", text.strip())
    # "the one that is a star" names a star, "the one on the left" no kind of object.
    text = re.sub(rf"^one (?:(?:that|which) is (?:a|an) |(?!{_PLACE_WORDS})(?=\w))", "", text)
    return re.sub(r" (?:that|which|who)(?: is| are)?$| is$", "", text).strip() or text
