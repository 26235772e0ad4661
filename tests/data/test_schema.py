"""The schema: run-length masks there and back, boxes around them, rows that contradict themselves."""

import numpy as np
import pytest
from datasets import Dataset

from hivg_hf.data.schema import FEATURES, decode_mask, encode_mask, mask_to_box, validate_row


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
