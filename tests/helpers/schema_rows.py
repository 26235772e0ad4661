"""What every row of the one schema says, whoever made it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hivg_hf.data.schema import FEATURES


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
