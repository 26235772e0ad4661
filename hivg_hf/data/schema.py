"""The one schema of a grounding row, and the run-length masks in it.

Every annotation format is read once, into rows of `FEATURES`; everything after that (processor, collator, metrics)
knows only this. Coordinates are xyxy pixels of the original image; a missing box is None, never zeros. Masks are
COCO's compressed run-length encoding (Lin et al., 2014), made and read by pycocotools.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value

from hivg_hf.utils.imports import require_package

# A picture or a mask of more pixels than this is not read: PIL refuses to decode such pictures too.
MOST_PIXELS = 178_956_970

# COCO's compressed run-length encoding: `size` is [height, width], `counts` its ASCII string.
MASK_FEATURE = {"size": List(Value("int32"), length=2), "counts": Value("string")}

FEATURES = Features(
    {
        "image": Image(),
        "expression": Value("string"),
        "box": List(Value("float32"), length=4),  # xyxy pixels of the original image, None without a target
        "boxes": List(List(Value("float32"), length=4)),  # every target, [] for none
        "no_target": Value("bool"),
        "mask": MASK_FEATURE,  # None where the source has none
        "width": Value("int32"),
        "height": Value("int32"),
        "category": Value("string"),
        "image_id": Value("string"),
        "ref_id": Value("string"),
        "sent_id": Value("string"),
        "source": Value("string"),
        "split": Value("string"),
    }
)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a binary mask (height, width) as COCO run lengths, `{"size": [height, width], "counts": str}`.

    Raises:
        ValueError: `mask` is not two-dimensional.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask needs the shape (height, width), got {mask.shape}.")
    coco = require_package("pycocotools.mask", extra="data")
    encoded = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(mask: Mapping[str, Any]) -> np.ndarray:
    """Decode COCO run lengths to a bool array (height, width).

    Raises:
        ValueError: `mask` lacks `size` or `counts`, or they do not describe a mask.
    """
    coco = require_package("pycocotools.mask", extra="data")
    return coco.decode(checked_run_lengths(mask)).astype(bool)


def checked_run_lengths(
    mask: Mapping[str, Any], height: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """Run lengths in the form that pycocotools takes, after the checks that it leaves out.

    pycocotools believes what it is given: runs that do not add up to the picture leave uninitialized memory in the
    mask, and merging such masks ends the process.

    Args:
        mask: `size` [height, width] with `counts`, a list of run lengths or their compressed string.
        height, width: what `size` has to be, in pixels; any size without them.

    Returns:
        `{"size": [height, width], "counts": bytes}`.

    Raises:
        ValueError: the size is not two whole numbers of pixels or not the picture's, the string is damaged, a run is
            negative, or the runs do not add up to height x width.
    """
    if not isinstance(mask, Mapping) or "size" not in mask or "counts" not in mask:
        keys = sorted(map(str, mask)) if isinstance(mask, Mapping) else type(mask).__name__
        raise ValueError(f"a run-length mask needs the keys 'size' and 'counts', got {keys}.")
    size = _mask_size(mask["size"])
    if height is not None and width is not None and size != [height, width]:
        raise ValueError(f"its mask is {size[1]} x {size[0]}, its image {width} x {height}")
    counts = mask["counts"]
    runs = _uncompressed(counts) if isinstance(counts, (str, bytes)) else _whole_runs(counts)
    if (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        raise ValueError(
            f"the runs of its mask are not those of {size[0]} x {size[1]} pixels: they add up to {int(runs.sum())}, "
            f"expected {size[0] * size[1]}" + (", and some are negative" if (runs < 0).any() else "")
        )
    if isinstance(counts, (str, bytes)):
        return {"size": size, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    coco = require_package("pycocotools.mask", extra="data")
    return coco.frPyObjects({"size": size, "counts": runs.tolist()}, *size)


def _mask_size(size: Any) -> list[int]:
    sides = size.tolist() if isinstance(size, np.ndarray) else size
    whole = isinstance(sides, (list, tuple)) and len(sides) == 2 and all(_is_whole(side) for side in sides)
    if not whole or min(sides) < 1 or sides[0] * sides[1] > MOST_PIXELS:
        raise ValueError(f"the size of its mask is {shown(size)}, expected [height, width] in whole pixels")
    return [int(side) for side in sides]


def _whole_runs(counts: Any) -> np.ndarray:
    """A list of run lengths -> (runs,) int64."""
    counts = counts.tolist() if isinstance(counts, np.ndarray) else counts
    if not isinstance(counts, (list, tuple)) or not all(_is_whole(run) and abs(run) <= MOST_PIXELS for run in counts):
        raise ValueError(f"the runs of its mask are {shown(counts)}, expected a list of whole numbers or their string")
    return np.asarray(counts, dtype=np.int64)


def _uncompressed(counts: str | bytes) -> np.ndarray:
    """The run lengths (runs,) int64 of COCO's compressed string.

    Five bits a character, the lowest first, from "0" on; the sixth bit says that more follow, the fifth of the last
    character is the sign. From the fourth run on, differences to the run two before are stored.
    Official: cocoapi common/maskApi.c, rleToString
    """
    try:
        codes = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8)
    except UnicodeEncodeError as error:
        raise ValueError(f"the run lengths {shown(counts)} of its mask are damaged") from error
    digits = codes.astype(np.int64) - ord("0")
    is_last = (digits & 32) == 0
    starts = np.flatnonzero(np.concatenate([[True], is_last[:-1]])) if len(digits) else np.empty(0, dtype=np.int64)
    place = np.arange(len(digits)) - np.repeat(starts, np.diff([*starts, len(digits)]))
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not is_last[-1] or place.max() > 6:
        raise ValueError(f"the run lengths {shown(counts)} of its mask are damaged")
    values = np.add.reduceat((digits & 31) << (5 * place), starts)  # (runs,)
    ends = np.append(starts[1:], len(digits)) - 1
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class _Shown(reprlib.Repr):
    """Values cut short; of a picture's bytes, how many there are."""

    def repr_bytes(self, value: Any, level: int) -> str:
        return f"<{len(value):,} bytes>"

    repr_bytearray = repr_memoryview = repr_bytes


def shown(value: Any, characters: int = 80) -> str:
    """A value as messages show it: cut, since files hold cells of megabytes and lists in a thousand lists."""
    try:
        text = _Shown().repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = f"a number of about {len(hex(value)) * 1.2:,.0f} digits" if isinstance(value, int) else "a huge number"
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def shown_text(text: str, characters: int = 300) -> str:
    """Text in a message: cut, and without the halves of characters that no terminal can print."""
    text = text if len(text) <= characters else f"{text[: characters - 3]}..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def mask_to_box(mask: np.ndarray) -> list[float] | None:
    """Return the box (xyxy pixels, right and bottom edge exclusive) around a mask's pixels, None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
