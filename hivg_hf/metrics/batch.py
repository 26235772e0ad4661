"""What a training loop measures: IoU and accuracy from batches of model outputs.

Both boxes lie in the same padded square, and the letterbox is a shift and a scale of each axis, under which IoU does
not change: the IoU in the square *is* the IoU in pixels of the original image, whatever its size. Only clipping
differs: pass `pixel_mask` and the predicted box is cut at the border of the image, which makes the figure that of the
protocol "pixel" up to rounding; without it, at the border of the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def batch_box_iou(
    pred_boxes: torch.Tensor, labels: torch.Tensor, pixel_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """IoU of predicted and target boxes.

    Args:
        pred_boxes: (B, 4) cxcywh, 0..1 of the padded square.
        labels: (B, 4) the same; a row of NaN has no target. Or (B, M, 4) with several places a row, of which rows with
            exactly one target are measured.
        pixel_mask: (B, S, S), 1 = image; the predicted box is clipped to it.

    Returns:
        (B,) float32; NaN where there is no target, or several.
    """
    if labels.ndim == 3:
        labels = _single_targets(labels)
    predicted, target = (_corners(boxes.detach().float()) for boxes in (pred_boxes, labels))
    predicted = predicted.clamp(0, 1) if pixel_mask is None else _clip_to_image(predicted, pixel_mask)
    shared_sides = torch.minimum(predicted[:, 2:], target[:, 2:]) - torch.maximum(predicted[:, :2], target[:, :2])
    shared = shared_sides.clamp(min=0).prod(dim=1)
    covered = (predicted[:, 2:] - predicted[:, :2]).prod(dim=1) + (target[:, 2:] - target[:, :2]).prod(dim=1) - shared
    iou = torch.where(covered > 0, shared / covered.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    return torch.where(labels.isnan().any(dim=1), torch.nan, iou)


class GroundingEvalMetrics:
    """`compute_metrics` for `transformers.Trainer` and `HiVGTrainer`: accuracy and mean IoU.

    Works with and without `batch_eval_metrics=True`. The Trainer must hand over `pred_boxes` first and the boxes as
    labels (`label_names=["labels"]`); rows without a target are left out of both figures and counted apart.

        Trainer(..., compute_metrics=GroundingEvalMetrics())

    Args:
        thresholds: IoU from which a box counts as right.

    Returns (on call):
        `acc@T` for each threshold, `mean_iou`, `n` (rows with a target) and `n_no_target`. No figure when n is 0.
    """

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.7, 0.9)) -> None:
        self.thresholds = tuple(thresholds)
        self._seen: list[np.ndarray] = []

    def __call__(self, evaluation: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch (or everything at once); with `compute_result` return the figures and start anew."""
        predictions, labels = evaluation.predictions, evaluation.label_ids
        pred_boxes = predictions[0] if isinstance(predictions, (tuple, list)) else predictions
        boxes = labels[0] if isinstance(labels, (tuple, list)) else labels
        self._seen.append(batch_box_iou(torch.as_tensor(pred_boxes), torch.as_tensor(boxes)).cpu().numpy())
        if not compute_result:
            return {}
        ious, self._seen = np.concatenate(self._seen), []
        return iou_figures(ious, self.thresholds)


def iou_figures(ious: np.ndarray, thresholds: Sequence[float] = (0.5, 0.7, 0.9)) -> dict[str, float]:
    """Accuracy and mean IoU of (N,) IoUs, those that are NaN (no target) counted apart."""
    measured = ious[~np.isnan(ious)]
    counts = {"n": float(len(measured)), "n_no_target": float(len(ious) - len(measured))}
    if len(measured) == 0:
        return counts
    accuracies = {f"acc@{threshold}": float(np.mean(measured >= threshold)) for threshold in thresholds}
    return {**accuracies, "mean_iou": float(np.mean(measured)), **counts}


def _single_targets(labels: torch.Tensor) -> torch.Tensor:
    """(B, M, 4) -> (B, 4), NaN where a row has no target or several."""
    is_target = labels[..., 2] > 0  # (B, M): neither NaN nor what transformers' evaluation fills short batches with
    first = labels.gather(1, is_target.int().argmax(1)[:, None, None].expand(-1, 1, 4))[:, 0]
    return torch.where((is_target.sum(1) == 1)[:, None], first, torch.nan)


def _corners(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    centers, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    return torch.cat([centers - half, centers + half], dim=1)


def _clip_to_image(boxes_xyxy: torch.Tensor, pixel_mask: torch.Tensor) -> torch.Tensor:
    """Corners in 0..1 of the square, cut at the border of the image that `pixel_mask` (B, S, S) marks."""
    side = pixel_mask.shape[-1]
    limits = []
    for axis in (1, 2):  # collapse rows, then columns: which columns, then which rows hold image
        used = pixel_mask.bool().any(dim=axis)  # (B, S)
        first = used.float().argmax(dim=1)
        limits.append((first, first + used.sum(dim=1)))
    low = torch.stack([limit[0] for limit in limits], dim=1).repeat(1, 2) / side  # (B, 4)
    high = torch.stack([limit[1] for limit in limits], dim=1).repeat(1, 2) / side
    return torch.minimum(torch.maximum(boxes_xyxy, low), high)
