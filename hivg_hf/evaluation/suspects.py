"""Rows whose labels look wrong: where a trained model and the label disagree, and where rows contradict each other.

The loss of a row is the disagreement of its label with the model's box, after a linear correction of the model's boxes
that was fitted on other images (cross-validated): labels that are all a little looser than the model's are not wrong.
A mixture of two distributions over the losses of all rows, as noise-aware pre-training uses it, makes a probability of
each, which counts as much as the model trusts its own box. Nothing is changed: the ranking is for people to review.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from hivg_hf.data.lookalikes import group_lookalikes
from hivg_hf.data.order import column_values, without_image_decoding
from hivg_hf.metrics.overlaps import paired_giou, paired_iou

FOLDS = 5
RIDGE = 1e-3
ROUNDS = 100
SAME_IOU = 0.5
CONTRADICTION = 0.9  # probability of a row that another one contradicts, at least
SEVERAL = re.compile(r"\b(both|all|two|three|four|five|several|many|each|every|these|those|pair of)\b", re.IGNORECASE)
NOTHING = re.compile(r"^\s*(no|none|nothing|not?|n/?a|unknown|null|\?+|-+)\s*$", re.IGNORECASE)


@dataclass
class Suspects:
    """All rows of a dataset with what is odd about them.

    Attributes:
        probability: (N,) that a label is wrong, from the mixture and from contradictions.
        iou: (N,) of the label and the model's box; NaN for no-target rows.
        reasons: of each row, as sentences.
    """

    probability: np.ndarray
    iou: np.ndarray
    reasons: list[list[str]] = field(default_factory=list)

    def ranking(self) -> np.ndarray:
        """Positions of the rows, the most suspicious first (N,)."""
        return np.lexsort((np.nan_to_num(self.iou, nan=1.0), -self.probability))


def find_suspects(dataset: Any, predictions: Sequence[dict[str, Any]], content: bool = True) -> Suspects:
    """Look for wrong labels.

    Args:
        dataset: rows of the schema.
        predictions: `predict(model, processor, dataset)`, one for each row.
        content: also compare pictures, to find near-identical ones with other boxes.

    Raises:
        ValueError: there are not as many predictions as rows.
    """
    if len(predictions) != len(dataset):
        raise ValueError(f"Expected a prediction for each of {len(dataset):,} rows, got {len(predictions):,}.")
    rows = _Rows.of(dataset, predictions)
    loss = rows.loss()
    # The model may be wrong itself: its score says how likely its box is right. A no-target row's loss is that score.
    trust = np.where(rows.none, 1.0, np.nan_to_num(rows.score, nan=1.0))
    probability = noise_probability(loss) * trust
    found = Suspects(probability, rows.iou, [[] for _ in range(len(dataset))])
    for doubtful in np.flatnonzero(probability > 0.5).tolist():
        found.reasons[doubtful].append(rows.disagreement(doubtful))
    for position, reason in _contradictions(dataset, rows, content):
        found.reasons[position].append(reason)
        found.probability[position] = max(found.probability[position], CONTRADICTION)
    for position, words in enumerate(rows.words):
        several = SEVERAL.search(words)
        if NOTHING.match(words) and not rows.none[position]:
            found.reasons[position].append(f"{words!r} names nothing, and the row has a box")
        elif several and rows.targets[position] == 1:
            found.reasons[position].append(f"{several[0]!r} may mean several objects, and the row has one box")
    return found


def wrong_probability(dataset: Any, predictions: Sequence[dict[str, Any]]) -> np.ndarray:
    """The probability (N,) that each label is wrong, from the losses of all rows alone.

    Unlike `find_suspects`, the model's score plays no part, which says little while the model is being trained.

    Args:
        dataset: rows of the schema.
        predictions: as for `find_suspects`.
    """
    return noise_probability(_Rows.of(dataset, predictions).loss())


def label_agreement(dataset: Any, predictions: Sequence[dict[str, Any]]) -> np.ndarray:
    """How far a model agrees with each label (N,) in 0..1: the IoU of both boxes; for a no-target row, 1 - its score.

    Args:
        dataset: rows of the schema.
        predictions: as for `find_suspects`.
    """
    rows = _Rows.of(dataset, predictions)
    return np.where(rows.none, 1 - np.nan_to_num(rows.score, nan=0.0), rows.iou)


@dataclass
class _Rows:
    """Labels and predictions as arrays."""

    words: list[str]
    images: list[str]
    none: np.ndarray  # (N,) bool
    targets: np.ndarray  # (N,) how many
    labels: np.ndarray  # (N, 4) xyxy pixels of the target nearest to the prediction; NaN without one
    predicted: np.ndarray  # (N, 4)
    sides: np.ndarray  # (N, 2) width and height
    score: np.ndarray  # (N,) NaN where the model gives none
    iou: np.ndarray

    @classmethod
    def of(cls, dataset: Any, predictions: Sequence[dict[str, Any]]) -> "_Rows":
        boxes = column_values(dataset, "boxes")
        predicted = np.array([prediction["box_xyxy"] for prediction in predictions], dtype=np.float64).reshape(-1, 4)
        labels = np.full_like(predicted, np.nan)
        for position, some in enumerate(boxes):
            if some:
                targets = np.array(some, dtype=np.float64)
                labels[position] = targets[
                    np.argmax(paired_iou(np.broadcast_to(predicted[position], targets.shape), targets))
                ]
        none = np.array([not some for some in boxes])
        iou = np.where(none, np.nan, paired_iou(predicted, np.nan_to_num(labels)))
        score = [np.nan if prediction["score"] is None else prediction["score"] for prediction in predictions]
        sides = np.stack([column_values(dataset, "width"), column_values(dataset, "height")], axis=1)
        return cls(
            list(column_values(dataset, "expression")),
            list(column_values(dataset, "image_id")),
            none,
            np.array([len(some) for some in boxes]),
            labels,
            predicted,
            sides.astype(np.float64),
            np.array(score, dtype=np.float64),
            iou,
        )

    def loss(self) -> np.ndarray:
        """(N,) in 0..1: half of 1 - GIoU of the label and the corrected prediction; for a no-target row, the score."""
        corrected = _corrected(self.predicted, self.labels, self.sides, _folds(self.images), ~self.none)
        loss = (1 - paired_giou(corrected, np.nan_to_num(self.labels))) / 2
        return np.where(self.none, np.nan_to_num(self.score, nan=0.0), loss)

    def disagreement(self, position: int) -> str:
        """What the model says against a label."""
        if self.none[position]:
            return f"the model finds something (score {self.score[position]:.2f}), the row says that nothing is there"
        box = ", ".join(f"{edge:.0f}" for edge in self.predicted[position])
        score = "" if np.isnan(self.score[position]) else f", score {self.score[position]:.2f}"
        return f"the model's box ({box}{score}) and the label have IoU {self.iou[position]:.2f}"


def _folds(images: Sequence[str]) -> np.ndarray:
    """(N,) the fold of each row, by a hash of its image: rows of one image are never on both sides."""
    return np.array([blake2b(name.encode("utf-8"), digest_size=4).digest()[0] % FOLDS for name in images])


def _corrected(
    predicted: np.ndarray, labels: np.ndarray, sides: np.ndarray, folds: np.ndarray, usable: np.ndarray
) -> np.ndarray:
    """The model's boxes (N, 4) after the linear correction that the rows of other folds ask for.

    Only rows on which model and label agree tell how labels are drawn; the others are what is looked for.
    """
    scale = np.concatenate([sides, sides], axis=1)
    features = np.concatenate([predicted / scale, np.ones((len(predicted), 1))], axis=1)  # (N, 5)
    goal = np.nan_to_num(labels) / scale
    agree = usable & (paired_iou(predicted, np.nan_to_num(labels)) >= SAME_IOU)
    corrected = predicted.copy()
    for fold in range(FOLDS):
        fit, use = agree & (folds != fold), folds == fold
        if fit.sum() < 10 * features.shape[1]:
            continue
        identity = np.eye(5, 4)  # towards no correction
        left = features[fit].T @ features[fit] + RIDGE * fit.sum() * np.eye(5)
        weights = np.linalg.solve(left, features[fit].T @ goal[fit] + RIDGE * fit.sum() * identity)
        corrected[use] = features[use] @ weights * scale[use]
    low, high = corrected[:, :2], corrected[:, 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1)


def noise_probability(loss: np.ndarray) -> np.ndarray:
    """(N,) the probability that each loss belongs to the higher of two normal distributions, by maximum likelihood.

    It never falls where the loss grows: above the higher mean, and below the lower one, it stays what it is there.
    Where the two lie closer than the wider of them is wide, the losses are of one kind (a clean table): they keep
    their order and stay below one half.
    """
    if len(loss) < 2 or np.ptp(loss) == 0:
        return np.zeros(len(loss))
    means = np.quantile(loss, [0.25, 0.95])
    deviations, weights = np.full(2, max(loss.std(), 1e-3)), np.array([0.8, 0.2])
    share = np.zeros((len(loss), 2))
    for _ in range(ROUNDS):
        share = _shares(loss, means, deviations, weights)
        mass = share.sum(axis=0) + 1e-9
        means = (share * loss[:, None]).sum(axis=0) / mass
        deviations = np.sqrt((share * (loss[:, None] - means) ** 2).sum(axis=0) / mass) + 0.02
        weights = mass / mass.sum()
    if np.ptp(means) < deviations.max():
        return np.clip(loss, 0.0, 0.99) / 2
    high = int(np.argmax(means))
    return _shares(np.clip(loss, means.min(), means.max()), means, deviations, weights)[:, high]


def _shares(loss: np.ndarray, means: np.ndarray, deviations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, 2) how much of each loss either distribution explains."""
    log = np.log(weights) - np.log(deviations) - ((loss[:, None] - means) / deviations) ** 2 / 2
    log -= log.max(axis=1, keepdims=True)
    return np.exp(log) / np.exp(log).sum(axis=1, keepdims=True)


def _contradictions(dataset: Any, rows: _Rows, content: bool) -> list[tuple[int, str]]:
    """Rows with the words of another row, on the same or a near-identical image, and another box."""
    leader = {name: name for name in rows.images}
    if content:
        pictures = dict(zip(rows.images, (row["image"] for row in without_image_decoding(dataset)), strict=True))
        leader = {str(name): str(first) for name, first in group_lookalikes(pictures).items()}
    groups: dict[tuple[str, str], list[int]] = {}
    for position, (image, words) in enumerate(zip(rows.images, rows.words, strict=True)):
        if not rows.none[position]:
            groups.setdefault((leader[image], " ".join(words.lower().split())), []).append(position)
    found = []
    for members in groups.values():
        boxes = rows.labels[members] / np.tile(rows.sides[members], 2)
        for at, position in enumerate(members):
            others = [other for other in range(len(members)) if other != at]
            ious = paired_iou(np.broadcast_to(boxes[at], (len(others), 4)), boxes[others]) if others else np.ones(1)
            if ious.min() < SAME_IOU:
                other = members[others[int(np.argmin(ious))]]
                found.append((position, f"row {other} has the same words and another box (IoU {ious.min():.2f})"))
    return found
