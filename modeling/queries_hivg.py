"""Several queries: which of them answers for which target while training, and which is best afterwards.

Each of the K learned [REG] tokens of a model with `num_queries` > 1 answers with a box and a score. Queries and
targets are matched one to one at the least cost (Carion et al., 2020, "End-to-End Object Detection with
Transformers"), so that two queries never learn the same target, and a query without one learns to score low.
"""

import numpy as np
import torch

from .box_ops_hivg import box_cxcywh_to_xyxy, paired_iou_and_giou, rasterize_boxes

try:
    from scipy.optimize import linear_sum_assignment
except ImportError:  # only training needs it
    linear_sum_assignment = None

# Cost of a query that answers out of turn, per place: the first takes the leftmost target, and so on. Far below the
# cost of a wrong box, it decides only between queries that answer alike, as new ones do, which then learn to differ.
OUT_OF_TURN = 0.2
# Stands for a cost that is NaN, as of a model that has diverged: the loss says so, not the matching.
WORST_COST = 1e6


@torch.compiler.disable
@torch.no_grad()
def assign_targets(
    query_boxes: torch.Tensor, score_logits: torch.Tensor, labels: torch.Tensor, loss_weights: dict[str, float]
) -> torch.Tensor:
    """The target that each query is to learn.

    A row of one target is the first query's, as in a model that has no other: its box then learns what it would learn
    there, and the rest of the queries learn when to stay silent. Several targets are matched at the least sum of L1
    distance, 1 - GIoU and the missing score, weighted as the losses of the same names; between queries that answer
    alike their order decides, and that of the targets from left to right.

    Args:
        query_boxes: (B, K, 4), cxcywh in 0..1 of the padded square.
        score_logits: (B, K).
        labels: (B, M, 4) targets of each row, NaN where it has fewer than M. Of more than K, K are matched.
        loss_weights: those of `bbox`, `giou` and `score`.

    Returns:
        (B, K, 4), NaN for a query without target.
    """
    assigned = torch.full_like(query_boxes, torch.nan)
    if labels.is_meta:
        return assigned
    cost = _matching_cost(query_boxes, score_logits, labels, loss_weights).nan_to_num(WORST_COST).cpu().numpy()
    from_left = labels[..., 0].argsort(1).cpu()  # (B, M), NaN last
    counts = (~labels.isnan().any(-1)).sum(1).tolist()
    for row, count in enumerate(counts):
        targets = from_left[row, :count]
        if count == 1:
            assigned[row, 0] = labels[row, targets[0]]
        elif count:
            turns = np.abs(np.arange(cost.shape[1])[:, None] - np.arange(count))  # (K, count)
            queries, chosen = _solver()(cost[row][:, targets.numpy()] + OUT_OF_TURN * turns)
            assigned[row, torch.as_tensor(queries)] = labels[row, targets[torch.as_tensor(chosen)]]
    return assigned


def _matching_cost(
    query_boxes: torch.Tensor, score_logits: torch.Tensor, labels: torch.Tensor, loss_weights: dict[str, float]
) -> torch.Tensor:
    """(B, K, M)"""
    boxes, targets = query_boxes[:, :, None], labels[:, None].nan_to_num(0.5)  # (B, K, 1, 4), (B, 1, M, 4)
    distance = (boxes - targets).abs().sum(-1)  # (B, K, M)
    _, giou = paired_iou_and_giou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(targets))
    weights = {name: loss_weights.get(name, 0.0) for name in ("bbox", "giou", "score")}
    return weights["bbox"] * distance - weights["giou"] * giou - weights["score"] * score_logits.sigmoid()[:, :, None]


def _solver():
    if linear_sum_assignment is None:
        raise ImportError("Training with `num_queries` > 1 matches queries and targets by scipy: pip install scipy.")
    return linear_sum_assignment


def of_best_query(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(B, K, ...) values and (B, K) scores -> (B, ...), the value of the query that scores highest."""
    best = scores.argmax(1).reshape(-1, *[1] * (values.ndim - 1))  # (B, 1, ...)
    return values.gather(1, best.expand(-1, 1, *values.shape[2:]))[:, 0]


def own_masks(masks: torch.Tensor, assigned: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of the mask of all targets of a row, what is each query's own.

    Args:
        masks: (B, S, S), all targets of a row together.
        assigned: (B, K, 4), the target of each query, NaN for none.
        targets: (B,) how many targets a row has. One has the whole mask; each of several what lies in its box.

    Returns:
        (P, S, S) for the P queries with a target, in order.
    """
    rows, queries = (~assigned.isnan().any(-1)).nonzero(as_tuple=True)  # (P,)
    size = masks.shape[-1]
    inside = rasterize_boxes(assigned[rows, queries].to(masks.dtype), size, size)  # (P, S, S)
    return torch.where(targets[rows, None, None] > 1, masks[rows] * inside, masks[rows])


__all__ = ["assign_targets", "of_best_query", "own_masks"]
