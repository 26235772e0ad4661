"""Random pickles and torch files under a memory limit: each is read right, or refused in one sentence.

    python tests/utils/fuzz_pickles.py CASES SEED FOLDER

Prints `{"cases": N, "read": N, "refused": N}`. A crash, a hang, another kind of error or too much memory ends it.
"""

import argparse
import collections
import io
import json
import pickle
import random
import resource
import signal
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from hivg_hf.utils.safe_pickle import load_pickle, load_torch_file

MEMORY_ABOVE_IMPORTS = 256 * 2**20
SECONDS_PER_CASE = 20
HUGE = (2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
NAMES = (
    *(b"collections\nOrderedDict", b"collections\nCounter", b"builtins\nbytearray", b"__builtin__\nset"),
    *(b"_codecs\nencode", b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct"),
    *(b"numpy._core.multiarray\nscalar", b"numpy._core.numeric\n_frombuffer", b"argparse\nNamespace"),
    *(b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter", b"torch\nFloatStorage"),
    *(b"torch\nSize", b"torch\ndevice", b"os\nsystem", b"builtins\neval", b"torch.storage\n_load_from_bytes"),
)


def valid_values():
    refs = [
        {"ref_id": n, "sentences": [{"sent": "the red mug", "tokens": ["the", "red", "mug"]}], "bbox": [1.5, 2.0]}
        for n in range(3)
    ]
    arrays = [np.arange(6).astype(t).reshape(2, 3) for t in ("f4", ">i8", "?", "c8")] + [np.float64(3.5)]
    plain = {"set": {1, 2}, "frozen": frozenset("ab"), "order": collections.OrderedDict(a=1), "bytes": b"\0\xff"}
    tensors = {"w": torch.arange(6.0).reshape(2, 3).t(), "n": torch.ones(2, dtype=torch.int64)}
    model = {"model": tensors, "args": argparse.Namespace(lr=1e-4, box=np.array([1, 2])), "epoch": 3}
    split = [("a.jpg", {"height": 4, "width": 5}, [1, 2, 3, 4], "left mug", [[1.0, 2.0]])]
    return [refs, arrays, plain], [model, split, tensors]


def seeds():
    plain, saved = valid_values()
    pickles = [pickle.dumps(value, protocol) for value in plain for protocol in range(6)]
    files = []
    for value in saved:
        for is_archive in (True, False):
            buffer = io.BytesIO()
            torch.save(value, buffer, _use_new_zipfile_serialization=is_archive)
            files.append(buffer.getvalue())
    return pickles, files


def mutate(rng, content):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(content))
        kind = rng.randrange(6)
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            content[at] = rng.choice(pickle_codes())
        elif kind == 2:
            del content[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            size = rng.choice((1, 2, 4, 8))
            content[at : at + size] = struct.pack("<Q", rng.choice(HUGE))[:size]
        else:
            content[at:at] = instruction(rng)
        content = content or bytearray(b".")
    return bytes(content)


def pickle_codes():
    return [
        getattr(pickle, name)[0] for name in pickle.__all__ if name.isupper() and type(getattr(pickle, name)) is bytes
    ]


def instruction(rng):
    """One instruction with an argument that is plausible, or far too large."""
    size = rng.choice((*range(8), *HUGE))
    text = bytes(rng.randrange(256) for _ in range(rng.randrange(6)))
    choices = [
        lambda: b"c" + rng.choice(NAMES) + b"\n",
        lambda: bytes([rng.choice(b"()}]\x8f.012tldubseaRbo\x81\x85\x86\x87\x90\x91\x93\x94\x92Q")]),
        lambda: b"K" + bytes([rng.randrange(256)]),
        lambda: b"J" + struct.pack("<I", size % 2**32),
        lambda: b"\x8a" + bytes([len(text)]) + text,
        lambda: b"\x8b" + struct.pack("<I", size % 2**32) + text,
        lambda: rng.choice((b"X", b"B", b"T")) + struct.pack("<I", rng.choice((len(text), size % 2**32))) + text,
        lambda: (
            rng.choice((b"\x8d", b"\x8e", b"\x95", b"\x96")) + struct.pack("<Q", rng.choice((len(text), size))) + text
        ),
        lambda: b"U" + bytes([len(text)]) + text,
        lambda: rng.choice((b"h", b"q")) + bytes([rng.randrange(4)]),
        lambda: rng.choice((b"j", b"r")) + struct.pack("<I", size % 2**32),
        lambda: rng.choice((b"p", b"g", b"I", b"L")) + str(size).encode() + b"\n",
        lambda: b"X\x02\x00\x00\x00" + rng.choice((b"f8", b"O8", b"V9", b"M8", b"i4")),
        lambda: b"G" + struct.pack(">d", rng.choice((0.0, float("nan"), 1e308))),
        lambda: b"P" + text + b"\n",
    ]
    return rng.choice(choices)()


def crafted(rng):
    body = b"".join(instruction(rng) for _ in range(rng.randrange(1, 60)))
    return rng.choice((b"", b"\x80\x02", b"\x80\x04")) + body + b"."


def archive_with(rng, files):
    """A valid archive whose pickle was changed, or whose entries say other sizes than they have."""
    source = zipfile.ZipFile(io.BytesIO(rng.choice([content for content in files if content[:2] == b"PK"])))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = mutate(rng, content) if rng.random() < 0.8 else crafted(rng)
            elif rng.random() < 0.2:
                content = content[: rng.randrange(len(content) + 1)]
            packing = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
            archive.writestr(name, content, packing)
    return target.getvalue()


def check(load, path):
    signal.alarm(SECONDS_PER_CASE)
    try:
        value = load(path)
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(path)), message
        assert "\n" not in message, message
        assert message.endswith("."), message
        return False
    finally:
        signal.alarm(0)
    repr(value)
    return True


def main(cases, seed, folder):
    pickles, files = seeds()
    path = Path(folder) / "case"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_ABOVE_IMPORTS,) * 2)
    read = 0
    for case in range(cases):
        rng = random.Random(f"{seed}-{case}")
        kind = rng.randrange(5)
        if kind == 0:
            load, content = load_pickle, mutate(rng, rng.choice(pickles))
        elif kind == 1:
            load, content = load_pickle, crafted(rng)
        elif kind == 2:
            load, content = load_torch_file, mutate(rng, rng.choice(files))
        elif kind == 3:
            load, content = load_torch_file, archive_with(rng, files)
        else:
            load, content = rng.choice(((load_pickle, rng.choice(pickles)), (load_torch_file, rng.choice(files))))
        path.write_bytes(content)
        try:
            is_read = check(load, path)
        except BaseException as error:
            error.add_note(f"case {case} of seed {seed}, left in {path}")
            raise
        assert is_read or kind != 4, "a valid file was refused"
        read += is_read
    sys.stdout.write(json.dumps({"cases": cases, "read": read, "refused": cases - read}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
