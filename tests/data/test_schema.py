"""The schema: run-length masks there and back, boxes around them, rows that contradict themselves."""

import numpy as np
import pytest
from datasets import Dataset

from helpers.schema_rows import validate_row
from hivg_hf.data.readers.common import segmentation_to_mask
from hivg_hf.data.schema import FEATURES, decode_mask, encode_mask, mask_to_box
from hivg_hf.metrics.overlaps import mask_intersection_union


@pytest.fixture
def mask():
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:3, 2:6] = True
    return mask


@pytest.fixture
def row(mask):
    return {
        **dict.fromkeys(FEATURES),
        "expression": "the mug",
        "box": [2.0, 1.0, 6.0, 3.0],
        "boxes": [[2.0, 1.0, 6.0, 3.0]],
        "no_target": False,
        "mask": encode_mask(mask),
        "width": 7,
        "height": 5,
        "source": "toy",
        "sent_id": "7",
    }


def test_a_mask_survives_encoding(mask):
    encoded = encode_mask(mask)
    assert encoded["size"] == [5, 7]
    assert isinstance(encoded["counts"], str)
    assert (decode_mask(encoded) == mask).all()


def test_counts_as_bytes_are_read_too(mask):
    encoded = encode_mask(mask)
    assert (decode_mask({**encoded, "counts": encoded["counts"].encode()}) == mask).all()


def test_a_box_ends_after_the_last_pixel(mask):
    assert mask_to_box(mask) == [2.0, 1.0, 6.0, 3.0]
    assert mask_to_box(np.zeros((2, 2), dtype=bool)) is None


def test_rows_survive_a_dataset(row):
    nothing = {**row, "box": None, "boxes": [], "no_target": True, "mask": None}
    stored = Dataset.from_list([row, nothing], features=FEATURES)
    assert stored[0] == row
    assert stored[1] == nothing
    for each in stored:
        validate_row(each)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expression": " "}, "row '7' of 'toy': the expression is blank"),
        ({"no_target": True}, "no_target=True contradicts"),
        ({"box": None}, "no_target=False contradicts box=None"),
        ({"box": [2.0, 1.0, 2.0, 3.0]}, "has no area; expected xyxy pixels"),
        ({"boxes": [[0.0, 0.0, float("nan"), 1.0]]}, "has no area"),
        ({"width": 8}, r"the mask has size \[5, 7\], the image \[5, 8\]"),
        ({"extra": 1}, r"unknown columns \['extra'\]"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(row, change, message):
    with pytest.raises(ValueError, match=message):
        validate_row({**row, **change})


def test_masks_of_another_form_are_refused():
    with pytest.raises(ValueError, match=r"needs the shape \(height, width\), got \(1, 2, 3\)"):
        encode_mask(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"needs the keys 'size' and 'counts', got \['size'\]"):
        decode_mask({"size": [1, 2]})


def _runs(mask):
    """Run lengths of a mask by counting, the first of them of zeros."""
    pixels = mask.flatten(order="F").astype(int)
    edges = [0, *(np.flatnonzero(np.diff(pixels)) + 1).tolist(), len(pixels)]
    runs = np.diff(edges).tolist()
    return [0, *runs] if pixels[0] else runs


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.98, 1])
def test_run_lengths_are_read_as_a_list_and_as_their_string(share):
    rng = np.random.default_rng(3)
    for _ in range(100):
        mask = rng.random(rng.integers(1, 90, size=2)) < share
        encoded = encode_mask(mask)
        assert np.array_equal(decode_mask(encoded), mask)
        assert np.array_equal(decode_mask({**encoded, "counts": _runs(mask)}), mask)


