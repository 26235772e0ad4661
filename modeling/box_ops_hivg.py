"""Box formats, overlap and rasters. The format is in every name; boxes are float tensors of shape (..., 4)."""

import torch

RASTER_TOLERANCE_PIXELS = 1e-3
# A mask changes a box only where both agree about the object, by the IoU of the box around it.
REFINE_FROM_IOU = 0.7
# Beyond it, a logit says nothing of where between two pixels the border lies: padding has the lowest of all.
SURE_LOGIT = 4.0


def box_cxcywh_to_xyxy(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    """Centre and size to corners: (0.5, 0.5, 0.2, 0.4) -> (0.4, 0.3, 0.6, 0.7). Any unit.

    Args:
        boxes_cxcywh: (..., 4).

    Returns:
        (..., 4), xyxy in the same unit.
    """
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)


def box_xyxy_to_cxcywh(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Corners to center and size: (0.4, 0.3, 0.6, 0.7) -> (0.5, 0.5, 0.2, 0.4). Any unit.

    Args:
        boxes_xyxy: (..., 4).

    Returns:
        (..., 4), cxcywh in the same unit.
    """
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


def paired_iou_and_giou(boxes_xyxy: torch.Tensor, others_xyxy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalized IoU (Rezatofighi et al., 2019) of box i with box i, not of every pair.

    An empty box has IoU 0 with everything, never NaN.

    Args:
        boxes_xyxy: (..., 4).
        others_xyxy: (..., 4).

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], each (...).
    """
    top_left = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    bottom_right = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = _area(boxes_xyxy) + _area(others_xyxy) - intersection
    tiny = torch.finfo(boxes_xyxy.dtype).tiny
    iou = intersection / union.clamp(min=tiny)

    hull_top_left = torch.minimum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    hull_bottom_right = torch.maximum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    hull = (hull_bottom_right - hull_top_left).clamp(min=0).prod(-1)
    giou = iou - (hull - union) / hull.clamp(min=tiny)
    return iou, giou


def suppress_overlaps(boxes_xyxy: torch.Tensor, scores: torch.Tensor, iou: float) -> torch.Tensor:
    """Which of a few boxes name objects of their own (greedy non-maximum suppression).

    Args:
        boxes_xyxy: (K, 4), any unit.
        scores: (K,).
        iou: a box is left out where one that is kept and scores higher overlaps it by this IoU or more.

    Returns:
        (n,) indices of those kept, the highest score first.
    """
    kept: list[int] = []
    for place in scores.argsort(descending=True).tolist():
        better = boxes_xyxy[kept]
        overlaps, _ = paired_iou_and_giou(boxes_xyxy[place].expand_as(better), better)  # (n,)
        if not (overlaps >= iou).any():
            kept.append(place)
    return torch.tensor(kept, dtype=torch.long, device=boxes_xyxy.device)


def box_coverage(boxes_cxcywh: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Share of each cell of a grid over the unit square that a box covers.

    Args:
        boxes_cxcywh: (B, 4), in 0..1 of the square.
        height, width: cells of the grid.

    Returns:
        (B, height, width), in 0..1.
    """
    x0, y0, x1, y1 = box_cxcywh_to_xyxy(boxes_cxcywh).unbind(-1)
    across = _interval_coverage(x0, x1, width)  # (B, width)
    down = _interval_coverage(y0, y1, height)  # (B, height)
    return down[:, :, None] * across[:, None, :]  # (B, height, width)


def rasterize_boxes(boxes_cxcywh: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Boxes as masks: 1 where a pixel's center lies in the box, its left and top edge included.

    The one raster of the package: processor, collator and model call it. A box between two centers keeps the column
    (row) of its own center, so that a thin box never vanishes. A box with NaN gives an empty mask.

    Args:
        boxes_cxcywh: (B, 4), in 0..1 of the square.
        height, width: pixels of the mask.

    Returns:
        (B, height, width), 0 or 1, in the dtype of the boxes.
    """
    cx, cy, w, h = boxes_cxcywh[:, :, None].unbind(1)  # each (B, 1)
    across = _pixels_inside(cx, w, width)  # (B, width)
    down = _pixels_inside(cy, h, height)  # (B, height)
    return (down[:, :, None] & across[:, None, :]).to(boxes_cxcywh.dtype)


def boxes_around_masks(mask_logits: torch.Tensor) -> torch.Tensor:
    """The box around each mask, its borders between pixels, where the logits cross 0.

    Args:
        mask_logits: (..., h, w), above 0 inside.

    Returns:
        (..., 4) cxcywh in 0..1 of the square; NaN where no pixel is inside.
    """
    logits = mask_logits.clamp(-SURE_LOGIT, SURE_LOGIT)
    x0, x1 = _extent(logits.amax(-2))  # of the columns (..., w)
    y0, y1 = _extent(logits.amax(-1))  # of the rows (..., h)
    return box_xyxy_to_cxcywh(torch.stack([x0, y0, x1, y1], dim=-1))


def refine_boxes(boxes_cxcywh: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4), half-way to the boxes around their masks (..., h, w) where the two agree (`REFINE_FROM_IOU`)."""
    around = boxes_around_masks(mask_logits)
    iou, _ = paired_iou_and_giou(box_cxcywh_to_xyxy(boxes_cxcywh), box_cxcywh_to_xyxy(around))
    return torch.where((iou >= REFINE_FROM_IOU)[..., None], (boxes_cxcywh + around) / 2, boxes_cxcywh)


def _extent(profile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., n) logits along an axis of 0..1 -> where they first and last cross 0, (...) each; NaN if none is above."""
    first, last = _first_crossing(profile), 1 - _first_crossing(profile.flip(-1))
    found = (profile > 0).any(-1)
    return torch.where(found, first, torch.nan), torch.where(found, last, torch.nan)


def _first_crossing(profile: torch.Tensor) -> torch.Tensor:
    """(..., n) -> (...), in 0..1: between the centers of the first cell above 0 and of the one before it."""
    place = (profile > 0).to(torch.int64).argmax(-1, keepdim=True)  # (..., 1)
    above, below = profile.gather(-1, place), profile.gather(-1, (place - 1).clamp(min=0))
    # Center of the cell before, and from there the share of the way at which the line through both is 0.
    crossing = place - 0.5 + below / (below - above).clamp(max=-1e-6)
    return torch.where(place > 0, crossing, 0.0)[..., 0] / profile.shape[-1]


def _area(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(-1)


def _pixels_inside(center: torch.Tensor, length: torch.Tensor, pixels: int) -> torch.Tensor:
    """(B, 1) centers and lengths of intervals in 0..1 -> (B, pixels) bool, the pixels whose center lies inside."""
    # A whole or half pixel edge comes back from cxcywh with a rounding error, which must not move the raster.
    first = ((center - length / 2) * pixels - 0.5 - RASTER_TOLERANCE_PIXELS).ceil()
    end = ((center + length / 2) * pixels - 0.5 - RASTER_TOLERANCE_PIXELS).ceil()
    own = (center * pixels).floor().clamp(max=pixels - 1)
    is_thin = end <= first
    first, end = torch.where(is_thin, own, first), torch.where(is_thin, own + 1, end)
    index = torch.arange(pixels, device=center.device)
    return (index >= first) & (index < end)  # NaN compares as False


def _interval_coverage(start: torch.Tensor, end: torch.Tensor, cells: int) -> torch.Tensor:
    """(B,) start and end of intervals in 0..1 -> (B, cells), the covered share of each cell."""
    left = torch.arange(cells, device=start.device, dtype=start.dtype) / cells
    overlap = torch.minimum(end[:, None], left + 1 / cells) - torch.maximum(start[:, None], left)
    return (overlap * cells).clamp(0, 1)


__all__ = [
    "box_coverage",
    "box_cxcywh_to_xyxy",
    "box_xyxy_to_cxcywh",
    "boxes_around_masks",
    "paired_iou_and_giou",
    "rasterize_boxes",
    "refine_boxes",
    "suppress_overlaps",
]
