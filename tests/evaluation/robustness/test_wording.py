"""Rewordings keep what is meant; removals take away one part and say where they do not apply."""

import numpy as np
import pytest

from hivg_hf.evaluation.robustness.wording import PARTS, REWORDINGS


def change(table, name, expression, seed=0):
    return table[name](expression, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("name", "expression", "changed"),
    [
        ("upper_case", "the red star", "THE RED STAR"),
        ("upper_case", "123", None),
        ("synonyms", "the small ring above the star", "the little hoop over the star"),
        ("synonyms", "a zebra", None),
        ("typing_errors", "a big cat", None),
    ],
)
def test_rewordings(name, expression, changed):
    assert change(REWORDINGS, name, expression) == changed


def test_a_typing_error_swaps_two_letters_inside_one_word():
    changed = change(REWORDINGS, "typing_errors", "the leftmost square")
    assert changed != "the leftmost square"
    assert sorted(changed) == sorted("the leftmost square")
    assert sum(one != other for one, other in zip(changed, "the leftmost square", strict=True)) == 2


def test_word_order_keeps_the_words_and_an_extra_clause_keeps_the_expression():
    assert sorted(change(REWORDINGS, "word_order", "the small red star").split()) == ["red", "small", "star", "the"]
    assert "the small red star" in change(REWORDINGS, "extra_clause", "the small red star")


@pytest.mark.parametrize(
    ("part", "expression", "changed"),
    [
        ("color", "the small red star", "the small star"),
        ("color", "the star left of the red ring", None),  # the ring's color is part of the relation
        ("color", "the red one left of the ring", "the one left of the ring"),
        ("size", "the large ring", "the ring"),
        ("position", "the leftmost small star", "the small star"),
        ("position", "the left", None),  # nothing would be left
        ("relation", "the ring above the blue square", "the ring"),
        ("relation", "the man in front of the car", "the man"),
        ("relation", "the ring", None),
        ("category", "the small red star", "the small red thing"),
        ("category", "the ring above the blue square", "the thing above the blue square"),
        ("category", "the red", None),
    ],
)
def test_parts_are_removed_from_what_is_named_and_not_from_its_relation(part, expression, changed):
    assert change(PARTS, part, expression) == changed
