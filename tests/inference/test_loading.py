"""Opening a checkpoint: what is said when there is none."""

from pathlib import Path

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
