"""What data files may name in a pickle: plain collections and numpy arrays of numbers, built from checked bytes.

No class of numpy is reachable from a file (see `checked_unpickler`): an array is made here, from a type of a short
list, a shape and exactly as many bytes as the two need.
"""

import collections
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .checked_unpickler import CheckedUnpickler, RefusedPickleError, StandIn, check_key, need

_NUMPY_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c(?:8|16))")
_MAX_DIMENSIONS = 16


class NumpyType:
    """A numeric numpy dtype by its code, such as `f8`; a real dtype has a `__setstate__` that must not be reached."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, order: str = "=") -> None:
        self.code, self.order = code, order

    def dtype(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]


def _bytearray(machine: CheckedUnpickler, source: Any = b"", encoding: str = "latin1") -> bytearray:
    source = _latin1(source) if type(source) is str and encoding in ("latin1", "latin-1") else need(source, bytes)
    machine.spend(len(source))
    return bytearray(source)


def _no_bytes(machine: CheckedUnpickler) -> bytes:
    return b""  # Python 3 writes empty bytes this way for Python 2; others are encoded from a text


def _encode(machine: CheckedUnpickler, text: Any, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise RefusedPickleError(f"it encodes by {encoding!r}")
    machine.spend(len(need(text, str)))
    return _latin1(text)


def _collection(kind: type) -> Callable[..., Any]:
    def build(machine: CheckedUnpickler, items: Any = ()) -> Any:
        machine.spend(len(need(items, list, tuple)))
        return kind(map(check_key, items))

    return build


def _ordered_dict(machine: CheckedUnpickler, items: Any = ()) -> collections.OrderedDict:
    machine.spend(len(need(items, list, tuple)))
    pairs = [need(pair, list, tuple) for pair in items]
    return collections.OrderedDict((check_key(key), value) for key, value in pairs)


def _counter(machine: CheckedUnpickler, counts: Any = None) -> collections.Counter:
    counts = need({} if counts is None else counts, dict)
    machine.spend(len(counts))
    return collections.Counter({key: need(count, int) for key, count in counts.items()})


def _path(machine: CheckedUnpickler, *parts: Any) -> str:
    """A `pathlib` path, such as an argument of a training, as the string it stands for."""
    for part in parts:
        machine.spend(len(need(part, str)))
    return "/".join(parts).replace("//", "/", 1) if parts[:1] == ("/",) else "/".join(parts)


def _complex(machine: CheckedUnpickler, real: Any, imaginary: Any) -> complex:
    return complex(need(real, float, int), need(imaginary, float, int))


def _numpy_type(machine: CheckedUnpickler, code: Any, align: Any = False, copy: Any = False) -> NumpyType:
    match = _NUMPY_TYPE.fullmatch(need(code, str))
    if match is None:
        raise RefusedPickleError(f"it has a numpy array of type {code[:20]!r}, which does not hold plain numbers")
    return NumpyType(match[1], code[0] if code[0] in "<>|=" else "=")


def _numpy_array(machine: CheckedUnpickler, kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array whose type, shape and bytes come next, as an instruction BUILD."""
    if need(kind, StandIn).name != "numpy.ndarray" or shape != (0,):
        raise RefusedPickleError("it makes a numpy array of another class")
    return np.empty(0, np.uint8)


def _numpy_scalar(machine: CheckedUnpickler, kind: Any, content: Any) -> np.generic:
    dtype = need(kind, NumpyType).dtype()
    content = _numpy_bytes(machine, content, dtype, (1,))
    return np.frombuffer(content, dtype)[0]


def _numpy_from_buffer(machine: CheckedUnpickler, content: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    dtype = need(kind, NumpyType).dtype()
    content = bytearray(_numpy_bytes(machine, content, dtype, shape))
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C")


def _numpy_bytes(machine: CheckedUnpickler, content: Any, dtype: np.dtype, shape: Any) -> bytes:
    """The bytes of an array, exactly as many as its type and shape need."""
    content = bytes(_latin1(content) if type(content) is str else need(content, bytes, bytearray))
    machine.spend(len(content))
    if check_shape(shape, machine.length) * dtype.itemsize != len(content):
        raise RefusedPickleError(f"it has {len(content)} bytes for a numpy array of shape {shape} and type {dtype}")
    return content


def check_shape(shape: Any, limit: int) -> int:
    """Elements of a shape from a file.

    Raises:
        RefusedPickleError: If it is not a short tuple of integers from 0 to `limit`.
    """
    sizes = need(shape, tuple)
    if len(sizes) > _MAX_DIMENSIONS or any(type(size) is not int or not 0 <= size <= limit for size in sizes):
        raise RefusedPickleError("it has an array whose shape is not a few integers")
    count = 1
    for size in sizes:
        count *= size
    return count


def _latin1(text: str) -> bytes:
    return text.encode("latin1")


def stand_ins(table: Mapping[str, Callable[..., Any] | None]) -> dict[str, StandIn]:
    return {name: StandIn(name, call) for name, call in table.items()}


# What data files may name beside numbers, strings, lists, tuples and dicts. Python 2 and numpy 1 wrote older names.
PLAIN_NAMES = stand_ins(
    {
        "collections.OrderedDict": _ordered_dict,
        "collections.Counter": _counter,
        "_codecs.encode": _encode,
        **{f"{module}.set": _collection(set) for module in ("builtins", "__builtin__")},
        **{f"{module}.frozenset": _collection(frozenset) for module in ("builtins", "__builtin__")},
        **{f"{module}.bytes": _no_bytes for module in ("builtins", "__builtin__")},
        **{f"{module}.bytearray": _bytearray for module in ("builtins", "__builtin__")},
        **{f"{module}.complex": _complex for module in ("builtins", "__builtin__")},
        **{
            f"{module}.{kind}": _path
            for module in ("pathlib", "pathlib._local")
            for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
        },
        "numpy.dtype": _numpy_type,
        "numpy.ndarray": None,
        **{f"numpy.{core}.multiarray._reconstruct": _numpy_array for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _numpy_from_buffer for core in ("core", "_core")},
    }
)


def _build_array(machine: CheckedUnpickler, target: np.ndarray, state: Any) -> None:
    _, shape, kind, is_fortran, content = need(state, tuple)
    dtype = need(kind, NumpyType).dtype()
    content = _numpy_bytes(machine, content, dtype, shape)
    target.__setstate__((1, shape, dtype, bool(need(is_fortran, bool, int)), content))  # type: ignore[arg-type]


def _build_numpy_type(machine: CheckedUnpickler, target: NumpyType, state: Any) -> None:
    kinds = [type(part) for part in need(state, tuple)]
    is_plain = kinds == [int, str, *[type(None)] * 3, int, int, int] and state[5:] == (-1, -1, 0)
    if not is_plain or state[1] not in ("<", ">", "|", "="):
        raise RefusedPickleError("it has a numpy type that does not hold plain numbers")
    target.order = state[1]


def _build_ordered_dict(machine: CheckedUnpickler, target: Any, state: Any) -> None:
    if set(need(state, dict)) - {"_metadata"}:  # where torch notes the versions of modules
        raise RefusedPickleError("it changes the state of an OrderedDict")
    vars(target).update(state)


PLAIN_STATES: dict[type, Callable[..., None]] = {
    np.ndarray: _build_array,
    NumpyType: _build_numpy_type,
    collections.OrderedDict: _build_ordered_dict,
}
