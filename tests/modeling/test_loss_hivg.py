"""Loss terms by hand, and what they do with rows that have nothing to learn from."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hivg_hf.modeling.loss_hivg import (
    box_giou_loss,
    box_l1_loss,
    checked_labels,
    contrastive_loss,
    dice_loss,
    focal_loss,
    hash_expressions,
    same_pairs,
    score_loss,
    token_targets,
)

NAN_BOX = [float("nan")] * 4


def test_box_l1_sums_coordinates_and_averages_samples():
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    target = torch.tensor([[0.4, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(box_l1_loss(predicted, target), torch.tensor(0.15))


@pytest.mark.parametrize("loss", [box_l1_loss, box_giou_loss])
def test_rows_without_target_are_left_out_of_the_box_terms(loss):
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.2, 0.2]], requires_grad=True)
    with_target = torch.tensor([[0.4, 0.5, 0.2, 0.4]])
    both = loss(predicted, torch.cat([with_target, torch.tensor([NAN_BOX])]))
    torch.testing.assert_close(both, loss(predicted[:1], with_target))
    both.backward()
    assert predicted.grad[1].abs().sum() == 0
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("loss", [box_l1_loss, box_giou_loss])
def test_a_batch_without_any_target_has_a_box_loss_of_zero(loss):
    predicted = torch.rand(2, 4, requires_grad=True)
    value = loss(predicted, torch.tensor([NAN_BOX, NAN_BOX]))
    value.backward()
    assert value.item() == 0


def test_focal_loss_literal():
    # probability 0.5 everywhere: alpha_t * 0.5**2 * log 2, positive 0.25, negative 0.75
    logits = torch.zeros(1, 2)
    expected = (0.25 + 0.75) / 2 * 0.25 * math.log(2)
    torch.testing.assert_close(focal_loss(logits, torch.tensor([[1.0, 0.0]])), torch.tensor(expected))


def test_dice_loss_literal():
    # probabilities 0.5, 0.5 against 1, 0: 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    torch.testing.assert_close(dice_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])), torch.tensor(1 / 3))


def test_contrastive_loss_literal():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    torch.testing.assert_close(contrastive_loss(logits), torch.tensor(math.log(4 / 3)))


def test_contrastive_loss_of_one_sample_is_zero():
    assert contrastive_loss(torch.tensor([[5.0]])).item() == 0


def test_duplicates_are_no_negatives():
    logits = torch.randn(3, 3)
    duplicates = torch.eye(3, dtype=torch.bool)
    duplicates[0, 1] = duplicates[1, 0] = True
    changed = logits.clone()
    changed[0, 1] = changed[1, 0] = 50.0
    torch.testing.assert_close(
        contrastive_loss(logits, duplicates=duplicates), contrastive_loss(changed, duplicates=duplicates)
    )
    assert contrastive_loss(changed) > contrastive_loss(logits) + 1


def test_samples_without_target_take_no_part_in_the_contrastive_term():
    logits = torch.randn(3, 3)
    valid = torch.tensor([True, False, True])
    expected = contrastive_loss(logits[valid][:, valid])
    torch.testing.assert_close(contrastive_loss(logits, valid), expected)
    assert contrastive_loss(logits, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_score_loss_asks_whether_the_box_is_right_and_moves_no_box():
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 3, requires_grad=True)
    target = torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.9, 0.9, 0.1, 0.1], NAN_BOX])  # IoU exactly 0.5; 0; no target
    logits = torch.zeros(3, requires_grad=True)
    score_loss(logits, predicted, target).backward()
    assert torch.equal(logits.grad.sign(), torch.tensor([-1.0, 1.0, 1.0]))
    assert predicted.grad is None


def test_a_thin_target_survives_as_coverage_and_vanishes_when_one_pixel_is_sampled():
    thin = torch.tensor([[0.4, 0.5, 0.02, 0.5]])
    assert token_targets(thin, None, 4, 64, "coverage").sum() > 0
    assert token_targets(thin, None, 4, 64, "nearest").sum() == 0


def test_given_masks_are_the_target():
    mask = torch.zeros(1, 4, 4)
    mask[0, :2, :1] = 1
    found = token_targets(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), mask, 2, 4, "coverage")
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.0, 0.0, 0.0]]))


def test_equal_expressions_hash_alike_whatever_their_padding():
    ids = torch.tensor([[1, 5, 2, 9], [1, 5, 2, 7], [1, 6, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]])
    long = hash_expressions(ids, mask)
    assert long[0] == long[1] != long[2]
    assert hash_expressions(ids[:1, :3], mask[:1, :3]) == long[:1]


def test_pairs_share_the_image_or_the_expression():
    same = same_pairs(torch.tensor([1, 1, 2]), torch.tensor([7, 8, 8]))
    assert same.tolist() == [[True, True, False], [True, True, True], [False, True, True]]


def test_a_registered_term_is_weighed_computed_and_left_out_of_saved_configs(monkeypatch, tmp_path):
    from hivg_hf import HiVGConfig
    from hivg_hf.modeling import configuration_hivg, loss_hivg, modeling_hivg

    known = {}
    for module in (loss_hivg, configuration_hivg, modeling_hivg):
        monkeypatch.setattr(module, "EXTRA_LOSSES", known)
    with pytest.raises(StrictDataclassError, match="Unknown terms in `loss_weights`"):
        HiVGConfig.preset("tiny", loss_weights={"mine": 1})
    with pytest.raises(ValueError, match="`giou` is a term of HiVG's own"):
        loss_hivg.register_loss("giou", lambda outputs, targets, config: 0)
    with pytest.raises(ValueError, match=r"may need token_logits, mask_logits. Got \['boxes'\]"):
        loss_hivg.register_loss("mine", lambda outputs, targets, config: 0, needs=("boxes",))
    loss_hivg.register_loss(
        "mine", lambda out, targets, config: out["mask_logits"].mean() * 0 + 3, needs=("mask_logits",)
    )
    off = dict.fromkeys(loss_hivg.LOSS_NAMES, 0)
    config = HiVGConfig.preset("tiny", loss_weights={**off, "mine": 2})
    model = modeling_hivg.HiVGForVisualGrounding(config).eval()
    ids, pixels = torch.tensor([[689, 4, 690]]), torch.zeros(1, 3, 112, 112)
    output = model(input_ids=ids, pixel_values=pixels, labels=torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    assert output.loss.item() == 6
    assert list(output.loss_dict) == ["mine"]
    config.save_pretrained(tmp_path)
    known.clear()
    assert set(HiVGConfig.from_pretrained(tmp_path).loss_weights) == set(loss_hivg.LOSS_NAMES)


def test_weights_that_are_not_named_keep_their_default():
    from hivg_hf import HiVGConfig
    from hivg_hf.modeling.presets_hivg import OFFICIAL_LOSS_WEIGHTS

    config = HiVGConfig.preset("tiny", loss_weights={"mask_dice": 0})
    assert config.loss_weights == {**OFFICIAL_LOSS_WEIGHTS, "score": 1.0, "mask_dice": 0}
    again = HiVGConfig.from_dict(config.to_dict(), loss_weights={"giou": 1})
    assert (again.loss_weights["giou"], again.loss_weights["mask_dice"]) == (1, 0)


BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.4], [torch.nan] * 4, [0.95, 0.5, 1.05, 1.05]])


def test_labels_may_be_rows_or_lists_as_detr_takes_them():
    listed = [{"boxes": BOXES[:1], "class_labels": torch.tensor([0])}, {"boxes": []}, {"boxes": BOXES[2:].tolist()}]
    for labels in (BOXES, BOXES.double(), listed):
        found = checked_labels(labels, BOXES)
        assert found.dtype == torch.float32
        assert torch.equal(found.nan_to_num(-1), BOXES.nan_to_num(-1))


@pytest.mark.parametrize(
    "box", [[10.0, 20, 30, 40], [0.5, 0.5, 1.2, 0.2], [0.5, -0.2, 0.2, 0.2], [0.5, 0.5, 0.2, float("inf")]]
)
def test_labels_outside_0_to_1_are_refused_with_what_to_do(box):
    labels = torch.cat([BOXES, torch.tensor([box])])
    with pytest.raises(
        ValueError, match=r"must be \(cx, cy, w, h\) in 0..1 .* Row 3 is \[.*processor\(images, text, box"
    ):
        checked_labels(labels, BOXES)
    with pytest.raises(ValueError, match=r"Row 0 is"):
        checked_labels([{"boxes": [box]}], BOXES)


def test_several_boxes_for_one_expression_are_refused():
    with pytest.raises(ValueError, match=r"Row 1 of `labels` has 2 boxes, and an expression has one target here"):
        checked_labels([{"boxes": BOXES[:1]}, {"boxes": BOXES[[0, 2]]}], BOXES)
