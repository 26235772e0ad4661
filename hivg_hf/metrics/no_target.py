"""Figures about expressions that name nothing, or several things, and about what a score is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .overlaps import clip_boxes, paired_giou, paired_iou
from .protocols import MetricProtocol
from .score_curves import matthews_correlation

OVERLAP_THRESHOLD = 0.5


def no_target_columns(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    protocol: MetricProtocol,
    score_threshold: float,
    multiple_threshold: float | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """gRefCOCO's three figures as (numerators (N,), denominators (N,)).

    - `f1_precision` ("Pr@(F1=1, IoU>=0.5)"): rows whose boxes are found one for one, nothing missed and nothing more;
      a row without target is right when no box passes the score threshold.
    - `n_acc`: rows without target for which nothing is predicted, among rows without target.
    - `t_acc`: rows with targets for which something is predicted, among rows with targets.

    Official: gRefCOCO mdetr/datasets/refexp.py (there by GIoU: the protocol "mdetr"; a class without rows divides by
    zero there, here its figure is left out).

    Args:
        predictions, references, protocol: as in `compute_grounding_metrics`.
        score_threshold: rows whose best box scores lower are unanswered.
        multiple_threshold: what the further boxes of the others need. None: the same.

    Raises:
        ValueError: a prediction has no score.
    """
    unscored = [row["id"] for row in predictions if row.get("score") is None and row.get("scores") is None]
    if unscored:
        raise ValueError(
            f"A score threshold needs a score for every prediction; {len(unscored)} have none: {unscored[:10]}."
        )
    sets = [predicted_set(*pair, protocol) for pair in zip(predictions, references, strict=True)]
    kept = [
        boxes[answered_boxes(scores, score_threshold, multiple_threshold)]
        for boxes, scores in sets
        if scores is not None
    ]
    targets = [all_targets(reference) for reference in references]
    no_target = np.array([len(boxes) == 0 for boxes in targets], dtype=bool)
    answered = np.array([len(boxes) > 0 for boxes in kept], dtype=bool)
    perfect = np.array(
        [
            count_matches(boxes, wanted, protocol) == len(wanted) == len(boxes)
            for boxes, wanted in zip(kept, targets, strict=True)
        ],
        dtype=bool,
    )
    return {
        "f1_precision": (perfect, np.ones(len(kept))),
        "n_acc": (no_target & ~answered, no_target),
        "t_acc": (~no_target & answered, ~no_target),
    }


def answered_boxes(scores: np.ndarray, score_threshold: float, multiple_threshold: float | None) -> np.ndarray:
    """Which boxes (P,) of one row are its answer: none unless the best reaches the first threshold, then every one
    that reaches the second, as in `HiVGProcessor.post_process_grounding`."""
    if len(scores) == 0 or scores.max() < score_threshold:
        return np.zeros(len(scores), dtype=bool)
    answer = scores >= (score_threshold if multiple_threshold is None else multiple_threshold)
    answer[scores.argmax()] = True
    return answer


def count_matches(boxes: np.ndarray, targets: np.ndarray, protocol: MetricProtocol) -> int:
    """Pairs of predicted and target boxes taken greedily, best overlap first, while it is at least 0.5."""
    table = overlap_table(boxes, targets, protocol)
    matches = 0
    while matches < min(table.shape):
        best = np.unravel_index(np.argmax(table), table.shape)
        if table[best] < OVERLAP_THRESHOLD:
            break
        matches += 1
        table[best[0], :], table[:, best[1]] = -np.inf, -np.inf
    return matches


def overlap_table(boxes: np.ndarray, targets: np.ndarray, protocol: MetricProtocol) -> np.ndarray:
    """The protocol's overlap of every predicted box (P, 4) with every target (T, 4), (P, T)."""
    overlap = paired_giou if protocol.overlap == "giou" else paired_iou
    # (P, 4) and (T, 4) -> every pair -> (P, T)
    pairs = overlap(np.repeat(boxes, len(targets), axis=0), np.tile(targets, (len(boxes), 1)))
    return pairs.reshape(len(boxes), len(targets))


