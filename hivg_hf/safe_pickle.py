"""Pickles from strangers, read without running what they ask for.

A pickle is a program: loading one may call any function it names. REFER's `refs(*.p)` files, the official `.pth`
splits and official checkpoints are pickles, so they are read by unpicklers that know a short list of classes and
refuse every other name before anything is called.
"""

import argparse
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

# What data files may name beside numbers, strings, lists, tuples and dicts. Python 2 wrote the older names.
PLAIN_CLASSES = frozenset(
    {
        "collections.OrderedDict",
        "builtins.set",
        "builtins.frozenset",
        "builtins.bytearray",
        "__builtin__.set",
        "__builtin__.frozenset",
        "__builtin__.bytearray",
        "_codecs.encode",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
    }
)


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that finds only the classes of an allow-list, by their full names.

    Args:
        file: binary file.
        allowed: full names, `"module.name"`.
        encoding: how strings written by Python 2 are read.
    """

    def __init__(self, file: Any, allowed: Iterable[str] = PLAIN_CLASSES, encoding: str = "latin1") -> None:
        super().__init__(file, encoding=encoding)
        self.allowed = frozenset(allowed)

    def find_class(self, module: str, name: str) -> Any:
        """Find a class of the allow-list.

        Raises:
            pickle.UnpicklingError: the pickle names anything else.
        """
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_pickle(path: str | os.PathLike[str], allowed: Iterable[str] = PLAIN_CLASSES, encoding: str = "latin1") -> Any:
    """Load a plain pickle file, such as REFER's `refs(unc).p`.

    Args:
        path: the file.
        allowed: full names of the classes and functions that it may use.
        encoding: how strings written by Python 2 are read; `"latin1"` keeps every byte.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or it names something that is not on the list; nothing of it has run.
    """
    with Path(path).open("rb") as file:
        try:
            return RestrictedUnpickler(file, allowed, encoding).load()
        except pickle.UnpicklingError as error:
            raise ValueError(_refusal(path, error)) from None
        except (EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a readable pickle ({error}); fetch the file again.") from error


def load_torch_file(path: str | os.PathLike[str], allowed: Iterable[Any] = (argparse.Namespace,)) -> Any:
    """Load a file written by `torch.save`: tensors, plain containers, numpy arrays, and classes that are named.

    Args:
        path: the file, an official checkpoint or split.
        allowed: the classes it may use beside those; `argparse.Namespace` is what official checkpoints hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or it names something that is not on the list; nothing of it has run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with torch.serialization.safe_globals([*_numpy_classes(), *allowed]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL " not in str(error):  # torch stopped at an instruction; say what the file would have called
            error = pickle.UnpicklingError(
                f"it asks for {', '.join(names_in_pickle(path)) or 'nothing torch.save writes'}"
            )
        raise ValueError(_refusal(path, error)) from None
    except (EOFError, RuntimeError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a file that torch.save wrote whole ({reason}); fetch it again.") from error


def names_in_pickle(path: str | os.PathLike[str]) -> list[str]:
    """Full names that the first pickle of a file would import, read off its instructions; nothing is run.

    Names of torch and of plain containers are left out where there are others.

    Args:
        path: a pickle, or a file of `torch.save`.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = next((archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")), b"")
    else:
        content = Path(path).read_bytes()
    found: dict[str, None] = {}
    strings: list[str] = []  # in the order in which they were pushed; STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "INST"):
                found[str(argument).replace(" ", ".")] = None
            elif opcode.name == "STACK_GLOBAL":
                found[".".join(strings[-2:])] = None
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = strings[-1] if strings else ""
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                strings.append(memo.get(int(argument), ""))
            elif isinstance(argument, str):
                strings.append(argument)
    except ValueError:  # damaged further on
        pass
    strange = [name for name in found if name not in PLAIN_CLASSES and not name.startswith("torch.")]
    return strange or list(found)


def _numpy_classes() -> list[Any]:
    """What a pickled numpy array or number names, beside what torch allows itself; old files use the old module."""
    import numpy as np
    from numpy._core import multiarray

    dtypes = {type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "uint8", "bool")}
    reconstruct, scalar = multiarray._reconstruct, multiarray.scalar
    return [
        np.ndarray,
        np.dtype,
        *dtypes,
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
    ]


def _refusal(path: str | os.PathLike[str], error: Exception) -> str:
    reason = str(error).strip()
    # torch explains at length how to switch the check off; the name is what the reader needs.
    if "GLOBAL " in reason:
        reason = f"it asks for {reason.split('GLOBAL ', 1)[1].split(' ', 1)[0]}"
    reason = reason.partition("\n")[0]
    return (
        f"{path} was refused: {reason}, which data files and checkpoints have no need of. "
        "Nothing in it was run; get the file from its authors again."
    )
