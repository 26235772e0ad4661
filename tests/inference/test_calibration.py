"""After calibration a similarity score is the chance that the box is right."""

import copy

import numpy as np
import pytest

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import calibrate_similarity_score, calibration
from hivg_hf.inference.calibration import fit_logistic


def test_the_fit_recovers_the_chance_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-(1.5 * values - 4)))
    scale, bias = fit_logistic(values, right)
    assert scale == pytest.approx(1.5, abs=0.05)
    assert bias == pytest.approx(-4, abs=0.15)


def test_separable_rows_give_a_finite_fit() -> None:
    scale, bias = fit_logistic(np.array([0.0, 0.1, 5.0, 6.0]), np.array([False, False, True, True]))
    assert np.isfinite([scale, bias]).all()
    assert scale > 0


def test_a_score_is_not_fitted_to_boxes_of_one_kind() -> None:
    with pytest.raises(ValueError, match="All 3 boxes are right"):
        fit_logistic(np.arange(3), np.ones(3, dtype=bool))


def test_mean_score_becomes_the_share_of_right_boxes(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(tiny_model)
    model.config.score = "similarity"
    rows = refshapes_dataset("val", seed=1, size=40, masks=False)
    # A random model finds nothing; let a quarter of its boxes be right.
    monkeypatch.setattr(calibration, "paired_iou", lambda boxes, targets: np.arange(len(boxes)) % 4 == 0)
    fitted = calibrate_similarity_score(model, tiny_processor, rows)
    assert (model.config.score_similarity_scale, model.config.score_similarity_bias) == fitted
    pipe = VisualGroundingPipeline(model, processor=tiny_processor, device="cpu")
    scores = [result["score"] for result in pipe([{"image": r["image"], "text": r["expression"]} for r in rows])]
    assert np.mean(scores) == pytest.approx(0.25, abs=0.03)


def test_models_with_a_score_head_and_few_rows_are_refused(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor
) -> None:
    rows = refshapes_dataset("val", seed=1, size=3, masks=False)
    with pytest.raises(ValueError, match="has a trained score head"):
        calibrate_similarity_score(tiny_model, tiny_processor, rows)
    model = copy.deepcopy(tiny_model)
    model.config.score = "similarity"
    with pytest.raises(ValueError, match="at least 20 rows, got 3"):
        calibrate_similarity_score(model, tiny_processor, rows)
