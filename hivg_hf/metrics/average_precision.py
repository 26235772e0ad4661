"""Average precision of sets of boxes: one phrase, none, one or many targets, every predicted box with its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .no_target import OVERLAP_THRESHOLD, all_targets, overlap_table, predicted_set
from .protocols import MetricProtocol

RECALL_POINTS = np.linspace(0, 1, 101)  # COCO's


def average_precision(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], protocol: MetricProtocol
) -> float | None:
    """AP at an overlap of 0.5 over all rows, as COCO defines it for one class with a row in the place of an image.

    Boxes are ranked by score over all rows. One is right when it overlaps a target of its row that no better scored
    box has taken; it takes the one that it overlaps most. Precision is made monotonous from the right and averaged
    over 101 recalls. Boxes of rows without target are wrong answers, so saying nothing there is worth something.

    Returns:
        AP in 0..1; None where no row has a target, or a box has no score.
    """
    total, scores, right = 0, [], []
    for prediction, reference in zip(predictions, references, strict=True):
        boxes, confidences = predicted_set(prediction, reference, protocol)
        if confidences is None:
            return None
        targets = all_targets(reference)
        total += len(targets)
        order = np.argsort(-confidences, kind="stable")
        scores.append(confidences[order])
        right.append(_taken(overlap_table(boxes[order], targets, protocol)))
    if total == 0:
        return None
    return _area(np.concatenate(scores), np.concatenate(right), total)


def _taken(table: np.ndarray) -> np.ndarray:
    """Whether each box of a row, best first, takes a target; table (P, T) of overlaps -> (P,) bool."""
    table = table.copy()
    taken = np.zeros(len(table), dtype=bool)
    for place, overlaps in enumerate(table):
        if len(overlaps) and overlaps.max() >= OVERLAP_THRESHOLD:
            taken[place] = True
            table[:, int(overlaps.argmax())] = -np.inf
    return taken


def _area(scores: np.ndarray, right: np.ndarray, total: int) -> float:
    """Mean precision over `RECALL_POINTS` of boxes (N,) ranked by score, with `total` targets."""
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])  # (N,)
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / total, RECALL_POINTS, side="left")
    return float(np.where(places < len(hits), np.append(precision, 0.0)[np.minimum(places, len(hits))], 0.0).mean())
