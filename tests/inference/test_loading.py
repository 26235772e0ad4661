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
