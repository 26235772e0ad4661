"""A folder that one process at a time works in: held by a lock of the system, and noticed when it goes away."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .atomic import folder_made

# What `atomic_path`, `atomic_folder` and the trainer call what they have not finished.
_LEFTOVER = re.compile(r"\..+\.partial")


@contextmanager
def folder_lock(folder: Path, doing: str) -> Iterator[Callable[[], None]]:
    """Hold a folder, made where it is not there. The lock is the system's: it goes with its process.

    Args:
        folder: What to hold.
        doing: For the message to a second process: "training in".

    Yields:
        A function that raises FileNotFoundError where the folder was deleted or replaced since.

    Raises:
        RuntimeError: If another process holds it.
        OSError: If it cannot be written.
    """
    with folder_made(folder), _held(folder, doing) as check:
        yield check


@contextmanager
def _held(folder: Path, doing: str) -> Iterator[Callable[[], None]]:
    check_writable(folder)
    lock, holder = folder / ".lock", folder / ".lock-holder"  # two files: Windows lets nobody else read the lock
    try:
        with FileLock(lock, timeout=0):
            holder.write_text(str(os.getpid()), encoding="utf-8")
            held = os.stat(lock)

            def check() -> None:
                if not lock.is_file() or not os.path.samestat(os.stat(lock), held):
                    raise FileNotFoundError(
                        f"The folder {folder} was deleted or replaced while this process was {doing} it, and what was "
                        "finished there is lost: put it back, or run the same again to start over."
                    )

            try:
                yield check
            finally:
                with suppress(OSError):  # gone with the folder; or Windows, which keeps a file that is open
                    holder.unlink()
                    lock.unlink()
    except Timeout:
        number = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        raise RuntimeError(
            f"Another process (id {number}) is {doing} {folder}: wait for it or choose another folder."
        ) from None


def check_writable(folder: Path) -> None:
    """Make the folder and write to it once.

    Raises:
        OSError: If that fails, with what to do.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise OSError(f"Cannot write to {folder} ({error.strerror}): choose another folder.") from error


def sweep_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written; nothing reads it, but it takes room.

    Only whoever holds the folder may call this: it would take away what another process is writing.
    """
    for parent, folders, _ in os.walk(folder):
        for name in [name for name in folders if _LEFTOVER.fullmatch(name)]:
            folders.remove(name)
            shutil.rmtree(Path(parent) / name, ignore_errors=True)
