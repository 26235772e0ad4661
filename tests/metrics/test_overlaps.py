"""Overlaps against pycocotools on many random boxes and masks, and at the edges by hand."""

import numpy as np
import pytest

from hivg_hf.data.schema import encode_mask
from hivg_hf.metrics.overlaps import (
    centers_inside,
    mask_intersection_union,
    paired_giou,
    paired_iou,
    union_of_masks,
)

coco = pytest.importorskip("pycocotools.mask")

COUNT = 10_000


def test_box_iou_agrees_with_pycocotools_on_ten_thousand_boxes():
    generator = np.random.default_rng(0)
    first, second = (random_boxes(generator) for _ in range(2))
    second[: COUNT // 2] = first[: COUNT // 2] + generator.normal(0, 8, (COUNT // 2, 4))  # many that overlap a lot
    second[:, 2:] = np.maximum(second[:, 2:], second[:, :2] + 0.5)
    expected = [coco.iou([xywh(a)], [xywh(b)], [0])[0, 0] for a, b in zip(first, second, strict=True)]
    ours = paired_iou(first, second)
    assert 0.2 < np.mean(ours > 0.5) < 0.8  # the sample says something about both sides
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_mask_overlap_agrees_with_pycocotools_on_ten_thousand_masks():
    generator = np.random.default_rng(1)
    for _ in range(COUNT // 100):
        height, width = generator.integers(1, 40, 2)
        masks = generator.random((200, height, width)) < generator.random((200, 1, 1))
        masks[0] = False
        encoded = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        expected = [coco.iou([encoded[i]], [encoded[100 + i]], [0])[0, 0] for i in range(100)]
        for index in range(100):
            shared, covered = mask_intersection_union(masks[index], masks[100 + index])
            assert (shared / covered if covered else 0.0) == pytest.approx(expected[index], abs=1e-12)
            assert mask_intersection_union(encoded[index], encoded[100 + index]) == (shared, covered)


def test_run_lengths_and_arrays_mix():
    mask = np.array([[1, 1, 0], [0, 1, 0]], bool)
    other = np.array([[0, 1, 1], [0, 0, 0]], bool)
    assert mask_intersection_union(encode_mask(mask), other) == (1, 4)
    assert mask_intersection_union(encode_mask(mask), encode_mask(other)) == (1, 4)


def test_boxes_without_area_overlap_nothing():
    point = np.array([[5.0, 5.0, 5.0, 5.0]])
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    assert paired_iou(point, point) == 0
    assert paired_iou(point, box) == 0
    assert paired_giou(point, point) == 0


def test_generalized_iou_of_boxes_that_do_not_touch():
    # Two unit squares two apart: hull 1 x 3, a third of it empty.
    giou = paired_giou(np.array([[0.0, 0, 1, 1]]), np.array([[0.0, 2, 1, 3]]))
    assert giou[0] == pytest.approx(-1 / 3)


def test_a_center_on_a_corner_is_inside():
    boxes = np.array([[0.0, 0, 2, 2], [0, 0, 2, 2]])
    assert centers_inside(boxes, np.array([[1.0, 1, 5, 5], [1.01, 1, 5, 5]])).tolist() == [True, False]


def random_boxes(generator):
    corners = generator.random((COUNT, 2)) * 500
    return np.concatenate([corners, corners + generator.random((COUNT, 2)) * 140 + 0.5], axis=1)


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_masks_unite_and_no_mask_is_an_empty_one():
    first, second = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    first[0, 0] = second[1, 2] = True
    assert union_of_masks([encode_mask(first), second], like=first).tolist() == (first | second).tolist()
    assert not union_of_masks([], like=encode_mask(first)).any()
