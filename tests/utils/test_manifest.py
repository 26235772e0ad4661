"""A folder is compared with what was written, and training resumes from nothing that changed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.training import ROWS, fresh_model, make_trainer
from hivg_hf.utils.manifest import MANIFEST_FILE, find_damage, newest_whole_checkpoint, write_manifest

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST_FILE)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "empty JSON": lambda path: path.write_text("{}"),
    "one bit": flip_a_bit,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "checkpoint-1" / "shards").mkdir(parents=True)
    (tmp_path / "checkpoint-1" / "shards" / "a.pt").write_bytes(b"abc")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    write_manifest(tmp_path / "checkpoint-1")
    return tmp_path / "checkpoint-1"


def test_a_folder_as_it_was_written_has_no_damage(folder):
    assert find_damage(folder) is None
    write_manifest(folder)  # the manifest is not part of itself
    assert find_damage(folder) is None


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("shards/a.pt", None, r"shards/a.pt is missing"),
        ("shards/a.pt", b"abcd", r"shards/a.pt has 4 bytes instead of 3"),
        ("shards/a.pt", b"abd", r"the content of shards/a.pt has changed"),
        (MANIFEST_FILE, None, r"it has no manifest.json, as if hivg_hf 0.1 or another trainer"),
        *(
            (MANIFEST_FILE, content, r"its manifest.json is damaged")
            for content in (b"", b"{}", b"[]", b"{", b"\xff", b'{"files": 3}')
        ),
        (MANIFEST_FILE, b'{"files": {"a": 3}}', r"its manifest.json is damaged"),
    ],
)
def test_damage_is_named(folder, name, content, damage):
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"None of the checkpoints in .* is whole \(checkpoint-1: {damage}"):
        newest_whole_checkpoint(folder.parent)


def test_weights_alone_are_nothing_to_resume_from(folder):
    write_manifest(folder, resumable=False)
    with pytest.raises(ValueError, match=r"checkpoint-1: it has weights only \(save_only_model\)"):
        newest_whole_checkpoint(folder.parent)


def test_a_folder_without_checkpoints_has_none(tmp_path):
    (tmp_path / "checkpoint-old").mkdir()
    assert newest_whole_checkpoint(tmp_path) is None


def test_a_damaged_best_checkpoint_is_found_before_training_goes_on(folder):
    second = folder.with_name("checkpoint-2")
    shutil.copytree(folder, second)
    (second / "trainer_state.json").write_text(json.dumps({"best_global_step": 1}))
    write_manifest(second)
    assert newest_whole_checkpoint(folder.parent) == str(second)
    flip_a_bit(folder / "shards" / "a.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint-1, the best checkpoint so far, is damaged \(the content of shards"
    ):
        newest_whole_checkpoint(folder.parent)


# ---- the trainer ----


@pytest.fixture(scope="module")
def trained(tiny_model, tiny_processor, tmp_path_factory):
    """A run of three steps with a checkpoint after each, and its final weights."""
    folder = tmp_path_factory.mktemp("run")
    trainer = train(tiny_model, tiny_processor, folder)
    return folder, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def train(tiny_model, tiny_processor, folder, resume=None):
    trainer = make_trainer(
        fresh_model(tiny_model, dropout=0.1), tiny_processor, folder, max_steps=3, save_strategy="steps", save_steps=1,
        save_total_limit=None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in FILES for damage in ("missing", "one bit")),
        *((name, damage) for name in FILES[1::3] for damage in ("truncated", "empty", "empty JSON")),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    name, damage, trained, tiny_model, tiny_processor, tmp_path, caplog
):
    source, expected = trained
    for step in (1, 2):
        shutil.copytree(source / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    DAMAGES[damage](tmp_path / "checkpoint-2" / name)
    with caplog.at_level("WARNING", logger="hivg_hf"):
        trainer = train(tiny_model, tiny_processor, tmp_path, resume=True)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "hivg_hf.utils.manifest"]
    assert "checkpoint-2 is damaged (" in message
    assert name in message or (name == MANIFEST_FILE and damage == "one bit")  # then a checksum that has changed
    assert "resuming from checkpoint-1 instead" in message
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trainer.model.state_dict().items())
    assert find_damage(tmp_path / "checkpoint-2") is None  # made again


def test_a_checkpoint_by_name_is_refused_when_it_is_damaged(trained, tiny_model, tiny_processor, tmp_path):
    shutil.copytree(trained[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(
        ValueError, match=r"cannot resume from .*checkpoint-2: optimizer.pt is missing. Choose another"
    ):
        train(tiny_model, tiny_processor, tmp_path, resume=str(tmp_path / "checkpoint-2"))


def test_an_older_checkpoint_is_used_once_its_manifest_is_written(trained, tiny_model, tiny_processor, tmp_path):
    old = tmp_path / "checkpoint-2"
    shutil.copytree(trained[0] / "checkpoint-2", old)
    (old / MANIFEST_FILE).unlink()
    with pytest.raises(
        ValueError, match=r"no manifest.json, as if hivg_hf 0.1 .*call hivg_hf.utils.manifest.write_manifest"
    ):
        train(tiny_model, tiny_processor, tmp_path, resume=str(old))
    write_manifest(old)
    trainer = train(tiny_model, tiny_processor, tmp_path, resume=str(old))
    assert all(torch.equal(tensor, trained[1][key]) for key, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("damage", ["missing", "one bit"])
def test_best_weights_that_are_damaged_are_not_loaded(damage, trained, tiny_model, tiny_processor, tmp_path):
    shutil.copytree(trained[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    trainer = make_trainer(fresh_model(tiny_model), tiny_processor, tmp_path, eval_rows=ROWS[:2])
    trainer.state.best_global_step = 2
    trainer.load_best_weights()
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items())
    DAMAGES[damage](tmp_path / "checkpoint-2" / "model.safetensors")
    with pytest.raises(ValueError, match=r"best weights cannot be loaded from .*checkpoint-2: .*model.safetensors"):
        trainer.load_best_weights()
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match=r"best weights cannot be loaded from .*checkpoint-2: it is missing"):
        trainer.load_best_weights()
