"""The plan of a run, from configuration alone."""

import copy
from pathlib import Path

import pytest
import torch

from helpers.training import colored_box_rows, tiny_recipe
from hivg_hf.data.collator import GroundingCollator
from hivg_hf.training import describe_plan, load_recipe, parse_recipe, plan_training
from hivg_hf.training.plan import activation_bytes
from hivg_hf.training.rows import RowCache

RECIPES = Path(__file__).parents[2] / "hivg_hf" / "recipes"


def test_the_plan_of_a_published_recipe_needs_neither_data_nor_weights(monkeypatch):
    monkeypatch.setenv("HIVG_DATA", "/nowhere")
    monkeypatch.setenv("HIVG_CLIP", "/nowhere")
    recipe = load_recipe(RECIPES / "refcoco-base.yaml")
    warmup, *stages = plan_training(recipe, processes=7)
    assert (warmup.rows, warmup.rows_are_published) == (120_624, True)
    assert warmup.steps == 215 * 60  # 120,624 // 560 steps per epoch
    assert warmup.batch == "560 = 80 x 1 micro-batch x 7 processes"
    assert warmup.negatives == 79  # of the process's own 80, as in the official code
    assert {part for part, (train, _) in warmup.parameters.items() if train} == {"bridge", "grounding head"}
    assert [stage.parameters["LoRA vision"][0] for stage in stages] == [983_040, 1_572_864, 2_359_296]
    assert {stage.parameters["LoRA text"][0] for stage in stages} == {1_572_864}
    one = plan_training(recipe, processes=1)[0]
    assert one.batch == "560 = 80 x 7 micro-batches x 1 process"
    assert one.negatives == 79
    text = describe_plan([warmup, *stages])
    assert "120,624 (published count: the data is not there)" in text
    assert "LoRA vision 983,040, LoRA text 1,572,864" in text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, None),
        ({"negatives": {"share": 0.25, "kinds": ["edited"]}}, "25% with an expression that names nothing (edited)"),
    ],
)
def test_the_plan_says_how_many_rows_ask_for_what_is_not_there(tiny_checkpoint, spec, said):
    content = tiny_recipe(tiny_checkpoint)
    content["data"]["train"] = {"source": "refshapes", "split": "train", "size": 64, **spec}
    text = describe_plan(plan_training(parse_recipe(content)))
    rows = next(line for line in text.splitlines() if line.startswith("  rows"))
    assert rows.endswith(" 64" if said is None else f" 64, {said}")


@pytest.mark.parametrize(("size", "rows"), [(None, 96), (50, 50)])
def test_a_mixture_of_rendered_rows_is_counted_without_rendering(monkeypatch, tiny_checkpoint, size, rows):
    content = tiny_recipe(tiny_checkpoint)
    part = {"source": "refshapes", "split": "train", "size": 64}
    content["data"]["train"] = {
        "source": "mixture",
        "split": "train",
        "parts": [part, {**part, "seed": 1, "size": 32}],
    }
    if size:
        content["data"]["train"]["size"] = size
    recipe = parse_recipe(content)
    assert len(RowCache().training_rows(recipe, recipe.phases[0])) == rows
    monkeypatch.setattr(
        "hivg_hf.training.rows.load_grounding_dataset", lambda *args, **options: pytest.fail("rendered")
    )
    assert plan_training(recipe)[0].rows == rows


def test_gathered_negatives_count_all_processes(tiny_checkpoint):
    recipe = parse_recipe(tiny_recipe(tiny_checkpoint, contrastive_gather=True))
    assert [plan.negatives for plan in plan_training(recipe, processes=2)] == [7, 7, 7, 7]
    alone = parse_recipe(tiny_recipe(tiny_checkpoint))
    assert [plan.negatives for plan in plan_training(alone, processes=2)] == [3, 3, 3, 3]
    assert plan_training(recipe)[0].steps == 6  # two epochs of 24 rows in batches of 8


def test_a_warm_up_without_bridges_and_what_comes_after(monkeypatch):
    monkeypatch.setenv("HIVG_DATA", "/nowhere")
    monkeypatch.setenv("HIVG_CLIP", "/nowhere")
    warmup, heads, *_ = plan_training(load_recipe(RECIPES / "refcocog-umd-large.yaml"))
    assert "bridge" not in warmup.parameters
    assert heads.parameters["bridge"][0] > 50_000_000


def test_the_activation_estimate_is_of_the_right_size(tiny_model, tiny_processor, tiny_checkpoint):
    batch = GroundingCollator(tiny_processor)(colored_box_rows(8))
    model, kept = copy.deepcopy(tiny_model), {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model.train()(**batch)
    parameters = sum(
        p.untyped_storage().nbytes() for p in model.parameters() if p.untyped_storage().data_ptr() in kept
    )
    measured = (sum(kept.values()) - parameters) / 8
    estimate = activation_bytes(model.config, "", parse_recipe(tiny_recipe(tiny_checkpoint)))
    assert 0.4 < estimate / measured < 2.5


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_half_precision_halves_the_estimate(precision, tiny_model, tiny_checkpoint):
    recipe = parse_recipe(tiny_recipe(tiny_checkpoint, precision=precision))
    full = activation_bytes(tiny_model.config, "", parse_recipe(tiny_recipe(tiny_checkpoint)))
    assert activation_bytes(tiny_model.config, "", recipe) == full // (2 if precision == "bf16" else 1)
