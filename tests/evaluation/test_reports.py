"""What an evaluation writes: read back equal, self-contained, and true to the figures."""

import json
import re

import numpy as np
import pytest
import torch

from hivg_hf.evaluation import (
    EvaluationSettings,
    describe_data,
    evaluate_model,
    plots,
    read_predictions,
    read_results,
    weights_hash,
    write_comparison,
    write_evaluation,
)
from hivg_hf.evaluation.gallery import worst_failures
from hivg_hf.metrics import compute_grounding_metrics, score_report, score_rows

SETTINGS = EvaluationSettings(resamples=50, progress=False)


@pytest.fixture(scope="module")
def evaluation(tiny_model, tiny_processor, scenes):
    result = evaluate_model(tiny_model, tiny_processor, scenes, SETTINGS)
    return result.describe(tiny_model, "tiny <model>", "refshapes", "val", {"seed": 5, "size": 11})


@pytest.fixture(scope="module")
def folder(evaluation, scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    files = write_evaluation(out, evaluation, scenes, gallery=4)
    assert files[-1].name == "results.json"
    assert all(file.is_file() for file in files)
    return out


def test_results_say_what_was_measured_with_what(folder, evaluation):
    results = read_results(folder)
    assert results == json.loads(json.dumps(evaluation.results))
    assert results["protocol"] == "pixel"
    assert results["counts"]["rows"] == 11
    assert re.fullmatch("[0-9a-f]{64}", results["model"]["weights_sha256"])
    assert results["data"]["options"] == {"seed": 5, "size": 11}
    assert {"hivg_hf", "torch", "transformers", "python"} <= set(results["versions"])
    assert results["settings"]["processes"] == 1


def test_predictions_read_back_give_the_same_figures(folder, evaluation):
    predictions, references = read_predictions(folder)
    assert predictions == evaluation.predictions
    for protocol in ("pixel", "official"):
        again = compute_grounding_metrics(predictions, references, protocol, resamples=0)["figures"]
        usual = compute_grounding_metrics(evaluation.predictions, evaluation.rows.references, protocol, resamples=0)
        assert again == usual["figures"]


def test_the_page_of_failures_needs_nothing_beside_it(folder, scenes, evaluation):
    page = (folder / "failures.html").read_text(encoding="utf-8")
    assert "://" not in page
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]+)"', page))
    assert page.count("<figure>") == 4
    assert "tiny &lt;model&gt;" in page
    worst = int(np.argsort(evaluation.rows.ious, kind="stable")[0])
    assert scenes[worst]["expression"] in page
    assert page.count('class="box target"') == page.count('class="box first"') == 4


def test_failures_are_ranked_by_iou_then_by_confidence_and_right_answers_stand_apart():
    references = [{"id": i, "box": [0, 0, 10, 10]} for i in range(4)]
    references.append({"id": 4, "box": None, "boxes": [], "no_target": True})
    boxes = [[0, 0, 10, 10], [50, 50, 60, 60], [50, 50, 60, 60], [0, 0, 10, 5], [0, 0, 1, 1]]
    scores = [0.9, 0.2, 0.8, 0.5, 0.7]
    predictions = [{"id": i, "box_xyxy": boxes[i], "score": scores[i]} for i in range(5)]
    rows = score_rows(predictions, references)
    wrong, right, answered = worst_failures(rows, predictions)
    assert [picture.row for picture in wrong.pictures] == [2, 1]
    assert [picture.row for picture in right.pictures] == [3, 0]
    assert wrong.pictures[0].caption == "IoU 0.00, score 0.80"
    assert [picture.row for picture in answered.pictures] == [4]
    assert answered.pictures[0].caption == "score 0.70"
    assert [len(section.pictures) for section in worst_failures(rows, predictions, count=1)] == [1, 1, 1]
    assert [
        section.heading for section in worst_failures(score_rows(predictions[:1], references[:1]), predictions)
    ] == ["Right, with the lowest IoU"]


def test_what_is_right_depends_on_the_protocol():
    references, predictions = [{"id": 0, "box": [0, 0, 10, 10]}], [{"id": 0, "box_xyxy": [0, 0, 10, 5], "score": 1.0}]
    rows = score_rows(predictions, references)
    assert [worst_failures(rows, predictions, name)[0].heading for name in ("pixel", "ref-l4")] == [
        "Right, with the lowest IoU",
        "Wrong",
    ]


