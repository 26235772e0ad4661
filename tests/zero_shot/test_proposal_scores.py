"""Four ways to point CLIP at a box."""

import numpy as np
import PIL.Image
import pytest
import torch

from hivg_hf.zero_shot.proposal_scores import (
    SCORINGS,
    blur_around,
    box_gaussians,
    crop_box,
    foveal_features,
    score_proposals,
)


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, size=(60, 100, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


BOXES = np.array([[10.0, 5, 40, 50], [60, 20, 90, 55], [0, 0, 100, 60]])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_scores_are_one_row_per_text_and_depend_on_both(encoder, picture, scoring):
    scores = score_proposals(encoder, picture, BOXES, ["red star", "blue sea"], scoring)
    assert scores.shape == (2, 3)
    assert np.ptp(scores, axis=1).min() > 1e-3
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    alone = score_proposals(encoder, picture, BOXES[1:2], ["blue sea"], scoring)
    assert alone[0, 0] == pytest.approx(scores[1, 1], abs=1e-4)


def test_without_strength_the_fovea_is_the_plain_class_token(encoder, picture):
    features = foveal_features(encoder, picture, BOXES, strength=0.0)
    expected = encoder.pooled(encoder.squares([picture]))
    assert torch.allclose(features, expected.expand(3, -1), atol=1e-5)


def test_a_strong_fovea_sees_only_its_box(encoder, picture):
    """With strength and all layers, pixels far outside the box no longer reach the copy of [CLS] by its own attention;
    what is left comes through the patches, which attend as always."""
    changed = picture.copy()
    changed.paste((0, 0, 0), (80, 0, 100, 60))
    box = np.array([[0.0, 0, 30, 60]])

    def shift(strength):
        views = [foveal_features(encoder, p, box, strength, layer_share=1.0) for p in (picture, changed)]
        return float((views[0] - views[1]).norm())

    assert shift(1000.0) < shift(0.0)


def test_the_map_scores_the_box_on_the_bright_patches_highest(encoder, picture, monkeypatch):
    """A map that is 1 on the left half of the picture and 0 on the right."""
    features = torch.zeros(1, 64, 16)
    features.view(1, 8, 8, 16)[:, :, :4, 0] = 1.0
    monkeypatch.setattr(encoder, "patches", lambda squares: features)
    monkeypatch.setattr(encoder, "directions", lambda texts: torch.eye(16)[:1])
    scores = score_proposals(
        encoder, picture, np.array([[0.0, 0, 50, 60], [50, 0, 100, 60], [0, 0, 100, 60]]), ["x"], "map"
    )
    assert scores[0] == pytest.approx([encoder.logit_scale, -encoder.logit_scale, 0.0], abs=0.02)


def test_gaussians_are_1_in_the_middle_and_fall_at_the_edges():
    gaze = box_gaussians(np.array([[0.0, 0.0, 1.0, 1.0]]), 9).reshape(9, 9)
    assert gaze[4, 4] == pytest.approx(1.0)
    assert gaze[4, 0] == pytest.approx(np.exp(-((8 / 9) ** 2) / 2))
    assert np.array_equal(gaze, gaze.T)


def test_crops_are_whole_pixels_inside_the_picture(picture):
    assert crop_box(picture, [10.2, 5.9, 39.1, 50]).size == (30, 45)
    assert crop_box(picture, [99.9, 59.9, 100, 60]).size == (1, 1)


def test_blur_keeps_the_box_and_changes_the_rest(picture):
    blurred, pixels = np.asarray(blur_around(picture, [20, 10, 60, 40])), np.asarray(picture)
    assert np.array_equal(blurred[10:40, 20:60], pixels[10:40, 20:60])
    assert blurred[:, 65:].std() < pixels[:, 65:].std() / 2


def test_an_unknown_scoring_is_refused(encoder, picture):
    with pytest.raises(ValueError, match=r"Expected scoring to be one of .*, got 'gaze'"):
        score_proposals(encoder, picture, BOXES, ["x"], "gaze")
