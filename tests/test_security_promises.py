"""SECURITY.md: every promise names the tests that hold it, and `make test-security` runs fuzzers that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| \*\*(.+?)\.\*\* (.+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize(("promise", "held_by"), [(name, tests) for name, _, tests in ROWS])
def test_every_promise_names_tests_that_exist(promise: str, held_by: str) -> None:
    named = re.findall(r"`(tests/[^`]+)`", held_by)
    assert named, promise
    assert re.sub(r"`tests/[^`]+`|, ", "", held_by) == "", "only whole paths, so that they can be looked up"
    for path in named:
        assert re.search(r"^(def|    def) test_", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), path


def test_the_table_was_read() -> None:
    assert len(ROWS) == (ROOT / "SECURITY.md").read_text(encoding="utf-8").count("\n| **") >= 10


def test_the_target_runs_fuzzers_that_exist_with_their_own_settings() -> None:
    recipe = re.search(r"^test-security:.*?(?=^\S)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S)
    assert recipe is not None
    files = re.findall(r"tests/\S+\.py", recipe[0])
    assert len(files) >= 7
    sources = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    for setting in set(re.findall(r"HIVG_\w+(?==)", recipe[0])):
        assert setting in sources, setting