def test_plots_show_the_figures(folder, evaluation, monkeypatch):
    for name in ("accuracy_by_length.png", "iou_histogram.png", "scores.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure.axes[0]))
    table = {"1-5": {"n": 8, "acc@0.5": 0.25, "interval": [0.1, 0.4]}, "6-7": {"n": 2, "acc@0.5": 1.0}}
    plots.plot_accuracy_by_length("x.png", {"protocol": "pixel", "breakdowns": {"expression_length": table}})
    assert [bar.get_height() for bar in drawn[0].patches] == [25.0, 100.0]
    assert [label.get_text() for label in drawn[0].get_xticklabels()] == [
        "1-5\n25.0 %\nn = 8",
        "6-7\n100.0 %\nn = 2",
    ]
    assert drawn[0].lines[0].get_ydata().tolist() == [10.0, 40.0]
    plots.plot_iou_histogram("x.png", np.array([0.0, 0.5, 0.52, 1.0, np.nan]))
    heights = [bar.get_height() for bar in drawn[1].patches]
    assert (heights[0], heights[10], heights[19], sum(heights)) == (25.0, 50.0, 25.0, 100.0)


def test_the_plot_of_scores_shows_each_share_of_empty_questions(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.extend(figure.axes))
    scores, correct = np.array([0.95, 0.85, 0.4, 0.1]), np.array([True, False, False, False])
    nothing = np.array([False, False, True, True])
    reports = [score_report(scores, correct, nothing, rate) for rate in (None, 0.1)]
    plots.plot_scores("x.png", {"reports": reports})
    reliability, risk = drawn
    np.testing.assert_allclose(reliability.lines[1].get_xdata(), [0.1, 0.4, 0.85, 0.95])
    np.testing.assert_allclose(reliability.lines[1].get_ydata(), [0, 0, 0, 1])
    assert [line.get_ydata()[-1] for line in risk.lines] == pytest.approx([75.0, 55.0])
    said = [text.get_text() for text in risk.get_legend().get_texts()]
    assert [words.partition(":")[0] for words in said] == ["50% name nothing", "10% name nothing"]
    figure = reliability.figure
    figure.draw_without_rendering()
    for axes in drawn:  # no line runs through a legend
        assert axes.get_legend().get_window_extent().y1 <= axes.get_window_extent().y0


def test_risk_of_a_model_without_errors_has_an_axis_of_whole_percents(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.extend(figure.axes))
    reports = [score_report(np.array([0.9, 0.8]), np.array([True, True]), np.array([False, False]))]
    plots.plot_scores("x.png", {"reports": reports})
    assert drawn[1].get_ylim() == (0, 5)


def test_a_comparison_is_written_with_its_pictures(evaluation, scenes, tmp_path):
    other = [
        {**prediction, "box_xyxy": box} for prediction, box in zip(evaluation.predictions, scenes["box"], strict=True)
    ]
    rows = score_rows(other, evaluation.rows.references)
    comparison, files = write_comparison(tmp_path, evaluation, other, rows, {"id": "oracle"}, scenes, SETTINGS, 3)
    assert comparison["figures"]["mean_iou"]["second"] == pytest.approx(1.0, abs=1e-6)
    assert json.loads(files[0].read_text()) == json.loads(json.dumps(comparison))
    page = files[1].read_text(encoding="utf-8")
    assert "Only the second is right" in page
    assert "second: oracle" in page
    assert page.count("<figure>") == 3


def test_the_hash_of_weights_sees_every_value_and_not_the_file(tiny_model):
    before = weights_hash(tiny_model)
    assert weights_hash(tiny_model) == before
    parameter = tiny_model.grounding_head.reg_token.weight
    with torch.no_grad():
        parameter[0, 0] += 1e-3
        changed = weights_hash(tiny_model)
        parameter[0, 0] -= 1e-3
    assert changed != before


def test_the_hash_of_data_sees_expressions_and_order():
    rows = [{"expression": "a", "box": [0, 0, 1, 1]}, {"expression": "b", "box": [0, 0, 1, 1]}]
    hashes = {describe_data(order, "s", "val", {})["sha256"] for order in (rows, rows[::-1])}
    assert len(hashes) == 2


def test_missing_and_foreign_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Results file not found: .*results\.json: write one with"):
        read_results(tmp_path)
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"other.json is not a results file of `hivg evaluate`"):
        read_results(path)
    path.write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="has format 99, this version reads up to 1"):
        read_results(path)
    with pytest.raises(FileNotFoundError, match="There are no predictions in"):
        read_predictions(tmp_path)
