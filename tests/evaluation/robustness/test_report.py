"""The report: conditions paired with the unchanged rows, resumed after a kill, drawn, and told on the card."""

import copy
import json

import pytest
import torch

from hivg_hf.data import GroundingCollator
from hivg_hf.evaluation import EvaluationSettings, evaluate_model
from hivg_hf.evaluation.card_tables import robustness_table
from hivg_hf.evaluation.model_card import add_robustness, check_card
from hivg_hf.evaluation.robustness import (
    ChangedRows,
    Condition,
    all_conditions,
    measure_adversarial,
    measure_robustness,
    page,
    write_report,
)
from hivg_hf.evaluation.robustness import report as report_module
from hivg_hf.evaluation.robustness.adversarial import attack_pictures

SETTINGS = EvaluationSettings(batch_size=6, resamples=50, progress=False)
FEW = [
    Condition("corruption", "fog", 3),
    Condition("resolution", "resolution", 2, 0.5),
    Condition("jpeg", "quality", 1, 75),
    Condition("wording", "upper_case"),
    Condition("removed", "color"),
]


@pytest.fixture(scope="module")
def measured(tiny_model, tiny_processor, scenes):
    evaluation = evaluate_model(tiny_model, tiny_processor, scenes, SETTINGS)
    return evaluation.describe(tiny_model, "tiny", "refshapes", "val", {"seed": 5, "size": 11})


def test_over_a_hundred_conditions_have_names_of_their_own():
    keys = [condition.key for condition in all_conditions()]
    assert len(keys) == len(set(keys)) == 15 * 5 + 5 + 5 + 5 + 5
    assert "corruption/fog/3" in keys


def test_changed_rows_keep_box_and_size_and_leave_out_what_does_not_apply(scenes):
    fog, removed = ChangedRows(scenes, FEW[0], 0), ChangedRows(scenes, FEW[4], 0)
    assert fog[2]["image"].size == (scenes[2]["width"], scenes[2]["height"])
    assert fog[2]["image"].tobytes() == ChangedRows(scenes, FEW[0], 0)[2]["image"].tobytes()
    assert fog[2]["image"].tobytes() != ChangedRows(scenes, FEW[0], 1)[2]["image"].tobytes()
    assert fog[2]["box"] == scenes[2]["box"]
    assert 0 < len(removed) < len(scenes)
    assert all(removed[place]["expression"] != scenes[row]["expression"] for place, row in enumerate(removed.kept))


def test_every_condition_stands_beside_the_unchanged_rows(measured, tiny_model, tiny_processor, scenes, tmp_path):
    report = measure_robustness(tiny_model, tiny_processor, scenes, measured, SETTINGS, tmp_path, FEW)
    entry = report["conditions"]["corruption/fog/3"]
    assert entry["n"] == int(measured.rows.has_box.sum())
    assert entry["before"] == measured.results["figures"]["acc@0.5"]
    assert entry["difference"] == pytest.approx(entry["after"] - entry["before"])
    assert {"score_before", "score_after"} <= set(entry)
    # A tokenizer that ignores case must not care for capitals.
    assert report["conditions"]["wording/upper_case"]["difference"] == 0
    assert set(report["summary"]) == {"corruption", "weather", "resolution", "jpeg", "wording", "removed"}
    assert json.loads((tmp_path / "robustness.json").read_text()) == json.loads(json.dumps(report))


def test_a_killed_report_resumes_and_another_model_starts_anew(
    measured, tiny_model, tiny_processor, scenes, tmp_path, monkeypatch
):
    whole = measure_robustness(tiny_model, tiny_processor, scenes, measured, SETTINGS, tmp_path / "whole", FEW)
    calls, predict = [], report_module.predict

    def failing(*args, description, **options):
        calls.append(description)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*args, description=description, **options)

    monkeypatch.setattr(report_module, "predict", failing)
    arguments = (tiny_model, tiny_processor, scenes, measured, SETTINGS, tmp_path / "killed", FEW)
    with pytest.raises(KeyboardInterrupt):
        measure_robustness(*arguments)
    assert measure_robustness(*arguments) == whole
    assert calls == [FEW[0].key, FEW[1].key, FEW[2].key, FEW[2].key, FEW[3].key, FEW[4].key]

    other = copy.deepcopy(measured)
    other.results["model"]["weights_sha256"] = "0" * 64
    measure_robustness(*arguments[:3], other, *arguments[4:])
    assert len(calls) == 6 + len(FEW)


def test_an_attack_raises_the_box_loss_stays_within_its_strength_and_leaves_padding(
    tiny_model, tiny_processor, scenes
):
    names = (*tiny_processor.model_input_names, "labels")
    collated = GroundingCollator(tiny_processor, masks=False)([{**scenes[row], "mask": None} for row in range(6)])
    batch = {name: tensor for name, tensor in collated.items() if name in names}
    images = tiny_processor.image_processor
    attacked = attack_pictures(tiny_model, batch, 8, images.image_std, images.image_mean)
    change = (attacked - batch["pixel_values"]) * torch.tensor(images.image_std)[:, None, None] * 255
    assert 4 < change.abs().max() <= 8.001
    outside = batch["pixel_mask"][:, None].expand_as(change) == 0
    assert outside.any()
    assert change[outside].abs().max() == 0
    labels = batch.pop("labels")

    def distance(pixels):
        with torch.inference_mode():
            return (tiny_model(**{**batch, "pixel_values": pixels}).pred_boxes - labels).abs().sum()

    assert distance(attacked) > distance(batch["pixel_values"])


