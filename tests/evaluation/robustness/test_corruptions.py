"""Corruptions change a picture more with strength, the same way for the same seed, and keep its size."""

import numpy as np
import pytest
from PIL import Image

from hivg_hf.evaluation.robustness.corruptions import CORRUPTIONS, FAMILIES, STRENGTHS, corrupt_image


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    pixels = np.full((90, 130, 3), 120, dtype=np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, 70), rng.integers(0, 110)
        pixels[y : y + 18, x : x + 18] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def distance(one, other):
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_strength_keeps_the_size_and_repeats_with_its_seed(name, picture):
    changed = [corrupt_image(picture, name, strength, (1, strength)) for strength in STRENGTHS]
    assert all(one.size == picture.size and one.mode == "RGB" for one in changed)
    distances = [distance(picture, one) for one in changed]
    assert distances[0] > 0.1
    assert distances[4] > 1.5 * distances[0]
    again = corrupt_image(picture, name, 5, (1, 5))
    assert again.tobytes() == changed[4].tobytes()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 2)])
def test_any_picture_can_be_corrupted(name, size):
    assert corrupt_image(Image.new("L", size, 90), name, 5, (0,)).size == size


def test_fifteen_corruptions_in_four_families():
    assert len(CORRUPTIONS) == 15
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(CORRUPTIONS)


def test_unknown_names_and_strengths_are_refused(picture):
    with pytest.raises(ValueError, match=r"Expected one of gaussian_noise, .* got 'rain' and 3"):
        corrupt_image(picture, "rain", 3, (0,))
    with pytest.raises(ValueError, match="a strength from 1 to 5, got 'fog' and 6"):
        corrupt_image(picture, "fog", 6, (0,))
