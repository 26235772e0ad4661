"""gRefCOCO's figures, the ROC curve and the choice of a threshold, by hand."""

import numpy as np
import pytest

from hivg_hf.metrics import (
    balanced_threshold,
    choose_threshold,
    compute_grounding_metrics,
    expected_calibration_error,
    score_auc,
    threshold_report,
)

LEFT, RIGHT, BELOW = [0, 0, 10, 10], [50, 0, 60, 10], [0, 50, 10, 60]


def grefcoco(predictions, references, protocol="pixel", threshold=0.7):
    predictions = [{"id": i, "boxes_xyxy": boxes, "scores": scores} for i, (boxes, scores) in enumerate(predictions)]
    references = [{"id": i, "box": None, "boxes": boxes, "no_target": not boxes} for i, boxes in enumerate(references)]
    return compute_grounding_metrics(predictions, references, protocol, score_threshold=threshold, resamples=0)[
        "figures"
    ]


def test_one_box_for_several_targets_is_said_beside_the_figure():
    reference = {"id": 0, "box": None, "boxes": [[0, 0, 10, 10], [50, 0, 60, 10]]}
    one = compute_grounding_metrics(
        [{"id": 0, "box_xyxy": [0, 0, 10, 10], "score": 0.9}], [reference], score_threshold=0.5, resamples=0
    )
    assert one["figures"]["f1_precision"] == 0
    assert one["notes"]["f1_precision"].startswith("1 rows have several targets and the model gives one box")
    several = {"id": 0, "box_xyxy": [0, 0, 10, 10], "boxes_xyxy": reference["boxes"], "scores": [0.9, 0.9]}
    found = compute_grounding_metrics([several], [reference], score_threshold=0.5, resamples=0)
    assert (found["figures"]["f1_precision"], found["notes"]) == (1.0, {})


def test_f1_precision_n_acc_and_t_acc_by_hand():
    references = [[LEFT, RIGHT], [LEFT, RIGHT], [LEFT], [LEFT], [], []]
    predictions = [
        ([RIGHT, LEFT], [0.9, 0.8]),  # both found: F1 = 1
        ([LEFT], [0.9]),  # one missed
        ([LEFT, BELOW], [0.9, 0.7]),  # one too many: 0.7 reaches the threshold
        ([LEFT, BELOW], [0.9, 0.69]),  # the second is withheld: F1 = 1
        ([LEFT], [0.1]),  # nothing answered, rightly
        ([LEFT], [0.9]),  # answered wrongly
    ]
    figures = grefcoco(predictions, references)
    assert figures["f1_precision"] == pytest.approx(3 / 6)
    assert figures["n_acc"] == pytest.approx(1 / 2)
    assert figures["t_acc"] == 1.0


def test_one_prediction_cannot_find_two_targets():
    assert grefcoco([([LEFT, [0, 0, 10, 9]], [0.9, 0.9])], [[LEFT, RIGHT]])["f1_precision"] == 0.0


def test_grefcoco_by_generalized_iou_is_stricter():
    # The pair of test_summary: IoU 0.515, GIoU 0.472.
    rows = ([([[0, 0, 20, 20]], [0.9])], [[[3, 4, 23, 24]]])
    assert grefcoco(*rows, protocol="pixel")["f1_precision"] == 1.0
    assert grefcoco(*rows, protocol="mdetr")["f1_precision"] == 0.0


def test_an_absent_class_has_no_figure():
    only_targets = grefcoco([([LEFT], [0.9])], [[LEFT]])
    assert "n_acc" not in only_targets
    assert only_targets["t_acc"] == 1.0


def test_an_empty_answer_is_allowed_and_counts_as_withheld():
    figures = grefcoco([([], []), ([], [])], [[LEFT], []])
    assert (figures["f1_precision"], figures["n_acc"], figures["t_acc"]) == (0.5, 1.0, 0.0)


def test_a_threshold_without_scores_is_refused():
    with pytest.raises(ValueError, match=r"score for every prediction; 1 have none: \['a'\]"):
        compute_grounding_metrics(
            [{"id": "a", "box_xyxy": LEFT}], [{"id": "a", "box": LEFT}], score_threshold=0.5, resamples=0
        )


