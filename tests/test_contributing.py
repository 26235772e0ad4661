"""CONTRIBUTING's table "To add something" names files that are there and every way in from another package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = (
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## To add something")[2].partition("\n## ")[0]
)
ROWS = {
    what.strip(): (files, outside)
    for what, files, outside in re.findall(r"^\| (?!what|---)(.*?) \| (.*?) \| (.*?)\|$", TABLE, re.MULTILINE)
}


def groups_in_code():
    """The groups of entry points that the package looks into."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "hivg_hf").glob("*/**/*.py"))
    return set(re.findall(r'^[A-Z_]*PLUGINS\b.* = "(hivg_hf\.\w+)"', sources, re.MULTILINE))


@pytest.mark.parametrize("what", ROWS)
def test_the_files_to_touch_are_there(what):
    files, _ = ROWS[what]
    for name in re.findall(r"`((?:\w+/)+\w*(?:\.\w+)?)`", files):
        name = name.replace("NAME.py", "").replace("NAME.yaml", "")
        assert (ROOT / "hivg_hf" / name).exists() or (ROOT / name).exists(), name


def test_what_people_add_is_in_the_table():
    said = " ".join(ROWS)
    for what in ("data format", "loss", "metric", "verb", "PEFT method", "phase kind", "recipe"):
        assert what in said


def test_every_way_in_from_another_package_is_named_in_the_table_and_in_the_docs():
    groups = groups_in_code()
    assert groups >= {"hivg_hf.readers", "hivg_hf.losses", "hivg_hf.metrics", "hivg_hf.phases", "hivg_hf.verbs"}
    named = set(re.findall(r"`(hivg_hf\.(?!training)\w+)`", " ".join(outside for _, outside in ROWS.values())))
    assert named == groups
    recipes = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{group}`" in recipes for group in groups)
