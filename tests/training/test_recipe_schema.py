"""The JSON schema of recipes takes what the parser takes, and underlines what it refuses."""

import copy

import pytest
import yaml

from helpers.training import tiny_recipe
from hivg_hf.recipes import find_recipe, read_recipe, recipe_names
from hivg_hf.training import HeadsPhase, parse_recipe, phase_kinds
from hivg_hf.training.recipe_schema import recipe_schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")


@pytest.fixture(scope="module")
def schema():
    made = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return made


@pytest.fixture
def recipe():
    content = tiny_recipe("folder", hilora={"mode": "additive", "lora_options": {"use_rslora": True}})
    rows = {"source": "refshapes", "split": "train"}
    content["phases"][0] |= {"loss_weights": {"bbox": 2}, "augmentation": False, "data": rows}
    return content


def faults(schema, content):
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(content)]


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_that_ship_are_valid_as_written_and_written_out(schema, name):
    assert faults(schema, yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))) == []
    assert faults(schema, read_recipe(name)) == []


def test_a_recipe_that_the_parser_takes_is_valid(schema, recipe):
    parse_recipe(recipe)
    assert faults(schema, recipe) == []


def test_a_recipe_that_extends_another_may_change_phases_by_name(schema):
    assert faults(schema, {"extends": "refcoco-base", "phases": {"stage_0": {"epochs": 30}}}) == []
    (fault,) = faults(schema, {"extends": "refcoco-base", "phases": {"stage_0": {"epoch": 30}}})
    assert "is not valid under any of the given schemas" in fault


@pytest.mark.parametrize(
    "path",
    [
        ("namee",),
        ("model", "checkpoints"),
        ("model", "config", "image_sice"),
        ("data", "validate"),
        ("data", "augmentation", "crops"),
        ("defaults", "learning_rates"),
        ("hilora", "modes"),
        ("hilora", "lora_options", "use_rs_lora"),
        ("phases", 0, "rank"),  # of another kind
        ("phases", 1, "vision_layer"),
        ("phases", 0, "config", "bridge_layer"),
    ],
)
def test_a_key_that_nobody_reads_is_refused_by_both(schema, recipe, path):
    place = recipe
    for key in path[:-1]:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    place[path[-1]] = 1
    assert faults(schema, recipe)
    with pytest.raises(ValueError, match=rf"`{path[-1]}`"):
        parse_recipe(recipe)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), "seven"),
        (("precision",), "fp8"),
        (("data", "protocol"), "strict"),
        (("data", "augmentation"), True),
        (("phases", 0, "epochs"), "many"),
        (("phases", 0, "betas"), 0.9),
        (("phases", 0, "train"), "head"),
        (("phases", 0, "loss_weights"), {"bbox": -1}),
        (("phases", 1, "rank"), 2.5),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_both(schema, recipe, path, value):
    place = recipe
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert faults(schema, recipe)
    with pytest.raises(ValueError, match=str(path[-1])):
        parse_recipe(recipe)


def test_keys_are_described_by_their_docstrings_with_their_defaults(schema):
    phase = schema["$defs"]["phase"]["properties"]
    assert phase["vision_layers"]["description"].startswith("The first so many layers are adapted")
    assert phase["keep"]["description"].startswith("`best` by validation accuracy (never worse than the phase began)")
    assert phase["keep"]["default"] == "best"
    assert phase["keep"]["enum"] == ["best", "last", "best_but_last_heads"]
    assert schema["properties"]["workers"]["description"] == "Data loading processes of each training process."


def test_a_kind_of_another_package_is_in_the_schema(monkeypatch, recipe):
    monkeypatch.setattr(phase_kinds, "find_plugin", lambda group, name: HeadsPhase if name == "mine" else None)
    monkeypatch.setattr("hivg_hf.training.recipe_schema.plugin_names", lambda group: ["mine"])
    before, changed = recipe_schema(), copy.deepcopy(recipe)
    changed["phases"][0]["train"] = "mine"
    assert faults(before, changed) == []
