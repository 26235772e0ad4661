"""`hivg recipes` lists, shows and copies the recipes that ship, and `hivg train` takes changes of their values."""

import json

import pytest
import yaml

from hivg_hf.cli import main
from hivg_hf.recipes import accelerate_names, read_recipe, recipe_names


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of `hivg ARGUMENTS`."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code or 0, *capsys.readouterr()


def test_every_recipe_is_listed_with_what_it_is(capsys):
    status, listed, _ = run(capsys, "recipes")
    lines = dict(line.split("  ", 1) for line in listed.splitlines() if "  " in line)
    assert status == 0
    assert {name.strip() for name in lines} == set(recipe_names())
    assert all(len(text.strip()) > 20 for text in lines.values())
    assert all(name in listed for name in accelerate_names())


def test_a_recipe_is_shown_as_written_or_written_out(capsys):
    _, shown, _ = run(capsys, "recipes", "refcoco-large")
    assert shown.startswith("# HiVG ViT-L/14 on RefCOCO:")
    assert "extends: official-large" in shown
    _, resolved, _ = run(capsys, "recipes", "refcoco-large", "--resolved")
    assert yaml.safe_load(resolved) == read_recipe("refcoco-large")


def test_the_schema_for_editors_lies_in_the_current_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, _ = run(capsys, "recipes", "--schema")
    path, comment = said.splitlines()
    assert status == 0
    assert path == str(tmp_path / "recipe.schema.json")
    assert comment.endswith("# yaml-language-server: $schema=recipe.schema.json")
    assert json.loads((tmp_path / "recipe.schema.json").read_text())["$defs"]["phase"]["properties"]["train"]["enum"]


@pytest.mark.parametrize("words", [("refcoco-base",), ("--copy",), ("--resolved",)])
def test_the_schema_is_asked_for_alone(words, capsys):
    status, _, error = run(capsys, "recipes", "--schema", *words)
    assert (status, error) == (2, "hivg: --schema is for all recipes: give it alone.\n")


def test_a_copy_lies_in_the_current_folder_and_reads_as_the_original(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("refcoco-base", "official-base", "multi_gpu"):
        status, path, _ = run(capsys, "recipes", name, "--copy")
        assert (status, path.strip()) == (0, str(tmp_path / f"{name}.yaml"))
    assert read_recipe(tmp_path / "refcoco-base.yaml") == read_recipe("refcoco-base")
    status, _, error = run(capsys, "recipes", "refcoco-base", "--copy")
    assert status == 2
    assert "refcoco-base.yaml exists: rename or remove it" in error


def test_what_is_not_there_is_said(capsys):
    assert "did you mean `refcoco-base`?" in run(capsys, "recipes", "refcoco-bas")[2]
    assert "--copy needs the name of a recipe" in run(capsys, "recipes", "--copy")[2]


def test_training_takes_changes_of_any_value_behind_the_recipe(capsys, monkeypatch):
    monkeypatch.setenv("HIVG_DATA", "/nowhere")
    monkeypatch.setenv("HIVG_CLIP", "/nowhere")
    small = ["model.clip=null", "model.preset=tiny", "model.tokenizer=refshapes", "phases.stage_1.epochs=0.5"]
    layers = [f"phases.stage_{number}.{tower}_layers=1" for number in (1, 2, 3) for tower in ("vision", "text")]
    status, plan, error = run(capsys, "train", "refcoco-base", *small, *layers, "--dry-run")
    assert status == 0, error
    assert "stage_1: trains lora" in plan
    status, _, error = run(capsys, "train", "refcoco-base", "phases.stage_1.epoch=2", "--dry-run")
    assert status == 2
    assert "Unknown key `epoch` in recipe.phases[1]: did you mean `epochs`?" in error
