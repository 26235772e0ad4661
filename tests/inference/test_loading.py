"""Opening a checkpoint: what is said when there is none."""

from pathlib import Path
from typing import Any

import pytest

from hivg_hf.hub import names
from hivg_hf.inference import loading


def test_without_the_included_checkpoint_the_way_to_get_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = str(tmp_path / "hivg-tiny-refshapes")
    monkeypatch.setattr(names, "TINY_CHECKPOINT", absent)
    with pytest.raises(FileNotFoundError, match=r"train it with `hivg train hivg-tiny-refshapes"):
        loading.load_pipeline(absent)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Model folder not found: '.*absent'\."):
        loading.load_pipeline(tmp_path / "absent")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here_is_refused_and_no_file_blamed(device: str) -> None:
    with pytest.raises(ValueError, match=rf"^The device '{device}' is not available here; expected cpu"):
        loading.load_pipeline("tiny", device)


@pytest.mark.parametrize("device", ["CPU", " cpu ", -1])
def test_the_processor_is_meant_by_any_of_its_names(device: str | int) -> None:
    assert loading.load_pipeline("tiny", device).device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, r"takes the name of a model, got NoneType: of a model in memory, write pipeline"),
        ({"model": object()}, r"takes the name of a model, got object"),
        ({"model": "tiny", "batch_size": 8}, r"has no option 'batch_size'\. Options of a call, such as threshold"),
        ({"model": "tiny", "threshold": 0.5}, r"has no option 'threshold'"),
    ],
)
def test_what_does_not_open_a_model_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"load_pipeline {message}"):
        loading.load_pipeline(**arguments)


@pytest.mark.parametrize("threads", [0, "2", 1.5])
def test_a_number_of_threads_is_a_whole_number(threads: Any) -> None:
    with pytest.raises(ValueError, match=r"number of threads must be a whole number, at least 1, got"):
        loading.load_pipeline("tiny", num_threads=threads)
