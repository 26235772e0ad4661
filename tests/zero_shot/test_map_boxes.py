"""Boxes from maps, by hand-made maps and a slow search."""

import itertools

import numpy as np
import pytest

from hivg_hf.zero_shot.map_boxes import best_rectangle, box_from_map, level_boxes, map_correlation


def slow_best(values, criterion):
    height, width = values.shape
    best = -np.inf
    for y1, y2 in itertools.combinations(range(height + 1), 2):
        for x1, x2 in itertools.combinations(range(width + 1), 2):
            inside = np.zeros(values.shape, dtype=bool)
            inside[y1:y2, x1:x2] = True
            if inside.all():
                continue
            share = inside.mean()
            rating = values[inside].mean() - values[~inside].mean()
            best = max(best, rating * (np.sqrt(share * (1 - share)) if criterion == "correlation" else 1.0))
    return best


@pytest.mark.parametrize("criterion", ["correlation", "difference"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (5, 7), (7, 4)])
def test_the_best_rectangle_is_the_best_of_all(criterion, shape):
    values = np.random.default_rng(0).normal(size=shape)
    box, rating = best_rectangle(values, criterion)
    assert rating == pytest.approx(slow_best(values, criterion), abs=1e-12)
    inside = np.zeros(shape, dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    difference = values[inside].mean() - values[~inside].mean()
    share = inside.mean()
    expected = difference * (np.sqrt(share * (1 - share)) if criterion == "correlation" else 1.0)
    assert rating == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", ["rectangle", "levels"])
def test_a_bright_rectangle_is_found(method):
    values = np.full((60, 100), 0.2)
    values[10:30, 40:80] = 0.9
    box, score = box_from_map(values, method)
    assert np.abs(box - [40, 10, 80, 30]).max() <= 3  # levels smooth, the search averages to 32 cells
    assert score > 0.85


def test_the_larger_of_two_blobs_is_taken_at_a_level():
    values = np.zeros((50, 50))
    values[5:10, 5:10], values[20:45, 20:45] = 1.0, 0.95
    box, _ = box_from_map(values, "levels")
    assert np.abs(box - [20, 20, 45, 45]).max() <= 2
    assert len(level_boxes(values, largest_only=False)) > len(level_boxes(values))


@pytest.mark.parametrize("method", ["rectangle", "levels"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 40)])
def test_a_flat_map_gives_a_box_with_score_0(method, shape):
    box, score = box_from_map(np.full(shape, 0.3), method)
    assert score == 0.0
    assert box[0] < box[2] <= shape[1]
    assert box[1] < box[3] <= shape[0]


def test_map_correlation_is_pearsons():
    values = np.random.default_rng(1).normal(size=(6, 8))
    inside = np.zeros((6, 8))
    inside[1:4, 2:7] = 1
    expected = np.corrcoef(values.ravel(), inside.ravel())[0, 1]
    assert map_correlation(values, (2, 1, 7, 4)) == pytest.approx(expected)


@pytest.mark.parametrize("values", [np.zeros(4), np.full((2, 2), np.nan), np.zeros((0, 3))])
def test_what_is_no_map_is_refused(values):
    with pytest.raises(ValueError, match="Expected a finite map of shape"):
        box_from_map(values)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="Expected method in rectangle, levels"):
        box_from_map(np.zeros((2, 2)), "peak")
