"""Overlaps of paired boxes and masks, as numpy arrays. What counts as right is in `protocols`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hivg_hf.data.schema import checked_run_lengths, decode_mask
from hivg_hf.utils.imports import require_package


def boxes_cxcywh_to_xyxy(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """(N, 4) center and size to (N, 4) corners, in the precision of the input."""
    half = boxes_cxcywh[:, 2:] * boxes_cxcywh.dtype.type(0.5)
    return np.concatenate([boxes_cxcywh[:, :2] - half, boxes_cxcywh[:, :2] + half], axis=1)


def clip_boxes(boxes_xyxy: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """(N, 4) boxes cut at the border of their images; a size of NaN leaves its box as it is."""
    limits = np.stack([widths, heights, widths, heights], axis=1)  # (N, 4)
    limits = np.where(np.isnan(limits), np.inf, limits)
    lower = np.where(np.isinf(limits), -np.inf, 0.0)
    return np.clip(boxes_xyxy, lower, limits)


def paired_intersections_unions(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas shared and covered by first[i] and second[i], each (N, 4) xyxy."""
    lengths = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    lengths = np.maximum(lengths, 0)
    intersections = lengths[:, 0] * lengths[:, 1]
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    return intersections, areas[0] + areas[1] - intersections


def paired_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of first[i] with second[i], (N,); 0 where both boxes have no area."""
    intersections, unions = paired_intersections_unions(first, second)
    return np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)


def paired_giou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Generalized IoU of first[i] with second[i], (N,), in (-1, 1]: IoU minus the empty part of their hull."""
    intersections, unions = paired_intersections_unions(first, second)
    iou = np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)
    lengths = np.maximum(first[:, 2:], second[:, 2:]) - np.minimum(first[:, :2], second[:, :2])
    hulls = lengths[:, 0] * lengths[:, 1]
    return iou - np.divide(hulls - unions, hulls, out=np.zeros_like(hulls), where=hulls > 0)


def centers_inside(boxes_xyxy: np.ndarray, targets_xyxy: np.ndarray) -> np.ndarray:
    """(N,) True where the center of boxes_xyxy[i] lies in targets_xyxy[i], its border included."""
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    return np.all((centers >= targets_xyxy[:, :2]) & (centers <= targets_xyxy[:, 2:]), axis=1)


def mask_intersection_union(first: Any, second: Any) -> tuple[int, int]:
    """Pixels shared and covered by two masks of one image.

    Args:
        first, second: each a (H, W) array (non-zero = inside) or a COCO run-length dict {"size", "counts"}.

    Raises:
        ValueError: the masks differ in size.
    """
    if _mask_size(first) != _mask_size(second):
        raise ValueError(
            f"Masks of one image must have one size (height, width): got {_mask_size(first)} and {_mask_size(second)}."
        )
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        coder = require_package("pycocotools.mask", extra="data")
        first, second = checked_run_lengths(first), checked_run_lengths(second)
        shared = int(coder.area(coder.merge([first, second], intersect=True)))
        return shared, int(coder.area(first)) + int(coder.area(second)) - shared
    first, second = decode_mask_array(first), decode_mask_array(second)
    return int(np.count_nonzero(first & second)), int(np.count_nonzero(first | second))


def union_of_masks(masks: Sequence[Any], like: Any) -> np.ndarray:
    """What any of some masks of one image covers, (H, W) bool. Of no mask at all: nothing, in the size of `like`."""
    covered = np.zeros(_mask_size(like), dtype=bool)
    for mask in masks:
        covered |= decode_mask_array(mask)
    return covered


def decode_mask_array(mask: Any) -> np.ndarray:
    """A mask in either form as a (H, W) bool array."""
    return decode_mask(mask) if isinstance(mask, Mapping) else np.asarray(mask).astype(bool)


def _mask_size(mask: Any) -> tuple[int, ...]:
    size = mask["size"] if isinstance(mask, Mapping) else np.shape(mask)
    return tuple(int(length) for length in size)
