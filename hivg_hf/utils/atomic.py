"""Writing that leaves nothing half written: a file or a folder appears whole under its name, or not at all.

The work is done under a temporary name beside the target (the same file system, so that a rename is one step), flushed
to the disk, and renamed. A process killed at any moment leaves the old content or the new, and at worst a hidden
`.NAME.*.partial` that nobody reads. Names that come from a file or a user pass `check_name` where they are defined.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Windows gives these to devices, with any suffix and in any case.
_DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAME_BYTES = 100  # file systems take 255; a name gets a number before it and a suffix behind


def check_name(name: Any, what: str) -> str:
    """Refuse a name that is not one file or folder on every system, inside the folder it is meant for.

    Args:
        name: Becomes part of a path.
        what: Whose name it is, for the message: "Phase", "Stage".

    Returns:
        The name.

    Raises:
        ValueError: It is empty, too long, reserved, or holds separators or other characters than letters, digits,
            spaces, ``_``, ``-``, ``+``, ``.`` and parentheses.
    """
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"\w([\w .+()-]*[\w+()-])?", name)
        or _DEVICE_NAMES.fullmatch(name)
        or len(name.encode("utf-8", "surrogatepass")) > _NAME_BYTES
    ):
        shown = name if not isinstance(name, str) or len(name) <= _NAME_BYTES else f"{name[:40]}..."
        raise ValueError(
            f"{what} name {shown!r} cannot name a file or folder: use up to {_NAME_BYTES} letters, digits, '_', '-', "
            "'+', parentheses, spaces and dots, with a letter or digit first and no dot or space last, and none of "
            "the names that Windows keeps for devices (con, nul, ...)."
        )
    return name


class DiskFullError(OSError):
    """The disk is full; the message names what could not be written."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def full_disk_named(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what libraries raise at a full disk, which often names nothing, into a sentence that names `target`.

    Raises:
        DiskFullError: The disk is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not _is_full(error, Path(target)):
            raise
        raise DiskFullError(
            errno.ENOSPC,
            f"The disk is full: {target} could not be written, and nothing of it was left behind. Make room, then run "
            "the same again.",
        ) from error


def _is_full(error: Exception, target: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if re.search(r"No space left on device|os error 28\b|Disk quota exceeded", str(error)):  # safetensors, arrow
        return True
    # torch says only that its stream failed
    parent = next((path for path in target.absolute().parents if path.is_dir()), None)
    failed = isinstance(error, RuntimeError) and parent is not None
    return failed and shutil.disk_usage(parent or ".").free < 2**20


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write a file to; on success it takes the name `target`, replacing what was there.

    On an exception the temporary file is removed and `target` stays as it was. Missing parent folders are made. The
    temporary name keeps the suffix of the target, since writers such as PIL or safetensors choose a format by it.

    Args:
        target: the file to write.

    Raises:
        FileNotFoundError: the body of the `with` block wrote nothing to the yielded path.
        IsADirectoryError: `target` is a folder.
        DiskFullError: The disk is full; the message names `target`.
    """
    target = Path(target)
    if target.is_dir():
        raise IsADirectoryError(f"Cannot write the file {target}: a folder of that name exists; choose another name.")
    with full_disk_named(target), _workplace(target) as folder:
        temporary = folder / target.name
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"Nothing was written for {target}; write to the path that atomic_path yields.")
        flush(temporary)
        os.replace(temporary, target)
    flush(target.parent)


def write_json(target: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that people can read and every parser takes: indented, UTF-8, a newline at the end.

    Raises:
        ValueError: The content holds NaN or infinite numbers, which JSON has no words for.
    """
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; on success it takes the name `target`, replacing a folder of that name.

    A folder that is not empty cannot be replaced in one step: the old one is renamed aside, the new one renamed into
    its place, the old one removed. A process killed between the two renames leaves no `target`, and the old content
    whole under `.NAME.*.partial/old`; a new `target` has no such moment. On an exception the temporary folder is
    removed and `target` stays as it was.

    Args:
        target: the folder to write.

    Raises:
        NotADirectoryError: `target` is a file.
        DiskFullError: The disk is full; the message names `target`.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"Cannot write the folder {target}: a file of that name exists; choose another name.")
    with full_disk_named(target), _workplace(target) as workplace:
        temporary, previous = workplace / "new", workplace / "old"
        # mkdir, not the workplace itself: mkdtemp makes folders that only their owner may read.
        temporary.mkdir()
        yield temporary
        flush_folder(temporary)
        if target.exists():
            os.rename(target, previous)
        try:
            os.rename(temporary, target)
        except OSError:
            if previous.exists():
                os.rename(previous, target)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    flush(target.parent)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, removed at the end."""
    name = os.fsencode(target.name)[:_NAME_BYTES].decode("utf-8", "ignore")
    with (
        folder_made(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.", suffix=".partial") as folder,
    ):
        yield Path(folder)


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Make a folder, and those above it; what was made and is empty at the end, as where all failed, goes again.

    Raises:
        OSError: It cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise type(error)(f"Cannot write to {folder} ({error.strerror}): choose another folder.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # it holds something
            for path in missing:
                path.rmdir()


def flush_folder(folder: Path) -> None:
    """`flush` everything in a folder, then the folder."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Make the disk hold what was written to a file, or the names in a folder."""
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):  # Windows cannot open a folder to flush it
        return
    # fsync needs a writable handle on Windows; folders can only be opened to read.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
