"""What stands under a name is whole, whatever happened while it was written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from hivg_hf.utils.atomic import DiskFullError, atomic_folder, atomic_path, check_name, write_json


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_under_its_name_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "figures.json"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("{}")
        assert not target.exists()
    assert target.read_text() == "{}"
    assert names_in(target.parent) == ["figures.json"]


@pytest.mark.parametrize("name", ["x" * 250 + ".png", "\u00e9" * 120 + ".json", "\udcff.png"])
def test_a_name_as_long_as_a_file_system_takes_is_written(name: str, tmp_path: Path) -> None:
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("{}")
    assert names_in(tmp_path) == [name]


def test_file_survives_a_failure_of_its_successor(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    target.write_text("old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["figures.json"]


def test_file_may_be_read_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.touch()
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_block_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"Nothing was written for .*x\.json"),
        atomic_path(tmp_path / "x.json"),
    ):
        pass


def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for parent in (tmp_path / "new" / "deep", tmp_path / "there" / "deep"):
        with pytest.raises(ValueError, match="no such format"), atomic_path(parent / "a.png"):
            raise ValueError("no such format")
        with pytest.raises(ValueError, match="no such format"), atomic_folder(parent / "model"):
            raise ValueError("no such format")
    assert names_in(tmp_path) == ["there"]
    assert names_in(tmp_path / "there") == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot write to .*file \(File exists\): choose another folder"):
        with atomic_path(tmp_path / "file" / "a.png"):
            pass


def test_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="a folder of that name exists"), atomic_path(tmp_path):
        pass


def test_json_refuses_what_it_has_no_words_for_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "results.json", {"figures": {"acc@0.5": float("nan")}})
    assert not list(tmp_path.iterdir())


def test_folder_replaces_the_whole_of_its_predecessor(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("old.txt", "new.txt"):
        with atomic_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert names_in(target) == ["new.txt"]
    assert names_in(tmp_path) == ["model"]


def test_folder_survives_a_failure_of_its_successor(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "weights").write_text("old")

    def write_half() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "weights").write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (target / "weights").read_text() == "old"
    assert names_in(tmp_path) == ["model"]


def test_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(NotADirectoryError, match="a file of that name exists"), atomic_folder(tmp_path / "model"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not a thing of Windows")
def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    target.write_text("old")
    code = (
        "import sys, time\nfrom hivg_hf.utils.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n    path.write_text('half')\n    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert target.read_text() == "old"


def test_names_show_no_partial_folder_to_a_glob(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model"):
        hidden = names_in(tmp_path)
    assert all(name.startswith(".") for name in hidden)


@pytest.mark.parametrize("name", ["stage_1", "heads-long", "val+none", "phase 1 (again)", "échauffement", "3", "v1.2"])
def test_names_of_one_file_pass(name: str) -> None:
    assert check_name(name, "Phase") == name


ELSEWHERE = [".", "..", "../../..", "/absolute", "a/b", "a\\b", "C:x", "a\0b", ".hidden", "~", "*"]
NO_NAMES = [
    "",
    " ",
    "a\nb",
    "dot.",
    "space ",
    "-x",
    "con",
    "NUL.txt",
    "COM1",
    "x" * 101,
    "é" * 60,
    "a\u202eb",
    "\ud800",
]


@pytest.mark.parametrize("name", [*ELSEWHERE, *NO_NAMES, "\ud800", 5, None])
def test_names_that_leave_their_folder_or_name_no_file_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"Phase name .* cannot name a file or folder: use up to 100 letters"):
        check_name(name, "Phase")


NAMELESS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
]


@pytest.mark.parametrize("error", NAMELESS, ids=str)
@pytest.mark.parametrize("write", [atomic_path, atomic_folder])
def test_a_full_disk_is_named_and_nothing_is_left(write: Any, error: Exception, tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_path(tmp_path / "outer.txt"), write(tmp_path / "out") as temporary:
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
            raise error

    with pytest.raises(DiskFullError, match=r"^The disk is full: .*/out could not be written, .* Make room"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), atomic_path(tmp_path / "out"):
        raise RuntimeError("shapes differ")
