"""Measured beside published: the table, what it needs, and what `hivg evaluate --compare-published` prints."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hivg_hf.cli import app
from hivg_hf.data.splits import PUBLISHED
from hivg_hf.evaluation.published import compare_published, expect_published, published_figures
from hivg_hf.modeling.presets_hivg import OFFICIAL_VARIANTS

COCO_FILE = "COCO_train2014_000000581857.jpg"


def test_every_published_figure_has_a_source_and_a_split_that_exists():
    content = published_figures()
    assert set(content["variants"]) <= set(OFFICIAL_VARIANTS)
    for datasets in content["variants"].values():
        for dataset, splits in datasets.items():
            for split, figures in splits.items():
                assert split in PUBLISHED[dataset]
                assert set(figures) <= set(content["sources"])
                assert all(50 < value < 100 for value in figures.values())


def test_the_tables_of_the_poster_and_the_readme():
    """Two cells of each kind, written here once more; the two disagree on RefCOCO+ testA."""
    assert expect_published("base-unc", "unc", "testB", "official") == {"poster": 83.27, "readme": 83.27}
    assert expect_published("base-unc+", "refcoco+", "testA", "official") == {"poster": 83.81, "readme": 84.81}
    assert expect_published("large-mixup", "gref_umd", "test", "official")["oneref"] == 86.86
    assert expect_published("base-flickr", "flickr", "test", "official")["poster"] == 82.11


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("base-uncc", "unc", "val", "official"), r"Unknown key `base-uncc` in the published variants.*`base-unc`"),
        (("base-unc", "unc", "val", "pixel"), "are of the protocol official, not of pixel: add --protocol official"),
        (("base-unc", "unc+", "val", "official"), r"Nothing was published for base-unc on refcoco\+ val; there are"),
        (("base-unc", "my.csv", "val", "official"), r"Nothing was published for base-unc on my\.csv val"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        expect_published(*asked)


def test_the_interval_tells_whether_the_published_figure_was_reproduced():
    results = {
        "protocol": "official",
        "figures": {"acc@0.5": 0.8390},
        "intervals": {"acc@0.5": [0.83, 0.848]},
        "counts": {"one_target": 5_726},
    }
    compared = compare_published(results, "base-unc+", "unc+", "testA")
    assert [(row["source"], row["difference"], row["within"]) for row in compared["rows"]] == [
        ("poster", 0.09, True),
        ("readme", -0.91, False),
    ]
    assert compared["n"] == compared["n_published"]
    results["intervals"] = {}
    assert compare_published(results, "base-unc+", "unc+", "testA")["rows"][0]["within"] is None


def test_the_command_prints_and_keeps_it(tiny_checkpoint, tmp_path):
    (tmp_path / "unc").mkdir()
    Image.new("RGB", (64, 48), "gray").save(tmp_path / COCO_FILE)
    record = (COCO_FILE, {"height": 48, "width": 64}, [10.0, 5.0, 20.0, 22.0], "the red star", [])
    torch.save([record] * 3, tmp_path / "unc" / "unc_val.pth")
    asked = ["--model", tiny_checkpoint, "--data", "unc", "--split", "val", "--option", f"root={tmp_path}"]
    asked += ["--compare-published", "base-unc", "--no-plots", "--gallery", "0", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, ["evaluate", *asked])
    assert refused.exit_code == 2
    assert "add --protocol official" in refused.output
    done = CliRunner().invoke(app, ["evaluate", *asked, "--protocol", "official", "--resamples", "20"])
    assert done.exit_code == 0, done.output
    assert "87.32" in done.output
    assert "Measured on 3 expressions, published on 10,834" in done.output
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["published"]
    assert [row["published"] for row in kept["rows"]] == [87.32, 87.32]
