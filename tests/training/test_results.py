"""The end of a run, where the optional packages are not installed."""

import sys
from pathlib import Path

import pytest

from helpers.training import tiny_recipe
from hivg_hf import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.evaluation import read_results
from hivg_hf.training import parse_recipe
from hivg_hf.training.results import describe_outcome, measure
from hivg_hf.training.rows import RowCache


def test_a_run_is_measured_without_the_package_that_draws(tiny_checkpoint, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    recipe = parse_recipe(tiny_recipe(tiny_checkpoint))
    model = HiVGForVisualGrounding.from_pretrained(tiny_checkpoint).eval()
    results = measure(recipe, tmp_path, model, HiVGProcessor.from_pretrained(tiny_checkpoint), RowCache())
    assert read_results(tmp_path / "evaluation" / "validation") == results["validation"]
    assert not list(tmp_path.rglob("*.png"))


def outcome(folder: Path, rows: int, **fields: object) -> list[str]:
    """What is said of a run with so many held-out rows, whose model has these fields in its config."""
    HiVGConfig.preset("tiny", **fields).save_pretrained(folder / "merged")
    measured = {"figures": {"acc@0.5": 0.5}, "intervals": {}, "counts": {"rows": rows}}
    phase = {"name": "warm_up", "kept": "after", "why": "better", "accuracy_before": None}
    evaluation = {"validation": measured} if rows else {}
    return describe_outcome(folder, {"model": "merged", "phases": [phase], "evaluation": evaluation}).splitlines()


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (50, "--split held-out"),
        (49, "--data ROWS --split SPLIT  # 50 or more"),
        (0, "--data ROWS --split SPLIT  # 50"),
    ],
)
def test_a_run_ends_with_the_command_that_calibrates_its_score(tmp_path, rows, options):
    lines = outcome(tmp_path / "my run", rows)
    assert "score: not calibrated on these rows; answers say no `found` until it is" in lines
    assert f"      hivg calibrate '{tmp_path}/my run' --out '{tmp_path}/my run-calibrated' {options}" in lines[-1]


def test_a_threshold_that_the_recipe_names_was_not_chosen_for_these_scores(tmp_path):
    said = "score: found from 0.25 on, as the recipe says; not calibrated on these rows, so that this may be too high"
    assert any(line.startswith(said) for line in outcome(tmp_path, 50, score_threshold=0.25))
