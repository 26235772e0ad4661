"""AP of sets of boxes: by hand, and against COCO's own evaluator."""

import contextlib
import io

import numpy as np
import pytest

from hivg_hf.metrics import compute_grounding_metrics, get_protocol
from hivg_hf.metrics.average_precision import average_precision

LEFT, RIGHT, BELOW = [0, 0, 10, 10], [50, 0, 60, 10], [0, 50, 10, 60]


def ap(predictions, references, protocol="pixel"):
    predictions = [{"id": i, "boxes_xyxy": boxes, "scores": scores} for i, (boxes, scores) in enumerate(predictions)]
    references = [{"id": i, "box": None, "boxes": boxes, "no_target": not boxes} for i, boxes in enumerate(references)]
    return average_precision(predictions, references, get_protocol(protocol))


def test_everything_found_and_nothing_more_is_one():
    assert ap([([RIGHT, LEFT], [0.4, 0.9]), ([], [])], [[LEFT, RIGHT], []]) == 1.0


def test_by_hand():
    # Ranked: right (1 of 2), wrong, right (2 of 2): precision 1 up to recall 0.5, then 2/3.
    found = ap([([LEFT, BELOW, RIGHT], [0.9, 0.8, 0.7])], [[LEFT, RIGHT]])
    assert found == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_a_box_for_an_expression_that_names_nothing_costs_precision():
    with_answer = ap([([LEFT], [0.8]), ([LEFT], [0.9])], [[LEFT], []])
    assert with_answer == pytest.approx(0.5)
    assert ap([([LEFT], [0.8]), ([LEFT], [0.1])], [[LEFT], []]) == 1.0


def test_a_target_is_found_once():
    assert ap([([LEFT, LEFT], [0.9, 0.8])], [[LEFT, RIGHT]]) == pytest.approx(51 / 101)


def test_no_target_anywhere_or_no_scores_give_no_figure():
    assert ap([([LEFT], [0.8])], [[]]) is None
    rows = [{"id": 0, "box_xyxy": LEFT}], [{"id": 0, "boxes": [LEFT, RIGHT], "box": None}]
    assert average_precision(*rows, get_protocol("pixel")) is None
    assert "ap@0.5" not in compute_grounding_metrics(*rows, resamples=0)["figures"]


def test_it_stands_among_the_figures_where_something_has_several_boxes():
    one = {"id": 0, "box_xyxy": LEFT, "score": 0.9}
    several = {**one, "boxes_xyxy": [LEFT, RIGHT], "scores": [0.9, 0.8]}
    both = {"id": 0, "boxes": [LEFT, RIGHT], "box": None}
    single = {"id": 0, "boxes": [LEFT], "box": LEFT}
    figures = [
        compute_grounding_metrics([prediction], [reference], resamples=0)["figures"].get("ap@0.5")
        for prediction, reference in ((several, both), (one, both), (several, single), (one, single))
    ]
    assert figures == [1.0, pytest.approx(51 / 101), 1.0, None]


def random_rows(rng, count):
    """Targets and predictions that partly fit, in pictures of 100 x 100."""

    def boxes(number):
        corners = rng.integers(0, 70, size=(number, 2)).astype(float)
        return np.concatenate([corners, corners + rng.integers(10, 30, size=(number, 2))], axis=1)

    rows = []
    for _ in range(count):
        targets = boxes(int(rng.integers(0, 4)))
        near = targets[rng.random(len(targets)) < 0.7]
        found = np.concatenate([near + rng.integers(-4, 5, size=near.shape), boxes(int(rng.integers(0, 3)))])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        rows.append((targets, np.clip(found, 0, 100), rng.permutation(1000)[: len(found)] / 1000))
    return rows


def test_it_is_what_coco_gives():
    pytest.importorskip("pycocotools", reason="the data extra")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = random_rows(np.random.default_rng(3), 60)
    truth, answers = [], []
    for image, (targets, boxes, scores) in enumerate(rows):
        for x1, y1, x2, y2 in targets.tolist():
            area = (x2 - x1) * (y2 - y1)
            box = [x1, y1, x2 - x1, y2 - y1]
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": 1, "bbox": box, "area": area,
                          "iscrowd": 0})  # fmt: skip
        for (x1, y1, x2, y2), score in zip(boxes.tolist(), scores.tolist(), strict=True):
            answers.append({"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": i} for i in range(len(rows))], "categories": [{"id": 1}],
                        "annotations": truth}  # fmt: skip
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(answers), "bbox")
        judge.params.iouThrs = np.array([0.5])
        judge.evaluate()
        judge.accumulate()
    expected = judge.eval["precision"][0, :, 0, 0, 2].mean()  # all sizes, at most 100 boxes
    found = ap([(boxes, scores) for _, boxes, scores in rows], [targets.tolist() for targets, _, _ in rows])
    assert 0.1 < expected < 0.9
    assert found == pytest.approx(expected, abs=1e-9)
