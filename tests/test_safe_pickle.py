"""Files from strangers are read, and nothing in them runs."""

import argparse
import collections
import os
import pickle

import numpy as np
import pytest
import torch

from hivg_hf.safe_pickle import load_pickle, load_torch_file


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
    pickle.loads(file.read_bytes())  # the same bytes do run where nobody refuses: the test above is no accident
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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_torch_file(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.p"):
        load_pickle(tmp_path / "nowhere.p")
