"""Two sets of predictions of the same expressions, compared row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from hivg_hf.metrics import RowScores, get_protocol, ratio_difference_intervals
from hivg_hf.metrics.bootstrap import DEFAULT_RESAMPLES


def compare_rows(
    first: RowScores,
    second: RowScores,
    protocol: str = "pixel",
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired comparison: figures of both, their difference (second minus first) and its 95 percent interval.

    Args:
        first, second: scored rows of the same references, in the same order.
        protocol: the one they were scored under.
        resamples, seed: of the bootstrap over images.

    Returns:
        `{"n", "figures": {name: {"first", "second", "difference", "interval"}}, "agreement": {"both", "only_first",
        "only_second", "neither"}}`.

    Raises:
        ValueError: the rows are not the same expressions and boxes.
    """
    _check_same(first, second)
    rules = get_protocol(protocol)
    pairs = {
        f"acc@{threshold}": tuple(rows.correct(rules, threshold).astype(float) for rows in (first, second))
        for threshold in rules.thresholds
    }
    pairs["mean_iou"] = tuple(np.nan_to_num(rows.ious).astype(float) for rows in (first, second))
    denominators = {name: first.has_box.astype(float) for name in pairs}
    if not (np.isnan(first.masks).all() or np.isnan(second.masks).all()):
        pairs["mask_miou"] = tuple(np.nan_to_num(rows.mask_ious()) for rows in (first, second))
        denominators["mask_miou"] = (~np.isnan(first.masks[:, 0])).astype(float)
    firsts, seconds = (np.stack([pair[side] for pair in pairs.values()], axis=1) for side in (0, 1))  # (N, K)
    bottoms = np.stack([denominators[name] for name in pairs], axis=1)
    intervals = ratio_difference_intervals(seconds, firsts, bottoms, first.clusters(), resamples, seed)
    figures = {}
    for index, name in enumerate(pairs):
        total = bottoms[:, index].sum()
        if total:
            values = float(firsts[:, index].sum() / total), float(seconds[:, index].sum() / total)
            figures[name] = {
                "first": values[0],
                "second": values[1],
                "difference": values[1] - values[0],
                "interval": [float(bound) for bound in intervals[index]],
            }
    right = [rows.correct(rules)[first.has_box] for rows in (first, second)]
    return {
        "n": int(first.has_box.sum()),
        "figures": figures,
        "agreement": {
            "both": int((right[0] & right[1]).sum()),
            "only_first": int((right[0] & ~right[1]).sum()),
            "only_second": int((~right[0] & right[1]).sum()),
            "neither": int((~right[0] & ~right[1]).sum()),
        },
    }


def disagreements(first: RowScores, second: RowScores, protocol: str = "pixel") -> list[int]:
    """Rows that one side gets right and the other wrong, those with the largest difference in IoU first."""
    right = [rows.correct(protocol) for rows in (first, second)]
    differ = np.flatnonzero((right[0] != right[1]) & first.has_box)
    gaps = np.abs(first.ious[differ] - second.ious[differ])
    return [int(index) for index in differ[np.argsort(-gaps, kind="stable")]]


def _check_same(first: RowScores, second: RowScores) -> None:
    if first.ids != second.ids:
        different = [pair for pair in zip(first.ids, second.ids, strict=False) if pair[0] != pair[1]]
        raise ValueError(
            f"A comparison needs the same rows on both sides: {len(first.ids)} and {len(second.ids)} rows"
            + (f", the first that differ: {different[0][0]!r} and {different[0][1]!r}." if different else ".")
        )
    for one, other in zip(first.references, second.references, strict=True):
        for key in ("expression", "box"):
            if one.get(key) != other.get(key):
                raise ValueError(
                    f"A comparison needs the same expressions and boxes on both sides: row {one['id']!r} has the "
                    f"{key} {one.get(key)!r} on one side and {other.get(key)!r} on the other."
                )
