"""The one schema of a grounding row, and the run-length masks in it.

Every annotation format is read once, into rows of `FEATURES`; everything after that (processor, collator, metrics)
knows only this. Coordinates are xyxy pixels of the original image; a missing box is None, never zeros. Masks are
COCO's compressed run-length encoding (Lin et al., 2014), made and read by pycocotools.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value

from hivg_hf.import_utils import require_package

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
    if "size" not in mask or "counts" not in mask:
        raise ValueError(f"a run-length mask needs the keys 'size' and 'counts', got {sorted(mask)}.")
    coco = require_package("pycocotools.mask", extra="data")
    counts = mask["counts"]
    encoded = {"size": list(mask["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return coco.decode(encoded).astype(bool)


def mask_to_box(mask: np.ndarray) -> list[float] | None:
    """Return the box (xyxy pixels, right and bottom edge exclusive) around a mask's pixels, None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def validate_row(row: Mapping[str, Any]) -> None:
    """Check that a row says one consistent thing: its columns, its target, its box and its mask.

    Raises:
        ValueError: a column is missing or unknown, the expression is blank, `no_target` contradicts `box` or `boxes`,
            a box is not finite or has no area, or the mask has another size than the image.
    """
    name = f"row {row.get('sent_id')!r} of {row.get('source')!r}"
    if set(row) != set(FEATURES):
        raise ValueError(
            f"{name}: missing columns {sorted(set(FEATURES) - set(row))}, unknown columns "
            f"{sorted(set(row) - set(FEATURES))}; expected exactly those of hivg_hf.data.schema.FEATURES."
        )
    if not row["expression"] or not row["expression"].strip():
        raise ValueError(f"{name}: the expression is blank; expected words that name one object.")
    several = row["box"] is None and len(row["boxes"]) > 1  # read with multi_target="keep"
    if row["no_target"] != (len(row["boxes"]) == 0) or (row["no_target"] != (row["box"] is None) and not several):
        raise ValueError(f"{name}: no_target={row['no_target']} contradicts box={row['box']}, boxes={row['boxes']}.")
    for box in row["boxes"] if row["box"] is None else [row["box"], *row["boxes"]]:
        if not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"{name}: box {list(box)} has no area; expected xyxy pixels with x1 < x2 and y1 < y2.")
    if row["mask"] is not None and list(row["mask"]["size"]) != [row["height"], row["width"]]:
        raise ValueError(
            f"{name}: the mask has size {list(row['mask']['size'])}, the image [{row['height']}, {row['width']}]."
        )
