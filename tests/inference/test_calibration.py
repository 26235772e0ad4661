"""After calibration a score is the chance that the box is right, at the share of empty questions that is expected."""

import copy
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from hivg_hf import VisualGroundingPipeline
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import calibrate_score, scored_rows
from hivg_hf.inference.calibration import fit_logistic, fit_score
from hivg_hf.inference.scored_rows import AnsweredRows, ScoredRows, measure_rows
from hivg_hf.metrics import expected_calibration_error


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


@pytest.fixture
def rows() -> Any:
    return refshapes_dataset("val", seed=1, size=60, masks=False)


@pytest.fixture
def some_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds nothing; let a quarter of its boxes be right."""
    monkeypatch.setattr(
        scored_rows, "paired_iou", lambda boxes, targets: np.where(np.arange(len(boxes)) % 4 == 1, 1.0, 0.0)
    )


@pytest.mark.usefixtures("some_right")
def test_mean_score_becomes_the_share_of_right_boxes(tiny_model: Any, tiny_processor: Any, rows: Any) -> None:
    model = similar(tiny_model)
    found = calibrate_score(model, tiny_processor, rows)
    assert {name: getattr(model.config, name) for name in found.fields} == found.fields
    assert found.fields.keys() == {"score_similarity_scale", "score_similarity_bias", "score_threshold"}
    results = ask(model, tiny_processor, rows)
    assert np.mean([result["score"] for result in results]) == pytest.approx(0.25, abs=0.03)
    assert found.fields["score_threshold"] == 0.5  # nothing in these rows names nothing
    assert [result["found"] for result in results] == [result["score"] >= 0.5 for result in results]


def test_a_score_head_is_calibrated_and_boxes_stay(tiny_model: Any, tiny_processor: Any, rows: Any) -> None:
    model = copy.deepcopy(tiny_model)
    before = ask(model, tiny_processor, rows)
    logits = np.array([np.log(result["score"] / (1 - result["score"])) for result in before])
    order = np.argsort(np.argsort(logits))
    right = order >= 30  # the better half, but for a few
    right[np.isin(order, (10, 20, 40, 50))] ^= True
    found = fit_score(ScoredRows(logits, right, np.zeros(60, dtype=bool)), "head")
    for name, value in found.fields.items():
        setattr(model.config, name, value)
    after = ask(model, tiny_processor, rows)
    scores = np.array([result["score"] for result in after])
    assert scores.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(np.argsort(np.argsort(scores)), order)
    assert [result["box"] for result in after] == [result["box"] for result in before]
    assert "found" not in before[0]
    assert "found" in after[0]
    again = ask(model, tiny_processor, rows, threshold=0.0)
    assert all(result["found"] for result in again)  # what a call says overrides


def test_values_are_read_back_from_scores_exactly(tiny_model: Any, tiny_processor: Any, rows: Any) -> None:
    results = ask(tiny_model, tiny_processor, rows)
    logits = np.array([np.log(result["score"] / (1 - result["score"])) for result in results])
    measured, _ = measure_rows(copy.deepcopy(tiny_model), tiny_processor, rows, 16)
    np.testing.assert_allclose(measured.values, logits, atol=1e-4)


def mixed(count: int = 4000, share: float = 0.5) -> ScoredRows:
    """Rows whose value tells right boxes from wrong ones and from answers to empty questions, each by a normal."""
    rng = np.random.default_rng(7)
    nothing = np.arange(count) % 100 < 100 * share
    right = ~nothing & (rng.random(count) < 0.9)
    return ScoredRows(rng.normal(np.where(right, 2.0, np.where(nothing, -1.0, 0.5)), 1), right, nothing)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_base_rate_makes_scores_right_where_that_share_names_nothing(rate: float) -> None:
    fresh = mixed(20_000, share=rate)

    def error(fields: dict[str, float]) -> float:
        scores = 1 / (1 + np.exp(-(fields["score_similarity_scale"] * fresh.values + fields["score_similarity_bias"])))
        return expected_calibration_error(scores, fresh.right)

    assert error(fit_score(mixed(), "similarity", base_rate=rate).fields) < 0.03
    assert error(fit_score(mixed(), "similarity", base_rate=0.6 - rate).fields) > 0.05


def test_the_threshold_has_the_precision_that_was_asked_for_and_withholds_least() -> None:
    rows = mixed()
    found = fit_score(rows, "similarity", precision=0.95)
    scale, bias = found.fields["score_similarity_scale"], found.fields["score_similarity_bias"]
    scores = 1 / (1 + np.exp(-(scale * rows.values + bias)))
    assert found.figures["precision"] >= 0.95
    lower = np.sort(scores)[: np.searchsorted(np.sort(scores), found.fields["score_threshold"])]
    assert all(rows.right[scores >= threshold].mean() < 0.95 for threshold in lower[::20])
    rarer = fit_score(rows, "similarity", precision=0.95, base_rate=0.1)
    assert rarer.figures["answered"] > found.figures["answered"]


def test_without_a_wish_both_kinds_are_treated_alike() -> None:
    figures = fit_score(mixed(), "similarity").figures
    assert abs(figures["n_acc"] - figures["t_acc"]) < 0.01
    assert figures["mcc"] > 0.5


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"precision": 0.99}, r"No threshold has a precision of 0.99 on these 400 rows: the highest is 0\.\d+"),
        ({"base_rate": 1.0}, "from 0 to below 1, got 1.0"),
    ],
)
def test_wishes_that_cannot_be_met_are_one_sentence(wish: dict[str, float], message: str) -> None:
    rows = mixed(400)
    rows = ScoredRows(rows.values, np.where(rows.values > 2.5, False, rows.right), rows.nothing)
    with pytest.raises(ValueError, match=message):
        fit_score(rows, "similarity", **wish)


def test_a_base_rate_needs_rows_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="none of these 400 without a target"):
        fit_score(mixed(400, share=0.0), "similarity", base_rate=0.1)


@pytest.mark.parametrize(("kind", "why"), [("head", "score head is not trained"), ("similarity", "similarity says")])
def test_a_score_that_is_higher_for_wrong_boxes_is_not_turned_round(kind: str, why: str) -> None:
    rows = mixed(400)
    pattern = f"On these 400 rows right boxes score no higher than wrong ones: the {why}"
    with pytest.raises(ValueError, match=pattern):
        fit_score(ScoredRows(-rows.values, rows.right, rows.nothing), kind)
    with pytest.raises(ValueError, match=pattern):
        fit_score(ScoredRows(np.zeros(400), rows.right, rows.nothing), kind)  # all scores alike


def test_few_rows_and_rows_of_one_kind_change_nothing(tiny_model: Any, tiny_processor: Any, rows: Any) -> None:
    model = similar(tiny_model)
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="at least 50 rows, got 3"):
        calibrate_score(model, tiny_processor, rows.select(range(3)))
    far = rows.remove_columns(["box", "boxes"]).add_column("box", [[0.0, 0.0, 1.0, 1.0]] * 60)
    with pytest.raises(ValueError, match="All 60 boxes are wrong"):
        calibrate_score(model, tiny_processor, far)
    assert model.config.to_dict() == before


def test_scores_that_fit_the_rows_already_stay_and_only_the_threshold_is_chosen() -> None:
    """Two wrong boxes of many say less than what was known before: a new fit would be worse on these very rows."""
    values = np.concatenate([np.full(100, 2.0), np.full(2, -2.0)])
    rows = ScoredRows(values, values > 0, np.zeros(102, dtype=bool))
    found = fit_score(rows, "head", before=(4.0, 0.0))
    assert (found.fields["score_temperature"], found.fields["score_bias"]) == (0.25, 0.0)
    assert found.figures["calibration_error"] == found.figures["calibration_error_before"]
    assert found.fields["score_threshold"] == 0.5
    assert fit_score(rows, "head", before=(0.1, 0.0)).fields["score_temperature"] != 10


def test_any_of_several_targets_is_right(tiny_model: Any, tiny_processor: Any, rows: Any) -> None:
    found = [list(result["box"].values()) for result in ask(tiny_model, tiny_processor, rows)]
    boxes = [[[0.0, 0.0, 1.0, 1.0], box] if i % 2 else [[0.0, 0.0, 1.0, 1.0]] for i, box in enumerate(found)]
    asked = rows.remove_columns("boxes").add_column("boxes", boxes)
    measured, _ = measure_rows(copy.deepcopy(tiny_model), tiny_processor, asked, 16)
    assert measured.right.tolist() == [i % 2 == 1 for i in range(60)]


def similar(model: Any) -> Any:
    model = copy.deepcopy(model)
    model.config.score = "similarity"
    return model


def ask(model: Any, processor: Any, rows: Any, **options: Any) -> list[dict[str, Any]]:
    pipe = VisualGroundingPipeline(model, processor=processor, device="cpu")
    return pipe([{"image": row["image"], "text": row["expression"]} for row in rows], **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_too_coarse_to_be_read_back(
    dtype: torch.dtype, tiny_model: Any, tiny_processor: Any, rows: Any
) -> None:
    with pytest.raises(ValueError, match=r"too coarse to read its scores back: call model\.float\(\)"):
        calibrate_score(copy.deepcopy(tiny_model).to(dtype), tiny_processor, rows)


@pytest.mark.parametrize("bias", [1e6, -1e6])
def test_a_score_that_float32_does_not_tell_from_0_or_1_is_refused(
    bias: float, tiny_model: Any, tiny_processor: Any, rows: Any
) -> None:
    model = copy.deepcopy(tiny_model)
    before = model.config.to_dict()
    with torch.no_grad():
        model.grounding_head.score_head.bias.fill_(bias)
    with pytest.raises(ValueError, match="is 0, 1 or NaN in float32"):
        calibrate_score(model, tiny_processor, rows)
    assert model.config.to_dict() == before


def test_the_threshold_of_further_boxes_gives_most_rows_exactly_their_boxes() -> None:
    rows = mixed(400)
    # Value 3 for a first target, 0 for a second and -3 for what is too much; a row in ten finds its second elsewhere.
    values = [np.array([3.0, 0.0, -3.0])] * 60 + [np.array([3.0, -3.0])] * 30 + [np.array([-9.0, -9.5])] * 10
    targets = np.array([2] * 60 + [1] * 30 + [0] * 10)
    exact = np.array([place % 10 > 0 for place in range(100)])
    found = fit_score(rows, "head", answered=AnsweredRows(values, targets, exact))
    scale, bias = 1 / found.fields["score_temperature"], found.fields["score_bias"]
    second, too_much = (1 / (1 + np.exp(-(scale * value + bias))) for value in (0.0, -3.0))
    assert too_much < found.fields["multiple_threshold"] < second
    assert found.figures["exact"] == pytest.approx(0.9 * 0.9 + 0.1)
    alone = fit_score(rows, "head", answered=AnsweredRows(values[60:], targets[60:], exact[60:]))
    assert alone.fields["multiple_threshold"] is None
    assert "exact" not in alone.figures
    # Without rows that could choose one, an older threshold goes on to divide the same values, here at -1.
    older = 1 / (1 + np.exp(-(2 * -1.0 + 0.5)))
    rest = AnsweredRows(values[60:], targets[60:], exact[60:])
    carried = fit_score(rows, "head", before=(2.0, 0.5), answered=rest, multiple_threshold=older)
    assert carried.fields["multiple_threshold"] == pytest.approx(1 / (1 + np.exp(-(scale * -1.0 + bias))))


def test_rows_of_several_targets_choose_that_threshold_alone(several_model: Any, tiny_processor: Any) -> None:
    rows = refshapes_dataset("plural", seed=1, size=8, masks=False)
    one = refshapes_dataset("val", seed=1, size=8, masks=False)
    both = datasets.concatenate_datasets([rows, one])
    scored, answered = measure_rows(several_model, tiny_processor, both, 16)
    assert answered is not None
    assert answered.targets.tolist() == [len(boxes) for boxes in rows["boxes"]] + [1] * 8
    assert len(scored.values) == 8
    np.testing.assert_allclose(scored.values, [each[0] for each in answered.values[8:]])
    assert all((np.diff(each) <= 0).all() for each in answered.values)
    with pytest.raises(
        ValueError, match="at least 50 rows that name one thing or nothing, got 8 and 48 that name sev"
    ):
        calibrate_score(several_model, tiny_processor, datasets.concatenate_datasets([rows] * 6 + [one]))


def test_rows_that_cannot_be_fitted_are_refused_before_the_model_is_asked(
    tiny_model: Any, several_model: Any, tiny_processor: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hivg_hf.inference.calibration.measure_rows", None)
    nothing = rows.map(lambda row: {"box": None, "boxes": [], "no_target": True})
    several = rows.map(lambda row: {"boxes": [row["box"], [0.0, 0.0, 9.0, 9.0]]})
    with pytest.raises(ValueError, match="None of these 60 rows has a target, so that no box can be right"):
        calibrate_score(tiny_model, tiny_processor, nothing)
    with pytest.raises(ValueError, match="none of these 60 without a target"):
        calibrate_score(tiny_model, tiny_processor, rows, base_rate=0.2)
    with pytest.raises(ValueError, match="got 0 and 60 that name several: give more such rows"):
        calibrate_score(several_model, tiny_processor, several)
    with pytest.raises(ValueError, match="None of these 120 rows that do not name several things has a target"):
        calibrate_score(several_model, tiny_processor, datasets.concatenate_datasets([several, nothing]))
