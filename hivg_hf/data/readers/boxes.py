"""Box formats: what four numbers mean. A user or a format says it; nothing is guessed, but a wrong one shows.

A format is a layout (`xyxy`, `xywh`, `cxcywh`) and a unit: pixels of the original image, or a share of its sides in
0..1 (`_normalized`), 0..100 (`_100`, as Label Studio has them) or 0..1000 (`_1000`, as Qwen3-VL and InternVL do).
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..schema import shown
from .common import SMALLEST_DOUBTFUL_SIDE, as_xyxy, cxcywh_to_xyxy, four_numbers, xywh_to_xyxy

LAYOUTS = {"xyxy": as_xyxy, "xywh": xywh_to_xyxy, "cxcywh": cxcywh_to_xyxy}
UNITS = {"": None, "_normalized": 1, "_100": 100, "_1000": 1000}
BOX_FORMATS = tuple(f"{layout}{unit}" for unit in UNITS for layout in LAYOUTS)

FEWEST_BOXES, MOST_BOXES = 8, 200  # that a verdict on the format of a file needs, and that are looked at
FEWEST_FOR_SCALE = 20
WRONG_SHARE = 0.2
TOLERANCE_PIXELS = 2.0

Look = tuple[list[float], int, int]


def layout_and_full(box_format: str) -> tuple[str, int | None]:
    """`xywh_1000` to `("xywh", 1000)`; None for pixels."""
    layout, _, unit = box_format.partition("_")
    return layout, UNITS[f"_{unit}" if unit else ""]


def numbers_of(box: Any) -> list[float]:
    """Four numbers from a list or from text such as `10 20 30 40` or `[10, 20, 30, 40]`.

    Raises:
        ValueError: it is not four numbers.
    """
    return four_numbers(re.split(r"[\s,;]+", box.strip(" \t[]()")) if isinstance(box, str) else box, box)


def with_point(text: str) -> str:
    """`0,5` to `0.5`, and `0,5; 0,2` to `0.5 0.2`: numbers with decimal commas, divided by spaces or semicolons.

    Raises:
        ValueError: a number has a point, or several commas: then some of its signs divide thousands or numbers.
    """
    numbers = [part.removesuffix(",") for part in re.split(r"[\s;]+", text.strip(" \t[]()"))]
    if any("." in number or number.count(",") > 1 for number in numbers):
        raise ValueError(f"{shown(text)} is not numbers with decimal commas such as 0,5, as decimal_comma says")
    return " ".join(number.replace(",", ".") for number in numbers)


def to_pixels(box: Any, box_format: str, width: int | None, height: int | None) -> list[float]:
    """A box of any format as (x1, y1, x2, y2) pixels.

    Args:
        box: four numbers, or their text.
        box_format: one of `BOX_FORMATS`.
        width, height: of the image, in pixels; needed where the box is a share of it, and used to doubt boxes in
            pixels that all lie in 0..1.

    Raises:
        ValueError: it is not four numbers, or not within what the format says.
    """
    raw = numbers_of(box)
    layout, full = layout_and_full(box_format)
    xyxy = LAYOUTS[layout](raw)
    if full is None:
        _refuse_shares(raw, box_format, width, height)
        return xyxy
    if width is None or height is None or not all(abs(value) <= 2 * full for value in xyxy):
        raise ValueError(f"box {shown(box)} is not within 0..{full}, as box_format={box_format!r} says")
    return [edge * side / full for edge, side in zip(xyxy, (width, height) * 2, strict=True)]


def may_be_shares(raw: Sequence[float]) -> bool:
    """Whether four numbers of a box in pixels all lie in 0..1, which only the size of the image can excuse."""
    return min(raw) >= 0 and max(raw) <= 1


def _refuse_shares(raw: list[float], box_format: str, width: int | None, height: int | None) -> None:
    if not may_be_shares(raw) or width is None or height is None or min(width, height) <= SMALLEST_DOUBTFUL_SIDE:
        return
    likely = [f"{box_format}_normalized"]
    if box_format == "xyxy" and (raw[2] <= raw[0] or raw[3] <= raw[1]):
        likely = ["xywh_normalized", "cxcywh_normalized"]
    raise ValueError(
        f"box {raw} lies within the first pixel of its image of {width} x {height}, read as {box_format} in pixels; "
        f"is it box_format={' or '.join(map(repr, likely))}?"
    )


def fits(raw: Sequence[float], width: int, height: int, box_format: str) -> bool:
    """Whether four numbers are a possible box of an image in a format."""
    try:
        x1, y1, x2, y2 = to_pixels(list(raw), box_format, width, height)
    except ValueError:
        return False
    inside = min(x1, y1, width - x2, height - y2) >= -TOLERANCE_PIXELS
    return all(map(math.isfinite, raw)) and inside and x2 > x1 and y2 > y1


def possible_formats(looks: Sequence[Look]) -> list[str]:
    """The formats in which every one of the boxes is possible; several where the numbers cannot tell."""
    return [name for name in BOX_FORMATS if all(fits(*look, name) for look in looks)]


def refuse_contradicted(looks: Iterable[Look], box_format: str, source: str) -> None:
    """Refuse a format that a look at the boxes of a file contradicts, and name the one that fits.

    Single wrong boxes are left to the rows: refused is a file only where many boxes are impossible as claimed and all
    are possible otherwise, or where boxes in pixels crowd in the corner that another unit would spread over the image.

    Args:
        looks: (four numbers, width, height in pixels) of boxes all over the file.
        box_format: what was said.
        source: for the message.

    Raises:
        ValueError: another format fits.
    """
    looks = list(looks)
    wrong = sum(not fits(*look, box_format) for look in looks)
    count = f"{len(looks):,} boxes looked at"
    if len(looks) >= FEWEST_BOXES and wrong >= WRONG_SHARE * len(looks):
        others = possible_formats(looks)
        # Read as shares of 1000, say, much is possible: corners that were exchanged are likelier.
        if box_format == "xyxy" and not {"xywh", "cxcywh"} & set(others) and all(map(_is_exchanged, looks)):
            raise ValueError(
                f"{source}: {wrong:,} of the {count} have x1 > x2 and y1 > y2: their corners are exchanged; write the "
                "upper left one first, or pass check_format=False to have wrong rows named one by one."
            )
        if others:
            raise ValueError(
                f"{source}: {wrong:,} of the {count} cannot be {box_format}, and all are possible as "
                f"{' or '.join(others)}; say box_format={others[0]!r}, or check_format=False to have wrong rows "
                "named one by one."
            )
    layout, full = layout_and_full(box_format)
    if full is None and wrong == 0 and len(looks) >= FEWEST_FOR_SCALE:
        for name, most in ((f"{layout}_100", 100), (f"{layout}_1000", 1000)):
            if _crowded(looks, layout, most) and all(fits(*look, name) for look in looks):
                raise ValueError(
                    f"{source}: the numbers of the {count} end at {most}, in images of at least "
                    f"{min(min(look[1:]) for look in looks)} pixels: they are probably {name}, not pixels; say "
                    f"box_format={name!r}, or check_format=False if they really are pixels."
                )


def _is_exchanged(look: Look) -> bool:
    """Whether two corners in pixels are possible the other way round: (x2, y2, x1, y1)."""
    raw, width, height = look
    return fits([*raw[2:], *raw[:2]], width, height, "xyxy")


def _crowded(looks: Sequence[Look], layout: str, most: int) -> bool:
    """Whether boxes reach up to `most` and no further, in images more than twice as large."""
    largest = max(max(LAYOUTS[layout](raw)) for raw, _, _ in looks)
    return 0.8 * most <= largest <= most and min(min(width, height) for _, width, height in looks) > 2 * most
