"""RefShapes expressions name one object: checked against a second, slower reading of what words mean."""

from itertools import islice

import pytest

from hivg_hf.data.refshapes import SPLITS, refshapes_samples
from hivg_hf.data.refshapes.language import Meaning, Phrase, every_word_counts, referents
from hivg_hf.data.refshapes.scenes import Background, Scene, SceneObject
from hivg_hf.data.refshapes.wordings import say


def thing(shape, color, x, y, size="small", filling="solid"):
    return SceneObject(shape, color, size, filling, x, y, 20.0, (0, 0, 0), 0)


@pytest.fixture
def scene():
    """100 x 100 pixels: red star left, red star middle, blue star right, red ring below the middle."""
    objects = (
        thing("star", "red", 20, 50),
        thing("star", "red", 50, 50),
        thing("star", "blue", 80, 50),
        thing("ring", "red", 50, 80),
    )
    return Scene(100, 100, Background("plain", (0, 0, 0), (0, 0, 0), 0.0, 0), objects)


RED_STAR, STAR, RING = Phrase(color="red", shape="star"), Phrase(shape="star"), Phrase(shape="ring")
CROSS = Phrase(shape="cross")


@pytest.mark.parametrize(
    ("meaning", "named"),
    [
        (Meaning("attribute", Phrase(color="blue")), [2]),
        (Meaning("attribute", RED_STAR), [0, 1]),
        (Meaning("attribute", Phrase(color="green")), []),
        (Meaning("extreme", RED_STAR, "left"), [0]),
        (Meaning("extreme", RED_STAR, "right"), [1]),
        (Meaning("extreme", STAR, "top"), None),  # all three at one height
        (Meaning("extreme", Phrase(), "bottom"), [3]),
        (Meaning("ordinal", STAR, "left", rank=2), [1]),
        (Meaning("ordinal", STAR, "right", rank=3), [0]),
        (Meaning("ordinal", STAR, "right", rank=4), []),
        (Meaning("relation", RED_STAR, "left", RING), None),  # the middle star stands right above the ring
        (Meaning("relation", STAR, "right", Phrase(color="blue")), []),
        (Meaning("relation", STAR, "left", Phrase(color="blue")), [0, 1]),
        (Meaning("relation", RING, "bottom", STAR), None),  # three stars: "the star" names no one anchor
        (Meaning("count", RED_STAR, "right", STAR, number=1), [1]),
        (Meaning("count", RED_STAR, "right", STAR, number=2), [0]),
        (Meaning("count", RED_STAR, "right", STAR, number=3), []),
        (Meaning("plural", RED_STAR), [0, 1]),
        (Meaning("plural", RED_STAR, number=2), [0, 1]),
        (Meaning("plural", RED_STAR, number=3), None),  # wrong about the stars, not about nothing
        (Meaning("plural", Phrase(color="green"), number=3), []),
        (Meaning("plural", STAR, "left", Phrase(color="blue")), [0, 1]),
        (Meaning("plural", STAR, "left", Phrase(color="blue"), number=2), [0, 1]),
        (Meaning("plural", STAR, "left", RING), None),
        (Meaning("plural", STAR, "bottom", RING), []),
    ],
)
def test_a_meaning_names_exactly_what_the_words_say(scene, meaning, named):
    assert referents(meaning, scene) == named


@pytest.mark.parametrize(
    ("meaning", "counts"),
    [
        (Meaning("attribute", Phrase(color="blue")), True),
        (Meaning("attribute", Phrase(color="blue", shape="star")), False),  # "the blue one" would do
        (Meaning("extreme", RED_STAR, "right"), True),
        (Meaning("extreme", RED_STAR, "left"), False),  # the leftmost star is red anyway
        (Meaning("extreme", RING, "left"), False),  # there is one ring
        (Meaning("plural", STAR), True),
        (Meaning("plural", RED_STAR), True),
        (Meaning("plural", RED_STAR, number=2), True),
        (Meaning("plural", Phrase(size="small", shape="star")), False),  # all stars are small
        (Meaning("plural", STAR, "left", Phrase(color="blue")), True),
        (Meaning("plural", RED_STAR, "left", Phrase(color="blue")), False),  # the stars left of it are red anyway
        (Meaning("plural", STAR, "top", RING), False),  # all stars are above it
    ],
)
def test_a_word_that_could_be_left_out_is_noticed(scene, meaning, counts):
    assert every_word_counts(meaning, scene) is counts


