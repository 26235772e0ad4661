"""The `hivg` command around its verbs: the table, lazy imports, one-sentence errors."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from hivg_hf.cli import VERBS, app, main, run_verb
from hivg_hf.cli._options import Column, reader_options


@pytest.fixture
def add_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Make a function a verb of `hivg` for one test."""

    def add(function: Callable[..., None]) -> None:
        module = ModuleType("verb_of_a_test")
        module.probe = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "verb_of_a_test", module)
        monkeypatch.setitem(VERBS, "probe", ("verb_of_a_test:probe", "A verb of a test."))

    return add


@pytest.mark.parametrize("verb", VERBS)
def test_verb_of_the_table_is_a_documented_function_with_a_main(verb: str) -> None:
    module_name, _, function_name = VERBS[verb][0].partition(":")
    module = importlib.import_module(module_name)
    assert inspect.getdoc(getattr(module, function_name))
    assert callable(module.main)
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0, result.output


def test_table_names_every_verb_file() -> None:
    folder = Path(sys.modules["hivg_hf.cli"].__file__ or "").parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert files == set(VERBS)


def test_help_lists_every_verb() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert [verb for verb in VERBS if verb not in result.output] == []


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, TypeError, ImportError, RuntimeError])
def test_error_is_one_sentence_and_status_two(
    error: type[Exception], add_verb: Callable[[Callable[..., None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HIVG_TRACEBACK", raising=False)

    def probe(name: str) -> None:
        raise error(f"There is no {name}; give another.")

    add_verb(probe)
    result = CliRunner().invoke(app, ["probe", "mug"])
    assert result.exit_code == 2
    assert result.output == "hivg: There is no mug; give another.\n"


def test_refusal_of_a_config_is_its_own_sentence(add_verb: Callable[[Callable[..., None]], None]) -> None:
    def probe() -> None:
        from hivg_hf import HiVGConfig

        HiVGConfig(score="vote")

    add_verb(probe)
    result = CliRunner().invoke(app, ["probe"])
    assert result.exit_code == 2
    assert result.output.startswith("hivg: ")
    assert "vote" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["clean", "a.csv", "--out", "review"], "--out"),
        (["calibrate", "--model", "tiny", "--data", "a.csv"], "--model"),
        (["ground-dataset", "--source", "a.csv", "out"], "--source"),
        (["ground", "--image", "a.png", "--prompt", "a dog"], "--image"),
        (["push", "--model", "runs/mine", "me/mine"], "--model"),
        (["label", "photos", "--output-dir", "labels"], "--output-dir"),
    ],
)
def test_an_option_for_what_is_a_plain_word_is_told_so(words: list[str], option: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    said = " ".join(result.output.replace("\u2502", " ").split())
    assert f"No option {option}: its value stands alone here" in said


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("train --data a.csv --model tiny", "--base"),
        ("train --data a.csv --checkpoint tiny", "--base"),
        ("train --data a.csv --learning-rate 1e-4", "--lr"),
        ("train --data a.csv --images-dir photos", "--images"),
        ("ground a.png dog --weights tiny", "--model"),
        ("ground a.png dog --output b.png", "--out"),
        ("ground a.png dog -o b.png", "--out"),
        ("ground a.png dog --conf 0.3", "--threshold"),
        ("ground-dataset a.csv out --image file", "--image-column"),
        ("ground-dataset a.csv out --prompt caption", "--text-column"),
        ("evaluate --model tiny --output-dir out", "--out"),
        ("evaluate --model tiny --query caption", "--column expression=NAME"),
        ("label photos labels --model tiny", "--teacher"),
        ("label photos labels --classes dog", "--nouns"),
        ("survey a.csv --image photos --out look", "--images"),
    ],
)
def test_what_other_tools_call_it_is_answered_with_its_name_here(words: str, option: str) -> None:
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 2
    assert f": here it is {option}." in " ".join(result.output.replace("\u2502", " ").split())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        *[("eval", "evaluate"), ("predict", "ground"), ("finetune", "train"), ("download", "get"), ("upload", "push")],
        *[("serve", "demo"), ("help", "--help"), ("version", "--version"), ("Train", "train"), ("grund", "ground")],
        ("ground_dataset", "ground-dataset"),
    ],
)
def test_what_other_tools_call_a_verb_is_answered_with_its_name_here(typed: str, meant: str) -> None:
    result = CliRunner().invoke(app, [typed, "a.png"])
    assert result.exit_code == 2
    said = " ".join(result.output.replace("\u2502", " ").split())
    assert f"No such command '{typed}': here it is hivg {meant}." in said