BROKEN_MASKS = [
    ({"size": [10, 10], "counts": [50]}, "add up to 50, expected 100"),
    ({"size": [10, 10], "counts": []}, "add up to 0, expected 100"),
    ({"size": [10, 10], "counts": [50, 50, 50]}, "add up to 150"),
    ({"size": [10, 10], "counts": [150, -50]}, "some are negative"),
    ({"size": [10, 10], "counts": [2**63, -(2**63) + 100]}, "expected a list of whole numbers"),
    ({"size": [10, 10], "counts": [50.0, 50.0]}, "expected a list of whole numbers"),
    ({"size": [10, 10], "counts": [True] * 100}, "expected a list of whole numbers"),
    ({"size": [10, 10], "counts": None}, "expected a list of whole numbers"),
    ({"size": [10, 10], "counts": ""}, "are damaged"),
    ({"size": [10, 10], "counts": "zzz"}, "are damaged"),
    ({"size": [10, 10], "counts": "T3\ud83d"}, "are damaged"),
    ({"size": [10, 10], "counts": "T3 "}, "are damaged"),
    ({"size": [10, 10], "counts": "o" * 50}, "are damaged"),
    ({"size": [10, 10], "counts": b"\x00\xff"}, "are damaged"),
    ({"size": [10, 10], "counts": encode_mask(np.ones((10, 11)))["counts"]}, "add up to 110, expected 100"),
    ({"size": [10], "counts": [100]}, r"the size of its mask is \[10\]"),
    ({"size": [-10, -10], "counts": [100]}, "the size of its mask"),
    ({"size": [True, 100], "counts": [100]}, "the size of its mask"),
    ({"size": [10.0, 10], "counts": [100]}, "the size of its mask"),
    ({"size": "1010", "counts": [100]}, "the size of its mask"),
    ({"size": [10**6, 10**6], "counts": [10**12]}, "the size of its mask"),
    ({"size": [10**5000, 1], "counts": [1]}, "the size of its mask"),
]


@pytest.mark.parametrize(("mask", "message"), BROKEN_MASKS)
def test_run_lengths_that_are_not_a_mask_never_reach_pycocotools(mask, message):
    for read in (decode_mask, lambda mask: mask_intersection_union(mask, mask)):
        with pytest.raises((ValueError, TypeError), match=message):
            read(mask)


def _star(points, radius):
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + 24).flatten().tolist()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([1e8, 0, 10, 0, 10, 10], "has corners far from its image of 64 x 48"),
        ([-1e300, 0, 10, 0, 10, 10], "has corners far from"),
        ([float("nan"), 0, 10, 0, 10, 10], "has corners far from"),
        ([float("inf"), 0, 10, 0, 10, 10], "has corners far from"),
        ([200, 0, 10, 0, 10, 10], "has corners far from"),
        ([0, 0, 10, 0, 10], "expected pairs of numbers"),
        (["0", 0, 10, 0, 10, 10], "expected pairs of numbers"),
        ([True, 0, 10, 0, 10, 10], "expected pairs of numbers"),
        ([[0, 0], [10, 0], [10, 10], [0, 10]], "expected pairs of numbers"),
        ("0 0 10 0 10 10", "expected pairs of numbers"),
        ([0.1, 0.1, 0.5, 0.1, 0.5, 0.5], "lies within 0..1"),
        ([0, 0, 60, 40] * 20_000, "the outline of its mask is .* pixels long"),
    ],
)
def test_polygons_are_bounded_by_their_picture_before_they_are_drawn(polygon, message):
    with pytest.raises(ValueError, match=message):
        segmentation_to_mask([[polygon]], 48, 64)


def test_polygons_that_stick_out_a_little_are_cut_at_the_border():
    sticking = decode_mask(segmentation_to_mask([[[-5, -5, 70, -5, 70, 20, -5, 20]]], 48, 64))
    assert np.array_equal(sticking, np.arange(48)[:, None].repeat(64, 1) < 20)
    assert segmentation_to_mask([[_star(400, 20)]], 48, 64) is not None
    assert segmentation_to_mask([[], None, [[1, 2, 3, 4]]], 48, 64) is None


@pytest.mark.parametrize("size", [(None, 64), (48, True), (48, float("inf")), (0, 64), (10**6, 10**6)])
def test_a_polygon_without_the_size_of_its_picture_is_refused(size):
    with pytest.raises(ValueError, match=r"expected a whole number of pixels|needs the size of its image"):
        segmentation_to_mask([[_star(8, 20)]], *size)
