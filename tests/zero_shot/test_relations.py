"""Reading expressions, and resolving them over boxes."""

from itertools import islice

import numpy as np
import pytest

from hivg_hf.data.refshapes import refshapes_samples
from hivg_hf.data.refshapes.scenes import SHAPES
from hivg_hf.zero_shot.relation_parser import Query, Rank, Relation, parse_expression
from hivg_hf.zero_shot.relations import axis_positions, relation_matrix, resolve


def relation(noun, kind, anchor, **more):
    return Query(noun, relation=Relation(kind, Query(anchor), **more))


@pytest.mark.parametrize(
    ("expression", "query"),
    [
        ("the man in blue", Query("man in blue")),
        ("A red star.", Query("red star")),
        ("the one that is a red star", Query("red star")),
        ("the one on the left", Query("one", Rank("left"))),
        ("one in the middle", Query("one", Rank("center"))),
        ("the one small star", Query("small star")),
        ("the one left of the dog", relation("one", "left", "dog")),
        ("left cat", Query("cat", Rank("left"))),
        ("the leftmost cat", Query("cat", Rank("left"))),
        ("cat on the far left", Query("cat", Rank("left"))),
        ("the cat on the left side of the picture", Query("cat", Rank("left"))),
        ("the star that is highest", Query("star", Rank("top"))),
        ("the ring at the very bottom", Query("ring", Rank("bottom"))),
        ("upper left donut", Query("donut", Rank("top left"))),
        ("the donut in the lower right corner", Query("donut", Rank("bottom right"))),
        ("biggest dog", Query("dog", Rank("large"))),
        ("the smaller bear", Query("bear", Rank("small"))),
        ("the tallest woman", Query("woman", Rank("tall"))),
        ("middle cup", Query("cup", Rank("center"))),
        ("the second star from the left", Query("star", Rank("left", 2))),
        ("2nd cup from right", Query("cup", Rank("right", 2))),
        ("from the top the third ring", Query("ring", Rank("top", 3))),
        ("the girl third from left", Query("girl", Rank("left", 3))),
        ("man's left hand", Query("man's left hand")),
        ("left hand", Query("left hand")),
        ("cat left of the dog", relation("cat", "left", "dog")),
        ("the cat to the right of a dog", relation("cat", "right", "dog")),
        ("the cup that is on the left side of the plate", relation("cup", "left", "plate")),
        ("ring above the blue square", relation("ring", "above", "blue square")),
        ("the ring higher than the square", relation("ring", "above", "square")),
        ("the bag under the table", relation("bag", "below", "table")),
        ("a car bigger than the truck", relation("car", "larger", "truck")),
        ("the ball inside of the box", relation("ball", "inside", "box")),
        ("chair next to the bed", relation("chair", "near", "bed")),
        ("star with two circles to its left", relation("star", "left", "circles", count=2)),
        ("the star that has one ring below it", relation("star", "below", "ring", count=1)),
        (
            "cup between the plate and the fork",
            Query("cup", relation=Relation("between", Query("plate"), Query("fork"))),
        ),
        (
            "cat left of the dog above the mat",
            Query("cat", relation=Relation("left", relation("dog", "above", "mat"))),
        ),
        (
            "the largest dog left of the second car from the right",
            Query("dog", Rank("large"), Relation("left", Query("car", Rank("right", 2)))),
        ),
    ],
)
def test_expressions_are_read(expression, query):
    assert parse_expression(expression) == query


@pytest.mark.parametrize("expression", ["", "  ", "?!"])
def test_blank_expressions_are_refused(expression):
    with pytest.raises(ValueError, match="Expected an expression that names an object"):
        parse_expression(expression)


def test_nouns_of_anchors_are_listed_once():
    assert parse_expression("cup between the cup and the fork").nouns == ("cup", "fork")


# Three in a row, a large one below them with a small one inside.
BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 12], [40, 2, 50, 10], [0, 50, 60, 100], [20, 60, 30, 70]], float)
ALL = np.ones(5)


def best(expression, **matches):
    query = parse_expression(expression)
    fits = resolve(query, {noun: np.asarray(matches.get(noun.split()[-1], ALL), float) for noun in query.nouns}, BOXES)
    assert fits.shape == (5,)
    assert ((fits >= 0) & (fits <= 1 + 1e-9)).all()
    return int(fits.argmax()) if fits.max() > 0 else None