@pytest.mark.parametrize("words", [["-h"], ["ground", "-h"]])
def test_the_short_word_for_help_is_known(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "--help" in result.output


def test_what_only_a_recipe_sets_is_named_as_its_key() -> None:
    result = CliRunner().invoke(app, ["train", "hivg-tiny-refshapes", "--num-workers", "2"])
    assert result.exit_code == 2
    said = " ".join(result.output.replace("\u2502", " ").split())
    assert "No option --num-workers: what a recipe holds is changed as KEY=VALUE, such as workers=2" in said


@pytest.mark.parametrize("words", ["ground a.png dog", "label a out", "video a.mp4 dog", "ground-dataset a.csv out"])
def test_a_device_is_looked_for_before_anything_is_opened(words: str) -> None:
    result = CliRunner().invoke(app, [*words.split(), "--device", "gpu"])
    assert result.exit_code == 2
    assert result.output.startswith("hivg: The device 'gpu' is not available here; expected cpu")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("words", ["ground a.png dog", "video a.mp4 dog --json"])
@pytest.mark.parametrize("threshold", ["40", "-0.1", "nan"])
def test_a_threshold_is_looked_at_before_anything_is_opened(words: str, threshold: str) -> None:
    result = CliRunner().invoke(app, [*words.split(), "--threshold", threshold])
    assert result.exit_code == 2
    assert re.match(r"hivg: --threshold must be a number from 0 to 1, got", result.output)
    assert result.output.count("\n") == 1


def test_other_unknown_options_keep_the_parsers_words() -> None:
    result = CliRunner().invoke(app, ["clean", "a.csv", "review", "--modle", "tiny"])
    assert result.exit_code == 2
    assert re.search("No such option:? '?--modle", result.output)  # quotes came and went between typer's versions


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [("train", "hivg: stopped; the same command resumes.\n"), ("evaluate", "hivg: stopped.\n")],
)
def test_ctrl_c_says_whether_the_same_command_resumes(
    verb: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"hivg_hf.cli.{verb}"), verb, interrupted)
    with pytest.raises(SystemExit) as ended:
        main([verb])
    assert ended.value.code == 130
    assert capsys.readouterr().err == sentence


def test_traceback_is_shown_when_asked(
    add_verb: Callable[[Callable[..., None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIVG_TRACEBACK", "1")

    def probe() -> None:
        raise ValueError("wrong")

    add_verb(probe)
    result = CliRunner().invoke(app, ["probe"])
    assert isinstance(result.exception, ValueError)


def test_fault_of_ours_is_not_dressed_up(add_verb: Callable[[Callable[..., None]], None]) -> None:
    def probe() -> None:
        raise KeyError("box")

    add_verb(probe)
    assert isinstance(CliRunner().invoke(app, ["probe"]).exception, KeyError)


def test_verb_may_end_with_a_status_of_its_own(add_verb: Callable[[Callable[..., None]], None]) -> None:
    def probe() -> None:
        raise typer.Exit(3)

    add_verb(probe)
    result = CliRunner().invoke(app, ["probe"])
    assert (result.exit_code, result.output) == (3, "")


def test_script_of_a_verb_takes_the_arguments_of_the_process(
    add_verb: Callable[[Callable[..., None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def probe(name: str, times: int = 1) -> None:
        seen.append((name, times))

    add_verb(probe)
    monkeypatch.setattr(sys, "argv", ["scripts/probe.py", "mug", "--times", "2"])
    with pytest.raises(SystemExit) as stop:
        run_verb("probe")
    assert (stop.value.code, seen) == (0, [("mug", 2)])


def test_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["paint"])
    assert stop.value.code == 2
    assert "No such command 'paint'" in capsys.readouterr().err


TABLE_VERBS = ("survey", "clean", "convert-data", "calibrate", "evaluate", "train", "ground-dataset")


@pytest.mark.parametrize("verb", TABLE_VERBS)
def test_every_verb_that_reads_tables_names_columns_in_the_same_way(verb: str) -> None:
    assert get_type_hints(_function(verb), include_extras=True)["column"] == Column
    readers = {name for name in VERBS if "box_format" in inspect.signature(_function(name)).parameters}
    assert readers <= set(TABLE_VERBS)  # the list is whole


def _function(verb: str) -> Callable[..., None]:
    module_name, _, function_name = VERBS[verb][0].partition(":")
    return getattr(importlib.import_module(module_name), function_name)


def test_the_name_of_a_column_stays_as_it_was_written() -> None:
    read = reader_options(column=["expression=no", "image=007", "box=a=b"])
    assert read == {"columns": {"expression": "no", "image": "007", "box": "a=b"}}
    with pytest.raises(ValueError, match="--column gives expression twice: 'a' and 'b'"):
        reader_options(column=["expression=a", "expression=b"])
    with pytest.raises(ValueError, match="--option gives columns, which another argument gives too"):
        reader_options(option=["columns={expression: a}"], column=["expression=b"])
    with pytest.raises(ValueError, match="--option gives holdout, which another argument gives too"):
        reader_options(option=["holdout=0.2"], holdout=0.1)
