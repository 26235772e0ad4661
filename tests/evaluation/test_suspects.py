"""Planted errors are ranked above the rest, and the reasons say what is odd."""

import datasets
import numpy as np
import pytest

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.schema import FEATURES
from hivg_hf.evaluation.suspects import find_suspects, noise_probability
from hivg_hf.metrics.no_target import score_auc

ROWS = 600


def _row(number, box, expression=None, image="a", **columns):
    return {
        "image": None,
        "expression": expression or f"object {number}",
        "box": box,
        "boxes": [] if box is None else [box],
        "no_target": box is None,
        "mask": None,
        "width": 200,
        "height": 100,
        "category": None,
        "image_id": f"{image}{number}",
        "ref_id": str(number),
        "sent_id": str(number),
        "source": "test",
        "split": "all",
        **columns,
    }


def _dataset(rows):
    return datasets.Dataset.from_list(rows, features=FEATURES)


def _predictions(boxes, score=0.9):
    return [{"id": at, "box_xyxy": list(map(float, box)), "score": score} for at, box in enumerate(boxes)]


@pytest.fixture
def planted():
    """A model that is off by a few pixels and always too tight; every tenth label is of another place."""
    rng = np.random.default_rng(3)
    rows, boxes, wrong = [], [], np.zeros(ROWS, dtype=bool)
    for number in range(ROWS):
        corner, size = rng.uniform(0, [120, 50]), rng.uniform(20, 45, 2)
        box = np.concatenate([corner, corner + size])
        boxes.append(box + rng.normal(0, 1.5, 4) + [4, 4, -4, -4])
        if number % 10 == 0:
            wrong[number] = True
            place = rng.uniform(0, [120, 50])
            while np.abs(place - corner).max() < 15:
                place = rng.uniform(0, [120, 50])
            box = np.concatenate([place, place + size])
        rows.append(_row(number, box.tolist()))
    return _dataset(rows), _predictions(boxes), wrong


def test_planted_errors_are_ranked_first(planted):
    dataset, predictions, wrong = planted
    found = find_suspects(dataset, predictions, content=False)
    assert score_auc(-found.probability, ~wrong) > 0.95
    first = found.ranking()[: wrong.sum()]
    assert wrong[first].mean() > 0.9
    assert all("the model's box (" in " ".join(found.reasons[at]) for at in first[:20])


def test_labels_that_are_all_drawn_looser_are_not_suspicious(planted):
    dataset, predictions, wrong = planted
    found = find_suspects(dataset, predictions, content=False)
    assert (found.probability[~wrong] > 0.5).mean() < 0.05


def test_rows_that_contradict_each_other_or_name_nothing_are_named():
    box, other = [10.0, 10, 60, 60], [100.0, 10, 150, 60]
    rows = [
        _row(0, box, "the dog", image_id="same"),
        _row(1, other, "The  dog", image_id="same"),
        _row(2, box, "both cats"),
        _row(3, box, "n/a"),
        _row(4, box, "a cat"),
    ]
    found = find_suspects(_dataset(rows), _predictions([box] * 5), content=False)
    assert "row 1 has the same words and another box (IoU 0.00)" in found.reasons[0]
    assert found.probability[0] >= 0.9
    assert found.reasons[2] == ["'both' may mean several objects, and the row has one box"]
    assert found.reasons[3] == ["'n/a' names nothing, and the row has a box"]
    assert found.reasons[4] == []


def test_an_object_found_where_a_row_says_none_is_suspicious():
    rows = [_row(number, None) for number in range(20)]
    predictions = _predictions([[0, 0, 9, 9]] * 20, score=0.05)
    predictions[7]["score"] = 0.97
    found = find_suspects(_dataset(rows), predictions, content=False)
    assert int(found.ranking()[0]) == 7
    assert found.reasons[7] == ["the model finds something (score 0.97), the row says that nothing is there"]


def test_near_identical_pictures_with_other_boxes_contradict_each_other():
    scene = load_grounding_dataset("refshapes", "val", seed=1, size=2, masks=False)
    first = {**scene[0], "image_id": "one"}
    x1, y1, x2, y2 = first["box"]
    far = [0.0, 0.0, 5.0, 5.0] if x1 > 6 or y1 > 6 else [x2 + 1, y2 + 1, x2 + 6, y2 + 6]
    rows = _dataset([first, {**first, "image_id": "two", "box": far, "boxes": [far]}, scene[1]])
    found = find_suspects(rows, _predictions([first["box"]] * 3))
    assert [bool(reasons) for reasons in found.reasons[:2]] == [True, True]
    assert "row 1 has the same words" in " ".join(found.reasons[0])


def test_the_probability_never_falls_where_the_loss_grows():
    loss = np.sort(np.random.default_rng(0).beta(1, 6, 500))
    assert (np.diff(noise_probability(loss)) >= -1e-9).all()
    assert noise_probability(np.zeros(5)).tolist() == [0.0] * 5


@pytest.mark.parametrize("spread", ["normal", "uniform", "skewed"])
def test_where_all_labels_agree_with_the_model_none_is_doubted(spread):
    """Fitted to losses of one kind, the two distributions lie on each other, and shares say nothing."""
    rng = np.random.default_rng(5)
    loss = {
        "normal": np.abs(rng.normal(0.066, 0.03, 200)),
        "uniform": rng.uniform(0.0, 0.13, 200),
        "skewed": rng.exponential(0.03, 200),
    }[spread]
    assert (noise_probability(loss) > 0.5).sum() <= 4  # what lies far from the rest
    with_wrong = np.append(loss, [0.45, 0.8])
    assert (noise_probability(with_wrong)[-2:] > 0.5).all()


def test_every_row_needs_a_prediction():
    with pytest.raises(ValueError, match="Expected a prediction for each of 2 rows, got 1"):
        find_suspects(_dataset([_row(0, [1.0, 1, 9, 9]), _row(1, [1.0, 1, 9, 9])]), _predictions([[1, 1, 9, 9]]))
