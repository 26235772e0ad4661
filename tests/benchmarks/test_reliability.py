"""The study of wrong labels and pseudo-labels: its parts, and that docs/labels.md says what its results file says."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reliability
from benchmarks.clean import plant

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/reliability/2026-11-26-cpu.json"


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_document_holds_the_figures_of_the_results(result):
    text = (ROOT / "docs/labels.md").read_text(encoding="utf-8")
    assert reliability.with_tables(text, result) == text


def test_the_results_are_whole(result):
    found = {(run["study"], run["arm"], run["seed"]) for run in result["runs"]}
    arms = {"noise": reliability.NOISE_ARMS, "pseudo": reliability.PSEUDO_ARMS}
    assert found == {(study, arm, seed) for study, names in arms.items() for arm in names for seed in (1, 2, 3)}
    assert len(found) == len(result["runs"])
    assert all(run["wrong"] == 240 for run in result["runs"] if run["arm"] in ("all", "filtered"))
    assert all(run["wrong"] == 0 for run in result["runs"] if run["arm"] in ("clean", "true"))
    assert result["differences"] == reliability.compare(result["runs"])


def test_what_the_document_concludes_is_what_was_measured(result):
    """Filtering helps with every seed, and takes out most wrong labels."""
    filtered = result["differences"]["noise: filtered - all"]["acc@0.5"]
    assert min(filtered["each_seed"]) > 0
    kept = [run["kept"]["03-third"]["wrong"] for run in result["runs"] if run["arm"] == "filtered"]
    assert max(kept) < 0.25 * 240


def test_a_document_without_places_for_the_tables_is_refused(result):
    with pytest.raises(ValueError, match="needs the lines <!-- noise: begin -->"):
        reliability.with_tables("# nothing", result)


def test_a_share_of_the_labels_is_planted_wrong():
    spec = {"split": "val", "seed": 3, "size": 20, "masks": False, "stored_side": 64}
    _, _, kinds = plant(spec, seed=2, share=0.3)
    assert len(kinds) == 6


@pytest.mark.parametrize(
    ("box", "category", "expected"),
    [([0.0, 0, 10, 10], "star", True), ([0.0, 0, 10, 10], "ring", False), ([0.0, 0, 4, 4], "star", False)],
)
def test_a_pseudo_label_is_right_with_the_box_and_the_shape_of_one_object(box, category, expected):
    objects = [{"box": [0.0, 0, 10, 10], "shape": "star"}, {"box": [20.0, 0, 30, 10], "shape": "ring"}]
    assert reliability.is_right({"box": box, "category": category}, objects) is expected


def test_wrong_rows_among_those_that_phases_kept_are_counted(tmp_path):
    folder = tmp_path / "phases" / "02-second"
    folder.mkdir(parents=True)
    (folder / "kept.json").write_text(json.dumps({"kept": [0, 2, 3], "threshold": None}))
    wrong = np.array([True, True, False, True])
    assert reliability.kept_rows(tmp_path, wrong) == {"02-second": {"rows": 3, "wrong": 2, "threshold": None}}