@pytest.mark.parametrize(
    ("meaning", "wording", "paraphrase", "text"),
    [
        (Meaning("attribute", Phrase(size="small", color="orange", shape="star")), 0, False, "the small orange star"),
        (Meaning("attribute", Phrase(color="orange")), 2, False, "an orange object"),
        (Meaning("attribute", Phrase(size="small", shape="ring")), 0, True, "the ring that is small"),
        (Meaning("extreme", STAR, "left"), 0, False, "the leftmost star"),
        (Meaning("ordinal", STAR, "left", rank=2), 0, False, "the second star from the left"),
        (Meaning("relation", STAR, "top", RING), 0, False, "the star above the ring"),
        (Meaning("count", STAR, "right", CROSS, number=2), 0, False, "the star with two crosses to its right"),
        (Meaning("count", STAR, "left", RING, number=1), 0, False, "the star with one ring to its left"),
        (Meaning("plural", RED_STAR), 0, False, "all the red stars"),
        (Meaning("plural", Phrase(color="blue")), 3, False, "every blue object"),
        (Meaning("plural", RING, number=2), 2, False, "both rings"),
        (Meaning("plural", Phrase(size="small", shape="square"), number=3), 0, False, "the three small squares"),
        (Meaning("plural", CROSS, "top", RING), 1, False, "the crosses above the ring"),
        (Meaning("plural", CROSS, number=6), 3, False, "all six of the crosses"),
        (Meaning("plural", CROSS), 0, True, "each cross"),
        (Meaning("plural", CROSS, number=2), 0, True, "the crosses, two of them"),
    ],
)  # fmt: skip
def test_wordings(meaning, wording, paraphrase, text):
    assert say(meaning, wording, paraphrase) == text


@pytest.mark.parametrize("split", SPLITS)
def test_every_expression_names_its_target_and_nothing_else(split):
    for sample in islice(refshapes_samples(split, seed=3), 60):
        for expression in sample.expressions:
            assert naive_referents(expression.meaning, sample.scene) == list(expression.targets), expression.text
            assert len(expression.targets) == {"none": 0, "plural": max(2, len(expression.targets))}.get(split, 1)


def test_changed_words_name_nothing_and_no_held_out_pair():
    samples = islice(refshapes_samples("train", seed=3, no_target_fraction=1.0), 50)
    expressions = [(sample.scene, expression) for sample in samples for expression in sample.expressions]
    for scene, expression in expressions:
        assert expression.target is None
        assert naive_referents(expression.meaning, scene) == []
        assert not expression.meaning.phrase.is_held_out


def naive_referents(meaning, scene):
    """A second implementation: exact comparisons, no margins, one loop per kind."""

    def fits(phrase, item):
        wanted = (phrase.size, phrase.filling, phrase.color, phrase.shape)
        return all(w is None or w == has for w, has in zip(wanted, (item.size, item.filling, item.color, item.shape)))

    def is_beyond(a, b, direction):
        return {
            "left": a.center_x < b.center_x,
            "right": a.center_x > b.center_x,
            "top": a.center_y < b.center_y,
            "bottom": a.center_y > b.center_y,
        }[direction]

    items = scene.objects
    candidates = [i for i, item in enumerate(items) if fits(meaning.phrase, item)]
    if meaning.kind == "attribute":
        return candidates
    if meaning.kind == "plural":
        assert meaning.number in (None, len(candidates)) or meaning.anchor
        if meaning.anchor is None:
            return candidates
    if meaning.kind in ("extreme", "ordinal"):
        rank = 1 if meaning.kind == "extreme" else meaning.rank
        ahead = [sum(is_beyond(items[j], items[i], meaning.direction) for j in candidates) for i in candidates]
        return [i for i, before in zip(candidates, ahead) if before == rank - 1]
    anchors = [i for i, item in enumerate(items) if fits(meaning.anchor, item)]
    if meaning.kind in ("relation", "plural"):
        assert len(anchors) <= 1
        return [
            i for i in candidates if any(i != a and is_beyond(items[i], items[a], meaning.direction) for a in anchors)
        ]
    on_side = [sum(a != i and is_beyond(items[a], items[i], meaning.direction) for a in anchors) for i in candidates]
    return [i for i, count in zip(candidates, on_side) if count == meaning.number]


@pytest.mark.slow
def test_at_least_two_thousand_distinct_expressions_in_ten_thousand_rows():
    samples = islice(refshapes_samples("train", 5), 2500)
    assert len({expression.text for sample in samples for expression in sample.expressions}) >= 2000


def test_expressions_are_varied():
    samples = islice(refshapes_samples("train", 5), 150)
    texts = [expression.text for sample in samples for expression in sample.expressions]
    assert len(texts) == 600
    assert len(set(texts)) >= 350