def test_the_page_and_the_card_tell_what_was_measured(measured, tiny_model, tiny_processor, scenes, tmp_path):
    report = measure_robustness(tiny_model, tiny_processor, scenes, measured, SETTINGS, tmp_path, FEW)
    report["adversarial"] = measure_adversarial(tiny_model, tiny_processor, scenes, measured, SETTINGS, (2.0,), 2)
    files = write_report(tmp_path, report, "<b>tiny</b>")
    assert [file.name for file in files] == ["robustness.png", "robustness.html"]
    page = files[1].read_text(encoding="utf-8")
    assert "&lt;b&gt;tiny" in page
    assert "<b>tiny" not in page
    assert "<td>fog, 3</td>" in page
    assert "Attacked pixels (PGD, 2 steps)" in page
    source = measured.results["data"]
    assert f"<p>{len(scenes):,} rows of {source['source']}, split {source['split']}, protocol pixel.</p>" in page
    mean = f"{100 * report['summary']['weather']['after']:.1f}"
    assert f"<td>weather</td><td>{100 * report['summary']['weather']['before']:.1f}</td><td>{mean}</td>" in page
    results = {"val": {"robustness": {"summary": report["summary"], "adversarial": report["adversarial"]}}}
    table = robustness_table(results)
    assert "| weather | val |" in table
    assert "| attacked pixels, 2 of 255 | val |" in table
    assert robustness_table({"val": {}}) == ""


def robust_results(before=0.9):
    results = {
        "data": {"source": "/home/me/rows/mine.csv", "split": "val", "options": {}},
        "counts": {"rows": 300},
        "robustness": {"summary": {"fog": {"before": before, "after": 0.5}}},
    }
    return results


def test_a_card_that_is_there_gets_one_section_in_its_place_and_keeps_all_else(tmp_path):
    card = tmp_path / "README.md"
    before = "---\nlicense: mit\n---\n\n# mine\n\nWords.\n\n"
    after = "## How it was trained\n\n```bash\n# by hand\n```\n\n### How it feels\n\nGood.\n"
    card.write_text(before + after)
    assert add_robustness(tmp_path, robust_results()) == card
    first = card.read_text()
    assert first.startswith(before + "### How it breaks\n")
    assert first.endswith("\n\n" + after)
    assert "| fog | val | 90.0 | 50.0 |" in first
    assert "(300 rows of mine.csv)" in first
    assert "/home/me" not in first
    add_robustness(tmp_path, robust_results(before=0.8))
    second = card.read_text()
    assert second == first.replace("| 90.0 |", "| 80.0 |")


def test_a_card_without_known_sections_gets_it_at_its_end(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# mine\n\nWords.\n")
    add_robustness(tmp_path, robust_results())
    assert card.read_text().startswith("# mine\n\nWords.\n\n### How it breaks\n")
    once = card.read_text()
    add_robustness(tmp_path, robust_results())
    assert card.read_text() == once


def test_a_folder_without_a_card_gets_one(measured, tiny_model, tiny_processor, scenes, tmp_path):
    (tmp_path / "out").mkdir()
    report = measure_robustness(tiny_model, tiny_processor, scenes, measured, SETTINGS, tmp_path / "out", FEW)
    results = {**measured.results, "robustness": {"summary": report["summary"]}}
    (tmp_path / "my-model").mkdir()
    text = add_robustness(tmp_path / "my-model", results).read_text()
    check_card(text)
    assert text.count("### How it breaks") == 1
    assert "hivg evaluate --model my-model" in text


def test_lines_of_the_plot_are_told_apart_and_the_legend_covers_none(monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "save_figure", lambda figure, path: drawn.append(figure))
    shared = {"n": 4, "before": 1.0, "after": 1.0, "value": None}
    kinds = [("corruption", "fog"), ("corruption", "contrast"), ("resolution", "resolution"), ("jpeg", "quality")]
    entries = {f"{name}-{at}": {**shared, "kind": kind, "name": name, "strength": at} for kind, name in kinds
               for at in (1, 2)}  # fmt: skip
    page.plot_report("x.png", {"conditions": entries})
    (figure,) = drawn
    (axes,) = figure.axes
    assert len({line.get_color() for line in axes.lines}) == len(axes.lines) == 4
    assert not any(line.get_clip_on() for line in axes.lines)  # markers at 100 percent are whole
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_no_difference_has_no_sign():
    assert [page._points(value) for value in (0.0, -0.0001, 0.0123, -0.0123)] == ["0.0", "0.0", "+1.2", "-1.2"]
