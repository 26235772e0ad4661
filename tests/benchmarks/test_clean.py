"""Planted errors are what they say, and what is measured of them is what was planted."""

import numpy as np
import pytest

from benchmarks import clean
from benchmarks.starts import paired
from hivg_hf.evaluation.suspects import Suspects
from hivg_hf.metrics.overlaps import paired_iou

SPEC = {"split": "val", "seed": 3, "size": 60, "masks": False, "stored_side": 64}


@pytest.fixture(scope="module")
def planted():
    return clean.plant(SPEC, seed=2)


def test_one_label_in_ten_is_wrong_and_the_others_are_as_they_were(planted):
    true, dirty, kinds = planted
    assert len(kinds) == 6
    assert set(kinds.values()) <= set(clean.KINDS)
    for at, (right, wrong) in enumerate(zip(true, dirty, strict=True)):
        same_box, same_words = right["box"] == wrong["box"], right["expression"] == wrong["expression"]
        assert (same_box, same_words) == (
            kinds.get(at, "wrong expression") == "wrong expression", kinds.get(at) != "wrong expression"
        )  # fmt: skip
        assert wrong["boxes"] == [wrong["box"]]
        assert np.min(wrong["box"]) >= 0
        assert wrong["box"][2] <= wrong["width"]
        assert wrong["box"][3] <= wrong["height"]
        if not same_box:
            assert paired_iou(np.array([right["box"]]), np.array([wrong["box"]]))[0] < 0.6


def test_the_same_seed_plants_the_same_errors(planted):
    again = clean.plant(SPEC, seed=2)
    assert again[2] == planted[2]
    assert again[1]["box"] == planted[1]["box"]
    assert clean.plant(SPEC, seed=4)[2] != planted[2]


def test_quality_is_that_of_the_ranking():
    probability = np.array([0.9, 0.8, 0.1, 0.2, 0.7, 0.3])
    found = Suspects(probability, np.zeros(6), [[], [], ["odd"], [], [], []])
    quality = clean.quality(found, {0: "shifted box", 1: "swapped box", 3: "wrong expression"})
    assert quality["auroc"] == pytest.approx(7 / 9)
    assert quality["by_kind"] == {"swapped box": 1.0, "shifted box": 1.0, "wrong expression": pytest.approx(1 / 3)}
    assert (quality["wrong"], quality["listed"], quality["wrong_listed"]) == (3, 4, 2)
    assert clean.suspicious(found) == [0, 1, 2, 4]


def test_runs_are_paired_by_seed_and_the_interval_needs_all_of_them():
    def runs(*values):
        return [{"seed": seed, "iou": value} for seed, value in enumerate(values, 1)]

    assert paired([], runs(0.5), ["iou"]) == {}
    assert paired(runs(0.5, 0.6), runs(0.6), ["iou"])["iou"] == {
        "each_seed": [pytest.approx(0.1)], "mean": pytest.approx(0.1), "interval": None,
    }  # fmt: skip
    interval = paired(runs(0.5, 0.5, 0.5), runs(0.6, 0.7, 0.8), ["iou"])["iou"]["interval"]
    assert interval == pytest.approx([0.2 - 4.303 * 0.1 / 3**0.5, 0.2 + 4.303 * 0.1 / 3**0.5])
