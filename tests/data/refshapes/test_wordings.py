"""The wordings of RefShapes: what training may say, standard or varied, is never a wording of the split `text`."""

from itertools import islice, product

import numpy as np
import pytest

from hivg_hf.data.refshapes import refshapes_samples
from hivg_hf.data.refshapes.language import COUNTS, DIRECTIONS, KINDS, RANKS, Meaning, Phrase
from hivg_hf.data.refshapes.scenes import COLORS, FILLINGS, SHAPES, SHIFTED_COLORS, SIZES
from hivg_hf.data.refshapes.wordings import NUMBERS, SYNONYMS, say, say_varied, varied_sayings, wording_count
from hivg_hf.evaluation.robustness.wording import REWORDINGS

ALL_PHRASES = [
    Phrase(*said)
    for said in product((None, *SIZES), (None, *FILLINGS), (None, *COLORS, *SHIFTED_COLORS), (None, *SHAPES))
]
SOME_PHRASES = [
    Phrase(),
    Phrase(shape="star"),
    Phrase(color="orange"),
    Phrase(size="small", shape="ring"),
    Phrase("large", "outlined", "red", "cross"),
]


def all_meanings():
    """Every meaning, with a few phrases in the places where two phrases meet."""
    yield from (Meaning("attribute", phrase) for phrase in ALL_PHRASES if phrase.said)
    yield from (Meaning("plural", phrase, number=n) for phrase in ALL_PHRASES for n in (None, *range(2, 7)))
    for phrase, direction in product(ALL_PHRASES, DIRECTIONS):
        yield Meaning("extreme", phrase, direction)
        yield from (Meaning("ordinal", phrase, direction, rank=rank) for rank in RANKS)
    for phrase, direction, anchor in product(ALL_PHRASES, DIRECTIONS, SOME_PHRASES):
        yield Meaning("relation", phrase, direction, anchor)
        yield from (Meaning("count", phrase, direction, anchor, number=n) for n in (1, 2, 4))
        yield from (Meaning("plural", phrase, direction, anchor, number=n) for n in (None, 2, 3))


def sayings(meaning, paraphrase=False):
    return [say(meaning, number, paraphrase) for number in range(wording_count(meaning.kind, paraphrase))]


@pytest.fixture(scope="module")
def held_out():
    return {text for meaning in all_meanings() for text in sayings(meaning, paraphrase=True)}


def test_no_standard_wording_is_one_of_the_split_text(held_out):
    assert not held_out & {text for meaning in all_meanings() for text in sayings(meaning)}


def test_no_varied_template_is_one_of_the_split_text(held_out):
    assert not held_out & {text for meaning in all_meanings() for text in varied_sayings(meaning)}


def test_no_varied_template_holds_one_of_the_split_text_for_the_same_meaning():
    for meaning in all_meanings():
        if meaning.phrase in SOME_PHRASES:
            for text in varied_sayings(meaning):
                assert not any(other in text for other in sayings(meaning, paraphrase=True)), text


def test_no_synonym_is_a_word_of_another_wording(held_out):
    usual = {text for meaning in all_meanings() for text in (*sayings(meaning), *varied_sayings(meaning))}
    known = {word.strip(",") for text in held_out | usual for word in text.split()}
    assert len(known) > 50
    synonyms = {word for words in SYNONYMS.values() for word in words}
    assert not known & synonyms
    assert set(SYNONYMS) <= known


def test_no_synonym_is_one_of_the_robustness_report(held_out):
    """Its figure "under synonyms" would otherwise measure what was trained."""
    for word, words in SYNONYMS.items():
        assert REWORDINGS["synonyms"](word, None) not in words


@pytest.mark.parametrize("kind", [*KINDS, "plural"])
def test_there_are_more_varied_templates_than_none(kind):
    meaning = Meaning(kind, SOME_PHRASES[4], "left", SOME_PHRASES[1], rank=2, number=2)
    texts = varied_sayings(meaning)
    assert len(set(texts)) == len(texts) >= 3


def test_varied_samples_say_the_usual_and_the_new_and_no_wording_of_text(held_out):
    samples = islice(refshapes_samples("train", 3, wordings="varied", plural_fraction=0.3), 60)
    expressions = [expression for sample in samples for expression in sample.expressions]
    usual = [one for one in expressions if one.text in sayings(one.meaning)]
    with_synonym = [one for one in expressions if set(one.text.split()) & {w for ws in SYNONYMS.values() for w in ws}]
    assert 0.25 < len(usual) / len(expressions) < 0.65
    assert 0.05 < len(with_synonym) / len(expressions) < 0.4
    assert not held_out & {one.text for one in expressions}


def test_an_article_fits_the_word_that_a_synonym_put_behind_it():
    rng = np.random.default_rng(0)
    texts = {say_varied(Meaning("attribute", Phrase()), rng) for _ in range(400)}
    assert {"a thing", "a shape", "an item", "an object"} <= texts
    assert not {"an thing", "an shape", "a item", "a object"} & texts


def test_the_split_text_says_plurals_in_wordings_of_its_own():
    samples = islice(refshapes_samples("text", 3, plural_fraction=1.0), 40)
    for sample in samples:
        expression = sample.expressions[0]
        assert len(expression.targets) >= 2
        assert expression.text in sayings(expression.meaning, paraphrase=True)


def test_numbers_reach_the_most_objects_of_a_scene():
    assert set(NUMBERS) == set(range(1, 7)) > set(COUNTS)
