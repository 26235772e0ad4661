"""Where a calibrated model may be written."""

import json
from pathlib import Path

import pytest

from hivg_hf.hub.drive import official_cache
from hivg_hf.inference import calibrated_folder
from hivg_hf.inference.calibrated_folder import check_place, save_calibration


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"old score")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text(json.dumps({"model_type": "hivg", "score_bias": 0.0}))
    return folder


def test_a_copy_holds_all_but_files_of_the_old_score(model: Path, tmp_path: Path) -> None:
    place = save_calibration({"score_bias": 1.5}, model, tmp_path / "copy")
    assert place == tmp_path / "copy"
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((place / "config.json").read_text()) == {"model_type": "hivg", "score_bias": 1.5}
    assert json.loads((model / "config.json").read_text())["score_bias"] == 0.0


def test_a_folder_that_holds_something_is_no_place_for_a_copy(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        check_place(model, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert check_place(model, tmp_path / "empty") == tmp_path / "empty"


def test_models_in_caches_and_in_training_runs_need_another_place(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"part of a training run.*give --out"):
        check_place(model, None)
    monkeypatch.setattr(calibrated_folder, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"lies in a cache.*give --out"):
        check_place(model, None)
    cached = official_cache() / "base-unc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="lies in a cache"):
        check_place(cached, None)
    assert check_place(cached, tmp_path / "copy") == tmp_path / "copy"


def test_an_adapter_has_no_config_to_write_into(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(FileNotFoundError, match="holds an adapter, and a calibration is written into"):
        check_place(tmp_path, None)


def test_a_copy_does_not_lie_in_what_it_copies(model: Path) -> None:
    with pytest.raises(ValueError, match="lies inside the model"):
        check_place(model, model / "deep" / "copy")
    with pytest.raises(ValueError, match="is the model itself: omit --out"):
        check_place(model, model / "onnx" / "..")
    assert check_place(model, model.parent / "model-copy") == model.parent / "model-copy"


def test_a_place_that_cannot_be_made_is_named_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file is a file; choose another --out"):
        check_place(model, tmp_path / "file" / "copy")
    monkeypatch.setattr(calibrated_folder.os, "access", lambda *_: False)
    with pytest.raises(OSError, match="cannot be written to; choose another --out"):
        check_place(model, tmp_path / "copy")
    with pytest.raises(ValueError, match="cannot be written to: give --out"):
        check_place(model, None)
    monkeypatch.undo()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link is not an empty folder"):
        check_place(model, tmp_path / "link")
