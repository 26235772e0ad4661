"""Predicting a dataset: each row once, in order, as the model alone says."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hivg_hf.data import NegativeRows
from hivg_hf.data.schema import decode_mask
from hivg_hf.evaluation import EvaluationSettings, evaluate_model, predict, read_predictions, references_of
from hivg_hf.evaluation.predict import computing_device, share_images
from hivg_hf.evaluation.records import PREDICTIONS_NAME, write_predictions
from hivg_hf.metrics import compute_grounding_metrics


def test_rows_are_predicted_as_the_model_predicts_them_alone(tiny_model, tiny_processor, scenes):
    predictions = predict(tiny_model, tiny_processor, scenes, batch_size=4, masks=True, progress=False)
    assert [prediction["id"] for prediction in predictions] == list(range(len(scenes)))
    for row, prediction in zip(scenes, predictions, strict=True):
        inputs = tiny_processor(images=[row["image"]], text=[row["expression"]])
        with torch.inference_mode():
            outputs = tiny_model(**inputs, output_masks=True)
        alone = tiny_processor.post_process_grounding(outputs, [(row["height"], row["width"])])[0]
        torch.testing.assert_close(torch.tensor(prediction["box_xyxy"]), alone["box"], atol=1e-2, rtol=1e-4)
        assert prediction["score"] == pytest.approx(float(alone["score"]), abs=1e-4)
        assert decode_mask(prediction["mask"]).shape == (row["height"], row["width"])
        torch.testing.assert_close(torch.tensor(prediction["canvas_box"]), outputs.pred_boxes[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 50])
def test_the_number_of_rows_and_every_figure_do_not_depend_on_the_batch_size(
    tiny_model, tiny_processor, scenes, batch_size
):
    def measure(size):
        settings = EvaluationSettings(batch_size=size, resamples=50, progress=False)
        return evaluate_model(tiny_model, tiny_processor, scenes, settings).results

    result, expected = measure(batch_size), measure(4)
    assert result["counts"] == expected["counts"]
    assert result["counts"]["rows"] == 11
    assert result["figures"] == pytest.approx(expected["figures"], abs=1e-6)
    for name, interval in expected["intervals"].items():
        assert result["intervals"][name] == pytest.approx(interval, abs=1e-6)


def test_equal_images_of_a_batch_are_read_once():
    pixels = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))[[0, 1, 0, 2, 1]]
    batch = {"input_ids": torch.arange(5)[:, None], "pixel_values": pixels, "pixel_mask": pixels[:, 0] > 0}
    shared = share_images(batch)
    assert shared["image_index"].tolist() == [0, 1, 0, 2, 1]
    assert torch.equal(shared["pixel_values"][shared["image_index"]], pixels)
    assert torch.equal(shared["pixel_mask"][shared["image_index"]], batch["pixel_mask"])
    assert torch.equal(shared["input_ids"], batch["input_ids"])
    different = {**batch, "pixel_values": pixels + torch.arange(5)[:, None, None, None]}
    assert share_images(different) is different


def test_a_model_of_onnxruntime_stays_on_the_processor_beside_an_accelerator(monkeypatch):
    state = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setitem(computing_device.__globals__, "process_state", lambda: state)
    assert computing_device(torch.nn.Linear(1, 1)).type == "cuda"
    assert computing_device(torch.nn.Identity()).type == "cpu"  # no parameters of torch


def test_references_carry_no_pictures_and_are_numbered(scenes):
    references = references_of(scenes)
    assert [reference["id"] for reference in references] == list(range(11))
    assert "image" not in references[0]
    assert references[3]["expression"] == scenes[3]["expression"]


def test_expressions_that_name_nothing_or_several_things_are_answered_too(tiny_model, tiny_processor, make_rows):
    several = {"box": None, "boxes": [[0.0, 0, 5, 5], [9.0, 9, 20, 20]], "no_target": False}
    dataset = make_rows({"box": None}, several, {})
    settings = EvaluationSettings(resamples=0, progress=False, score_threshold=0.5)
    evaluation = evaluate_model(tiny_model, tiny_processor, dataset, settings)
    counts = evaluation.results["counts"]
    assert (counts["rows"], counts["no_target"], counts["skipped_several_targets"], counts["one_target"]) == (
        3,
        1,
        1,
        1,
    )
    assert {"n_acc", "t_acc", "f1_precision"} <= set(evaluation.results["figures"])


class SeveralBoxes(torch.nn.Module):
    """Answers every row with the same three boxes of the padded square, the second of them the best."""

    BOXES = torch.tensor([[0.25, 0.5, 0.2, 0.2], [0.75, 0.5, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1]])
    SCORES = torch.tensor([0.6, 0.9, 0.2])

    def __init__(self, config):
        super().__init__()
        self.config, self.weight = config, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **inputs):
        rows = len(input_ids)
        return SimpleNamespace(
            pred_boxes=self.BOXES[1].expand(rows, 4),
            scores=self.SCORES[1].expand(rows),
            query_boxes=self.BOXES.expand(rows, 3, 4),
            query_scores=self.SCORES.expand(rows, 3),
            mask_logits=torch.zeros(rows, 64, 64) if inputs["output_masks"] else None,
            query_mask_logits=torch.zeros(rows, 3, 64, 64) if inputs["output_masks"] else None,
        )


def test_every_box_of_a_model_with_several_is_measured(tiny_model, tiny_processor, make_rows, tmp_path):
    model = SeveralBoxes(tiny_model.config)
    (answer,) = predict(model, tiny_processor, make_rows({}), progress=False)
    found = sorted(zip(answer["scores"], answer["boxes_xyxy"], strict=True), reverse=True)
    assert [score for score, _ in found] == pytest.approx([0.9, 0.6, 0.2])
    assert found[0][1] == answer["box_xyxy"]
    both = {"box": None, "boxes": [box for _, box in found[:2]], "no_target": False, "mask": None}
    one = {"box": answer["box_xyxy"], "boxes": [answer["box_xyxy"]], "mask": None}
    dataset = make_rows(both, one, {"box": None})
    evaluation = evaluate_model(model, tiny_processor, dataset, EvaluationSettings(resamples=0, progress=False))
    figures = evaluation.results["figures"]
    assert evaluation.results["settings"]["score_threshold"] == 0.5  # nobody chose one, and a row names several things
    assert figures["acc@0.5"] == 1.0  # by the best box
    assert figures["f1_precision"] == pytest.approx(1 / 3)  # two boxes: right for the first row alone
    assert (figures["n_acc"], figures["t_acc"]) == (0.0, 1.0)
    assert 0 < figures["ap@0.5"] < 1
    write_predictions(tmp_path / PREDICTIONS_NAME, evaluation.predictions, evaluation.rows, "pixel")
    predictions, references = read_predictions(tmp_path)
    again = compute_grounding_metrics(predictions, references, score_threshold=0.5, resamples=0)["figures"]
    assert again == pytest.approx({name: figures[name] for name in again})


def test_the_threshold_of_the_model_itself_is_taken_where_rows_name_nothing(tiny_model, tiny_processor, make_rows):
    model = SeveralBoxes(copy.deepcopy(tiny_model.config))
    model.config.score_threshold = 0.95
    settings = EvaluationSettings(resamples=0, progress=False)
    results = evaluate_model(model, tiny_processor, make_rows({"box": None}, {}), settings).results
    assert (results["settings"]["score_threshold"], results["figures"]["n_acc"]) == (0.95, 1.0)
    plain = evaluate_model(model, tiny_processor, make_rows({}), settings).results
    assert plain["settings"]["score_threshold"] is None


def test_negative_rows_are_measured_as_those_of_their_first_epoch(tiny_model, tiny_processor, make_rows):
    parts = [{"expression": f"the {color} thing", "mask": None} for color in ("red", "blue", "green", "black")]
    rows = NegativeRows(make_rows(*parts), {"share": 0.5, "kinds": ["edited"]})
    evaluation = evaluate_model(
        tiny_model, tiny_processor, rows, EvaluationSettings(resamples=0, progress=False, score_threshold=0.5)
    )
    asked = [rows[index]["expression"] for index in range(4)]
    assert [row["expression"] for row in evaluation.rows.references] == asked
    assert evaluation.results["counts"]["no_target"] == sum(rows[index]["no_target"] for index in range(4)) > 0


def test_masks_are_predicted_only_where_there_is_something_to_compare_them_with(tiny_model, tiny_processor, make_rows):
    settings = EvaluationSettings(resamples=0, progress=False)
    without = evaluate_model(tiny_model, tiny_processor, make_rows({"mask": None}), settings)
    assert without.predictions[0]["mask"] is None
    assert without.results["settings"]["masks"] is False
    assert "mask_miou" not in without.results["figures"]
    given = evaluate_model(tiny_model, tiny_processor, make_rows({}), settings)
    assert "mask_miou" in given.results["figures"]


def test_workers_change_nothing(tiny_model, tiny_processor, scenes):
    alone = predict(tiny_model, tiny_processor, scenes, batch_size=4, progress=False)
    assert predict(tiny_model, tiny_processor, scenes, batch_size=4, num_workers=1, progress=False) == alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controls": ("bridge-of",)}, "Unknown controls .'bridge-of'.: choose among bridge-off, constant-text"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"protocol": "coco"}, "Unknown protocol 'coco'"),
    ],
)
def test_settings_are_checked_before_anything_is_predicted(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**change)


def test_the_masks_of_an_answer_are_united_where_an_expression_names_several(tiny_model, tiny_processor, make_rows):
    model = SeveralBoxes(tiny_model.config)
    both = [[0.0, 0, 20, 20], [30.0, 0, 50, 20]]
    dataset = make_rows({"box": None, "boxes": both, "no_target": False}, {})
    plural, single = predict(model, tiny_processor, dataset, progress=False, masks=True)
    assert len(plural["masks"]) == len(plural["boxes_xyxy"]) == 3
    assert "masks" not in single
    left, right = (np.zeros((10, 10), bool) for _ in range(2))
    left[:, :3], right[:, 7:] = True, True
    reference = {"id": 0, "boxes": both, "mask": left | right}
    answer = {"id": 0, "boxes_xyxy": both, "scores": [0.9, 0.3], "score": 0.9, "mask": left, "masks": [left, right]}

    def mask_iou(**thresholds):
        return compute_grounding_metrics([answer], [reference], resamples=0, **thresholds)["figures"]["mask_miou"]

    assert mask_iou(score_threshold=0.5, multiple_threshold=0.2) == 1.0
    assert mask_iou(score_threshold=0.5) == 0.5
    assert mask_iou(score_threshold=0.95) == 0.0  # nothing answered
