"""A pickle machine that builds plain values and nothing else.

A pickle is a program, and one that names only harmless classes can still do harm: `numpy.dtype.__setstate__` with a
cleared object flag has numpy follow pointers of the file's choosing, `bytearray(10**12)` takes all memory, a memo
index of 2**32 makes the C unpickler allocate a table of that size. So no class is ever handed to the file. Every name
it may use is a `StandIn`: a function of ours that checks its arguments and returns a value. What is copied is limited
by the length of the file, and the result is measured before anyone walks over it.
"""

import argparse
import collections
import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

# Deeper nesting, or more than this many values per byte, and a loop or `repr` over the result would never end.
MAX_DEPTH = 100
MAX_EXPANSION = 64
_MAX_INTEGER_BITS = 1024
_MAX_HASHED_INTEGER = 2**60  # larger integers can be chosen to collide in a dict
_MAX_KEY_LENGTH = 16  # of a tuple
_ATOMS = frozenset({str, int, float, bool, complex, bytes, bytearray, type(None)})
_CONTAINERS: frozenset[type] = frozenset(
    (list, tuple, set, frozenset, dict, collections.OrderedDict, collections.Counter, argparse.Namespace)
)
_LEAVES = (np.ndarray, np.generic, torch.Tensor, torch.Size, torch.device, torch.dtype)


class RefusedPickleError(pickle.UnpicklingError):
    """A pickle wants something that data does not need; the message says what."""


class StandIn:
    """What a file gets for a name it may use: it can be called and does nothing else.

    Args:
        name: The full name it stands for.
        call: Takes the machine and the file's arguments, checks them, returns a plain value. None for a name that is
            only ever an argument.
    """

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self.call = name, call


