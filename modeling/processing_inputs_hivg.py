"""What users pass to the processor beside images, as plain rows: expressions, boxes and masks in their many forms."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import PIL.Image
import torch

from .image_sources_hivg import shown

# What other processors call the threshold of a score.
NAMES_OF_THRESHOLD = frozenset(("box_threshold", "text_threshold", "score_threshold", "box_score_threshold"))
# In a larger image, a box within its first pixel is a share of the image and not pixels.
SMALLEST_DOUBTFUL_SIDE = 8
IMAGE_TYPES = (PIL.Image.Image, np.ndarray, torch.Tensor, bytes, bytearray)


def expression_rows(text: Any, images: int | None) -> tuple[list[Any], list[int] | None]:
    """Texts as a flat list, and which image each belongs to.

    Args:
        text: One expression; a list, one per image or several of the only image; or a list of lists, those of each
            image.
        images: How many images there are, or None where there are none to pair with.

    Returns:
        The expressions, and the image of each, or None where expression i belongs to image i.

    Raises:
        TypeError: If images and texts are swapped.
        ValueError: If their numbers do not fit.
    """
    texts = [text] if isinstance(text, str) else text
    if isinstance(texts, np.ndarray) and texts.dtype.kind in "UO":
        texts = texts.tolist()
    if isinstance(texts, IMAGE_TYPES) or not hasattr(texts, "__iter__") or hasattr(texts, "keys"):
        raise TypeError(swapped(texts) if isinstance(texts, IMAGE_TYPES) else _no_text(texts))
    texts = list(texts)
    picture = next((entry for entry in texts if isinstance(entry, IMAGE_TYPES)), None)
    if picture is not None:
        raise TypeError(swapped(picture))
    if not any(isinstance(entry, (list, tuple)) for entry in texts):
        if images is None or len(texts) == images:
            return texts, None
        if images == 1:
            return texts, [0] * len(texts)
        raise ValueError(
            f"Got {images} images and {len(texts)} expressions. Pass one expression per image, or a list of "
            "expressions for each image."
        )
    groups = [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in texts]
    if images is not None and len(groups) != images:
        raise ValueError(f"Got {images} images and lists of expressions for {len(groups)}: pass one list per image.")
    if not all(groups):
        raise ValueError(f"Image {groups.index([])} has no expression: its list is empty.")
    index = [image for image, group in enumerate(groups) for _ in group]
    return [entry for group in groups for entry in group], None if index == list(range(len(groups))) else index


def swapped(value: Any) -> str:
    """What to say where an image stands in the place of the text."""
    what = shown(value, 80) if isinstance(value, str) else type(value).__name__
    return (
        f"Got an image ({what}) as text: images come first, then expressions. Pass the two the other way round, or by "
        "name, images=... and text=...."
    )


def _no_text(value: Any) -> str:
    return f"The text must be a string, a list of strings, or a list of strings per image, not {type(value).__name__}."


def box_rows(boxes: Any, rows: int) -> Any:
    """Boxes as a list with one entry per row, a box, a list of boxes or None: a single box is a list of it, lists for
    each image are joined."""
    if boxes is None:
        return None
    if _is_box(boxes):
        return [boxes]
    boxes = list(boxes)
    if len(boxes) != rows and all(box is not None and not _is_box(box) for box in boxes):
        return [box for group in boxes for box in group]  # one list per image
    return boxes


def _is_box(value: Any) -> bool:
    if hasattr(value, "ndim") and hasattr(value, "shape"):
        return tuple(value.shape) == (4,)
    return (
        isinstance(value, Sequence)
        and len(value) == 4
        and all(isinstance(number, Real) or getattr(number, "ndim", None) == 0 for number in value)
    )


def mask_rows(masks: Any, rows: int) -> list[np.ndarray | None] | None:
    """Masks (PIL images, arrays or tensors, nonzero = target) as one array (height, width) or None per row."""
    if masks is None:
        return None
    if isinstance(masks, PIL.Image.Image) or getattr(masks, "ndim", 0) == 2:
        masks = [masks]
    masks = list(masks)
    if len(masks) != rows and all(isinstance(group, (list, tuple)) for group in masks):
        masks = [mask for group in masks for mask in group]  # one list per image
    return [None if mask is None else _mask_array(mask) for mask in masks]


def _mask_array(mask: Any) -> np.ndarray:
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
    array = np.asarray(mask)
    return array[0] if array.ndim == 3 and len(array) == 1 else array  # (1, H, W) -> (H, W)


def checked_boxes(boxes: Any, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """A box, a list of boxes or None per row -> float64 (B, 4), or (B, M, 4) where a row has several; NaN where there
    is none.

    Raises:
        ValueError: If the number differs, or a box is not finite, has no area, or lies outside its image.
    """
    if len(boxes) != len(sizes):
        raise ValueError(
            f"Got {len(sizes)} images and {len(boxes)} boxes: give one box (or None) per image; where an image has "
            "several expressions, one per expression."
        )
    found = [_row_boxes(row, box, size) for row, (box, size) in enumerate(zip(boxes, sizes))]
    rows = torch.full((len(sizes), max(map(len, found), default=0) or 1, 4), math.nan, dtype=torch.float64)
    for row, values in enumerate(found):
        rows[row, : len(values)] = values
    return rows if rows.shape[1] > 1 else rows[:, 0]


def _row_boxes(row: int, box: Any, size: tuple[int, int]) -> torch.Tensor:
    """The boxes of one row, float64 (N, 4); a box of NaN is none."""
    height, width = size
    values = torch.zeros(0, 4) if box is None else _box_values(row, box)
    values = values[~values.isnan().all(1)]
    for x1, y1, x2, y2 in values.tolist():
        if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
            raise ValueError(
                f"Box {row} must be finite with x1 < x2 and y1 < y2 (xyxy pixels), got {[x1, y1, x2, y2]}."
            )
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(f"Box {row} {[x1, y1, x2, y2]} lies outside its image of {width} x {height} pixels.")
        if max(x2, y2) <= 1 and min(height, width) > SMALLEST_DOUBTFUL_SIDE:
            raise ValueError(
                f"Box {row} {[x1, y1, x2, y2]} lies within the first pixel of its image of {width} x {height}: boxes "
                "are x1, y1, x2, y2 in pixels; multiply shares of the image by its width and height."
            )
    return values


def _box_values(row: int, box: Any) -> torch.Tensor:
    try:
        if isinstance(box, torch.Tensor):
            values = box.detach().cpu().double()
        else:
            values = torch.from_numpy(np.asarray(box, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"Box {row} must be four numbers (x1, y1, x2, y2), got {str(box)[:80]}.") from None
    if values.shape == (4,) or values.numel() == 0:  # an empty list: the expression names nothing
        values = values.reshape(-1, 4)
    if values.ndim != 2 or values.shape[1] != 4:
        raise ValueError(f"Box {row} must be four numbers (x1, y1, x2, y2), got shape {tuple(values.shape)}.")
    return values


def check_threshold(threshold: Any, name: str = "threshold") -> None:
    """Refuse a threshold that no score, a number from 0 to 1, can be compared with: NaN finds nothing, in silence.

    Raises:
        ValueError: If it is not a number from 0 to 1, or None.
    """
    is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if threshold is not None and not (is_number and 0 <= threshold <= 1):
        raise ValueError(f"{name} must be a number from 0 to 1, got {threshold!r:.80}.")


def refuse_options(where: str, options: Mapping[str, Any], hint: str = "") -> None:
    """Refuse options that are not known.

    Args:
        where: What was called.
        options: What it was given and does not know, by name.
        hint: What to do instead, of all of them.

    Raises:
        TypeError: If there is one.
    """
    if not options:
        return
    if NAMES_OF_THRESHOLD.intersection(options):
        hint = "An expression has one score for each box: pass threshold=..."
    raise TypeError(f"{where} has no option {', '.join(map(repr, options))}.{hint and ' '}{hint}")


__all__ = ["box_rows", "check_threshold", "checked_boxes", "expression_rows", "mask_rows", "refuse_options", "swapped"]
