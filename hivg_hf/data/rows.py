"""From a draft to a row of the schema: checked, with the policy for several targets applied, or refused by name."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from hivg_hf.data.image_check import image_facts
from hivg_hf.data.readers.common import Annotations, Draft

MultiTarget = Literal["keep", "union", "drop"]
OnError = Literal["raise", "skip"]
VerifyImages = Literal["no", "quick", "decode"]

# Annotations stick out of their pictures by rounding; more than this is another picture or another box format.
OUTSIDE_TOLERANCE_PIXELS = 2.0
LISTED_IN_MESSAGE = 200


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
        problems: every one, also those beyond what the message lists.
    """

    def __init__(self, source: str, split: str, problems: list[RowProblem], total: int) -> None:
        self.problems = problems
        listed = "".join(f"\n  {problem}" for problem in problems[:LISTED_IN_MESSAGE])
        more = len(problems) - LISTED_IN_MESSAGE
        rest = f"\n  and {more:,} more (all in the exception's .problems)" if more > 0 else ""
        super().__init__(
            f"{source} {split}: {len(problems):,} of {total:,} rows cannot be used ({count_kinds(problems)}). "
            f'Mend them, or leave them out with on_error="skip".{listed}{rest}'
        )


class _RowError(ValueError):
    """What is wrong with one draft."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


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
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return RowProblem(self._record_name(record, position), "wrong type or field", reason)
        try:
            return self._finish(draft)
        except _RowError as error:
            return RowProblem(f"ref_id {draft.ref_id}, sent_id {draft.sent_id}", error.kind, str(error))

    def __iter__(self) -> Iterator[dict[str, Any] | RowProblem | None]:
        return (self.build(position) for position in range(len(self)))

    def _record_name(self, record: Any, position: int) -> str:
        try:
            return self.annotations.name_record(record, position)
        except (TypeError, KeyError, IndexError, AttributeError, ValueError):
            return f"record {position}"

    def _finish(self, draft: Draft) -> dict[str, Any] | None:
        expression = _checked_expression(draft.expression)
        width, height = self._image_size(draft)
        boxes = [_checked_box(box, width, height) for box in draft.boxes]
        if draft.no_target == bool(boxes):
            raise _RowError("box", "it says no_target and has a box" if boxes else "it has no box and no no_target")
        if draft.mask is not None and list(draft.mask["size"]) != [height, width]:
            raise _RowError(
                "mask", f"its mask is {draft.mask['size'][1]} x {draft.mask['size'][0]}, its image {width} x {height}"
            )
        if len(boxes) > 1 and self.multi_target == "drop":
            return None
        return {
            "image": draft.image if isinstance(draft.image, dict) else {"path": str(draft.image), "bytes": None},
            "expression": expression,
            "box": self._single_box(boxes),
            "boxes": boxes,
            "no_target": draft.no_target,
            "mask": draft.mask,
            "width": width,
            "height": height,
            "category": None if draft.category is None else str(draft.category),
            "image_id": draft.image_id,
            "ref_id": draft.ref_id,
            "sent_id": draft.sent_id,
            "source": self.annotations.source,
            "split": self.annotations.split,
        }

    def _single_box(self, boxes: list[list[float]]) -> list[float] | None:
        if len(boxes) == 1:
            return boxes[0]
        if not boxes or self.multi_target == "keep":
            return None
        return [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]

    def _image_size(self, draft: Draft) -> tuple[int, int]:
        if self.verify_images == "no" and draft.width is not None and draft.height is not None:
            return draft.width, draft.height
        facts = image_facts(draft.image, decode=self.verify_images == "decode")
        if facts.problem is not None or facts.width is None or facts.height is None:
            raise _RowError(facts.kind or "unreadable image", facts.problem or "its image has no size")
        if (draft.width or facts.width, draft.height or facts.height) != (facts.width, facts.height):
            raise _RowError(
                "image size",
                f"its image is {facts.width} x {facts.height}, the annotation says {draft.width} x {draft.height}",
            )
        return facts.width, facts.height


def count_kinds(problems: list[RowProblem]) -> str:
    """`3 missing image, 1 box`: how many problems of each kind."""
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())


def _checked_expression(expression: Any) -> str:
    if not isinstance(expression, str):
        raise _RowError("wrong type or field", f"its expression is {expression!r}, expected text")
    if not expression.strip():
        raise _RowError("blank expression", "its expression is blank")
    return expression


def _checked_box(box: list[float], width: int, height: int) -> list[float]:
    x1, y1, x2, y2 = box
    if not all(math.isfinite(edge) for edge in box):
        raise _RowError("box", f"its box {box} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise _RowError("box", f"its box {box} (xyxy pixels) has no area; is the box format right?")
    outside = max(-x1, -y1, x2 - width, y2 - height)
    if outside > OUTSIDE_TOLERANCE_PIXELS:
        raise _RowError(
            "box outside",
            f"its box {box} (xyxy pixels) reaches {outside:g} pixels out of its image of {width} x {height}; "
            "is the box format right?",
        )
    return box
