"""None, one or many: every interface gives the same boxes of a model with several queries, and says what it lacks."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.cli import main
from hivg_hf.inference import GroundBatch
from hivg_hf.inference.web_page import answer_question
from hivg_hf.modeling import box_ops_hivg, processing_hivg
from hivg_hf.modeling.processing_hivg import DEFAULT_THRESHOLD


@pytest.fixture(autouse=True, scope="module")
def keep_overlapping_boxes() -> Iterator[None]:
    """Queries without training answer with nearly one box; tests/modeling/test_processing_hivg.py takes one of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_hivg, "DUPLICATE_IOU", 1.1)
        yield


EXPRESSIONS = ["the red star", "the blue star of the left", "a"]


@pytest.fixture(scope="module")
def pipe(several_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor) -> VisualGroundingPipeline:
    return VisualGroundingPipeline(several_model, processor=tiny_processor, device="cpu")


@pytest.fixture(scope="module")
def folder(pipe: VisualGroundingPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("several") / "model"
    pipe.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def scores(pipe: VisualGroundingPipeline, picture: str) -> list[list[float]]:
    """Of every query for each expression, the highest first."""
    return [[one["score"] for one in each] for each in pipe(picture, EXPRESSIONS, multiple=True, threshold=0)]


@pytest.fixture(scope="module")
def threshold(scores: list[list[float]]) -> float:
    """Between the scores: what passes differs by expression."""
    ordered = sorted(score for each in scores for score in each)
    return (ordered[4] + ordered[5]) / 2


def test_all_boxes_that_reach_the_threshold_come_best_first(
    pipe: VisualGroundingPipeline, picture: str, scores: list[list[float]], threshold: float
) -> None:
    assert all(each == sorted(each, reverse=True) and len(each) == 3 for each in scores)
    found = pipe(picture, EXPRESSIONS, multiple=True, threshold=threshold, mask=True)
    assert [len(each) for each in found] == [sum(score >= threshold for score in each) for each in scores]
    assert len({len(each) for each in found}) > 1
    best = pipe(picture, EXPRESSIONS, mask=True)
    for each, one in zip(found, best, strict=True):
        assert each.best["box"] == pytest.approx(one["box"], abs=1e-3)
        assert each.best["found"] is bool(each)
        if each:
            assert set(each[0]) == {"expression", "box", "score", "found", "mask"}
            assert each[0]["box"] == pytest.approx(one["box"], abs=1e-3)
            assert np.array_equal(each[0]["mask"], one["mask"])
    several = next(each for each in found if len(each) > 1)
    assert not np.array_equal(several[0]["mask"], several[1]["mask"])
    alone = pipe(picture, EXPRESSIONS[0], multiple=True, threshold=threshold)
    assert [one["box"] for one in alone] == [pytest.approx(one["box"], abs=1e-3) for one in found[0]]


def test_without_a_threshold_the_model_s_own_holds_and_then_one_half(
    pipe: VisualGroundingPipeline, picture: str, scores: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [len(each) for each in pipe(picture, EXPRESSIONS, multiple=True)]
    assert counts == [sum(score >= DEFAULT_THRESHOLD for score in each) for each in scores]
    monkeypatch.setattr(pipe.model.config, "score_threshold", 1.0)
    assert [list(each) for each in pipe(picture, EXPRESSIONS, multiple=True)] == [[], [], []]
    assert len(pipe(picture, EXPRESSIONS[0], multiple=True, threshold=0)) == 3


def test_a_model_with_one_query_has_one_box_to_give(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, picture: str
) -> None:
    one = VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu")
    expected = one(picture, "the red star", mask=True)
    (found,) = one(picture, "the red star", multiple=True, threshold=0, mask=True)
    assert found["box"] == expected["box"]
    assert np.array_equal(found["mask"], expected["mask"])
    assert one(picture, "the red star", multiple=True, threshold=1) == []


def test_streams_give_lists_and_bad_items_their_error(pipe: VisualGroundingPipeline, picture: str) -> None:
    items = [{"image": picture, "text": "a"}, {"image": "no.png", "text": "a"}, {"image": picture, "text": ["a", "b"]}]
    one, bad, two = pipe(iter(items), multiple=True, threshold=0, on_error="return")
    assert [len(one), *map(len, two)] == [3, 3, 3]
    assert set(bad) == {"error"}
    assert len(two.one_by_one()) == 6
    assert [answer["found"] for answer in pipe(picture, "a", multiple=True, threshold=1).one_by_one()] == [False]


def test_detections_of_the_ecosystem_are_all_boxes(
    pipe: VisualGroundingPipeline, tiny_processor: HiVGProcessor, picture: str, scores: list[list[float]]
) -> None:
    inputs = tiny_processor(images=[picture], text=EXPRESSIONS)
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    labels = [EXPRESSIONS]
    (found,) = tiny_processor.post_process_grounded_object_detection(
        outputs, target_sizes=[(60, 90)], text_labels=labels
    )
    assert found["labels"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(found["scores"], np.concatenate(scores), atol=1e-5)
    rows = tiny_processor.post_process_grounding(outputs, [(60, 90)] * 3, multiple=True, threshold=0)
    torch.testing.assert_close(torch.cat([row["boxes"] for row in rows]), found["boxes"])
    assert all(row["scores"][0] == row["score"] and torch.equal(row["boxes"][0], row["box"]) for row in rows)


def test_the_zero_shot_task_gives_all_boxes(folder: str, picture: str) -> None:
    from transformers import pipeline

    detect = pipeline("zero-shot-object-detection", model=folder, device="cpu")
    assert len(detect(picture, candidate_labels=["the red star"], threshold=0.0)) == 3


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--device", "cpu"])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return int(ended.value.code or 0), printed.out


def test_the_command_line_prints_each_box_or_that_there_is_none(
    folder: str,
    picture: str,
    threshold: float,
    scores: list[list[float]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    asked = ["ground", picture, EXPRESSIONS[0], "--model", folder, "--out", str(tmp_path / "a.png")]
    _, out = run(capsys, *asked, "--multiple", "--threshold", "0")
    assert sum(line.endswith("the red star") for line in out.splitlines()) == 3
    _, none = run(capsys, *asked, "--multiple", "--threshold", "1")
    assert f"  not found (score {scores[0][0]:.2f}, threshold 1.00)  the red star" in none.splitlines()
    _, single = run(capsys, *asked, "--threshold", "1")
    assert f"  not found (score {scores[0][0]:.2f}, threshold 1.00)  the red star" in single.splitlines()
    _, as_json = run(capsys, *asked, "--multiple", "--threshold", str(threshold), "--json")
    found = json.loads(as_json)["results"]
    assert [one["score"] for one in found] == pytest.approx(
        [score for score in scores[0] if score >= threshold] or scores[0][:1], abs=1e-4
    )


def test_a_run_for_all_boxes_is_not_done_by_a_run_for_the_best(
    folder: str, picture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["ground", str(Path(picture).parent), "a", "--model", folder, "--out", str(tmp_path), "--no-pictures"]
    for options in ([], ["--multiple", "--threshold", "0"], ["--multiple", "--threshold", "0"]):
        assert run(capsys, *asked, *options)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [len(line["results"]) for line in lines] == [1, 3]


@pytest.mark.parametrize("as_arrow", [False, True])
def test_a_table_gets_columns_of_all_boxes(
    folder: str, picture: str, scores: list[list[float]], threshold: float, as_arrow: bool
) -> None:
    ground = GroundBatch(folder, multiple=True, threshold=threshold, engine={"device": "cpu"})
    rows: Any = {"image": [picture] * 3 + ["no.png"], "expression": [*EXPRESSIONS, "a"]}
    found = ground(pa.table(rows) if as_arrow else rows)
    columns = found.to_pydict() if as_arrow else found
    assert list(columns)[2:] == ["box", "score", "found", "boxes", "scores", "error"]
    for row, each in enumerate(scores):
        kept = [score for score in each if score >= threshold]
        assert columns["scores"][row] == pytest.approx(kept, abs=1e-5)
        assert len(columns["boxes"][row]) == len(kept)
        assert columns["found"][row] is bool(kept)
        assert columns["score"][row] == pytest.approx(each[0], abs=1e-5)
    assert columns["boxes"][3] is None
    assert columns["error"][3]


def test_a_table_of_lists_gets_the_boxes_of_each_expression(folder: str, picture: str) -> None:
    ground = GroundBatch(folder, multiple=True, threshold=0, engine={"device": "cpu"})
    found = ground(pa.table({"image": [picture], "expression": [EXPRESSIONS]}))
    assert [len(boxes) for boxes in found.column("boxes").to_pylist()[0]] == [3, 3, 3]


def test_the_page_shows_every_box_and_names_what_is_missing(
    pipe: VisualGroundingPipeline, picture: str, scores: list[list[float]]
) -> None:
    *_, rows, message = answer_question(pipe, picture, "\n".join(EXPRESSIONS), 0.0, True, True)
    assert len(rows) == sum(max(1, sum(score >= DEFAULT_THRESHOLD for score in each)) for each in scores)
    _, heatmaps, rows, message = answer_question(pipe, picture, "\n".join(EXPRESSIONS), 1.0, True, True)
    assert (len(heatmaps), len(rows)) == (3, 3)
    assert all(expression in message for expression in EXPRESSIONS)


def test_frames_of_a_video_give_every_box_and_are_not_steadied(pipe: VisualGroundingPipeline, picture: str) -> None:
    from hivg_hf.modeling.video_hivg import ground_frames

    frames = [(0.0, PIL.Image.open(picture)), (0.1, PIL.Image.open(picture))]
    given = list(ground_frames(pipe, iter(frames), "a", False, multiple=True, threshold=0))
    assert [len(frame["results"]) for frame in given] == [3, 3]
    with pytest.raises(ValueError, match="steadied one for each expression: pass smooth=False with multiple=True"):
        list(ground_frames(pipe, iter(frames), "a", True, multiple=True))


def test_an_exported_model_gives_what_every_query_gives(
    several_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, picture: str, pipe: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'hivg_hf[onnx]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'hivg_hf[onnx]'")
    from hivg_hf.inference import OnnxModel, export_onnx

    report = export_onnx(several_model, tiny_processor, tmp_path / "onnx", masks=True)
    assert {"query_boxes", "query_scores", "query_mask_logits"} <= set(report)
    assert max(report.values()) <= 1e-5
    model = OnnxModel(tmp_path / "onnx" / "onnx" / "model.onnx", several_model.config)
    there = VisualGroundingPipeline(model, processor=tiny_processor)
    expected, found = (each(picture, EXPRESSIONS, multiple=True, threshold=0, mask=True) for each in (pipe, there))
    for ours, theirs in zip(expected.one_by_one(), found.one_by_one(), strict=True):
        assert theirs["box"] == pytest.approx(ours["box"], abs=1e-3)
        assert theirs["score"] == pytest.approx(ours["score"], abs=1e-5)
        assert (theirs["mask"] != ours["mask"]).mean() < 1e-3


def test_an_exported_model_refines_its_boxes_as_torch_does(
    several_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'hivg_hf[onnx]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'hivg_hf[onnx]'")
    from hivg_hf.inference import export_onnx

    monkeypatch.setattr(box_ops_hivg, "REFINE_FROM_IOU", 0.0)  # masks without training agree with no box
    model = copy.deepcopy(several_model)
    model.config.refine_boxes = True
    report = export_onnx(model, tiny_processor, tmp_path / "onnx", masks=False)
    assert max(report.values()) <= 1e-5
    assert "mask_logits" not in report
