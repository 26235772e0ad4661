"""Figures, intervals and breakdowns: ratios of sums over scored rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import DEFAULT_RESAMPLES, ratio_intervals
from .buckets import BREAKDOWNS
from .no_target import score_auc
from .protocols import MACC_THRESHOLDS, MetricProtocol, get_protocol
from .scoring import RowScores, score_rows

Column = tuple[np.ndarray, np.ndarray]  # (N,) what each row adds above and below the line


def compute_grounding_metrics(
    predictions: Iterable[Mapping[str, Any]],
    references: Iterable[Mapping[str, Any]],
    protocol: str | MetricProtocol = "pixel",
    *,
    score_threshold: float | None = None,
    multiple_threshold: float | None = None,
    several_targets: str = "skip",
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every grounding figure of one set of predictions.

    Args:
        predictions: one per reference: `{"id", "box_xyxy"}` (xyxy pixels of the original image), optionally `score`,
            `mask` ((H, W) array or run-length dict), `boxes_xyxy` with `scores` (several boxes per expression, for
            gRefCOCO and AP) and `masks` (of each of them; a row of several targets is compared with the union of those
            that are answered), and for the protocol "official" `canvas_box` (cxcywh, 0..1 of the padded square,
            unclipped) with `canvas_size` and `canvas_offset` (left, top) in pixels of the square. Without these the
            pixel box is mapped to a centered square of 224, and a box clipped to the image stays clipped.
        references: schema rows with an `id`: `box` (or `box_xyxy`), `boxes`, `no_target`, `mask`, `width`, `height`,
            `expression`, `category`, `source`, `image_id`. Only `id` and `box` are required; a figure whose columns
            are absent is left out.
        protocol: "pixel", "official", "mdetr" or "ref-l4".
        score_threshold: a box whose score is lower counts as "nothing here matches". Needed for the figures about
            expressions without a target (F1 precision, N-acc, T-acc). gRefCOCO's authors use 0.7 for their model.
        multiple_threshold: where a row's best box reaches `score_threshold`, what its further boxes need. None: the
            same.
        several_targets: what accuracy does with a row of several target boxes: "skip" it, or "any": the best one
            counts (Flickr30K Entities' ANY-BOX; for MERGED-BOX load the data with their union).
        resamples, seed: of the bootstrap; 0 resamples gives no intervals.

    Returns:
        `{"protocol", "counts", "figures", "intervals", "notes", "breakdowns", "bootstrap"}`; figures are
        fractions of 1. An empty sum (no row with a target, say) leaves its figures out: none is ever NaN.

    Raises:
        ValueError: ids are missing, unknown or repeated, numbers are NaN or infinite, or a box is inverted; the
            message lists the ids.
    """
    rows = score_rows(
        predictions,
        references,
        protocol,
        score_threshold=score_threshold,
        multiple_threshold=multiple_threshold,
        several_targets=several_targets,
    )
    return summarize_rows(rows, protocol, resamples=resamples, seed=seed)


