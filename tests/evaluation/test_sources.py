"""Models and data as the command line names them."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from parity.official_cases import made_case
from PIL import Image

from benchmarks.speed.official_reference import OfficialLayers
from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.splits import split_names
from hivg_hf.evaluation import sources
from hivg_hf.evaluation.sources import open_foils, open_model
from hivg_hf.utils.strict_mapping import read_options


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def test_a_model_of_the_hub_is_known_by_its_commit(checkpoint, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / "0123abcd"
    shutil.copytree(checkpoint, snapshot)
    asked = []
    monkeypatch.setattr(sources, "download_checked", lambda name: asked.append(name) or snapshot)
    assert open_model("me/tiny", revision="v1").commit == "0123abcd"
    assert asked == ["me/tiny@v1"]


def test_a_local_model_has_no_commit_and_takes_another_setting(checkpoint):
    opened = open_model(str(checkpoint), overrides={"bridge_mask_padding": False}, dtype="bfloat16")
    assert opened.commit is None
    assert opened.model.config.bridge_mask_padding is False
    assert str(next(opened.model.parameters()).dtype) == "torch.bfloat16"
    assert not opened.model.training


def test_the_included_checkpoint_has_a_name(checkpoint, monkeypatch):
    monkeypatch.setattr("hivg_hf.hub.names.TINY_CHECKPOINT", str(checkpoint))
    assert open_model("hivg-tiny-refshapes").model.config.image_size == 64
    assert open_model("tiny").model.config.image_size == 64


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match=r"Model folder not found: '/no/such'\."):
        open_model("/no/such")


def test_an_official_file_around_an_unpublished_clip_opens(tmp_path, tiny_tokenizer):
    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]), vl_enc_layers=1)
    path = str(tmp_path / "best.pth")
    torch.save({"model": case.state, "args": argparse.Namespace(**case.args)}, path)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    opened = open_model(
        path,
        overrides={"bridge_mixes_batch": True},
        clip_config=case.clip_config,
        tokenizer=str(tmp_path / "tokenizer"),
    )
    assert opened.model.config.bridge_mixes_batch
    assert opened.processor.image_processor.pad_align == "pixel"
    with pytest.raises(ValueError, match="give them for official files alone"):
        open_model(str(tmp_path / "tokenizer"), tokenizer="x")


def test_an_official_file_has_no_revision(tmp_path):
    with pytest.raises(ValueError, match="is an official file, which has no revision: omit it"):
        open_model(str(tmp_path / "best.pth"), revision="main")


def test_splits_joined_by_plus_are_read_one_after_the_other():
    rows = load_grounding_dataset("refshapes", "val+none", seed=1, size=2, masks=False)
    assert rows["split"] == ["val", "val", "none", "none"]
    with pytest.raises(ValueError, match=r"A split has no name in 'val\+'"):
        split_names("val+")


def test_foils_are_the_same_rows_with_other_expressions():
    options = {"seed": 1, "size": 3, "masks": False}
    rows, foils = load_grounding_dataset("refshapes", "val", **options), open_foils("refshapes", "val+none", options)
    by_sentence = {row["sent_id"]: row for row in rows}
    assert len(foils) > 0
    for foil in foils:
        assert foil["box"] == by_sentence[foil["sent_id"]]["box"]
        assert foil["expression"] != by_sentence[foil["sent_id"]]["expression"]
    assert open_foils("refshapes", "none", options) is None
    assert open_foils(str(Path("my.csv")), "val", {}) is None


def test_options_are_read_as_values():
    assert read_options(["root=/data", "size=5", "masks=false", "note=a=b", "empty="], "--option") == {
        "root": "/data", "size": 5, "masks": False, "note": "a=b", "empty": ""}  # fmt: skip
    with pytest.raises(ValueError, match="--set takes NAME=VALUE, got 'score'"):
        read_options(["score"], "--set")


def test_another_image_size_reaches_model_and_processor(checkpoint):
    opened = open_model(str(checkpoint), overrides={"image_size": 96})
    inputs = opened.processor(images=Image.new("RGB", (120, 60), "red"), text="red")
    assert inputs["pixel_values"].shape[-2:] == (96, 96)
    assert opened.model(**inputs).pred_boxes.shape == (1, 4)
