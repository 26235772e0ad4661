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
    return _load(path, read_torch_file, "a file that torch.save wrote whole")


def _load(path: str | os.PathLike[str], read: Callable[[Path], Any], kind: str) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"File not found: {path}.")
    try:
        return read(Path(path))
    except RefusedPickleError as error:
        raise ValueError(
            f"{path} was refused: {_sentence(error)}. Nothing in it was run; it is damaged or was made to do harm: "
            "download it again from its authors."
        ) from None
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is not {kind} ({_sentence(error) or type(error).__name__}); fetch it again."
        ) from None


def _sentence(error: Exception) -> str:
    """What an error says, in one printable line."""
    line = str(error).partition("\n")[0].encode("ascii", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in line)[:200]