def score_auc(scores: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve: the chance that a right box scores above a wrong one, ties counted half.

    Args:
        scores: (N,) any order-preserving score.
        correct: (N,) bool, True for right boxes; a box given to an expression without target is wrong.
        weights: (N,) of the rows; None counts each once.

    Raises:
        ValueError: all rows are right, or all are wrong.
    """
    correct = np.asarray(correct, dtype=bool)
    n_right, n_wrong = int(correct.sum()), int((~correct).sum())
    if n_right == 0 or n_wrong == 0:
        raise ValueError(f"A ROC curve needs right and wrong predictions, got {n_right} right and {n_wrong} wrong.")
    weights = np.ones(len(correct)) if weights is None else np.asarray(weights, dtype=np.float64)
    levels, inverse = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    right, wrong = (
        np.bincount(inverse, weights=weights * counted, minlength=len(levels)) for counted in (correct, ~correct)
    )  # (L,) each, the weight at every level
    below = np.cumsum(wrong) - wrong / 2  # of wrong ones below a level, and half of those at it
    return float((right * below).sum() / (right.sum() * wrong.sum()))


def threshold_report(scores: np.ndarray, no_target: np.ndarray, threshold: float) -> dict[str, float | None]:
    """How well "score below threshold" finds expressions that name nothing.

    Args:
        scores: (N,) scores of the predicted boxes.
        no_target: (N,) bool, True where the expression names nothing in the picture.
        threshold: a box whose score is lower is withheld.

    Returns:
        threshold, precision (share of withheld answers that were rightly withheld; None when none was), recall (share
        of expressions without target that were withheld; None when there are none), f1, withheld: the share of
        expressions *with* a target whose answer is lost, and mcc of answers and targets.
    """
    withheld = np.asarray(scores, dtype=np.float64) < threshold
    no_target = np.asarray(no_target, dtype=bool)
    hits = int((withheld & no_target).sum())
    precision = hits / int(withheld.sum()) if withheld.any() else None
    recall = hits / int(no_target.sum()) if no_target.any() else None
    f1 = 2 * hits / (int(withheld.sum()) + int(no_target.sum())) if withheld.any() or no_target.any() else None
    lost = float(withheld[~no_target].mean()) if (~no_target).any() else None
    mcc = matthews_correlation(~withheld, ~no_target) if len(withheld) else None
    shares = {"precision": precision, "recall": recall, "f1": f1, "withheld": lost, "mcc": mcc}
    return {"threshold": float(threshold), **shares}


def choose_threshold(scores: np.ndarray, no_target: np.ndarray) -> dict[str, float | None]:
    """The threshold with the best F1 for finding expressions that name nothing, and its report.

    Candidates lie half-way between neighboring scores, so that no score sits on the threshold; of equal ones the
    lowest is taken, which withholds least.

    Raises:
        ValueError: the rows are all with, or all without a target.
    """
    scores, no_target = np.asarray(scores, dtype=np.float64), np.asarray(no_target, dtype=bool)
    if no_target.all() or not no_target.any():
        raise ValueError("Choosing a threshold needs rows with a target and rows without one.")
    levels, inverse = np.unique(scores, return_inverse=True)
    below_none = np.cumsum(np.bincount(inverse, weights=no_target, minlength=len(levels)))
    below = np.cumsum(np.bincount(inverse, minlength=len(levels)))
    f1 = 2 * below_none / (below + no_target.sum())
    return threshold_report(scores, no_target, _above(levels, int(np.argmax(f1))))


def balanced_threshold(scores: np.ndarray, no_target: np.ndarray) -> float:
    """The threshold at which the smaller of N-acc and T-acc is largest: of both kinds of rows equally many are right.

    Candidates lie half-way between neighboring scores, as in `choose_threshold`.

    Args:
        scores: (N,) scores of the predicted boxes.
        no_target: (N,) bool, True where the expression names nothing in the picture.

    Raises:
        ValueError: the rows are all with, or all without a target.
    """
    scores, no_target = np.asarray(scores, dtype=np.float64), np.asarray(no_target, dtype=bool)
    if no_target.all() or not no_target.any():
        raise ValueError("Choosing a threshold needs rows with a target and rows without one.")
    levels = np.unique(scores)
    n_acc = np.searchsorted(np.sort(scores[no_target]), levels, side="right") / no_target.sum()
    t_acc = 1 - np.searchsorted(np.sort(scores[~no_target]), levels, side="right") / (~no_target).sum()
    return _above(levels, int(np.argmax(np.minimum(n_acc, t_acc))))


def _above(levels: np.ndarray, place: int) -> float:
    """A threshold just above the sorted score at `place`: half-way to the next one."""
    above = levels[place + 1] if place + 1 < len(levels) else np.nextafter(levels[place], np.inf)
    middle = (levels[place] + above) / 2
    return float(above if middle <= levels[place] else middle)


def predicted_set(
    prediction: Mapping[str, Any], reference: Mapping[str, Any], protocol: MetricProtocol
) -> tuple[np.ndarray, np.ndarray | None]:
    """Every box of a prediction (P, 4) and its scores (P,), None where it has none.

    Boxes are cut at the border of the image where the protocol does so.
    """
    if prediction.get("boxes_xyxy") is not None:
        boxes, scores = prediction["boxes_xyxy"], prediction.get("scores")
        if scores is None or len(scores) != len(boxes):
            raise ValueError(f"Prediction {prediction['id']!r}: boxes_xyxy needs as many scores, got {scores!r}.")
    else:
        boxes = [prediction["box_xyxy"]]
        scores = None if prediction.get("score") is None else [prediction["score"]]
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    if protocol.clip_to_image:
        sizes = [
            np.full(len(found), np.nan if reference.get(side) is None else reference[side], dtype=np.float64)
            for side in ("width", "height")
        ]
        found = clip_boxes(found, *sizes)
    return found, None if scores is None else np.array(scores, dtype=np.float64)


def all_targets(reference: Mapping[str, Any]) -> np.ndarray:
    """Every target box of a reference, (T, 4)."""
    if reference.get("no_target"):
        return np.zeros((0, 4))
    boxes = reference.get("boxes")
    if not boxes:
        box = reference["box"] if "box" in reference else reference.get("box_xyxy")
        boxes = [] if box is None else [box]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