class CheckedUnpickler(pickle._Unpickler):  # type: ignore[misc, valid-type, name-defined]
    """Reads one pickle of plain values from bytes.

    Args:
        stream: Holds the pickle at its position; left behind its last byte.
        names: Full name to `StandIn` for everything that the file may use.
        states: Type to a function that sets the state of such a value; takes the machine, the value and the state.
        encoding: How strings written by Python 2 are read.
        length: Bytes of the whole file, which bound what may be allocated. Defaults to those of `stream`.
    """

    def __init__(
        self,
        stream: io.BytesIO,
        names: Mapping[str, StandIn],
        states: Mapping[type, Callable[..., None]],
        encoding: str = "latin1",
        length: int | None = None,
    ) -> None:
        super().__init__(stream, encoding=encoding)
        # a frame's length only says how much to read ahead, and all of the file is here
        self.read, self.readline = stream.read, stream.readline
        self.names, self.states = names, states
        self.length = stream.getbuffer().nbytes if length is None else length
        self._unspent = 4 * self.length + 4096

    def load(self) -> Any:
        """The value that the pickle describes.

        Raises:
            RefusedPickleError: If it asks for anything but checked values.
            Exception: Of many types, if it is damaged.
        """
        value = self._run()
        measure(value, MAX_EXPANSION * self.length + 4096)
        return value

    def _run(self) -> Any:
        read, dispatch = self.read, self.dispatch
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        while code := read(1):
            if code == pickle.STOP:
                return self.stack.pop()
            dispatch[code[0]](self)
        raise EOFError("it ends in the middle")

    def pop_mark(self) -> list[Any]:
        """The values since the last MARK, taken off the stack."""
        items, self.stack = self.stack, self.metastack.pop()
        self.append = self.stack.append
        return items

    def spend(self, size: int) -> None:
        """Count bytes or items that a stand-in is about to copy; a file can name one source again and again."""
        self._unspent -= size
        if self._unspent < 0:
            raise RefusedPickleError("it copies far more data than it has")

    def find_class(self, module: str, name: str) -> StandIn:
        """The stand-in for a name."""
        if f"{module}.{name}" not in self.names:
            raise RefusedPickleError(f"it asks for {module}.{name}")
        return self.names[f"{module}.{name}"]

    # ---- instructions that would allocate, call or change something ----

    def load_frame(self) -> None:
        self.read(8)

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_append(self) -> None:
        value = self.stack.pop()
        need(self.stack[-1], list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        need(self.stack[-1], list).extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        need(self.stack[-1], dict, collections.OrderedDict)[check_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        target = need(self.stack[-1], dict, collections.OrderedDict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[check_key(key)] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({check_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def load_additems(self) -> None:
        items = self.pop_mark()
        need(self.stack[-1], set).update(map(check_key, items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(check_key, items)))

    def load_reduce(self) -> None:
        arguments = need(self.stack.pop(), tuple)
        stand_in = need(self.stack.pop(), StandIn)
        if stand_in.call is None:
            raise RefusedPickleError(f"it calls {stand_in.name}")
        self.append(stand_in.call(self, *arguments))

    def load_newobj(self) -> None:
        arguments = need(self.stack.pop(), tuple)
        stand_in = need(self.stack.pop(), StandIn)
        if arguments or stand_in.name != "argparse.Namespace":
            raise RefusedPickleError(f"it makes a {stand_in.name}")
        self.append(stand_in.call(self))  # type: ignore[misc]

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) not in self.states:
            raise RefusedPickleError(f"it changes the state of a {type(target).__name__}")
        self.states[type(target)](self, target, state)

    def load_refused(self) -> None:
        raise RefusedPickleError("it has an instruction that only programs use")

    # Instructions that push plain values or use the memo, as Python runs them; what is not listed is refused.
    _INHERITED = (
        "PROTO MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT "
        "BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
        "SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST EMPTY_DICT EMPTY_SET GLOBAL "
        "STACK_GLOBAL BINPERSID PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
    )
    _SAFE_CODES = tuple(getattr(pickle, name)[0] for name in _INHERITED.split())
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **dict.fromkeys(range(256), load_refused),
        **dict(zip(_SAFE_CODES, map(pickle._Unpickler.dispatch.get, _SAFE_CODES))),  # type: ignore[attr-defined]
        pickle.FRAME[0]: load_frame,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }


def need(value: Any, *kinds: type) -> Any:
    """The value, if it is exactly of one of the kinds; a subclass may do anything when it is changed."""
    if type(value) not in kinds:
        raise RefusedPickleError(f"it treats a {type(value).__name__} as a {kinds[0].__name__}")
    return value


def check_key(value: Any) -> Any:
    """A value that is cheap to hash: nested tuples take exponential time, or end the process."""
    kind = type(value)
    if kind is str or kind in (bytes, float, bool, type(None)):
        return value
    if kind is int and -_MAX_HASHED_INTEGER < value < _MAX_HASHED_INTEGER:
        return value
    if kind is tuple and len(value) <= _MAX_KEY_LENGTH and all(type(item) is not tuple for item in value):
        for item in value:
            check_key(item)
        return value
    raise RefusedPickleError(f"it has a {kind.__name__} as a key, which is not a short plain value")


# ---- the result ----


def measure(value: Any, limit: int) -> None:
    """Check that walking over a value ends: no cycles, no deep nesting, no parts that repeat beyond measure.

    Args:
        value: What a pickle described.
        limit: Values and characters that it may have when everything is written out.

    Raises:
        RefusedPickleError: If it has more, or something that is not a plain value.
    """
    if _measure(value, 0, {}, limit)[0] > limit:
        raise RefusedPickleError("it repeats its parts until they are far more than the file")


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int] | None], limit: int) -> tuple[int, int]:
    """Size and height of a value; parts that are used twice are looked at once."""
    kind = type(value)
    if kind in _ATOMS:
        if kind is int and value.bit_length() > _MAX_INTEGER_BITS:
            raise RefusedPickleError("it has an integer of more than 300 digits")
        return (len(value) + 1 if kind in (str, bytes, bytearray) else 1), 0
    if isinstance(value, _LEAVES):
        return (value.size if kind is np.ndarray else value.numel() if isinstance(value, torch.Tensor) else 1), 0
    if kind not in _CONTAINERS:
        raise RefusedPickleError(f"it has a {value.name if kind is StandIn else kind.__name__} as a value")
    if id(value) in known:
        found = known[id(value)]
        if found is None:
            raise RefusedPickleError("it has a value that contains itself")
    else:
        known[id(value)] = None
        found = known[id(value)] = _measure_parts(value, depth, known, limit)
    if depth + found[1] > MAX_DEPTH:  # a part that was measured near the top may hang deeper elsewhere
        raise RefusedPickleError(f"its values are nested more than {MAX_DEPTH} deep")
    return found


def _measure_parts(value: Any, depth: int, known: dict[int, tuple[int, int] | None], limit: int) -> tuple[int, int]:
    if depth >= MAX_DEPTH:
        raise RefusedPickleError(f"its values are nested more than {MAX_DEPTH} deep")
    content = vars(value) if type(value) is argparse.Namespace else value
    parts: Iterable[Any] = content
    if isinstance(content, dict):
        parts = [part for item in content.items() for part in item]
    if type(value) is collections.OrderedDict:
        parts = [*parts, *vars(value).values()]
    size, height = 1, 0
    for part in parts:
        if type(part) is str:  # most parts of most files
            size += len(part) + 1
            continue
        part_size, part_height = _measure(part, depth + 1, known, limit)
        size, height = min(size + part_size, limit + 1), max(height, part_height)
    return size, height + 1
