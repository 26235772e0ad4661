"""What a model can be called: one place answers, and what it cannot open it says in a sentence."""

import json
from pathlib import Path

import pytest

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.hub import is_tiny, names, resolve_model


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    (folder / "merged").mkdir(parents=True)
    (folder / "merged" / "config.json").write_text("{}")
    (folder / "recipe.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps({"model": "merged"}))
    return folder


@pytest.mark.parametrize("name", ["tiny", "hivg-tiny-refshapes", TINY_CHECKPOINT])
def test_the_shipped_model_has_its_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name) == TINY_CHECKPOINT
    assert is_tiny(name)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    Path("tiny/config.json").write_text("{}")
    assert resolve_model("tiny") == "tiny"
    assert not is_tiny("tiny")


def test_a_run_stands_for_its_finished_model(run_folder: Path) -> None:
    assert resolve_model(run_folder) == str(run_folder / "merged")
    assert not is_tiny(run_folder)


def test_a_run_without_a_finished_model_is_said_to_be_one(run_folder: Path) -> None:
    (run_folder / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no finished model yet"):
        resolve_model(run_folder)


@pytest.mark.parametrize("content", [{"model": "../elsewhere"}, {"model": {"id": "x"}}, [1]])
def test_a_results_file_that_is_not_a_runs_leads_nowhere(run_folder: Path, content: object) -> None:
    (run_folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"has no model: it has no config\.json"):
        resolve_model(run_folder)


@pytest.mark.parametrize("name", ["me/hivg", "me/hivg@v1", "hivg", "me/hivg-tiny-refshapes", "hivg-tiny"])
def test_what_is_no_folder_is_a_repository(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./absent", r"Model folder not found: './absent'\."),
        ("runs/mine/absent", r"Model folder not found: 'runs/mine/absent'\."),
        ("Tiny", r"Unknown model 'Tiny': did you mean 'tiny'\?$"),
        ("tinny", r"Unknown model 'tinny': did you mean 'tiny'\?$"),
        ("HiVG-tiny-refshapes", r"Unknown model 'HiVG-tiny-refshapes': did you mean 'hivg-tiny-refshapes'\?$"),
        ("Official:base-mixup", r"did you mean 'official:base-mixup'\?$"),
        ("best.pth", r"'best.pth' is a file; .*convert it first: hivg convert best.pth FOLDER"),
        ("empty", r"The folder 'empty' has no model: it has no config.json\."),
    ],
)
def test_what_cannot_be_a_model_is_named(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("best.pth").write_bytes(b"")
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        resolve_model(name)


def test_an_official_name_that_is_not_published_lists_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"nothing that is called official:base-refcoco; .* base-unc, base-unc"):
        resolve_model("official:base-refcoco")


def test_an_official_name_leads_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    folder = tmp_path / "hivg" / "official" / "large-unc+"
    folder.mkdir(parents=True)
    assert names.resolve_model("official:large-unc+") == str(folder)
