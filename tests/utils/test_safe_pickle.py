"""Files from strangers are read, and nothing in them runs."""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hivg_hf.utils.safe_pickle import load_pickle, load_torch_file

ROOT = Path(__file__).parents[2]


class _Malicious:
    """Pickles to a call of os.mkdir: a folder appears where the pickle was executed."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "executed"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_has_not_run(tmp_path, trace, protocol):
    file = tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps([{"ref_id": 1}, _Malicious(trace)], protocol=protocol))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p was refused: it asks for (posix|nt|os)\.mkdir"):
        load_pickle(file)
    assert not trace.exists()
    pickle.loads(file.read_bytes())  # the same bytes do run where nobody refuses: the test above is not an accident
    assert trace.exists()


@pytest.mark.parametrize("new_zipfile", [True, False])
def test_a_malicious_torch_file_is_refused_and_has_not_run(tmp_path, trace, new_zipfile):
    file = tmp_path / "unc_val.pth"
    torch.save([("a.jpg", _Malicious(trace))], file, _use_new_zipfile_serialization=new_zipfile)
    with pytest.raises(ValueError, match=r"unc_val\.pth was refused: it asks for (posix|nt|os)\.mkdir"):
        load_torch_file(file)
    assert not trace.exists()


def test_a_class_inside_an_allowed_namespace_is_refused(tmp_path, trace):
    file = tmp_path / "checkpoint.pth"
    torch.save({"args": argparse.Namespace(lr=1e-4, hook=_Malicious(trace))}, file)
    with pytest.raises(ValueError, match="was refused"):
        load_torch_file(file)
    assert not trace.exists()


def test_a_builtin_that_evaluates_is_refused(tmp_path):
    file = tmp_path / "eval.p"
    file.write_bytes(b"cbuiltins\neval\n(V1+1\ntR.")
    with pytest.raises(ValueError, match=r"it asks for builtins\.eval"):
        load_pickle(file)


def test_a_python_2_pickle_with_bytes_is_read_as_latin1(tmp_path):
    file = tmp_path / "refs(unc).p"
    file.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9 on the left'\np3\nsS'ref_id'\np4\nI7\nsa.")
    assert load_pickle(file) == [{"sent": "caf\xe9 on the left", "ref_id": 7}]


def test_plain_containers_and_numbers_are_read(tmp_path):
    content = {"box": np.array([1.5, 2.0]), "names": collections.OrderedDict(a=1), "set": {1, 2}, "n": np.float64(3.5)}
    file = tmp_path / "plain.p"
    file.write_bytes(pickle.dumps(content))
    loaded = load_pickle(file)
    assert loaded["box"].tolist() == [1.5, 2.0]
    assert (loaded["names"], loaded["set"], loaded["n"]) == ({"a": 1}, {1, 2}, 3.5)


def test_an_official_checkpoint_with_a_namespace_and_numpy_is_read(tmp_path):
    file = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(model="ViT-B/16", dataset="unc", lr=np.float64(0.5))
    torch.save({"model": {"w": torch.ones(2)}, "args": args, "box": np.array([1, 2], dtype=np.int64)}, file)
    loaded = load_torch_file(file)
    assert loaded["args"] == args
    assert loaded["model"]["w"].tolist() == [1.0, 1.0]
    assert loaded["box"].tolist() == [1, 2]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x04\x95"])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "refs.p"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\.p"):
        load_pickle(file)
    with pytest.raises(ValueError, match=r"refs\.p"):
        load_torch_file(file)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "is a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "is a JPEG picture"),
        (b"\n\n<!doctype html><html>Quota exceeded</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n", "is a pointer of Git LFS"),
        (b"\x1f\x8b\x08" + bytes(40), "is compressed with gzip: unpack it first"),
        (bytes(257) + b"ustar" + bytes(300), "is a tar archive: unpack it first"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array"),
        (b"PK\x05\x06" + bytes(18), r"begins with the bytes b'PK\\x05\\x06"),
        (b"hello, world", "begins with the bytes b'hello, w'"),
        (b"\x80\x02a.", r"is not .* \(it is damaged\)"),
    ],
)
def test_another_file_is_named_by_what_it_is(tmp_path, content, kind):
    file = tmp_path / "best.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"best\.pth {kind}") as error:
        load_torch_file(file)
    assert "torch.save" in str(error.value)
    assert "harm" not in str(error.value)


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_module_saved_whole_is_named_with_what_to_save(tmp_path, is_archive):
    file = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), file, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(ValueError, match=r"holds a module, .* torch\.save\(module\.state_dict\(\), FILE\)"):
        load_torch_file(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_torch_file(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.p"):
        load_pickle(tmp_path / "nowhere.p")


# ---- files that name only harmless classes, or ask for more than they have ----

DTYPE = b"cnumpy\ndtype\nX\x02\0\0\0%s\x89\x88\x87R"
OBJECT_FLAG_CLEARED = b"(K\x03X\x01\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"  # a state whose flags are 0
ARRAY = b"cnumpy.%s.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
POINTER = b"C\x08AAAAAAAA"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


HOSTILE = {
    "an object array over raw bytes": ARRAY % b"_core"
    + b"(K\x01K\x01\x85"
    + DTYPE % b"O8"
    + b"\x89"
    + POINTER
    + b"tb.",
    "the same by numpy 1's name": ARRAY % b"core" + b"(K\x01K\x01\x85" + DTYPE % b"O8" + b"\x89" + POINTER + b"tb.",
    "a dtype whose object flag is cleared": (
        ARRAY % b"_core" + b"(K\x01K\x01\x85" + DTYPE % b"O8" + OBJECT_FLAG_CLEARED + b"\x89" + POINTER + b"tb."
    ),
    "an object scalar": b"cnumpy._core.multiarray\nscalar\n" + DTYPE % b"O8" + POINTER + b"\x86R.",
    "numpy's own reader of buffers": (
        b"cnumpy._core.numeric\n_frombuffer\n(" + POINTER + DTYPE % b"O8" + b"K\x01\x85" + text(b"C") + b"tR."
    ),
    "ndarray called with a size": b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",
    "ndarray made without a call": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85\x81.",
    "fields with offsets outside": (
        DTYPE % b"V8" + b"(K\x03X\x01\0\0\0|N" + text(b"a") + b"\x85}" + text(b"a") + b"J\0\0\0\x7fsK\x08K\x01K\0tb."
    ),
    "an array with more bytes than its shape": (
        ARRAY % b"_core" + b"(K\x01K\x02\x85" + DTYPE % b"f8" + b"\x89" + POINTER + b"tb."
    ),
    "an array of a huge shape": (ARRAY % b"_core" + b"(K\x01J\xff\xff\xff\x7fK\0\x86" + DTYPE % b"f8" + b"\x89C\0tb."),
    "a bytearray by its length": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "another codec": b"c_codecs\nencode\n" + text(b"AAAA") + text(b"zlib") + b"\x86R.",
    "one text copied again and again": (
        text(b"A" * 10**5)
        + b"q\0"
        + b"c_codecs\nencode\nh\0"
        + text(b"latin1")
        + b"\x86R" * 1
        + b"0"
        + (b"c_codecs\nencode\nh\0" + text(b"latin1") + b"\x86R") * 10**4
        + b"."
    ),
    "a function whose attributes are set": b"ccollections\nOrderedDict\n}" + text(b"__doc__") + b"Ksb.",
    "a class given state": b"\x80\x02ccollections\nOrderedDict\nN}" + text(b"items") + b"]s\x86b.",
    "an instance with a method hidden": b"ccollections\nOrderedDict\n)R}" + text(b"items") + b"]sb.",
    "a function as a value": b"]ccollections\nOrderedDict\na.",
    "a list that contains itself": b"]q\0h\0a.",
    "nested tuples": b")" + b"\x85" * 10**5 + b".",
    "nested lists": b"]" * 10**4 + b"a" * (10**4 - 1) + b".",
    "nested tuples as a key": b"})" + b"\x85" * 10**6 + b"Ns.",
    "a tuple that doubles 60 times": b")" + b"q\0h\0\x86" * 60 + b".",
    "a doubling tuple as a key": b"})" + b"q\0h\0\x86" * 60 + b"Ns.",
    "one long text many times": text(b"A" * 10**5) + b"q\x000(" + b"h\0" * 10**4 + b"l.",
    "an integer of a million digits": b"L0x" + b"f" * 10**6 + b"L\n.",
    "an integer of two gigabytes": b"\x8b\xff\xff\xff\x7f.",
    "integers that collide as keys": b"}(\x8a\x08" + struct.pack("<Q", 2**61 - 1) + b"Nu.",
    "append to what is not a list": b"ccollections\nOrderedDict\n)RK\x01a.",
    "an extension code": b"\x82\x01.",
    "a call of a number": b"K\x01)R.",
    "a place of the memo that is empty": b"h\x07.",
    "a reference outside": b"K\x01Q.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused(tmp_path, name):
    file = tmp_path / "refs.p"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=r"refs\.p (was refused: its? |is not a readable pickle)"):
        load_pickle(file)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_torch_file_is_refused(tmp_path, name):
    """The same instructions where torch's weights-only loader would run them with numpy's classes allowed."""
    file = tmp_path / "unc_val.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", HOSTILE[name])
    with pytest.raises(ValueError, match=r"unc_val\.pth (was refused: its? |is not a file that torch\.save wrote)"):
        load_torch_file(file)


@pytest.mark.parametrize(
    "content",
    [
        b"]r\xff\xff\xff\xff.",  # a memo place for which C's unpickler makes a table of 64 GB
        b"]p4294967295\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].",
    ],
)
def test_numbers_that_only_look_like_sizes_cost_nothing(tmp_path, content):
    file = tmp_path / "refs.p"
    file.write_bytes(content)
    assert load_pickle(file) == []


@pytest.mark.parametrize(
    "code",
    [b"B\xff\xff\xff\xff", b"X\xff\xff\xff\xff", *(c + b"\xff" * 7 + b"\x7f" for c in (b"\x8d", b"\x8e", b"\x96"))],
)
def test_a_length_beyond_the_file_allocates_nothing(tmp_path, code):
    file = tmp_path / "refs.p"
    file.write_bytes(code + b"abc.")
    with pytest.raises(ValueError, match=r"refs\.p is not a readable pickle \(it ends in the middle\)"):
        load_pickle(file)


def rewritten(file, change):
    """The archive with its entries changed: a function of name and content to (content, packing)."""
    source = zipfile.ZipFile(io.BytesIO(file.read_bytes()))
    with zipfile.ZipFile(file, "w") as archive:
        for name in source.namelist():
            content, packing = change(name, source.read(name))
            archive.writestr(name, content, packing)


@pytest.mark.parametrize("size", [0, 3, 4 * 7])
def test_a_storage_that_the_archive_does_not_have_is_refused(tmp_path, size):
    file = tmp_path / "checkpoint.pth"
    torch.save({"w": torch.arange(8.0)}, file)
    rewritten(file, lambda name, old: (old[:size] if "/data/" in name else old, zipfile.ZIP_STORED))
    with pytest.raises(ValueError, match=rf"was refused: it has a storage of 32 bytes, of which the file has {size}"):
        load_torch_file(file)


def test_a_compressed_archive_is_refused_before_it_unpacks(tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"w": torch.zeros(10**6)}, file)
    rewritten(file, lambda name, old: (old, zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED))
    with pytest.raises(ValueError, match=r"its entry .*/data/0 unpacks to more than it takes in the file"):
        load_torch_file(file)


def test_an_entry_that_claims_gigabytes_is_refused_before_they_are_made(tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"w": torch.zeros(2)}, file)
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\x01\x02")  # the first entry of the directory
    content[at + 20 : at + 24] = (0xFF000000).to_bytes(4, "little")  # its size in the file
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"its entry .*/data.pkl reaches outside the file"):
        load_torch_file(file)


@pytest.mark.parametrize(
    ("sizes", "strides", "offset"),
    [
        ((1 << 40,), (1,), 0),
        ((1 << 40,), (0,), 0),
        ((2, 2), (1, 9), 0),
        ((8,), (1,), 1),
        ((9,), (0,), 0),
        ((8,), (-1,), 7),
    ],
)
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, sizes, strides, offset, is_archive):
    class Beyond:
        def __reduce__(self):
            storage = torch.arange(8.0).storage()
            arguments = (storage, offset, sizes, strides, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    file = tmp_path / "checkpoint.pth"
    torch.save({"w": Beyond()}, file, _use_new_zipfile_serialization=is_archive)
    with pytest.raises(ValueError, match=r"was refused: it has (a tensor of shape|an array whose shape)"):
        load_torch_file(file)


# ---- what has to be read as before ----


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_values_are_read_bit_for_bit(tmp_path, protocol, module):
    arrays = [np.arange(6).astype(kind).reshape(2, 3) for kind in ("f2", "f4", ">f8", "i1", "<i8", "u2", "?", "c16")]
    content = {"arrays": [*arrays, np.asfortranarray(arrays[0]), np.zeros((0, 4), "f4")], "n": np.float32(0.1)}
    file = tmp_path / "refs.p"
    written = pickle.dumps(content, protocol)
    file.write_bytes(written.replace(b"numpy._core.multiarray\n", module.encode() + b".multiarray\n"))
    loaded = load_pickle(file)
    content = pickle.loads(file.read_bytes())  # numpy turns other byte orders into the machine's own
    for one, two in zip(content["arrays"], loaded["arrays"], strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
        assert one.flags.f_contiguous == two.flags.f_contiguous
    assert (type(loaded["n"]), loaded["n"]) == (np.float32, np.float32(0.1))


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_checkpoint_is_read_as_torch_reads_it(tmp_path, is_archive):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    shared = torch.arange(12.0)
    kinds = [
        torch.arange(4).to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool)
    ]
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "views": [shared, shared[3:7], shared.reshape(3, 4).t(), shared[:0], torch.zeros(2, 0), torch.tensor(2.5)],
        "kinds": kinds,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
    }
    file = tmp_path / "checkpoint.pth"
    torch.save(content, file, _use_new_zipfile_serialization=is_archive)
    ours, theirs = load_torch_file(file), torch.load(file, map_location="cpu", weights_only=True)
    assert_equal(ours, theirs)
    assert ours["model"]._metadata == theirs["model"]._metadata
    ours["views"][0][3] = 99  # what shared its memory shares it again
    assert ours["views"][1][0] == 99


def assert_equal(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride(), one.requires_grad) == (
            two.dtype,
            two.shape,
            two.stride(),
            two.requires_grad,
        )
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        for first, second in zip(one, two, strict=True):
            assert_equal(first, second)
    else:
        assert one == two


@pytest.mark.timeout(1800)
def test_random_pickles_are_read_or_refused_within_their_memory(tmp_path):
    """HIVG_FUZZ_CASES=10000 for a long run; the seed is HIVG_FUZZ_SEED."""
    cases, seed = os.environ.get("HIVG_FUZZ_CASES", "400"), os.environ.get("HIVG_FUZZ_SEED", "0")
    command = [sys.executable, str(Path(__file__).with_name("fuzz_pickles.py")), cases, seed, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["cases"] == int(cases)
    assert counts["read"] > counts["cases"] / 10
    assert counts["refused"] > counts["cases"] / 10
