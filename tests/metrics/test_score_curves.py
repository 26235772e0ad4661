"""Calibration, selection and base rates: by hand, and against the definitions written out."""

import numpy as np
import pytest

from hivg_hf.metrics import (
    area_under_risk_coverage,
    base_rate_weights,
    expected_calibration_error,
    matthews_correlation,
    reliability_bins,
    risk_coverage,
    score_report,
)


def test_weights_move_the_share_of_empty_questions_and_keep_the_sum():
    nothing = np.array([True, True, False, False])
    weights = base_rate_weights(nothing, 0.1)
    np.testing.assert_allclose(weights, [0.2, 0.2, 1.8, 1.8])
    np.testing.assert_allclose(base_rate_weights(nothing, 0.5), 1)
    assert base_rate_weights(np.zeros(3, dtype=bool), 0.0).tolist() == [1, 1, 1]


def test_weights_of_repeated_rows_are_those_of_the_rows_repeated():
    rng = np.random.default_rng(0)
    scores, correct = rng.random(40), rng.random(40) < 0.5
    weights = rng.integers(0, 4, 40)
    repeated = [np.repeat(values, weights) for values in (scores, correct)]
    for figure in (expected_calibration_error, area_under_risk_coverage):
        whole = figure(scores, correct, weights=weights)
        assert whole == pytest.approx(figure(*repeated))
    answered = scores > 0.5
    again = matthews_correlation(np.repeat(answered, weights), repeated[1])
    assert matthews_correlation(answered, correct, weights) == pytest.approx(again)


@pytest.mark.parametrize(
    ("nothing", "rate", "message"),
    [
        ([True, False], 1.0, "from 0 to below 1, got 1.0"),
        ([True, False], -0.1, "from 0 to below 1"),
        ([False, False], 0.1, "none of these 2 without a target"),
        ([True, True], 0.1, "none of these 2 that names something"),
    ],
)
def test_base_rates_that_the_rows_cannot_stand_for_are_refused(nothing, rate, message):
    with pytest.raises(ValueError, match=message):
        base_rate_weights(np.array(nothing), rate)


def test_a_reliability_diagram_by_hand():
    found = reliability_bins([0.05, 0.15, 0.17, 1.0], [False, True, False, True])
    assert [(entry["low"], entry["share"]) for entry in found] == [(0.0, 0.25), (0.1, 0.5), (0.9, 0.25)]
    assert [entry["accuracy"] for entry in found] == [0, 0.5, 1]
    assert found[1]["score"] == pytest.approx(0.16)


def test_risk_falls_where_the_least_sure_answers_are_withheld():
    coverage, risk = risk_coverage([0.9, 0.8, 0.7, 0.1], [True, True, False, False])
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 0.5])
    area = area_under_risk_coverage([0.9, 0.8, 0.7, 0.1], [True, True, False, False])
    assert area == pytest.approx((0 + 0 + 1 / 3 + 0.5) / 4)


def test_a_score_that_says_nothing_has_the_area_of_its_error_rate():
    assert area_under_risk_coverage(np.full(10, 0.5), np.arange(10) < 7) == pytest.approx(0.3)
    rng = np.random.default_rng(1)
    scores = rng.random(20_000)
    assert area_under_risk_coverage(scores, rng.random(20_000) < 0.7) == pytest.approx(0.3, abs=0.02)


def test_mcc_is_pearsons_correlation_of_the_two():
    rng = np.random.default_rng(2)
    answered, target = rng.random(200) < 0.6, rng.random(200) < 0.4
    assert matthews_correlation(answered, target) == pytest.approx(np.corrcoef(answered, target)[0, 1])
    assert matthews_correlation(target, target) == pytest.approx(1)
    assert matthews_correlation(~target, target) == pytest.approx(-1)
    assert matthews_correlation(np.ones(200, dtype=bool), target) == 0


def test_a_report_holds_for_the_rate_that_was_asked_for():
    """Scores that are right as probabilities at one rate are not at another, and the report says by how much."""
    rng = np.random.default_rng(3)
    nothing = np.arange(40_000) % 2 == 0
    correct = ~nothing & (rng.random(40_000) < 0.9)
    shown = rng.normal(2.0 * correct, 1)
    logit = 2 * shown - 2 + np.log(correct.mean() / (1 - correct.mean()))  # two normals, one deviation
    scores = 1 / (1 + np.exp(-logit))
    own, rare = score_report(scores, correct, nothing), score_report(scores, correct, nothing, 0.1)
    assert own["rate"] == 0.5
    assert own["calibration_error"] < 0.01
    assert rare["calibration_error"] > 0.1
    assert rare["aurc"] < own["aurc"]
    assert [point["coverage"] for point in own["curve"]] == pytest.approx(np.arange(1, 11) / 10)
    assert own["curve"][-1]["risk"] == pytest.approx(1 - correct.mean())


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="No rows"):
        score_report([], [], [])
