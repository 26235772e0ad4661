"""Files of `torch.save`, read without torch's own unpickler: archives since torch 1.6, and the stream of before.

Tensors are views of storages whose bytes are in the file: a storage larger than its record, or a tensor that reaches
beyond its storage, is refused before anything is allocated.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checked_unpickler import CheckedUnpickler, RefusedPickleError, StandIn, need
from .checked_values import PLAIN_NAMES, PLAIN_STATES, check_shape, stand_ins

_ARCHIVE_MARK = b"PK\x03\x04"
# The numbers that open a stream of torch before 1.6: torch/serialization.py, MAGIC_NUMBER and PROTOCOL_VERSION.
_STREAM_START = (0x1950A86A20F9469CFC6C, 1001)
_STORAGE_TYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
}


class _Storage:
    """The flat tensor of a storage; a file gets it only to pass it on to `_tensor`."""

    __slots__ = ("flat",)

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat


def read_torch_file(path: Path) -> Any:
    """What `torch.save` wrote: tensors on the CPU, plain values and namespaces.

    Raises:
        RefusedPickleError: If it asks for anything else, or for more memory than the file has bytes.
        Exception: Of many types, if it is damaged.
    """
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE_MARK)) == _ARCHIVE_MARK
    return _read_archive(path) if is_archive else _read_stream(path.read_bytes())


def _read_archive(path: Path) -> Any:
    length = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        unread = length

        def read(name: str) -> bytes:
            nonlocal unread
            entry = archive.getinfo(name)
            if not 0 <= entry.header_offset < length or entry.compress_size > length:
                raise ValueError(f"its entry {name[:80]} reaches outside the file")  # zipfile would make room for it
            unread -= entry.file_size  # entries that overlap could add up to far more than the file
            if entry.compress_type != zipfile.ZIP_STORED or unread < 0:
                raise RefusedPickleError(f"its entry {name[:80]} unpacks to more than it takes in the file")
            return archive.read(entry)

        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("the archive has no data.pkl")
        folder = pickles[0].partition("/")[0]
        if f"{folder}/byteorder" in archive.namelist() and read(f"{folder}/byteorder") != sys.byteorder.encode():
            raise ValueError("it was written on a machine of another byte order")
        stream = io.BytesIO(read(pickles[0]))
        return _unpickle(stream, lambda key, size: bytearray(read(f"{folder}/data/{key}")), length=length)


def _read_stream(content: bytes) -> Any:
    """Three small pickles, the value, the keys of its storages, then each storage: its length and its bytes."""
    stream = io.BytesIO(content)
    start = tuple(_unpickle(stream) for _ in _STREAM_START)
    if start != _STREAM_START:
        raise ValueError("it does not begin as torch.save begins")
    _unpickle(stream)  # what the machine was that wrote it
    value_at = stream.tell()
    sizes: dict[str, int] = {}

    def note_size(key: str, size: int) -> bytearray:
        sizes[key] = size
        return bytearray()

    _unpickle(stream, note_size, make_tensors=False)  # the storages stand behind the value that is made of them
    places, rest = {}, memoryview(content)
    keys = need(_unpickle(stream), list)
    position = stream.tell()
    for key in keys:
        size = sizes[need(key, str)]
        places[key] = rest[position + 8 : position + 8 + size]  # behind its number of elements
        position += 8 + size
    stream.seek(value_at)
    return _unpickle(stream, lambda key, size: bytearray(places[key]))


def _unpickle(
    stream: io.BytesIO,
    read: Callable[[str, int], bytearray] | None = None,
    make_tensors: bool = True,
    length: int | None = None,
) -> Any:
    """Run one pickle.

    Args:
        stream: At its first byte; left behind the last.
        read: Key and size of a storage to its bytes; None where there are no storages.
        make_tensors: Whether tensors are made; otherwise they are None, and the storages may be empty.
        length: Bytes of the file, where the stream is only a part of it.
    """
    names = _TENSOR_NAMES if make_tensors else {**_TENSOR_NAMES, **_NO_TENSOR_NAMES}
    machine = CheckedUnpickler(stream, names, {**PLAIN_STATES, argparse.Namespace: _build_namespace}, "utf-8", length)
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        mark, stand_in, key, _, count = need(pid, tuple)[:5]
        kind = _STORAGE_TYPES.get(need(stand_in, StandIn).name)
        if mark != "storage" or kind is None or read is None or type(count) is not int or count < 0:
            raise RefusedPickleError("it refers to something outside itself")
        if need(key, str) not in storages:
            size = count * kind.itemsize
            content = read(key, size)
            if make_tensors and len(content) != size:
                raise RefusedPickleError(f"it has a storage of {size} bytes, of which the file has {len(content)}")
            storages[key] = _Storage(torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind))
        if storages[key].flat.dtype != kind or (make_tensors and storages[key].flat.numel() != count):
            raise RefusedPickleError(f"it has the storage {key[:20]} twice, with different sizes")
        return storages[key]

    machine.persistent_load = storage  # type: ignore[method-assign]
    return machine.load()


# ---- the names of checkpoints ----


def _tensor(
    machine: CheckedUnpickler,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> torch.Tensor:
    flat = need(storage, _Storage).flat
    elements = check_shape(size, machine.length)
    check_shape(stride, machine.length)
    if len(size) != len(stride) or need(offset, int) < 0 or metadata:
        raise RefusedPickleError("it has a tensor that is more than sizes and strides over a storage")
    reach = offset + 1 + sum((count - 1) * step for count, step in zip(size, stride))
    if elements > flat.numel() or (elements and reach > flat.numel()):
        raise RefusedPickleError(f"it has a tensor of shape {size} over a storage of {flat.numel()} elements")
    tensor = flat.as_strided(size, stride, offset if elements else 0)
    return tensor.requires_grad_() if need(requires_grad, bool) else tensor


def _parameter(machine: CheckedUnpickler, data: Any, requires_grad: Any = True, hooks: Any = None) -> Any:
    return torch.nn.Parameter(need(data, torch.Tensor).detach(), need(requires_grad, bool))


def _size(machine: CheckedUnpickler, sizes: Any = ()) -> torch.Size:
    check_shape(sizes, sys.maxsize)
    return torch.Size(sizes)


def _device(machine: CheckedUnpickler, kind: Any, index: Any = None) -> torch.device:
    return torch.device(need(kind, str), *([] if index is None else [need(index, int)]))


def _namespace(machine: CheckedUnpickler) -> argparse.Namespace:
    return argparse.Namespace()


def _build_namespace(machine: CheckedUnpickler, target: argparse.Namespace, state: Any) -> None:
    vars(target).update({need(name, str): value for name, value in need(state, dict).items()})


_TENSOR_NAMES = {
    **PLAIN_NAMES,
    **stand_ins(dict.fromkeys(_STORAGE_TYPES)),
    **stand_ins(
        {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch.Size": _size,
            "torch.device": _device,
            "argparse.Namespace": _namespace,
        }
    ),
}
_NO_TENSOR_NAMES = stand_ins(
    {
        "torch._utils._rebuild_tensor_v2": lambda machine, *parts: None,
        "torch._utils._rebuild_parameter": lambda machine, *parts: None,
    }
)
