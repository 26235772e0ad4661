"""docs/hilora.md says of every combination what the code does with it."""

from pathlib import Path

import pytest

from helpers.hilora_page import ARRANGEMENTS, VALUES, answer, combinations, options

PAGE = (Path(__file__).parents[2] / "docs" / "hilora.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", [combinations, options])
def test_the_page_s_tables_are_what_the_code_answers(table):
    assert table() in PAGE


def test_every_value_goes_with_some_arrangement_or_is_refused_by_all_for_its_own_sake():
    never = {
        name
        for name, (hilora, last) in VALUES.items()
        if all(answer(arrangement, hilora, last) == "refused" for arrangement in ARRANGEMENTS)
    }
    assert never == {"`lora_options: {init_lora_weights: pissa}`", "`hilora.targets` in a later stage alone"}
