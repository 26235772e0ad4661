"""Which files of a folder are sent, and which folders are refused before anything is sent."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hivg_hf.hub_files import files_to_push
from hub_client import PLANTED


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_files_are_those_of_the_model_alone(folder: Path) -> None:
    names = {path.as_posix() for path in files_to_push(folder)}
    assert not names & PLANTED.keys()
    code = {name for name in names if name.endswith(".py")}
    assert code == {path.name for path in folder.glob("*_hivg.py")} - PLANTED.keys()
    assert names - code >= {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"}


def test_files_do_not_depend_on_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert files_to_push(Path(folder.name)) == files_to_push(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "processor_config.json", "tokenizer.json", "loss_hivg.py", "pipeline_hivg.py"]
)
def test_missing_file_is_named(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"The file {name} is missing from .*model; save the model"):
        files_to_push(copied)


def test_missing_shard_is_named(copied: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        files_to_push(copied)


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"PK" + data, lambda data: b""])
def test_damaged_weights_are_refused(damage: Callable[[bytes], bytes], copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(ValueError, match=r"The weights .*model\.safetensors are damaged"):
        files_to_push(copied)


def test_damaged_config_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is not readable JSON"):
        files_to_push(copied)


def test_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"is neither a HiVG model .* nor an adapter"):
        files_to_push(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*absent"):
        files_to_push(tmp_path / "absent")
