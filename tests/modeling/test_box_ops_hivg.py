"""Boxes by hand: every format, overlap and raster with numbers small enough to check on paper."""

import pytest
import torch

from hivg_hf.modeling.box_ops_hivg import (
    box_coverage,
    box_cxcywh_to_xyxy,
    box_xyxy_to_cxcywh,
    boxes_around_masks,
    paired_iou_and_giou,
    rasterize_boxes,
    refine_boxes,
    suppress_overlaps,
)


def test_cxcywh_to_xyxy_literal():
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])
    torch.testing.assert_close(box_cxcywh_to_xyxy(box), torch.tensor([0.4, 0.3, 0.6, 0.7]))


def test_xyxy_to_cxcywh_is_the_inverse():
    boxes = torch.tensor([[0.0, 10.0, 30.0, 50.0], [5.0, 5.0, 6.0, 9.0]])
    torch.testing.assert_close(box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(boxes)), boxes)


@pytest.mark.parametrize(
    ("box", "other", "iou", "giou"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0, 1.0),  # the same
        ([0, 0, 2, 2], [0, 0, 2, 1], 0.5, 0.5),  # half of it: IoU exactly one half
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),  # a corner; hull 9, union 7
        ([0, 0, 1, 1], [2, 0, 3, 1], 0.0, -1 / 3),  # apart; hull 3, union 2
        ([0, 0, 1, 1], [1, 0, 2, 1], 0.0, 0.0),  # touching
    ],
)
def test_iou_and_giou_literal(box, other, iou, giou):
    found = paired_iou_and_giou(torch.tensor([box]).float(), torch.tensor([other]).float())
    torch.testing.assert_close(found[0], torch.tensor([iou]))
    torch.testing.assert_close(found[1], torch.tensor([giou]))


def test_an_empty_box_overlaps_with_nothing_and_gives_no_nan():
    empty = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    iou, giou = paired_iou_and_giou(empty, empty)
    assert iou.item() == 0
    assert torch.isfinite(giou).all()


def test_coverage_is_the_share_of_each_cell():
    # x from 0.25 to 0.75, y from 0 to 0.5, on a grid of 2 x 2: half of both upper cells
    coverage = box_coverage(torch.tensor([[0.5, 0.25, 0.5, 0.5]]), 2, 2)
    torch.testing.assert_close(coverage, torch.tensor([[[0.5, 0.5], [0.0, 0.0]]]))


def test_raster_takes_pixels_whose_center_is_inside():
    # columns 1 and 2 of 4 (centers 0.375, 0.625), row 0 of 4
    mask = rasterize_boxes(torch.tensor([[0.5, 0.125, 0.5, 0.25]]), 4, 4)
    expected = torch.zeros(1, 4, 4)
    expected[0, 0, 1:3] = 1
    torch.testing.assert_close(mask, expected)


@pytest.mark.parametrize("size", [64, 112, 224, 336])
def test_an_edge_on_a_pixel_center_counts_once_whatever_float32_makes_of_it(size):
    corners = torch.tensor([[start + 0.5, 3.5, start + 10.5, 13.5] for start in range(size - 11)]) / size
    masks = rasterize_boxes(box_xyxy_to_cxcywh(corners), size, size)
    assert masks.sum(dim=(1, 2)).tolist() == [100] * (size - 11)


@pytest.mark.parametrize("thin", [[0.3, 0.5, 1e-4, 0.5], [0.3, 0.5, 0.0, 0.5], [0.99999, 0.5, 1e-5, 0.5]])
def test_a_thin_box_keeps_its_column(thin):
    mask = rasterize_boxes(torch.tensor([thin]), 8, 8)[0]
    assert mask.sum(0).nonzero().tolist() == [[int(thin[0] * 8)]]
    assert mask.sum() == 4


def test_a_nan_box_rasters_to_nothing():
    assert rasterize_boxes(torch.full((1, 4), float("nan")), 4, 4).sum() == 0


def test_of_boxes_that_overlap_the_one_that_scores_highest_is_kept():
    # The second lies in the first (IoU 0.5), the fourth overlaps the second alone, and the third lies apart.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 0, 60, 10], [0, 0, 10, 4]])
    scores = torch.tensor([0.9, 0.8, 0.3, 0.7])
    assert suppress_overlaps(boxes, scores, 0.5).tolist() == [0, 3, 2]
    assert suppress_overlaps(boxes, scores, 0.51).tolist() == [0, 1, 2]
    assert suppress_overlaps(boxes, scores, 1.1).tolist() == [0, 1, 3, 2]
    assert suppress_overlaps(boxes[:0], scores[:0], 0.5).tolist() == []
    equal = torch.tensor([[1.0, 1, 1, 1]] * 2)  # empty boxes overlap nothing, each other neither
    assert len(suppress_overlaps(equal, scores[:2], 0.5)) == 2


def logits_of(rows: slice, columns: slice, inside: float = 2.0, outside: float = -2.0) -> torch.Tensor:
    logits = torch.full((10, 20), outside)
    logits[rows, columns] = inside
    return logits


def test_the_box_around_a_mask_ends_where_its_logits_cross_zero():
    masks = torch.stack(
        [
            logits_of(slice(2, 6), slice(5, 15)),
            logits_of(slice(0, 10), slice(0, 20)),  # to every border
            logits_of(slice(2, 6), slice(5, 15), inside=1.0, outside=-3.0),  # crosses a quarter cell further inside
            logits_of(slice(2, 6), slice(5, 15), outside=-1e4),  # padding says nothing of the border
            logits_of(slice(0, 0), slice(0, 0)),
        ]
    )
    found = box_cxcywh_to_xyxy(boxes_around_masks(masks))
    torch.testing.assert_close(found[0], torch.tensor([0.25, 0.2, 0.75, 0.6]))
    torch.testing.assert_close(found[1], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(found[2], torch.tensor([5.25 / 20, 0.225, 14.75 / 20, 0.575]))
    torch.testing.assert_close(found[3, 0], torch.tensor((5 - 0.5 + 4 / 6) / 20))
    assert found[4].isnan().all()


def test_a_box_moves_half_way_to_a_mask_that_agrees_and_stays_otherwise():
    masks = logits_of(slice(2, 6), slice(5, 15))[None].expand(3, 10, 20)
    near, far = [0.25, 0.2, 0.79, 0.6], [0.5, 0.5, 0.9, 0.9]
    boxes = box_xyxy_to_cxcywh(torch.tensor([near, far, near]))
    masks = torch.cat([masks[:2], torch.full((1, 10, 20), -1.0)])  # the last names nothing
    refined = box_cxcywh_to_xyxy(refine_boxes(boxes, masks))
    torch.testing.assert_close(refined, torch.tensor([[0.25, 0.2, 0.77, 0.6], far, near]))
