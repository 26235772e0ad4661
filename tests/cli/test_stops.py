"""SIGINT and SIGTERM end every verb with one sentence and its status; nothing is half written or left over."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import typer
from parity.official_cases import made_case
from typer.testing import CliRunner

from benchmarks.speed.official_reference import OfficialLayers
from helpers.scripts import found_by
from helpers.zero_shot_models import clip
from hivg_hf.cli import app
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.utils.stops import TerminatedError

__all__ = ["clip"]

STOPS, SEED = os.environ.get("HIVG_STOPS", "2"), os.environ.get("HIVG_FUZZ_SEED", "0")


@pytest.fixture
def folder(tmp_path, clip, tiny_tokenizer):
    clip.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]))
    case.save(tmp_path)
    (tmp_path / "pictures").mkdir()
    lines = []
    for number, row in enumerate(refshapes_dataset("val", seed=5, size=12, masks=False)):
        row["image"].save(tmp_path / "pictures" / f"{number}.png")
        lines.append({"image": f"pictures/{number}.png", "expression": row["expression"], "bbox": row["boxes"][0]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ["--box-format", "xyxy"]
    source = ["--data", "refshapes", "--split", "val"]
    described = ["--args", "args.json", "--clip-config", "clip.json", "--tokenizer", "teacher"]
    commands = {
        "calibrate": ["calibrate", "tiny", "--out", "OUT", *source, "--seed", "3", "--size", "60"],
        "convert": ["convert", "official.safetensors", "OUT", *described],
        "convert-data": ["convert-data", "rows.jsonl", "OUT", "--to", "parquet", *data],
        "label": ["label", "pictures", "OUT", "--teacher", "teacher", "--nouns", "star,sea", "--threshold", "0"],
        "clean": ["clean", "rows.jsonl", "OUT", *data],
        "evaluate": [
            "evaluate",
            "--model",
            "tiny",
            "--out",
            "OUT",
            *source,
            "--seed",
            "3",
            "--size",
            "8",
            "--gallery",
            "2",
        ],
        "export": ["export", "tiny", "--out", "OUT", "--int8"],
    }
    commands["label"] += ["--doubtful", "0"]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process that has imported everything")
def test_stopped_runs_leave_nothing_half_written_and_the_same_command_works(folder):
    """HIVG_STOPS stops of each verb; the seed is HIVG_FUZZ_SEED."""
    pytest.importorskip("onnxscript", reason="onnx is not installed: pip install 'hivg_hf[onnx]'")
    found = found_by(Path(__file__).with_name("stop_runs.py"), str(folder), STOPS, SEED)
    assert {verb: one["faults"] for verb, one in found.items() if one["faults"]} == {}


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_verb_with_a_sentence_and_its_status(tmp_path, monkeypatch, how, status):
    """In the middle of writing: the folder does not appear, and its unfinished form goes."""

    def stopped(model, folder):
        (Path(folder) / "config.json").write_text("{}")
        signal.raise_signal(how)

    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]))
    case.save(tmp_path)
    monkeypatch.setattr("hivg_hf.HiVGForVisualGrounding.save_pretrained", stopped)
    described = ["--args", str(tmp_path / "args.json"), "--clip-config", str(tmp_path / "clip.json")]
    before = signal.getsignal(signal.SIGTERM)
    # A shell starts what runs in the background with SIGINT ignored, the tests perhaps, too.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["convert", str(tmp_path / "official.safetensors"), str(tmp_path / "out"), *described]
    try:
        result = CliRunner().invoke(app, words)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert result.exit_code == status
    assert result.output.splitlines()[-1] == "hivg: stopped."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["args.json", "clip.json", "official.safetensors"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_program_that_handles_termination_keeps_its_handler(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("own"))
    try:
        monkeypatch.setattr("hivg_hf.cli.recipes.say", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert CliRunner().invoke(app, ["recipes"]).exit_code == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert set(seen) == {"own"}


def test_verbs_run_outside_the_main_thread():
    """Where signals cannot be handled."""
    results = []
    thread = threading.Thread(target=lambda: results.append(CliRunner().invoke(app, ["recipes"])))
    thread.start()
    thread.join()
    assert results[0].exit_code == 0, results[0].output


def test_nothing_that_catches_errors_catches_the_termination():
    assert not issubclass(TerminatedError, (Exception, typer.Exit))
