"""A run's folder: one recipe, one model to start from, room on the disk."""

import shutil
from collections import namedtuple

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from hivg_hf.training import parse_recipe
from hivg_hf.training.run_folder import FolderWatch, check_room, claim_folder, disk_needed
from hivg_hf.utils.held_folder import folder_lock

RECIPE = {
    "name": "r",
    "model": {"preset": "tiny", "tokenizer": "refshapes"},
    "data": {"train": {"source": "refshapes", "split": "train"}},
    "phases": [{"name": "a", "train": "heads", "epochs": 1, "learning_rate": 1e-3, "batch_size": 8}],
}


def test_a_full_disk_is_found_before_the_first_step(tmp_path, monkeypatch):
    model = torch.nn.Linear(1000, 1000)
    usage = namedtuple("usage", "total used free")
    # 3 checkpoints of weights and two moments, 3 copies of the weights: 12 x 4 MB
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 48_048_000))
    check_room(tmp_path, disk_needed(model))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 48_047_999))
    with pytest.raises(OSError, match=r"has 0.04 GiB free, but this phase may need 0.04 GiB"):
        check_room(tmp_path, disk_needed(model))


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    claim_folder(tmp_path, parse_recipe(RECIPE))
    claim_folder(tmp_path, parse_recipe({**RECIPE, "workers": 3}))  # only how fast it goes
    phases = [{**RECIPE["phases"][0], "learning_rate": 2e-3}]
    with pytest.raises(ValueError, match=r"recipe \(it differs in phases\[0\].learning_rate\): .* with --out,"):
        claim_folder(tmp_path, parse_recipe({**RECIPE, "phases": phases}))


def test_other_data_in_the_same_folder_are_named_as_they_were_given(tmp_path):
    rows = {"source": "mugs.csv", "split": "train", "box_format": "xyxy"}
    mugs = {**RECIPE, "data": {"train": rows}}
    claim_folder(tmp_path, parse_recipe(mugs))
    plates = {**mugs, "data": {"train": {**rows, "source": "plates.csv"}}}
    with pytest.raises(ValueError, match=r"a run on mugs.csv, and this one is on plates.csv \(--data, .* with --out,"):
        claim_folder(tmp_path, parse_recipe(plates))


@pytest.mark.parametrize("which", ["train", "validation", "tests"])
def test_a_table_that_changed_is_refused(tmp_path, which):
    table, other = tmp_path / "mine.csv", {"source": "refshapes", "split": "train"}
    table.write_text("image,expression,x1,y1,x2,y2\na.png,a star,1,1,9,9\n")
    spec = {"source": str(table), "split": "all", "box_format": "xyxy"}
    data = {"train": spec} if which == "train" else {"train": other}
    data |= {"validation": spec} if which == "validation" else {"tests": {"a": spec}} if which == "tests" else {}
    recipe = parse_recipe({**RECIPE, "data": data})
    claim_folder(tmp_path / "run", recipe)
    claim_folder(tmp_path / "run", recipe)
    content = table.read_text()
    table.write_text(content.replace("9,9", "8,8"))
    with pytest.raises(ValueError, match=r"mine.csv changed since the run in .*run began.*choose another folder"):
        claim_folder(tmp_path / "run", recipe)
    table.write_text(content)
    claim_folder(tmp_path / "run", recipe)


@pytest.mark.parametrize("content", ["", "{}", "[]", "{"])
def test_a_damaged_record_of_the_recipe_is_named(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"recipe.json is damaged, so nothing says which recipe ran in .*: restore it"
    ):
        claim_folder(tmp_path, parse_recipe(RECIPE))


def test_a_start_model_that_was_replaced_is_refused(tmp_path, tiny_checkpoint):
    model = shutil.copytree(tiny_checkpoint, tmp_path / "start")
    recipe = {**RECIPE, "model": {"checkpoint": str(model)}}
    claim_folder(tmp_path / "run", parse_recipe(recipe))
    claim_folder(tmp_path / "run", parse_recipe(recipe))
    (model / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match=r"The model .*start is not the one that the run in .*run began with"):
        claim_folder(tmp_path / "run", parse_recipe(recipe))


def test_a_training_whose_folder_was_taken_away_ends_at_its_next_step(tmp_path):
    model = torch.nn.Linear(2, 2)
    with folder_lock(tmp_path / "run", "training in") as check:
        handler = CallbackHandler([FolderWatch(check)], model, None, None, None)
        arguments = TrainingArguments(str(tmp_path / "run"), report_to=[])
        handler.on_step_end(arguments, TrainerState(), TrainerControl())
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FileNotFoundError, match=r"run was deleted or replaced while this process was training in"):
            handler.on_step_end(arguments, TrainerState(), TrainerControl())
