"""From predictions and references to what every figure is a sum of: overlap, mask pixels and score of each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hivg_hf.data.official_targets import truncate_ground_truth

from .average_precision import average_precision
from .matching import match_predictions, matched_array
from .no_target import answered_boxes, no_target_columns
from .overlaps import (
    boxes_cxcywh_to_xyxy,
    centers_inside,
    clip_boxes,
    mask_intersection_union,
    paired_giou,
    paired_iou,
    union_of_masks,
)
from .protocols import (
    MetricProtocol,
    centered_offsets,
    get_protocol,
    pixel_boxes_to_canvas,
)

OFFICIAL_CANVAS_SIZE = 224


@dataclass
class RowScores:
    """What the figures are sums of, one entry per reference, in their order.

    Attributes:
        ids: N ids.
        has_box: (N,) bool, rows with exactly one target box: those that accuracy is about.
        overlaps: (N,) the protocol's overlap (IoU or GIoU), NaN where has_box is False.
        ious: (N,) plain IoU in the protocol's space, NaN where has_box is False.
        centered: (N,) 1 where the predicted center lies in the target box.
        masks: (N, 2) shared and covered pixels; NaN where the reference has no mask or no masks were predicted.
        scores: (N,) the model's scores, NaN where absent.
        references: the N references.
        extra: further ratio columns, name to (numerators (N,), denominators (N,)).
        several_boxes: whether a prediction may hold several boxes.
        average_precision: AP at 0.5 of the sets of boxes; None where no row and no prediction has several, or a box
            has no score.
    """

    ids: list[Any]
    has_box: np.ndarray
    overlaps: np.ndarray
    ious: np.ndarray
    centered: np.ndarray
    masks: np.ndarray
    scores: np.ndarray
    references: list[Mapping[str, Any]]
    extra: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    several_boxes: bool = False
    average_precision: float | None = None

    def correct(self, protocol: str | MetricProtocol, threshold: float = 0.5) -> np.ndarray:
        """(N,) bool, rows with one target whose overlap passes the threshold."""
        strict = get_protocol(protocol).strict
        return self.has_box & (self.overlaps > threshold if strict else self.overlaps >= threshold)

    def mask_ious(self) -> np.ndarray:
        """(N,) IoU of the masks, NaN where there is none. Two empty masks agree.

        Official: IoU_v2 divides 0 by 0 there and its mean becomes NaN, utils/eval_utils.py:32
        """
        shared, covered = self.masks.T
        return np.divide(shared, covered, out=np.where(covered == 0, 1.0, np.nan), where=covered > 0)

    def clusters(self) -> list[Any]:
        """What the bootstrap draws together: rows of one image; a row that names no image stands for itself."""
        return [_cluster(reference) for reference in self.references]


def score_rows(
    predictions: Iterable[Mapping[str, Any]],
    references: Iterable[Mapping[str, Any]],
    protocol: str | MetricProtocol = "pixel",
    *,
    score_threshold: float | None = None,
    multiple_threshold: float | None = None,
    several_targets: str = "skip",
) -> RowScores:
    """The overlap of every row; arguments as in `compute_grounding_metrics`."""
    protocol = get_protocol(protocol)
    if several_targets not in ("skip", "any"):
        raise ValueError(f'several_targets must be "skip" or "any", got {several_targets!r}.')
    for name, value in {"score_threshold": score_threshold, "multiple_threshold": multiple_threshold}.items():
        if value is not None and np.isnan(value):
            raise ValueError(f"{name} is NaN, with which no score can be compared: pass a number, or None.")
    references = list(references)
    matched = match_predictions(list(predictions), references)
    targets = [_target_boxes(reference, several_targets) for reference in references]
    has_box = np.array([len(boxes) > 0 for boxes in targets], dtype=bool)
    # In the protocol's precision: numpy then compares with a threshold in that precision too, as torch does.
    overlaps, ious, centered = (np.full(len(references), np.nan, dtype=protocol.dtype) for _ in range(3))
    # A row has one target, or with "any" several: the best overlap of each row counts.
    for turn in range(max((len(boxes) for boxes in targets), default=0)):
        chosen = [index for index, boxes in enumerate(targets) if turn < len(boxes)]
        scored = _score_boxes(
            [matched[i] for i in chosen], [references[i] for i in chosen], [targets[i][turn] for i in chosen], protocol
        )
        for into, values in zip((overlaps, ious, centered), scored, strict=True):
            into[chosen] = np.fmax(into[chosen], values)
    rows = RowScores(
        ids=[reference["id"] for reference in references],
        has_box=has_box,
        overlaps=overlaps,
        ious=ious,
        centered=centered,
        masks=_mask_pixels(matched, references, score_threshold, multiple_threshold),
        scores=matched_array(matched, "score"),
        several_boxes=any(prediction.get("boxes_xyxy") is not None for prediction in matched),
        references=references,
    )
    if rows.several_boxes or any(len(reference.get("boxes") or []) > 1 for reference in references):
        rows.average_precision = average_precision(matched, references, protocol)
    if score_threshold is not None:
        rows.extra = no_target_columns(matched, references, protocol, score_threshold, multiple_threshold)
    return rows


def _target_boxes(reference: Mapping[str, Any], several_targets: str) -> list[Sequence[float]]:
    """The boxes that accuracy is measured against: one, none, or with "any" all of them."""
    several = reference.get("boxes") or []
    if len(several) > 1:
        if several_targets == "any":
            return list(several)
        if reference.get("box") is None:
            return []
    box = reference["box"] if "box" in reference else reference.get("box_xyxy")
    return [] if box is None or reference.get("no_target") else [box]


def _score_boxes(
    predictions: list[Mapping[str, Any]],
    references: list[Mapping[str, Any]],
    target_boxes: list[Sequence[float]],
    protocol: MetricProtocol,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The protocol's overlap, the plain IoU and whether the center is right, (N,) each."""
    tops = [_top_box(prediction) for prediction in predictions]
    answered = np.array([box is not None for box in tops], dtype=bool)
    # Without an answer a box of no area: its overlap with anything is 0 (IoU) or below (GIoU).
    boxes = np.array([[0.0] * 4 if box is None else box for box in tops], dtype=np.float64).reshape(-1, 4)
    targets = np.array(target_boxes, dtype=np.float64).reshape(-1, 4)
    if protocol.canvas:
        boxes, targets = _to_canvas(predictions, references, boxes, targets)
    elif protocol.clip_to_image:
        boxes = clip_boxes(boxes, matched_array(references, "width"), matched_array(references, "height"))
    boxes, targets = boxes.astype(protocol.dtype), targets.astype(protocol.dtype)
    ious = paired_iou(boxes, targets)
    overlaps = paired_giou(boxes, targets) if protocol.overlap == "giou" else ious
    return overlaps, ious, centers_inside(boxes, targets) & answered