def summarize_rows(
    rows: RowScores, protocol: str | MetricProtocol, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Figures, intervals and breakdowns of scored rows; see `compute_grounding_metrics`."""
    protocol = get_protocol(protocol)
    figures = _figure_columns(rows, protocol)
    buckets = {
        (breakdown, name): member
        for breakdown, assign in BREAKDOWNS.items()
        for name, member in assign(rows.references, protocol).items()
    }
    correct, clusters = rows.correct(protocol), rows.clusters()
    bucket_columns = [(correct & member, rows.has_box & member) for member in buckets.values()]
    ratios = _ratios([*figures.values(), *bucket_columns], clusters, resamples, seed)
    of_figures = {name: ratio for name, ratio in zip(figures, ratios[: len(figures)], strict=True) if ratio}
    of_buckets = {key: ratio for key, ratio in zip(buckets, ratios[len(figures) :], strict=True) if ratio}
    breakdowns: dict[str, dict[str, Any]] = {}
    for (breakdown, name), ratio in of_buckets.items():
        breakdowns.setdefault(breakdown, {})[name] = {
            "n": int(ratio.rows),
            "acc@0.5": ratio.value,
            "mean_iou": float(np.mean(rows.ious[buckets[breakdown, name] & rows.has_box])),
            "macc": float(np.mean(figures["macc"][0][buckets[breakdown, name] & rows.has_box])),
            **({"interval": ratio.interval} if ratio.interval else {}),
        }
    values = {name: ratio.value for name, ratio in of_figures.items()} | _unsummed_figures(rows, protocol)
    return {
        "protocol": protocol.name,
        "counts": _counts(rows, clusters),
        "figures": values,
        "notes": _notes(rows, values),
        "intervals": {name: ratio.interval for name, ratio in of_figures.items() if ratio.interval},
        "breakdowns": breakdowns,
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95, "unit": "image"},
    }


class _Ratio(NamedTuple):
    """A sum over rows by another, and its 95 % interval; None where no resample holds a row of a rare bucket."""

    value: float
    rows: float
    interval: list[float] | None


def _ratios(columns: list[Column], clusters: list[Any], resamples: int, seed: int) -> list[_Ratio | None]:
    """The ratio of each column; None where it divides by nothing. All columns are resampled alike."""
    numerators, denominators = (np.stack(side, axis=1).astype(float) for side in zip(*columns, strict=True))
    intervals = ratio_intervals(numerators, denominators, clusters, resamples, seed) if resamples else None
    found: list[_Ratio | None] = []
    for index, (top, bottom) in enumerate(zip(numerators.sum(axis=0), denominators.sum(axis=0), strict=True)):
        known = intervals is not None and not np.isnan(intervals[index]).any()
        interval = [float(bound) for bound in intervals[index]] if known else None
        found.append(_Ratio(float(top / bottom), float(bottom), interval) if bottom > 0 else None)
    return found


def _figure_columns(rows: RowScores, protocol: MetricProtocol) -> dict[str, Column]:
    """Every figure as (numerators (N,), denominators (N,))."""
    columns: dict[str, Column] = {
        f"acc@{threshold}": (rows.correct(protocol, threshold), rows.has_box) for threshold in protocol.thresholds
    }
    passed = np.mean([rows.correct(protocol, threshold) for threshold in MACC_THRESHOLDS], axis=0)
    columns["macc"] = (passed, rows.has_box)
    columns["mean_iou"] = (np.nan_to_num(rows.ious), rows.has_box)
    columns["center_acc"] = (np.nan_to_num(rows.centered), rows.has_box)
    has_mask = ~np.isnan(rows.masks[:, 0])
    shared, covered = np.nan_to_num(rows.masks).T
    columns["mask_miou"] = (np.nan_to_num(rows.mask_ious()), has_mask)
    columns["mask_oiou"] = (shared, covered)
    columns.update(rows.extra)
    return columns


def _unsummed_figures(rows: RowScores, protocol: MetricProtocol) -> dict[str, float]:
    """Figures that are no ratio of sums: class averages of Ref-L4, AP of sets of boxes, the score's ROC curve."""
    figures = {}
    if protocol.class_average:
        classes = BREAKDOWNS["category"](rows.references, protocol).values()
        members = [member & rows.has_box for member in classes if (member & rows.has_box).any()]
        if members:
            correct = [rows.correct(protocol, threshold) for threshold in MACC_THRESHOLDS]
            per_class = np.array([[passed[member].mean() for passed in correct] for member in members])  # (C, 10)
            figures["class_acc@0.5"], figures["class_macc"] = float(per_class[:, 0].mean()), float(per_class.mean())
    if rows.average_precision is not None:
        figures["ap@0.5"] = rows.average_precision
    judged = ~np.isnan(rows.scores) & (rows.has_box | _no_target(rows))
    correct = rows.correct(protocol)[judged]
    if correct.any() and not correct.all():
        figures["score_auc"] = score_auc(rows.scores[judged], correct)
    return figures


def _notes(rows: RowScores, figures: Mapping[str, float]) -> dict[str, str]:
    """Figure -> a sentence that belongs beside it."""
    several = sum(len(reference.get("boxes") or []) > 1 for reference in rows.references)
    if "f1_precision" not in figures or not several or rows.several_boxes:
        return {}
    return {
        "f1_precision": f"{several:,} rows have several targets and the model gives one box, so their F1 is 0 by "
        "construction."
    }


def _no_target(rows: RowScores) -> np.ndarray:
    return np.array([bool(reference.get("no_target")) for reference in rows.references], dtype=bool)


def _counts(rows: RowScores, clusters: list[Any]) -> dict[str, int]:
    no_target = _no_target(rows)
    return {
        "rows": len(rows.ids),
        "one_target": int(rows.has_box.sum()),
        "no_target": int(no_target.sum()),
        "skipped_several_targets": int((~rows.has_box & ~no_target).sum()),
        "masks": int((~np.isnan(rows.masks[:, 0])).sum()),
        "images": len(set(clusters)),
    }
