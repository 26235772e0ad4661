"""Protocols against slow renditions of what the published evaluators do, row by row in torch."""

import math

import numpy as np
import pytest
import torch

from hivg_hf.data.official_targets import truncate_ground_truth
from hivg_hf.metrics import score_rows

COUNT = 400


@pytest.fixture(scope="module")
def rows():
    """References with two decimals as COCO has them, and predictions near them, some over the border."""
    generator = np.random.default_rng(0)
    references, predictions = [], []
    for index in range(COUNT):
        width, height = (int(side) for side in generator.integers(60, 640, 2))
        x, y = generator.random(2) * [0.6 * width, 0.6 * height]
        w, h = generator.random(2) * [0.4 * width - 8, 0.4 * height - 8] + 8
        xywh = [round(float(value), 2) for value in (x, y, w, h)]
        box = np.array([xywh[0], xywh[1], xywh[0] + xywh[2], xywh[1] + xywh[3]], dtype=np.float32)
        source = ["refcoco", "flickr30k"][index % 2]
        references.append(
            {"id": index, "box": box.tolist(), "xywh": xywh, "width": width, "height": height, "source": source}
        )
        moved = box + generator.normal(0, 0.25, 4) * np.tile([w, h], 2)
        moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
        predictions.append({"id": index, "box_xyxy": [float(edge) for edge in moved]})
    return predictions, references


def test_official_is_what_the_official_loader_and_evaluator_do(rows):
    predictions, references = rows
    # The model's own output: the same boxes as cxcywh of the padded square.
    predictions = [
        {**one, "canvas_box": to_square(one["box_xyxy"], reference)}
        for one, reference in zip(predictions, references, strict=True)
    ]
    ours = score_rows(predictions, references, "official")
    for index, (one, reference) in enumerate(zip(predictions, references, strict=True)):
        expected = official_iou(torch.tensor(one["canvas_box"], dtype=torch.float32), reference)
        assert ours.ious[index] == pytest.approx(expected, abs=1e-5)
    assert 0.2 < ours.correct("official").mean() < 0.95


def test_official_without_the_models_own_boxes_is_near_it(rows):
    predictions, references = rows
    ours = score_rows(predictions, references, "official")
    expected = [
        official_iou(torch.tensor(to_square(one["box_xyxy"], reference), dtype=torch.float32), reference)
        for one, reference in zip(predictions, references, strict=True)
    ]
    np.testing.assert_allclose(ours.ious, expected, atol=1e-5)


def test_mdetr_and_ref_l4_on_the_same_boxes(rows):
    predictions, references = rows
    by_giou, strict = score_rows(predictions, references, "mdetr"), score_rows(predictions, references, "ref-l4")
    for index, (one, reference) in enumerate(zip(predictions, references, strict=True)):
        iou, giou = slow_overlaps(one["box_xyxy"], reference["box"])
        assert by_giou.overlaps[index] == pytest.approx(giou, abs=2e-5)
        assert strict.overlaps[index] == pytest.approx(iou, abs=2e-5)


def test_ground_truth_is_cut_as_an_integer_array_cuts_it(rows):
    _, references = rows
    boxes = np.array([reference["box"] for reference in references])
    cut = truncate_ground_truth(boxes, [reference["source"] for reference in references])
    for ours, reference in zip(cut, references, strict=True):
        np.testing.assert_array_equal(ours, official_box(reference))


def official_box(reference):
    """The loader's `np.array(bbox, dtype=int)`: on xywh, or on the corners of a Flickr row."""
    if reference["source"] == "flickr30k":
        x, y, w, h = reference["xywh"]
        return np.array([x, y, round(x + w, 2), round(y + h, 2)], dtype=int)
    x, y, w, h = np.array(reference["xywh"], dtype=int)
    return np.array([x, y, x + w, y + h])


def official_iou(canvas_box, reference):
    target = to_corners(torch.tensor(to_square(official_box(reference), reference), dtype=torch.float32))
    predicted = to_corners(canvas_box).clamp(0, 1)
    iou, _ = slow_overlaps(predicted.tolist(), target.tolist())
    return iou


def to_square(box, reference, size=224):
    """Pixels to cxcywh in 0..1 of the square, centered padding, by the official rules of rounding."""
    width, height = reference["width"], reference["height"]
    ratio = size / max(width, height)
    left = round((size - round(width * ratio)) / 2 - 0.1)
    top = round((size - round(height * ratio)) / 2 - 0.1)
    x1, y1, x2, y2 = (float(edge) * ratio for edge in box)
    x1, y1, x2, y2 = x1 + left, y1 + top, x2 + left, y2 + top
    return [(x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size]


def to_corners(box):
    cx, cy, w, h = box
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def slow_overlaps(first, second):
    """IoU and generalized IoU of two boxes, xyxy."""
    shared = math.prod(max(0.0, min(first[i + 2], second[i + 2]) - max(first[i], second[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    covered = sum(areas) - shared
    hull = math.prod(max(first[i + 2], second[i + 2]) - min(first[i], second[i]) for i in (0, 1))
    return shared / covered, shared / covered - (hull - covered) / hull
