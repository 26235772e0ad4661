"""Pickles from strangers, read without running what they ask for.

A pickle is a program: loading one may call any function it names. REFER's `refs(*.p)` files, the official `.pth`
splits and official checkpoints are pickles, so they are read by a machine of our own that knows a short list of names,
builds plain values for them, and refuses every other name before anything is called (`checked_unpickler`).
"""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checked_unpickler import CheckedUnpickler, RefusedPickleError
from .checked_values import PLAIN_NAMES, PLAIN_STATES
from .torch_file import read_torch_file

# What reading a damaged file may raise: each instruction trusts the ones before it.
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)

# How a file begins, in capitals, that is given for a checkpoint by mistake or by a download that went wrong.
_MARKS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"<!DOCTYPE": "a web page",
    b"<HTML": "a web page",
    b"<?XML": "an XML file",
    b"VERSION HTTPS://GIT-LFS": "a pointer of Git LFS in place of the file: fetch that with `git lfs pull`",
}
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # an archive, and a pickle of protocol 2 or later

# Where the classes of modules are, saved whole.
_MODULES = tuple(f"it asks for {name}." for name in ("torch.nn", "torch.jit", "__torch__", "transformers", "peft"))


def load_pickle(path: str | os.PathLike[str], encoding: str = "latin1") -> Any:
    """Load a plain pickle file, such as REFER's `refs(unc).p`: plain containers, numbers, strings, numpy arrays.

    Args:
        path: The file.
        encoding: How strings written by Python 2 are read; `"latin1"` keeps every byte.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is damaged, or asks for something that is not on the list; nothing of it has run.
    """

    def read(path: Path) -> Any:
        return CheckedUnpickler(io.BytesIO(path.read_bytes()), PLAIN_NAMES, PLAIN_STATES, encoding).load()

    return _load(path, read, "a readable pickle")


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """Load a file written by `torch.save`: tensors, what `load_pickle` takes, and `argparse.Namespace`.

    Args:
        path: The file, an official checkpoint or split.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is damaged, or asks for something that is not on the list; nothing of it has run.
    """
    return _load(path, read_torch_file, "a file that torch.save wrote whole", _TORCH_STARTS)


def foreign_kind(path: str | os.PathLike[str]) -> str | None:
    """What a file is, by its first bytes, that no reader of weights takes; None where they say nothing."""
    with Path(path).open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    capitals = start.lstrip(b"\xef\xbb\xbf \t\r\n").upper()
    return next((kind for mark, kind in _MARKS.items() if capitals.startswith(mark.upper())), None)


def _load(
    path: str | os.PathLike[str], read: Callable[[Path], Any], kind: str, starts: tuple[bytes, ...] = (b"",)
) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"File not found: {path}.")
    if foreign := foreign_kind(path):
        raise ValueError(f"{path} is {foreign}; expected {kind}.")
    with Path(path).open("rb") as file:
        start = file.read(8)
    if not start.startswith(starts):
        raise ValueError(f"{path} begins with the bytes {start!r}; expected {kind}.")
    try:
        return read(Path(path))
    except RefusedPickleError as error:
        said = _sentence(error)
        if said.startswith(_MODULES):
            raise ValueError(
                f"{path} holds a module, which is code and not only weights ({said}), and nothing in it was run: save "
                "its weights instead, torch.save(module.state_dict(), FILE)."
            ) from None
        raise ValueError(
            f"{path} was refused: {said}. Nothing in it was run; it is damaged or was made to do harm: "
            "download it again from its authors."
        ) from None
    except _DAMAGE as error:
        # what Python says of its own lists and dicts names nothing of the file
        said = "it is damaged" if isinstance(error, LookupError | AttributeError | TypeError) else _sentence(error)
        raise ValueError(f"{path} is not {kind} ({said or type(error).__name__}); fetch it again.") from None


def _sentence(error: Exception) -> str:
    """What an error says, in one printable line."""
    line = str(error).partition("\n")[0].encode("ascii", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in line)[:200]
