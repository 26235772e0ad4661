"""A folder is held by one process, which notices when it goes away and sweeps what a killed one left."""

import multiprocessing
import os
import shutil
import signal

import pytest
from typer.testing import CliRunner

from hivg_hf.cli import app
from hivg_hf.utils.held_folder import check_writable, folder_lock, sweep_leftovers


def hold(folder, ready):
    with folder_lock(folder, "training in"):
        ready.set()
        signal.pause()


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(20)
    with (
        pytest.raises(RuntimeError, match=rf"Another process \(id {holder.pid}\) is training in .*: wait for it"),
        folder_lock(tmp_path, "training in"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with folder_lock(tmp_path, "training in"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot write to .*file/run .*choose another folder"):
        check_writable(tmp_path / "file" / "run")


def test_a_folder_that_was_held_for_nothing_goes_again(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, kept in ((tmp_path / "new" / "deep", False), (tmp_path / "empty", True)):
        with pytest.raises(ValueError, match="unreadable"), folder_lock(folder, "writing to"):
            raise ValueError("unreadable")
        assert folder.exists() == kept
    assert not (tmp_path / "new").exists()
    with folder_lock(tmp_path / "new", "writing to"):
        (tmp_path / "new" / "results.jsonl").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.jsonl"]


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / "phases" / ".checkpoint-3.partial").mkdir(parents=True)
    (tmp_path / "phases" / "checkpoint-2").mkdir()
    sweep_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "phases").iterdir()] == ["checkpoint-2"]


def test_files_and_other_folders_stay_when_leftovers_go(tmp_path):
    for name in ("notes.partial", ".config", ".partial"):
        (tmp_path / name).mkdir()
    (tmp_path / ".file.x.partial").write_text("a file of somebody")
    (tmp_path / ".a.png.12345678.partial").mkdir()
    sweep_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".config",
        ".file.x.partial",
        ".partial",
        "notes.partial",
    ]


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_goes_away_is_noticed(made_again, tmp_path):
    folder = tmp_path / "run"
    with folder_lock(folder, "writing to") as check:
        check()
        shutil.rmtree(folder)
        if made_again:
            folder.mkdir()
            (folder / ".lock").touch()
        with pytest.raises(
            FileNotFoundError, match=r"run was deleted or replaced while this process was writing to it"
        ):
            check()


FEW = ["--option", "seed=3", "--option", "size=2"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--model", "tiny", "--data", "refshapes", *FEW, "--no-plots", "--gallery", "0", "--out"],
        ["clean", "refshapes", "--split", "val", *FEW],
        ["survey", "refshapes:val", *FEW, "--out"],
    ],
    ids=lambda words: words[0],
)
def test_verbs_that_fill_a_folder_hold_it(words, tmp_path):
    with folder_lock(tmp_path / "out", "writing to"):
        refused = CliRunner().invoke(app, [*words, str(tmp_path / "out")])
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", ".lock-holder"]
    assert refused.exit_code == 2, refused.output
    sentence = f"hivg: Another process (id {os.getpid()}) is writing to {tmp_path / 'out'}: wait for it"
    assert refused.output.splitlines()[-1].startswith(sentence)
    done = CliRunner().invoke(app, [*words, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "out").glob(".*"))