ROW = [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("expression", "matches", "expected"),
    [
        ("leftmost cup", {"cup": ROW}, 0),
        ("second cup from the left", {"cup": ROW}, 1),
        ("third cup from the left", {"cup": ROW}, 2),
        ("second cup from the left", {"cup": [1, 0, 1, 0, 0]}, 2),
        ("fourth cup from the left", {"cup": ROW}, None),
        ("largest thing", {}, 3),
        ("smallest cup", {"cup": ROW}, 2),
        ("tallest cup", {"cup": ROW}, 1),
        ("lowest thing", {}, 3),
        ("top left cup", {"cup": ROW}, 0),
        ("middle cup", {"cup": ROW}, 1),
        ("cup right of the plate", {"cup": ROW, "plate": [0, 1, 0, 0, 0]}, 2),
        ("cup left of the plate", {"cup": ROW, "plate": [1, 0, 0, 0, 0]}, None),
        ("cup above the plate", {"cup": [0, 1, 0, 0, 1], "plate": [0, 0, 0, 1, 0]}, 1),
        ("cup below the plate", {"cup": [1, 0, 0, 0, 1], "plate": [0, 1, 0, 0, 0]}, 4),
        ("cup inside the plate", {"cup": ALL, "plate": [0, 0, 0, 1, 0]}, 4),
        ("plate containing the cup", {"plate": ALL, "cup": [0, 0, 0, 0, 1]}, 3),
        ("cup larger than the plate", {"cup": ROW, "plate": [1, 0, 0, 0, 0]}, 1),
        ("cup smaller than the plate", {"cup": ROW, "plate": [1, 0, 0, 0, 0]}, 2),
        ("cup near the plate", {"cup": [1, 0, 1, 0, 1], "plate": [0, 0, 0, 1, 0]}, 4),
        ("cup between the plate and the fork", {"plate": [1, 0, 0, 0, 0], "fork": [0, 0, 1, 0, 0]}, 1),
        ("thing with two cups to its left", {"cups": ROW, "thing": ROW}, 2),
        ("thing with one cup to its left", {"cup": ROW, "thing": ROW}, 1),
        ("leftmost cup right of the plate", {"cup": ROW, "plate": [1, 0, 0, 0, 0]}, 1),
    ],
)
def test_relations_pick_the_right_box(expression, matches, expected):
    assert best(expression, **matches) == expected


def test_a_rank_is_the_exact_probability_of_independent_matches():
    chances = np.array([0.5, 0.25, 0.8, 0.0, 0.0])
    fits = resolve(parse_expression("second cup from the left"), {"cup": chances}, BOXES)
    assert fits[0] == pytest.approx(0.0)
    assert fits[1] == pytest.approx(0.25 * 0.5)
    assert fits[2] == pytest.approx(0.8 * (0.5 * 0.75 + 0.5 * 0.25))


def test_one_proposal_stands_in_no_relation_to_itself():
    fits = resolve(parse_expression("cup left of the cup"), {"cup": np.ones(1)}, BOXES[:1])
    assert fits.tolist() == [0.0]


def test_unknown_relations_and_axes_are_refused():
    with pytest.raises(ValueError, match="Expected a relation of two boxes, got 'behind'"):
        relation_matrix("behind", BOXES)
    with pytest.raises(KeyError):
        axis_positions("age", BOXES)


@pytest.mark.parametrize("split", ["train", "val", "text"])
def test_every_refshapes_expression_is_read_and_resolved_over_its_true_objects(split):
    """With perfect nouns, parser and resolver find the target of every kind and wording."""
    for sample in islice(refshapes_samples(split, seed=9), 60):
        boxes = np.array([item.box_xyxy for item in sample.scene.objects])
        for expression in sample.expressions:
            query = parse_expression(expression.text)
            matches = {noun: np.array([says(noun, item) for item in sample.scene.objects]) for noun in query.nouns}
            fits = resolve(query, matches, boxes)
            assert int(fits.argmax()) == expression.target, (expression.text, query, fits)
            assert fits.max() > 0.3
            assert (fits > 1e-9).sum() == 1 or expression.kind == "relation"


def says(noun, item):
    """Whether every word of a noun phrase fits an object of RefShapes."""
    attributes = {item.size, item.filling, item.color, item.shape}
    singular = {"crosses": "cross", **{f"{shape}s": shape for shape in SHAPES if shape != "cross"}}
    words = [
        singular.get(word, word) for word in noun.split() if word not in ("and", "object", "objects", "that", "is")
    ]
    return float(all(word in attributes or word in ("a", "an") for word in words))