def _top_box(prediction: Mapping[str, Any]) -> Sequence[float] | None:
    """The one box that accuracy looks at: `box_xyxy`, else the best scored of several, else None."""
    if prediction.get("box_xyxy") is not None:
        return prediction["box_xyxy"]
    if len(prediction["boxes_xyxy"]) == 0:
        return None
    return prediction["boxes_xyxy"][int(np.argmax(prediction["scores"]))]


def _to_canvas(
    predictions: list[Mapping[str, Any]], references: list[Mapping[str, Any]], boxes: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both boxes as xyxy in 0..1 of the padded square; the predicted one clipped to it, (N, 4) float32 each."""
    widths, heights = matched_array(references, "width"), matched_array(references, "height")
    unknown = [ref["id"] for ref, w, h in zip(references, widths, heights, strict=True) if not (w > 0 and h > 0)]
    if unknown:
        raise ValueError(
            f"The protocol official needs the width and height of every image; {len(unknown)} references have none: "
            f"{unknown[:10]}."
        )
    sizes = np.array([p.get("canvas_size") or OFFICIAL_CANVAS_SIZE for p in predictions], dtype=np.float64)
    offsets = centered_offsets(widths, heights, sizes)
    for index, prediction in enumerate(predictions):
        if prediction.get("canvas_offset") is not None:
            offsets[index] = prediction["canvas_offset"]
    truncated = truncate_ground_truth(targets, [reference.get("source") for reference in references])
    target_canvas = pixel_boxes_to_canvas(truncated, widths, heights, sizes, offsets)
    canvas = pixel_boxes_to_canvas(boxes, widths, heights, sizes, offsets)
    for index, prediction in enumerate(predictions):
        if prediction.get("canvas_box") is not None:
            canvas[index] = prediction["canvas_box"]
    return np.clip(boxes_cxcywh_to_xyxy(canvas), 0.0, 1.0), boxes_cxcywh_to_xyxy(target_canvas)


def _mask_pixels(
    predictions: list[Mapping[str, Any]],
    references: list[Mapping[str, Any]],
    score_threshold: float | None,
    multiple_threshold: float | None,
) -> np.ndarray:
    """Shared and covered pixels of each row, (N, 2); all NaN when no prediction has a mask.

    The target of a row with several boxes is the union of its objects, so it is compared with that of the answer's
    `masks` where a prediction has them.
    """
    pixels = np.full((len(references), 2), np.nan)
    if all(prediction.get("mask") is None for prediction in predictions):
        return pixels
    wanted = [index for index, reference in enumerate(references) if reference.get("mask") is not None]
    missing = [references[index]["id"] for index in wanted if predictions[index].get("mask") is None]
    if missing:
        raise ValueError(
            f"{len(missing)} predictions have no mask where others have one: {missing[:10]}. Predict a mask for every "
            f"expression (an empty one is a mask of zeros), or for none."
        )
    for index in wanted:
        mask, masks = predictions[index]["mask"], predictions[index].get("masks")
        try:
            if masks and score_threshold is not None and len(references[index].get("boxes") or []) > 1:
                scores = np.array(predictions[index]["scores"], dtype=np.float64)
                answer = answered_boxes(scores, score_threshold, multiple_threshold)
                mask = union_of_masks([own for own, given in zip(masks, answer, strict=True) if given], like=mask)
            pixels[index] = mask_intersection_union(mask, references[index]["mask"])
        except ValueError as error:
            raise ValueError(f"Prediction {references[index]['id']!r}: {error}") from None
    return pixels


def _cluster(reference: Mapping[str, Any]) -> Any:
    image_id = reference.get("image_id")
    return ("row", reference["id"]) if image_id is None else ("image", reference.get("source"), image_id)
