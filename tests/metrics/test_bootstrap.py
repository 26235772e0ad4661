"""Intervals: reproducible, over images, and as wide as theory says."""

import numpy as np
import pytest

from hivg_hf.metrics import ratio_difference_intervals, ratio_intervals


def column(values):
    return np.asarray(values, dtype=float).reshape(-1, 1)


def test_the_interval_of_a_proportion_is_as_wide_as_theory_says():
    correct = column(np.arange(1000) % 2)
    low, high = ratio_intervals(correct, np.ones_like(correct), range(1000), resamples=4000)[0]
    expected = 1.96 * np.sqrt(0.25 / 1000)
    assert low == pytest.approx(0.5 - expected, abs=0.004)
    assert high == pytest.approx(0.5 + expected, abs=0.004)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    correct = column(np.sqrt(np.arange(50)))
    ones = np.ones_like(correct)
    first = ratio_intervals(correct, ones, range(50), seed=5)
    assert np.array_equal(first, ratio_intervals(correct, ones, range(50), seed=5))
    assert not np.array_equal(first, ratio_intervals(correct, ones, range(50), seed=6))


def test_ten_expressions_of_one_image_say_no_more_than_one():
    correct = column(np.arange(60) % 2)
    once = ratio_intervals(correct, np.ones_like(correct), range(60))
    repeated = np.repeat(correct, 10, axis=0)
    ones = np.ones_like(repeated)
    by_image = ratio_intervals(repeated, ones, np.repeat(np.arange(60), 10).tolist())
    by_row = ratio_intervals(repeated, ones, range(600))
    np.testing.assert_allclose(by_image, once)
    assert np.diff(by_row[0]) < 0.5 * np.diff(by_image[0])


def test_a_paired_difference_is_narrower_than_two_separate_intervals():
    generator = np.random.default_rng(0)
    first = column(generator.random(500) < 0.6)
    second = first.copy()
    second[:20] = 0  # the same predictions but for a few
    ones = np.ones_like(first)
    low, high = ratio_difference_intervals(first, second, ones, range(500))[0]
    difference = float((first - second).mean())
    assert low < difference < high
    assert low > 0
    separate = ratio_intervals(first, ones, range(500))[0]
    assert high - low < 0.5 * (separate[1] - separate[0])


def test_chunks_do_not_change_the_draw(monkeypatch):
    correct = column(np.arange(30) % 4 == 0)
    whole = ratio_intervals(correct, np.ones_like(correct), range(30))
    monkeypatch.setattr("hivg_hf.metrics.bootstrap._CHUNK_CELLS", 30 * 7)
    assert np.array_equal(whole, ratio_intervals(correct, np.ones_like(correct), range(30)))


def test_a_figure_without_rows_has_no_interval():
    interval = ratio_intervals(np.zeros((4, 1)), np.zeros((4, 1)), range(4))
    assert np.isnan(interval).all()
