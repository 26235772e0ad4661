"""The tables of docs/scores.md are those of the results file."""

import json
from pathlib import Path

import pytest

from benchmarks.score_inputs import with_tables

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result():
    return json.loads((ROOT / "benchmarks/results/score-inputs/hivg-tiny-refshapes.json").read_text(encoding="utf-8"))


def test_the_document_holds_the_figures_of_the_results(result):
    text = (ROOT / "docs/scores.md").read_text(encoding="utf-8")
    assert with_tables(text, result) == text


def test_base_rate_correction_is_as_good_as_asked_for(result):
    (shipped,) = result["figures"]["as it is"]
    assert max(shipped["ece_after_0.1"], shipped["ece_after_0.5"]) <= 0.04
    assert shipped["ece_before_0.5"] > 0.04


def test_a_document_without_places_for_the_tables_is_refused(result):
    with pytest.raises(ValueError, match="needs the lines"):
        with_tables("# nothing", result)
