"""A run's folder: one process, one recipe, room on the disk, and nothing left behind by a killed process."""

import multiprocessing
import os
import signal
from collections import namedtuple

import pytest
import torch

from hivg_hf.training import parse_recipe
from hivg_hf.training.run_folder import check_disk, check_writable, claim_folder, folder_lock, sweep_leftovers

RECIPE = {
    "name": "r",
    "model": {"preset": "tiny", "tokenizer": "refshapes"},
    "data": {"train": {"source": "refshapes", "split": "train"}},
    "phases": [{"name": "a", "train": "heads", "epochs": 1, "learning_rate": 1e-3, "batch_size": 8}],
}


def hold(folder, ready):
    with folder_lock(folder):
        ready.set()
        signal.pause()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(20)
    with (
        pytest.raises(RuntimeError, match=rf"Another process \(id {holder.pid}\) is training in .*: wait for it"),
        folder_lock(tmp_path),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with folder_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot write to .*file/run .*choose another --out folder"):
        check_writable(tmp_path / "file" / "run")


def test_a_full_disk_is_found_before_the_first_step(tmp_path, monkeypatch):
    model = torch.nn.Linear(1000, 1000)
    usage = namedtuple("usage", "total used free")
    # 3 checkpoints of weights and two moments, 3 copies of the weights: 12 x 4 MB
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 48_048_000))
    check_disk(tmp_path, model)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 48_047_999))
    with pytest.raises(OSError, match=r"has 0.04 GiB free, but this phase may need 0.04 GiB"):
        check_disk(tmp_path, model)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    claim_folder(tmp_path, parse_recipe(RECIPE))
    claim_folder(tmp_path, parse_recipe({**RECIPE, "workers": 3}))  # only how fast it goes
    phases = [{**RECIPE["phases"][0], "learning_rate": 2e-3}]
    with pytest.raises(ValueError, match=r"another recipe \(it differs in phases\[0\].learning_rate\)"):
        claim_folder(tmp_path, parse_recipe({**RECIPE, "phases": phases}))


@pytest.mark.parametrize("content", ["", "{}", "[]", "{"])
def test_a_damaged_record_of_the_recipe_is_named(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"recipe.json is damaged, so nothing says which recipe ran in .*: restore it"
    ):
        claim_folder(tmp_path, parse_recipe(RECIPE))


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / "phases" / ".checkpoint-3.partial").mkdir(parents=True)
    (tmp_path / "phases" / "checkpoint-2").mkdir()
    sweep_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "phases").iterdir()] == ["checkpoint-2"]
