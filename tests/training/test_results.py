"""The end of a run, where the optional packages are not installed."""

import sys

from helpers.training import tiny_recipe
from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.evaluation import read_results
from hivg_hf.training import parse_recipe
from hivg_hf.training.results import measure
from hivg_hf.training.rows import RowCache


def test_a_run_is_measured_without_the_package_that_draws(tiny_checkpoint, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    recipe = parse_recipe(tiny_recipe(tiny_checkpoint))
    model = HiVGForVisualGrounding.from_pretrained(tiny_checkpoint).eval()
    results = measure(recipe, tmp_path, model, HiVGProcessor.from_pretrained(tiny_checkpoint), RowCache())
    assert read_results(tmp_path / "evaluation" / "validation") == results["validation"]
    assert not list(tmp_path.rglob("*.png"))
