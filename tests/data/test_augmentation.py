"""Augmentation: image, box and mask stay together, and only the given generator decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hivg_hf.data.augmentation import GroundingAugmentation, map_box, names_direction

BACKGROUND, OBJECT = (0, 0, 255), (255, 0, 0)


def _picture(width, height, box):
    """A blue picture with a red object that fills the box (integer xyxy pixels), and the object's mask."""
    mask = np.zeros((height, width), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    pixels = np.where(mask[..., None], np.uint8(OBJECT), np.uint8(BACKGROUND))
    return Image.fromarray(pixels), mask


@st.composite
def _scenes(draw):
    """A picture size and the box of an object in it, at least 8 pixels and a twelfth of the picture on each side."""
    width, height = draw(st.integers(40, 240)), draw(st.integers(40, 240))
    least = max(8, width // 12, height // 12)
    x1, y1 = draw(st.integers(0, width - least)), draw(st.integers(0, height - least))
    x2, y2 = draw(st.integers(x1 + least, width)), draw(st.integers(y1 + least, height))
    return width, height, (x1, y1, x2, y2)


@settings(max_examples=150, deadline=None)
@given(
    scene=_scenes(),
    seed=st.integers(0, 2**32),
    size=st.sampled_from([64, 224]),
    pad_align=st.sampled_from(["patch", "pixel"]),
    jitter=st.sampled_from([0.0, 0.4]),
)
def test_the_pixels_of_the_box_are_still_the_object(scene, seed, size, pad_align, jitter):
    width, height, box = scene
    image, mask = _picture(width, height, box)
    augment = GroundingAugmentation(size=size, patch_size=16, pad_align=pad_align, jitter=jitter, crop_probability=1.0)
    sample = augment(image, box, mask, "the red thing", np.random.default_rng(seed))

    h, w = sample.pixels.shape[:2]
    x1, y1, x2, y2 = sample.box
    assert 0 <= x1 < x2 <= w
    assert 0 <= y1 < y2 <= h
    assert 0 <= sample.top <= size - h
    assert 0 <= sample.left <= size - w
    if pad_align == "patch":
        assert (sample.top % 16, sample.left % 16) == (0, 0)

    # One pixel of blur on each edge; inside it everything is the object, outside it nothing.
    red = sample.pixels[..., 0].astype(int) > sample.pixels[..., 2].astype(int)
    inside = red[int(np.ceil(y1)) + 1 : int(y2) - 1, int(np.ceil(x1)) + 1 : int(x2) - 1]
    assert inside.all()
    outside = red.copy()
    outside[max(int(y1) - 1, 0) : int(np.ceil(y2)) + 1, max(int(x1) - 1, 0) : int(np.ceil(x2)) + 1] = False
    assert not outside.any()
    assert (sample.mask == red).mean() > 1 - 4 * (h + w) / (h * w)  # they differ on edges at most


def test_a_crop_holds_the_center_of_the_box_on_both_axes():
    # The official check compares x with the crop's top and y with its left. This object lies right and high: nearly
    # every crop of a wide picture passes that check, also those that leave the object out.
    box = (560, 10, 600, 50)
    image, _ = _picture(640, 240, box)
    augment = GroundingAugmentation(size=224, crop_probability=1.0, jitter=0)
    lost = cropped = 0
    for seed in range(60):
        sample = augment(image, box, None, "the red thing", np.random.default_rng(seed))
        cropped += sample.pixels.shape[1] / sample.pixels.shape[0] < 2
        lost += not (sample.pixels[..., 0] > 200).any() and sample.pixels.shape[1] > 64
    assert cropped > 20
    assert lost == 0


def test_a_crop_does_not_lose_the_mask_of_a_hollow_object():
    mask = np.zeros((400, 800), dtype=bool)
    mask[100:300, :30] = mask[100:300, -30:] = True  # two ends; the middle of the box is not the object
    augment = GroundingAugmentation(size=224, crop_probability=1.0, scale_count=1)
    image = Image.new("RGB", (800, 400))
    for seed in range(30):
        sample = augment(image, (0, 100, 800, 300), mask, "the rail", np.random.default_rng(seed))
        assert sample.mask.any()


@pytest.mark.parametrize("word", ["left", "right", "top", "bottom", "middle", "LEFTmost", "laptop"])
def test_an_expression_that_names_a_direction_is_never_cropped(word):
    augment = GroundingAugmentation(size=224, crop_probability=1.0)
    image = Image.new("RGB", (640, 320))
    for seed in range(20):
        sample = augment(image, (0, 0, 640, 320), None, f"the {word} one", np.random.default_rng(seed))
        h, w = sample.pixels.shape[:2]
        assert h == w / 2
        assert sample.box == (0, 0, w, h)


def test_an_expression_without_direction_is_cropped_half_of_the_time():
    augment = GroundingAugmentation(size=224, scale_count=1, jitter=0)
    image = Image.new("RGB", (800, 400))
    whole = sum(
        augment(image, (350, 150, 450, 250), None, "the cat", np.random.default_rng(seed)).pixels.shape
        == (112, 224, 3)
        for seed in range(200)
    )
    assert 75 <= whole <= 125
    assert names_direction("the cat") is False


def test_the_long_side_takes_the_official_scales():
    augment = GroundingAugmentation(size=224, crop_probability=0)
    image = Image.new("RGB", (100, 50))
    sides = {augment(image, None, None, "x", np.random.default_rng(seed)).pixels.shape[1] for seed in range(100)}
    assert sides == {224, 192, 160, 128, 96, 64, 32}


def test_the_same_generator_gives_the_same_sample_and_the_global_state_is_not_used():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    augment = GroundingAugmentation(size=64)
    np.random.seed(1)
    first = augment(image, (5, 5, 60, 60), None, "the cat", np.random.default_rng(8))
    np.random.seed(2)
    second = augment(image, (5, 5, 60, 60), None, "the cat", np.random.default_rng(8))
    other = augment(image, (5, 5, 60, 60), None, "the cat", np.random.default_rng(9))
    assert (first.pixels == second.pixels).all()
    assert (first.top, first.left, first.box) == (second.top, second.left, second.box)
    assert first.pixels.shape != other.pixels.shape or (first.pixels != other.pixels).any()


def test_a_picture_without_target_is_augmented_too():
    image = Image.new("RGB", (300, 200))
    sample = GroundingAugmentation(size=64, crop_probability=1)(image, None, None, "x", np.random.default_rng(0))
    assert sample.box is None
    assert sample.mask is None


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (4000, 1), (1, 4000)])
def test_extreme_pictures_keep_at_least_one_pixel_a_side(size):
    image = Image.new("RGB", size)
    for seed in range(10):
        sample = GroundingAugmentation(size=64)(image, (0, 0, *size), None, "x", np.random.default_rng(seed))
        assert min(sample.pixels.shape[:2]) >= 1
        assert max(sample.pixels.shape[:2]) <= 64


def test_a_box_is_mapped_by_literal_numbers():
    # region 100..300 x 50..150 shown at half scale; the box sticks out on the right
    assert map_box((120, 60, 320, 100), (100, 50, 300, 150), 100, 50) == (10.0, 5.0, 100.0, 25.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64, "pad_align": "half"}, "pad_align must be 'patch' or 'pixel', got 'half'"),
        ({"size": 60, "patch_size": 16, "pad_align": "patch"}, "multiple of patch_size=16, got 60"),
        ({"size": 64, "crop_sides": (500, 600)}, "begins above the smallest of crop_short_sides"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GroundingAugmentation(**options)
