"""The benchmark of the zero-shot mode runs on any CLIP, and its chance is what chance is."""

import json

import numpy as np
import pytest

from benchmarks.zero_shot import main, measure, open_clip
from hivg_hf.data.refshapes import refshapes_dataset


def test_every_contender_is_measured(clip, tiny_tokenizer, tiny_checkpoint, tmp_path):
    clip.save_pretrained(tmp_path / "clip")
    tiny_tokenizer.save_pretrained(tmp_path / "clip")
    out = tmp_path / "figures.json"
    result = main([str(tmp_path / "clip"), "--size", "3", "--trained", tiny_checkpoint, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    names = list(result["accuracy"])
    assert sum(name.startswith("map alone") for name in names) == 6
    assert sum(name.startswith("true boxes") for name in names) == 14
    assert sum(name.startswith("components") for name in names) == 14
    assert names[-1] == "trained model"
    assert all(0 <= figure["all"] <= 100 for figure in result["accuracy"].values())


def test_a_hivg_checkpoint_lends_its_clip(tiny_checkpoint, tiny_model):
    clip, tokenizer = open_clip(tiny_checkpoint)
    expected = tiny_model.clip.state_dict()
    assert all((value == expected[name]).all() for name, value in clip.state_dict().items())
    assert tokenizer("star")["input_ids"]


def test_chance_among_objects_is_one_in_as_many():
    rows = refshapes_dataset("val", seed=4, size=150, objects=True, masks=False)
    rng = np.random.default_rng(0)
    figure = measure(rows, lambda row: row["objects"][rng.integers(len(row["objects"]))]["box"])
    expected = 100 * float(np.mean([1 / len(row["objects"]) for row in rows]))
    assert figure["all"] == pytest.approx(expected, abs=12)
