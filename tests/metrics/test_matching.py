"""Predictions that do not fit their references are refused, and the message lists them."""

import numpy as np
import pytest

from hivg_hf.metrics import compute_grounding_metrics

REFERENCES = [{"id": name, "box": [0, 0, 10, 10]} for name in "abcd"]
GOOD = [{"id": name, "box_xyxy": [0, 0, 10, 10], "score": 0.5} for name in "abcd"]


def changed(name, **values):
    return [{**row, **values} if row["id"] == name else row for row in GOOD]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (GOOD[:2], "ids without a prediction: 'c', 'd'"),
        ([*GOOD, GOOD[1], GOOD[3]], "ids that more than one prediction has: 'b', 'd'"),
        ([*GOOD, {"id": "z", "box_xyxy": [0, 0, 1, 1]}], "ids of predictions that no reference has: 'z'"),
        (changed("b", box_xyxy=[0, np.nan, 1, 1]), "predictions with NaN or infinity: 'b'"),
        (changed("c", box_xyxy=[0, 0, np.inf, 1]), "predictions with NaN or infinity: 'c'"),
        (changed("a", score=float("nan")), "predictions with NaN or infinity: 'a'"),
        (changed("d", canvas_box=[0.5, 0.5, np.nan, 1]), "predictions with NaN or infinity: 'd'"),
        (changed("d", box_xyxy=[10, 10, 5, 20]), r"box_xyxy ends before it begins \(is it xywh\?\): 'd'"),
        (changed("a", box_xyxy=[1, 2, 3]), "predictions without a box_xyxy of four numbers .*: 'a'"),
        (changed("a", box_xyxy=None), "predictions without a box_xyxy of four numbers .*: 'a'"),
    ],
)
def test_the_message_lists_the_ids(predictions, message):
    with pytest.raises(ValueError, match=message):
        compute_grounding_metrics(predictions, REFERENCES)


def test_one_message_names_every_problem():
    predictions = [*changed("b", box_xyxy=[0, np.nan, 1, 1])[1:], GOOD[2]]
    with pytest.raises(ValueError, match=r"more than one prediction has: 'c'; ids without .*: 'a'; .*infinity: 'b'"):
        compute_grounding_metrics(predictions, REFERENCES)


def test_a_long_list_is_cut_and_counted():
    references = [{"id": index, "box": [0, 0, 1, 1]} for index in range(100)]
    with pytest.raises(ValueError, match=r"0, 1, .* 19 and 80 more"):
        compute_grounding_metrics([], references)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([*REFERENCES, REFERENCES[0]], "ids that more than one reference has: 'a'"),
        ([{"box": [0, 0, 1, 1]}], r"References without an id at positions 0\."),
        ([*REFERENCES[:3], {"id": "d", "box": [0, 0, np.nan, 1]}], "references whose box .*: 'd'"),
        ([*REFERENCES[:3], {"id": "d", "box": [5, 0, 1, 1]}], "references whose box .*: 'd'"),
        ([], "There are no references"),
    ],
)
def test_broken_references_are_listed(references, message):
    with pytest.raises(ValueError, match=message):
        compute_grounding_metrics(GOOD, references)


def test_masks_for_some_expressions_only_are_refused():
    mask = np.ones((2, 2), bool)
    references = [{**row, "mask": mask} for row in REFERENCES]
    with pytest.raises(ValueError, match=r"3 predictions have no mask where others have one: \['b', 'c', 'd'\]"):
        compute_grounding_metrics(changed("a", mask=mask), references)


def test_a_mask_of_another_size_is_named():
    references = [{**REFERENCES[0], "mask": np.ones((2, 2), bool)}]
    predictions = [{**GOOD[0], "mask": np.ones((3, 2), bool)}]
    with pytest.raises(ValueError, match=r"Prediction 'a': Masks of one image must have one size .*\(3, 2\)"):
        compute_grounding_metrics(predictions, references)


def test_the_order_of_predictions_does_not_matter():
    predictions = changed("c", box_xyxy=[50, 50, 60, 60])
    forward = compute_grounding_metrics(predictions, REFERENCES)
    assert compute_grounding_metrics(predictions[::-1], REFERENCES) == forward