def test_area_under_the_roc_curve_by_hand_with_ties():
    # Pairs (right, wrong): 0.9 > 0.4, 0.9 > 0.6, 0.6 > 0.4, 0.6 = 0.6 counts half: 3.5 of 4.
    assert score_auc([0.9, 0.6, 0.6, 0.4], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert score_auc([0.1, 0.2], [False, True]) == 1.0
    assert score_auc([0.5, 0.5, 0.5], [False, True, True]) == 0.5


def test_area_under_the_roc_curve_equals_counting_pairs():
    generator = np.random.default_rng(0)
    scores, correct = generator.integers(0, 20, 300) / 20, generator.random(300) < 0.4
    right, wrong = scores[correct][:, None], scores[~correct][None]
    assert score_auc(scores, correct) == pytest.approx(np.mean((right > wrong) + 0.5 * (right == wrong)))


def test_a_roc_curve_needs_both_kinds():
    with pytest.raises(ValueError, match="got 2 right and 0 wrong"):
        score_auc([0.1, 0.2], [True, True])


def test_the_score_is_judged_over_right_boxes_wrong_boxes_and_expressions_that_name_nothing():
    references = [
        {"id": 0, "box": LEFT},
        {"id": 1, "box": LEFT},
        {"id": 2, "box": None, "boxes": [], "no_target": True},
    ]
    predictions = [
        {"id": 0, "box_xyxy": LEFT, "score": 0.8},
        {"id": 1, "box_xyxy": RIGHT, "score": 0.9},
        {"id": 2, "box_xyxy": LEFT, "score": 0.1},
    ]
    assert compute_grounding_metrics(predictions, references, resamples=0)["figures"]["score_auc"] == 0.5


def test_a_threshold_report_by_hand():
    # Below 0.5: two of three expressions without target, one of three with a target.
    report = threshold_report([0.1, 0.2, 0.7, 0.4, 0.8, 0.9], [True, True, True, False, False, False], 0.5)
    assert report == {
        "threshold": 0.5,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "withheld": pytest.approx(1 / 3),
        "mcc": pytest.approx(1 / 3),
    }
    assert threshold_report([0.9], [False], 0.5) == {
        "threshold": 0.5, "precision": None, "recall": None, "f1": None, "withheld": 0.0, "mcc": 0.0}  # fmt: skip


def test_the_chosen_threshold_separates_what_can_be_separated():
    best = choose_threshold([0.1, 0.3, 0.6, 0.9], [True, True, False, False])
    assert best["threshold"] == pytest.approx(0.45)
    assert (best["precision"], best["recall"], best["f1"]) == (1.0, 1.0, 1.0)


def test_the_chosen_threshold_is_the_best_of_all_on_random_scores():
    generator = np.random.default_rng(3)
    no_target = generator.random(400) < 0.3
    scores = np.clip(generator.normal(0.7 - 0.3 * no_target, 0.2), 0, 1)
    best = choose_threshold(scores, no_target)
    assert best["f1"] == max(threshold_report(scores, no_target, t)["f1"] for t in [*np.unique(scores), 1.1])


def test_choosing_a_threshold_needs_both_kinds_of_rows():
    with pytest.raises(ValueError, match="rows with a target and rows without"):
        choose_threshold([0.1, 0.2], [False, False])


def test_calibration_error_by_hand():
    # Bin [0.2, 0.3): two rows, mean score 0.25, accuracy 0.5; bin [0.9, 1]: one row, score 0.95, accuracy 1.
    error = expected_calibration_error([0.2, 0.3 - 1e-9, 0.95], [True, False, True])
    assert error == pytest.approx((2 * 0.25 + 0.05) / 3, abs=1e-6)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0.0


def test_the_balanced_threshold_is_the_best_of_all_on_random_scores():
    generator = np.random.default_rng(5)
    for _ in range(20):
        scores, nothing = generator.random(30).round(1), np.arange(30) % 3 == 0
        chosen = balanced_threshold(scores, nothing)

        def smaller(threshold, scores=scores, nothing=nothing):
            return min((scores[nothing] < threshold).mean(), (scores[~nothing] >= threshold).mean())

        assert smaller(chosen) == max(smaller(value) for value in np.linspace(-0.05, 1.05, 23))
        assert chosen not in scores


def test_a_balanced_threshold_needs_both_kinds():
    with pytest.raises(ValueError, match="rows with a target and rows without one"):
        balanced_threshold([0.1, 0.2], [True, True])


def test_further_boxes_need_the_second_threshold_and_the_best_only_the_first():
    references = [
        {"id": 0, "box": None, "boxes": [LEFT, RIGHT]},
        {"id": 1, "box": None, "boxes": [], "no_target": True},
    ]

    def figures(scores, multiple):
        predictions = [{"id": 0, "boxes_xyxy": [LEFT, RIGHT, BELOW], "scores": scores}]
        predictions.append({"id": 1, "boxes_xyxy": [LEFT], "scores": [0.4]})
        options = {"score_threshold": 0.5, "multiple_threshold": multiple, "resamples": 0}
        return compute_grounding_metrics(predictions, references, **options)["figures"]

    assert figures([0.9, 0.3, 0.1], 0.2)["f1_precision"] == 1.0
    assert figures([0.9, 0.3, 0.1], None)["f1_precision"] == 0.5
    assert figures([0.9, 0.3, 0.1], 0.05)["f1_precision"] == 0.5  # the third is one too many
    assert figures([0.4, 0.3, 0.1], 0.2)["t_acc"] == 0.0  # nothing is answered, whatever the second allows
    assert figures([0.6, 0.3, 0.1], 0.7)["t_acc"] == 1.0


def test_weights_of_a_roc_curve_stand_for_repeated_rows():
    scores, correct, times = np.array([0.9, 0.6, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 1, 0], bool), [1, 3, 2, 1, 2]
    repeated = score_auc(np.repeat(scores, times), np.repeat(correct, times))
    assert score_auc(scores, correct, np.array(times)) == pytest.approx(repeated)
    assert score_auc(scores, correct) != pytest.approx(repeated)


@pytest.mark.parametrize("name", ["score_threshold", "multiple_threshold"])
def test_a_threshold_with_which_nothing_can_be_compared_is_refused(name):
    predictions, references = [{"id": 0, "box_xyxy": LEFT, "score": 0.9}], [{"id": 0, "box": LEFT}]
    with pytest.raises(ValueError, match=f"{name} is NaN, with which no score can be compared"):
        compute_grounding_metrics(predictions, references, **{name: float("nan")})
