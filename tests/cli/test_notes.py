"""What the shipped model does not know is said where it is used, once; and a closed pipe ends a command quietly."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hivg_hf.cli
from hivg_hf.cli import VERBS, main, note_what_tiny_knows
from hivg_hf.hub import DEFAULT_MODEL

SAY_IT_ELSEWHERE = ("demo",)  # on its page
LINE = "hivg: the model tiny knows rendered shapes only; for photos: --model official:base-mixup\n"


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hivg_hf.cli, "_noted", [])


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from hivg_hf.data.refshapes import refshapes_dataset

    monkeypatch.chdir(tmp_path)
    refshapes_dataset("val", seed=3, size=1, masks=False)[0]["image"].save("scene.png")
    return "scene.png"


def test_ground_says_once_what_its_default_model_knows(scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("ground", scene, "the red star", "--no-pictures", "--device", "cpu") == 0
    assert capsys.readouterr().err.count(LINE) == 1


def test_quiet_says_nothing(scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ground", scene, "the red star", "--no-pictures", "--device", "cpu", "--quiet") == 0
    assert "rendered shapes" not in capsys.readouterr().err


def test_clean_says_it_too_unless_asked_to_be_quiet(scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.csv").write_text(f"image,expression,x1,y1,x2,y2\n{scene},the red star,1,1,20,20\n")
    words = ("clean", "rows.csv", "review", "--box-format", "xyxy")
    assert run(*words, "--quiet") == 0
    assert "rendered shapes" not in capsys.readouterr().err
    assert run(*words) == 0
    assert capsys.readouterr().err.count(LINE) == 1


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_whose_default_is_the_shipped_model_can_be_quiet(verb: str) -> None:
    module, _, name = VERBS[verb][0].partition(":")
    words = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    takes_it = "model" in words and words["model"].default in ("tiny", "", DEFAULT_MODEL)
    assert "quiet" in words or not takes_it or verb in SAY_IT_ELSEWHERE


def test_other_models_and_other_options_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    note_what_tiny_knows("official:base-mixup")
    note_what_tiny_knows("me/hivg")
    assert capsys.readouterr().err == ""
    note_what_tiny_knows("hivg-tiny-refshapes", option="--base")
    assert capsys.readouterr().err == LINE.replace("--model", "--base")


def test_a_reader_that_leaves_ends_the_command_without_a_word() -> None:
    code = (
        "import sys, typer, hivg_hf.cli as cli\n"
        "def write() -> None:\n"
        "    for number in range(100_000):\n"
        "        typer.echo(f'line {number}')\n"
        "cli._load_verb = lambda verb: typer.main.get_command(make())\n"
        "def make():\n"
        "    app = typer.Typer(add_completion=False)\n"
        "    app.command(name='get')(write)\n"
        "    return app\n"
        "cli.main(['get'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1
