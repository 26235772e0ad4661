"""The checkpoint in the package: the one that was measured, small, and right on scenes that nobody has seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import hivg_hf
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.evaluation import EvaluationSettings, evaluate_model, read_results, weights_hash
from hivg_hf.inference import load_pipeline

RESULTS = Path(__file__).parents[2] / "model_cards" / "results" / "hivg-tiny-refshapes"


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(hivg_hf.TINY_CHECKPOINT, "cpu", "float32")


def test_its_figures_are_its_own(pipe):
    files = sorted(RESULTS.glob("*.json"))
    assert len(files) >= 6
    assert {read_results(path)["model"]["weights_sha256"] for path in files} == {weights_hash(pipe.model)}


def test_it_is_small_and_safe():
    files = [path for path in Path(hivg_hf.TINY_CHECKPOINT).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".py", ".md"}
    with safe_open(Path(hivg_hf.TINY_CHECKPOINT) / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}


def test_it_grounds_scenes_that_nobody_has_seen(pipe):
    """Within four standard errors of the accuracy in its card, on a seed of no other use."""
    rows = refshapes_dataset("val", seed=90_210, size=150, masks=False)
    settings = EvaluationSettings(batch_size=50, masks=False, resamples=10, progress=False)
    measured = evaluate_model(pipe.model, pipe.processor, rows, settings).results["figures"]["acc@0.5"]
    stated = read_results(RESULTS / "01-val.json")["figures"]["acc@0.5"]
    assert measured == pytest.approx(stated, abs=4 * np.sqrt(stated * (1 - stated) / len(rows)))


def test_its_recipe_is_the_one_in_the_repository():
    """What the card says of its training can be repeated: the recipe names the seed and ends in this shape."""
    from hivg_hf.training import load_recipe

    recipe = load_recipe(Path(__file__).parents[2] / "hivg_hf" / "recipes" / "hivg-tiny-refshapes.yaml")
    config = json.loads((Path(hivg_hf.TINY_CHECKPOINT) / "config.json").read_text())
    preset = hivg_hf.HiVGConfig.preset(recipe.model.preset)
    for name in ("image_size", "bridge_layers", "fusion_layers", "fusion_positions", "score"):
        assert config[name] == getattr(preset, name)
