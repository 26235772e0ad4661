"""The loss terms of HiVG, as pure functions: tensors in, one unweighted scalar out.

Paper: L = L_box + L_contrastive (CLC) + L_token (RTCC); the official code adds a mask loss. The weights live in
`HiVGConfig.loss_weights`. Every term is a mean over the samples it applies to, so a term never depends on the batch
size, and none ever divides by zero: a term with nothing to apply to is 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
import torch.nn.functional as F

from .box_ops_hivg import box_coverage, box_cxcywh_to_xyxy, paired_iou_and_giou, rasterize_boxes
from .presets_hivg import LOSS_NAMES

# Outputs that cost extra, and are computed where a term with weight needs them.
OPTIONAL_OUTPUTS = ("token_logits", "mask_logits")


@dataclass(frozen=True)
class LossTerm:
    """A loss term of your own.

    Args:
        function: `function(outputs, targets, config)` -> a scalar, unweighted. `outputs` holds what the model computed
            by name (`pred_boxes` (B, 4), `logits_per_text` (B, B), and what `needs` names); `targets` holds `labels`
            (B, 4), NaN for a row without target, and `mask_labels` (B, S, S) or None. With several queries there are
            `query_boxes` (B, K, 4), too, `labels` are (B, M, 4), and `assigned` (B, K, 4) is each query's target.
        needs: of `OPTIONAL_OUTPUTS`.
    """

    function: Callable[..., torch.Tensor]
    needs: tuple[str, ...] = ()

    def __post_init__(self):
        unknown = sorted(set(self.needs) - set(OPTIONAL_OUTPUTS))
        if unknown:
            raise ValueError(f"A loss term may need {', '.join(OPTIONAL_OUTPUTS)}. Got {unknown}.")


EXTRA_LOSSES: dict[str, LossTerm] = {}


def terms_of_targets(num_queries: int) -> tuple[str, ...]:
    """Terms that are means over targets, of which a row may have none or several; the others are means over rows."""
    return ("bbox", "giou") if num_queries == 1 else ("bbox", "giou", "mask_focal", "mask_dice")


def count_targets(labels: torch.Tensor, num_queries: int) -> torch.Tensor:
    """() how many targets are learned from labels (B, 4) or (B, M, 4): of one row at most one for each query."""
    is_target = has_target(labels)
    return is_target.sum() if labels.ndim == 2 else is_target.sum(-1).clamp(max=num_queries).sum()


def register_loss(name: str, function: Callable[..., torch.Tensor] | LossTerm, needs: tuple[str, ...] = ()) -> None:
    """Make a term known by a name, which `loss_weights` can then weigh. A second call replaces the first.

    Raises:
        ValueError: the name is one of the terms of this package, or `needs` names nothing that is optional.
    """
    if name in LOSS_NAMES:
        raise ValueError(f"`{name}` is a term of HiVG's own; choose another name.")
    EXTRA_LOSSES[name] = function if isinstance(function, LossTerm) else LossTerm(function, tuple(needs))


# Target IoU above which the score head learns that its box is right: the threshold of the field's accuracy.
SCORE_IOU_THRESHOLD = 0.5
# Labels this far out of 0..1 are boxes that stick out of their picture by rounding, not boxes in pixels.
LABEL_TOLERANCE = 0.1


def box_l1_loss(pred_cxcywh: torch.Tensor, target_cxcywh: torch.Tensor) -> torch.Tensor:
    """Sum of the four absolute differences, mean over the samples with a target. Official:
    utils/loss_utils.py:188-235; the paper writes smooth L1, the code uses plain L1.

    Args:
        pred_cxcywh, target_cxcywh: (B, 4), in 0..1 of the padded square; a target row of NaN says "no target".
    """
    valid = has_target(target_cxcywh)
    return _mean((pred_cxcywh - target_cxcywh.nan_to_num(0)).abs().sum(-1), valid)


def box_giou_loss(pred_cxcywh: torch.Tensor, target_cxcywh: torch.Tensor) -> torch.Tensor:
    """1 - GIoU, mean over the samples with a target. Official: utils/loss_utils.py:188-235

    Args:
        pred_cxcywh, target_cxcywh: (B, 4), in 0..1 of the padded square; a target row of NaN says "no target".
    """
    valid = has_target(target_cxcywh)
    target_xyxy = box_cxcywh_to_xyxy(target_cxcywh.nan_to_num(0.5))
    _, giou = paired_iou_and_giou(box_cxcywh_to_xyxy(pred_cxcywh), target_xyxy)
    return _mean(1 - giou, valid)


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Sigmoid focal loss (Lin et al., 2017), mean over elements, then over samples. Targets may be soft.

    Args:
        logits: (B, N).
        targets: (B, N), in 0..1.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_target = probability * targets + (1 - probability) * (1 - targets)
    alpha_target = alpha * targets + (1 - alpha) * (1 - targets)
    return _mean((alpha_target * (1 - p_target) ** gamma * cross_entropy).mean(-1))


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - (2 intersection + 1) / (sum of both + 1), mean over samples.

    Args:
        logits: (B, N).
        targets: (B, N), in 0..1.
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(-1)
    total = probability.sum(-1) + targets.sum(-1)
    return _mean(1 - (overlap + 1) / (total + 1))


def contrastive_loss(
    logits_per_text: torch.Tensor,
    valid: torch.Tensor | None = None,
    duplicates: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric cross-entropy between the expressions and images of a batch. Paper: L_CLC.

    Args:
        logits_per_text: (B, B), row = expression, column = image; the pair of sample i is (i, i).
        valid: (B,) bool, the samples whose expression names something in their image; the others are left out, as
            rows and as negatives of the rest.
        duplicates: (B, B) bool, pairs that are no negatives, because they share the image or the expression.
    """
    batch = logits_per_text.shape[0]
    own = torch.eye(batch, dtype=torch.bool, device=logits_per_text.device)
    if valid is None:
        valid = torch.ones_like(own[0])
    left_out = ~(valid[:, None] & valid[None, :])  # (B, B)
    if duplicates is not None:
        left_out = left_out | duplicates
    logits_per_text = logits_per_text.masked_fill(left_out & ~own, float("-inf"))
    labels = torch.arange(batch, device=logits_per_text.device)
    per_text = F.cross_entropy(logits_per_text, labels, reduction="none")  # (B,)
    per_image = F.cross_entropy(logits_per_text.t(), labels, reduction="none")  # (B,)
    return _mean((per_text + per_image) / 2, valid)


