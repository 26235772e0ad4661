"""From a draft to a row of the schema: checked, with the policy for several targets applied, or refused by name."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .image_check import image_facts
from .readers.common import (
    ROW_ERRORS,
    SMALLEST_DOUBTFUL_SIDE,
    Annotations,
    Draft,
    RowError,
    where_it_may_be,
    whole_side,
)
from .schema import checked_run_lengths, shown, shown_text

MultiTarget = Literal["keep", "union", "drop"]
OnError = Literal["raise", "skip"]
VerifyImages = Literal["no", "quick", "decode"]

# Annotations stick out of their pictures by rounding; more than this is another picture or another box format.
OUTSIDE_TOLERANCE_PIXELS = 2.0
MESSAGE_CHARACTERS = 600
LIST_CHARACTERS = 2_000  # of the message about all rows


@dataclass(frozen=True)
class RowProblem:
    """A row that cannot be used: how it is named, what kind of fault, and the sentence."""

    row: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.row}: {self.reason}"


class BrokenRowsError(ValueError):
    """Rows that cannot be used, all of them.

    Attributes:
        problems: every one, also those beyond the 2,000 characters of the message.
    """

    def __init__(self, source: str, split: str, problems: list[RowProblem], total: int) -> None:
        self.problems = problems
        message = (
            f"{shown_text(source)} {shown_text(split)}: {len(problems):,} of {total:,} rows cannot be used "
            f'({count_kinds(problems)}). Fix them, or omit them with on_error="skip".'
        )
        rest = "\n  and {:,} more (`hivg survey` lists them; in Python, all are in the exception's .problems)"
        for number, problem in enumerate(problems):
            line = f"\n  {problem}"
            if len(message) + len(line) + len(rest) + 10 > LIST_CHARACTERS:
                message += rest.format(len(problems) - number)
                break
            message += line
        super().__init__(message)


@dataclass
class RowBuilder:
    """Makes rows of the schema from the records of one source.

    Attributes:
        annotations: what a reader returned.
        multi_target: `keep` leaves `box` empty where there are several targets, `union` makes it the box around all,
            `drop` leaves such rows out. `boxes` holds every target in any case.
        verify_images: `quick` checks that files are there, whole and of the annotated size, `decode` decodes them
            all, `no` believes the annotations.
    """

    annotations: Annotations
    multi_target: MultiTarget = "keep"
    verify_images: VerifyImages = "quick"

    def __len__(self) -> int:
        return len(self.annotations.records)

    def build(self, position: int) -> dict[str, Any] | RowProblem | None:
        """The row at a position, the problem it has, or None where `multi_target="drop"` leaves it out."""
        record = None
        try:
            record = self.annotations.records[position]
            draft = self.annotations.read(record)
        except ROW_ERRORS as error:
            name = self._record_name(record, position)
            kind = error.kind if isinstance(error, RowError) else "wrong type or field"
            return RowProblem(name, kind, _reason(error) + self._place_beside(name, error, record))
        try:
            return self._finish(draft)
        except RowError as error:
            reason = shown_text(str(error), MESSAGE_CHARACTERS)
            return RowProblem(_draft_name(draft), error.kind, reason + self._place(record))
        except ROW_ERRORS as error:
            return RowProblem(_draft_name(draft), "wrong type or field", _reason(error) + self._place(record))

    def __iter__(self) -> Iterator[dict[str, Any] | RowProblem | None]:
        return (self.build(position) for position in range(len(self)))

    def _record_name(self, record: Any, position: int) -> str:
        try:
            return shown_text(self.annotations.name_record(record, position))
        except ROW_ERRORS:
            return f"record {position}"

    def _place(self, record: Any) -> str:
        return "" if self.annotations.place is None else f" ({self.annotations.place(record)})"

    def _place_beside(self, name: str, error: Exception, record: Any) -> str:
        """Where a record stands, unless its name or what is wrong with it says so already."""
        place = "" if record is None else self._place(record)
        return "" if place.strip(" ()") in name or "of the file)" in str(error) else place

    def _finish(self, draft: Draft) -> dict[str, Any] | None:
        expression = _checked_expression(draft.expression)
        _check_text(draft)
        width, height = self._image_size(draft)
        boxes = [_checked_box(box, width, height) for box in draft.boxes]
        if draft.no_target == bool(boxes):
            without = "it has no box and no no_target; if its expression names nothing, set no_target to true"
            raise RowError("box", "it says no_target and has a box" if boxes else without)
        if draft.mask is not None:
            try:
                checked_run_lengths(draft.mask, height, width)
            except ValueError as error:
                raise RowError("mask", str(error).rstrip(".")) from error
        if len(boxes) > 1 and self.multi_target == "drop":
            return None
        return {
            "image": draft.image if isinstance(draft.image, dict) else {"path": str(draft.image), "bytes": None},
            "expression": expression,
            "box": self._single_box(boxes) if draft.box is None else _checked_box(draft.box, width, height),
            "boxes": boxes,
            "no_target": draft.no_target,
            "mask": draft.mask,
            "width": width,
            "height": height,
            "category": None if draft.category is None else str(draft.category),
            "image_id": draft.image_id,
            "ref_id": draft.ref_id,
            "sent_id": draft.sent_id,
            "source": draft.source or self.annotations.source,
            "split": self.annotations.split,
        }

    def _single_box(self, boxes: list[list[float]]) -> list[float] | None:
        if len(boxes) == 1:
            return boxes[0]
        if not boxes or self.multi_target == "keep":
            return None
        return [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]

    def _image_size(self, draft: Draft) -> tuple[int, int]:
        width, height = whole_side(draft.width, "width"), whole_side(draft.height, "height")
        if self.verify_images == "no" and width is not None and height is not None:
            return width, height
        facts = image_facts(draft.image, decode=self.verify_images == "decode")
        if facts.problem is not None or facts.width is None or facts.height is None:
            hint = where_it_may_be(str(draft.image)) if facts.kind == "missing image" and draft.image else ""
            raise RowError(facts.kind or "unreadable image", (facts.problem or "its image has no size") + hint)
        if (width or facts.width, height or facts.height) != (facts.width, facts.height):
            raise RowError(
                "image size",
                f"its image is {facts.width} x {facts.height}, the annotation says {width} x {height}",
            )
        return facts.width, facts.height


def count_kinds(problems: list[RowProblem]) -> str:
    """`3 missing image, 1 box`: how many problems of each kind."""
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}" if error.args else "it lacks a field"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).rstrip(".")
    return shown_text(text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}", MESSAGE_CHARACTERS)


def _draft_name(draft: Draft) -> str:
    return f"ref_id {shown_text(draft.ref_id)}, sent_id {shown_text(draft.sent_id)}"


def _check_text(draft: Draft) -> None:
    """Refuse half a surrogate pair: Arrow stores UTF-8, which has none, and would end the reading of all rows."""
    for name in ("expression", "category", "image_id", "ref_id", "sent_id"):
        try:
            str(getattr(draft, name)).encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(
                "text", f"its {name} {getattr(draft, name)!a} holds half a character at position {error.start}"
            ) from error


def _checked_expression(expression: Any) -> str:
    if not isinstance(expression, str):
        raise RowError("wrong type or field", f"its expression is {shown(expression)}, expected text")
    if not expression.strip():
        raise RowError("blank expression", "its expression is blank")
    return expression


def _checked_box(box: list[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    if not all(math.isfinite(edge) for edge in box):
        raise RowError("box", f"its box {box} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise RowError("box", f"its box {box} (xyxy pixels) has no area; is the box format right?")
    outside = max(-x1, -y1, x2 - width, y2 - height)
    if outside > OUTSIDE_TOLERANCE_PIXELS:
        raise RowError(
            "box outside",
            f"its box {box} (xyxy pixels) reaches {outside:g} pixels out of its image of {width} x {height}; "
            "is the box format right?",
        )
    if max(box) <= 1 and min(width, height) > SMALLEST_DOUBTFUL_SIDE:
        raise RowError(
            "box",
            f"its box {box} lies within the first pixel of its image of {width} x {height}: it is a share of the "
            "image, not pixels; say so with a box_format that ends in _normalized (xyxy_normalized, for example), or "
            "multiply it by the image's width and height",
        )
    return box
