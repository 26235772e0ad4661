"""One word replaced within its group: only alternatives, articles and capitals that fit, lists that a user extends."""

import numpy as np
import pytest

from hivg_hf.data.word_edits import WORD_GROUPS, WordEdits


def edits(expression, *groups, words=None):
    return set(WordEdits(groups, words).edits(expression, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("group", "expression", "some", "none"),
    [
        ("color", "the red car", {"the blue car", "the purple car"}, {"the crimson car", "the red truck"}),
        ("size", "the bigger dog", {"the smaller dog"}, {"the larger dog", "the small dog"}),
        ("position", "second dog from the left", {"second dog from the right", "first dog from the left"}, set()),
        ("relation", "cup left of the bowl", {"cup right of the bowl"}, {"cup below of the bowl"}),
        ("relation", "man in front of a car", {"man behind a car"}, set()),
        ("category", "two dogs on grass", {"two cats on grass"}, {"two cat on grass"}),
    ],
)
def test_a_word_becomes_another_of_its_group(group, expression, some, none):
    found = edits(expression, group)
    assert some <= found
    assert not none & found
    assert expression not in found


def test_left_of_is_a_relation_and_no_place():
    assert edits("cup left of the bowl", "position", "relation") == {"cup right of the bowl"}


def test_every_edit_changes_one_place():
    for text in edits("red car by the red bus", "color"):
        assert (
            sum(one != other for one, other in zip(text.split(), "red car by the red bus".split(), strict=True)) == 1
        )


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [("a red cup", "an orange cup"), ("An orange cup", "A red cup"), ("the cup", None), ("Red cup", "Blue cup")],
)
def test_articles_and_capitals_fit_the_new_word(expression, wanted):
    found = edits(expression, "color")
    assert wanted in found if wanted else not found


@pytest.mark.parametrize("expression", ["predator", "redo", "carpet", "ringside"])
def test_parts_of_words_are_left_alone(expression):
    assert not edits(expression, *WORD_GROUPS)


def test_words_of_a_set_exclude_each_other_once():
    for texts in WORD_GROUPS.values():
        for text in texts:
            words = [word.strip() for part in text.split("|") for word in part.split(",")]
            assert len(set(words)) == len(words) >= 2


def test_a_user_adds_alternatives_sets_and_groups():
    assert "the mauve car" in edits("the red car", "color", words={"color": ["mauve, lilac"]})
    assert "the lilac car" not in edits("the mauve car", "color", words={"color": ["mauve, lilac"]})
    assert edits("wooden bowl", "material", words={"material": ["wooden", "metal"]}) == {"metal bowl"}
    assert edits("open door", "state", words={"state": ["open | closed, shut", "wet | dry"]}) == {
        "closed door",
        "shut door",
    }


@pytest.mark.parametrize(
    ("groups", "words", "message"),
    [
        (["colour"], None, "no word group colour; the groups are color, size"),
        (["material"], {"material": ["wooden"]}, "'wooden', expected at least two alternatives"),
        (["material"], {"material": ["wooden | "]}, "expected at least two alternatives divided by"),
    ],
)
def test_groups_that_cannot_be_used_are_named(groups, words, message):
    with pytest.raises(ValueError, match=message):
        WordEdits(groups, words)


def test_a_group_that_is_named_twice_gives_every_way_once():
    once, twice = (
        list(WordEdits(groups).edits("red", np.random.default_rng(0))) for groups in (["color"], ["color"] * 2)
    )
    assert sorted(once) == sorted(twice)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" | ".join(f"w{number}" for number in range(30_000)), "have 30,000 words"),
        ("a" * 200_000 + " | b", "the longest in mine of 200,000 characters"),
    ],
)
def test_lists_of_words_beyond_any_use_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        WordEdits(["mine"], {"mine": [text]})