def score_loss(score_logits: torch.Tensor, pred_cxcywh: torch.Tensor, target_cxcywh: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the score against "this box is right": IoU of at least 0.5 with the target, 0 where
    there is no target. The box is detached: a score learns about boxes and never moves them.

    Args:
        score_logits: (B,).
        pred_cxcywh, target_cxcywh: (B, 4), in 0..1 of the padded square; a target row of NaN says "no target".
    """
    iou, _ = paired_iou_and_giou(box_cxcywh_to_xyxy(pred_cxcywh.detach()), box_cxcywh_to_xyxy(target_cxcywh))
    right = (iou >= SCORE_IOU_THRESHOLD).to(score_logits.dtype)  # NaN compares as False
    return _mean(F.binary_cross_entropy_with_logits(score_logits, right, reduction="none"))


def token_targets(
    labels: torch.Tensor, mask_labels: torch.Tensor | None, grid: int, size: int, kind: str
) -> torch.Tensor:
    """What each patch should answer to "are you part of it?".

    Args:
        labels: (B, 4) or (B, M, 4), cxcywh in 0..1 of the padded square; NaN gives no positive patch.
        mask_labels: (B, S, S) or None; None takes the rasterized boxes.
        grid: patches along one side.
        size: S, pixels along one side.
        kind: `"coverage"`, the covered share of a patch; `"nearest"`, the patch's first pixel.
            Official: utils/loss_utils.py:219

    Returns:
        (B, grid * grid), in 0..1.
    """
    if kind == "coverage" and mask_labels is None:
        covered = box_coverage(labels.reshape(-1, 4), grid, grid).nan_to_num(0).flatten(1)  # (B * M, N)
        # Of boxes that overlap, the sum counts the shared part twice: at most what one patch holds.
        return covered if labels.ndim == 2 else covered.unflatten(0, labels.shape[:2]).sum(1).clamp(max=1)
    masks = mask_targets(labels, mask_labels, size)[:, None]  # (B, 1, S, S)
    if kind == "coverage":
        return F.adaptive_avg_pool2d(masks, grid).flatten(1)
    return (F.interpolate(masks, size=(grid, grid), mode="nearest") > 0.5).to(labels.dtype).flatten(1)


def mask_targets(labels: torch.Tensor, mask_labels: torch.Tensor | None, size: int) -> torch.Tensor:
    """(B, S, S) masks in the dtype of the labels (B, 4) or (B, M, 4): the given ones, or the rasterized boxes."""
    if mask_labels is None and labels.ndim == 3:
        return rasterize_boxes(labels.flatten(0, 1), size, size).unflatten(0, labels.shape[:2]).amax(1)
    if mask_labels is None:
        return rasterize_boxes(labels, size, size)
    return mask_labels.to(labels.dtype)


def same_pairs(image_ids: torch.Tensor | None, expression_ids: torch.Tensor) -> torch.Tensor:
    """(B, B) bool: pairs of samples that share the image or the expression.

    Args:
        image_ids: (B,) or None, where nothing is known about the images.
        expression_ids: (B,), equal for equal expressions.
    """
    same = expression_ids[:, None] == expression_ids[None, :]
    if image_ids is not None:
        same = same | (image_ids[:, None] == image_ids[None, :])
    return same


def hash_expressions(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) token ids -> (B,) int64, equal for equal expressions however they are padded.

    A polynomial hash modulo 2**64: processes that padded to different lengths agree, which comparing rows would not.
    """
    powers = torch.ones(input_ids.shape[1], dtype=torch.int64, device=input_ids.device)
    powers[1:] = 6364136223846793005
    return ((input_ids + 1) * attention_mask * powers.cumprod(0)).sum(-1)


def gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """(B, ...) -> (processes * B, ...), rows in rank order; gradients flow back to the process of each row."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    if not tensor.requires_grad:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)
    return torch.cat(dist_functional.all_gather(tensor.contiguous()))


def checked_labels(
    labels: torch.Tensor | list[dict[str, torch.Tensor]],
    like: torch.Tensor,
    num_queries: int = 1,
    rows: int | None = None,
) -> torch.Tensor:
    """Target boxes as the losses take them, float32 cxcywh in 0..1 of the padded square.

    Args:
        labels: (B, 4); or (B, M, 4) with M places for a row's targets, NaN where it has fewer; or for each row
            `{"boxes": (N, 4)}` as DETR takes them, with N = 0 where nothing is named. Arrays and lists are taken, too.
        like: a tensor on the device of the result.
        num_queries: how many boxes the model answers with.
        rows: how many there must be.

    Returns:
        (B, 4), NaN where nothing is named; with several queries (B, M, 4).

    Raises:
        ValueError: where the shape is another, a box is not in 0..1 (a tenth beyond is taken for a box that sticks out
            of its picture), or a row has several and the model has one query.
    """
    if not isinstance(labels, torch.Tensor):
        labels = _stacked_labels(labels, like.device)
    if labels.ndim not in (2, 3) or labels.shape[-1] != 4 or (rows is not None and labels.shape[0] != rows):
        raise ValueError(
            f"`labels` must be boxes (cx, cy, w, h), one for each of the {rows or 'B'} rows. Got shape "
            f"{tuple(labels.shape)}."
        )
    labels = labels.float()
    if num_queries > 1:
        labels = labels[:, None] if labels.ndim == 2 else labels
    elif labels.ndim == 3:
        labels = _only_target(labels)
    if labels.is_meta or torch.compiler.is_compiling():
        return labels
    outside = ((labels < -LABEL_TOLERANCE) | (labels > 1 + LABEL_TOLERANCE)).any(-1)  # NaN compares as False
    if outside.any():
        place = tuple(outside.nonzero()[0].tolist())
        box = [round(value, 4) for value in labels[place].tolist()]
        raise ValueError(
            f"`labels` must be (cx, cy, w, h) in 0..1 of the padded square. Row {place[0]} is {box}; the processor "
            "makes them of boxes in pixels: processor(images, text, boxes=...)."
        )
    return labels


def checked_masks(mask_labels: torch.Tensor, rows: int, size: int) -> torch.Tensor:
    """Target masks as the losses take them, (B, S, S) in 0..1; (B, 1, S, S) is understood.

    Raises:
        ValueError: where the shape is another, or values reach beyond 0..1, as those of 8-bit pictures.
    """
    masks = mask_labels[:, 0] if mask_labels.ndim == 4 and mask_labels.shape[1] == 1 else mask_labels
    if tuple(masks.shape) != (rows, size, size):
        raise ValueError(
            f"`mask_labels` must be {(rows, size, size)}, a mask of the padded square for each row. Got "
            f"{tuple(mask_labels.shape)}; the processor makes them: processor(images, text, masks=...)."
        )
    if masks.dtype != torch.bool and not (masks.is_meta or torch.compiler.is_compiling()):
        low, high = masks.amin().item(), masks.amax().item()
        if low < 0 or high > 1:
            raise ValueError(f"`mask_labels` must be in 0..1. Got {low:g} to {high:g}: divide 8-bit masks by 255.")
    return masks


def _stacked_labels(labels: Any, device: torch.device) -> torch.Tensor:
    """Arrays, lists of boxes, or DETR's dicts as one tensor (B, 4) or (B, M, 4)."""
    try:
        if isinstance(labels, (list, tuple)) and all(isinstance(row, Mapping) for row in labels):
            rows = [torch.as_tensor(row["boxes"], dtype=torch.float32, device=device) for row in labels]
            return pad_targets([row.reshape(-1, 4) for row in rows])  # (B, M, 4)
        if isinstance(labels, (list, tuple)) and all(isinstance(row, torch.Tensor) for row in labels):
            labels = torch.stack(list(labels))
        return torch.as_tensor(labels, dtype=torch.float32, device=device)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise ValueError(
            "`labels` must be a tensor (B, 4) of boxes (cx, cy, w, h) in 0..1 of the padded square, or for each row "
            f'{{"boxes": (N, 4)}}. Got {type(labels).__name__} of {type(next(iter(labels), None)).__name__}.'
        ) from None


def pad_targets(rows: list[torch.Tensor]) -> torch.Tensor:
    """Boxes of each row, (N, 4) with any N -> (B, M, 4) with M = the largest N, at least 1; NaN fills short rows."""
    nothing = torch.full((1, 4), torch.nan, device=rows[0].device, dtype=rows[0].dtype)
    rows = [row if len(row) else nothing for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan)


def _only_target(labels: torch.Tensor) -> torch.Tensor:
    """(B, M, 4) with at most one box a row -> (B, 4)."""
    is_target = has_target(labels)  # (B, M)
    if not (labels.is_meta or torch.compiler.is_compiling()) and (is_target.sum(1) > 1).any():
        number = int((is_target.sum(1) > 1).nonzero()[0, 0])
        raise ValueError(
            f"Row {number} of `labels` has {int(is_target[number].sum())} boxes, and an expression has one target "
            "here (`num_queries=1`): give one box a row, or none, or open the model with `num_queries=4`, for example."
        )
    return labels.gather(1, is_target.int().argmax(1)[:, None, None].expand(-1, 1, 4))[:, 0]


def has_target(target_cxcywh: torch.Tensor) -> torch.Tensor:
    """(..., 4) boxes -> (...) bool, False where one is NaN, which says that there is none: nothing is named."""
    return ~target_cxcywh.isnan().any(-1)


def _mean(values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the valid ones of (B,) values, 0 where there is none. No shape depends on the data."""
    if valid is None:
        return values.mean() if len(values) else values.sum()
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


__all__ = [
    "box_giou_loss",
    "box_l1_loss",
    "checked_labels",
    "checked_masks",
    "contrastive_loss",
    "count_targets",
    "dice_loss",
    "focal_loss",
    "gather_with_grad",
    "has_target",
    "hash_expressions",
    "mask_targets",
    "pad_targets",
    "register_loss",
    "same_pairs",
    "score_loss",
    "terms_of_targets",
    "token_targets",
]
