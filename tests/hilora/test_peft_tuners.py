"""Tuners of the installed PEFT that fit linear layers train, save, reload and merge, as docs/peft.md says."""

import importlib.util
from pathlib import Path

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from helpers.peft_tuners import NOT_FOR_LAYERS, TOLERANCE, small_model, table, try_tuner, tuner_names

PAGE = (Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
FAST = ["LORA", "IA3", "OFT", "LILY"]


@pytest.fixture(scope="module")
def base():
    return small_model()


def check(name, base):
    outcome = try_tuner(name, base)
    assert outcome.moved > 0
    assert outcome.reload <= TOLERANCE
    assert outcome.merge is None or outcome.merge <= TOLERANCE
    assert table({name: outcome}).splitlines()[2] in PAGE


@pytest.mark.parametrize("name", FAST)
def test_a_tuner_does_what_the_page_says(name, base):
    check(name, base)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tuner_names() if name not in (*FAST, "ADAMSS")])
def test_every_tuner_does_what_the_page_says(name, base):
    check(name, base)


def test_a_tuner_that_needs_another_package_is_marked(base):
    assert "`ADAMSS` needs the package scikit-learn" in PAGE
    if importlib.util.find_spec("sklearn"):
        return check("ADAMSS", base)
    with pytest.raises(ImportError, match="scikit-learn is required"):
        try_tuner("ADAMSS", base)


def test_the_page_lists_every_tuner_of_the_installed_peft():
    listed = {line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if line.startswith("| ")}
    assert {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} <= listed
    assert set(NOT_FOR_LAYERS) <= {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
