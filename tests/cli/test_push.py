"""`hivg push --onnx` exports beside the model that is pushed, never into the package, and only what is whole."""

import shutil
from pathlib import Path

import pytest

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.cli import main


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that ONNX files were asked for; tests/inference/test_onnx_export.py runs the real export."""
    folders: list[Path] = []

    def write(folder: Path) -> None:
        folders.append(folder)
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(b"0")

    monkeypatch.setattr("hivg_hf.inference.onnx_export.write_current_onnx", write)
    return folders


def push(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as done:
        main(["push", *arguments, "--onnx"])
    return done.value.code


@pytest.mark.parametrize("name", ["tiny", str(TINY_CHECKPOINT)])
def test_the_installed_folder_gets_no_onnx_files(
    name: str, exported: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(name, str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "onnx" / "model.onnx").read_bytes() == b"0"
    assert exported[0] != Path(TINY_CHECKPOINT)
    assert not (Path(TINY_CHECKPOINT) / "onnx").exists()
    assert not exported[0].exists()
    assert "onnx/model.onnx" in capsys.readouterr().out


def test_a_folder_of_yours_gets_them(exported: list[Path], tiny_checkpoint: str, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    assert push(str(folder), str(tmp_path / "out")) == 0
    assert exported == [folder]
    assert (folder / "onnx" / "model.onnx").is_file()


def test_what_is_not_whole_is_refused_before_the_export(
    exported: list[Path], tiny_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    (folder / "tokenizer_config.json").unlink()
    assert push(str(folder), str(tmp_path / "out")) != 0
    assert "tokenizer_config.json is missing from" in capsys.readouterr().err
    assert exported == []
