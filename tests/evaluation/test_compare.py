"""A paired comparison, by hand."""

import pytest

from hivg_hf.evaluation import compare_rows, disagreements
from hivg_hf.metrics import score_rows

REFERENCES = [{"id": i, "box": [0, 0, 10, 10], "expression": f"e{i}", "image_id": str(i)} for i in range(4)]
REFERENCES.append({"id": 4, "box": None, "boxes": [], "no_target": True, "expression": "none", "image_id": "4"})
RIGHT, HALF, WRONG = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]


def rows(*boxes, references=REFERENCES):
    return score_rows([{"id": i, "box_xyxy": box} for i, box in enumerate(boxes)], references)


def test_differences_and_agreement_by_hand():
    first, second = rows(RIGHT, RIGHT, WRONG, WRONG, RIGHT), rows(RIGHT, HALF, RIGHT, WRONG, WRONG)
    comparison = compare_rows(first, second, resamples=100)
    assert comparison["n"] == 4
    accuracy = comparison["figures"]["acc@0.5"]
    assert (accuracy["first"], accuracy["second"], accuracy["difference"]) == (0.5, 0.75, 0.25)
    assert accuracy["interval"][0] <= 0.25 <= accuracy["interval"][1]
    assert comparison["figures"]["acc@0.7"]["difference"] == 0.0
    assert comparison["figures"]["mean_iou"]["second"] == pytest.approx(2.5 / 4)
    assert comparison["agreement"] == {"both": 2, "only_first": 0, "only_second": 1, "neither": 1}
    assert disagreements(first, second) == [2]


def test_the_interval_of_equal_predictions_is_nothing():
    same = rows(RIGHT, WRONG, RIGHT, WRONG, RIGHT)
    entry = compare_rows(same, same, resamples=50)["figures"]["acc@0.5"]
    assert (entry["difference"], entry["interval"]) == (0.0, [0.0, 0.0])


def test_the_largest_disagreement_comes_first():
    first, second = rows(HALF, RIGHT, RIGHT, WRONG, RIGHT), rows(WRONG, RIGHT, WRONG, RIGHT, RIGHT)
    assert disagreements(first, second) == [2, 3, 0]


def test_other_rows_or_other_boxes_are_refused():
    first = rows(RIGHT, RIGHT, RIGHT, RIGHT, RIGHT)
    fewer = rows(RIGHT, references=REFERENCES[:1])
    with pytest.raises(ValueError, match="same rows on both sides: 5 and 1 rows"):
        compare_rows(first, fewer)
    changed = [{**REFERENCES[0], "expression": "else"}, *REFERENCES[1:]]
    other = rows(RIGHT, RIGHT, RIGHT, RIGHT, RIGHT, references=changed)
    with pytest.raises(ValueError, match="row 0 has the expression 'e0' on one side and 'else' on the other"):
        compare_rows(first, other)
