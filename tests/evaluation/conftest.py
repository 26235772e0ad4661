"""Rows that evaluation tests share: rendered scenes, and pictures without content for literal cases."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.data.schema import FEATURES, encode_mask


@pytest.fixture(scope="session")
def scenes():
    """Eleven rows: wide, tall and square pictures, expressions of several lengths."""
    return refshapes_dataset("val", seed=5, size=11)


@pytest.fixture
def make_rows():
    """A function from partial rows to a dataset of the schema, on plain pictures of 40 x 30 pixels."""

    def make(*parts):
        rows = []
        for index, part in enumerate(parts):
            box = part.get("box", [4.0, 3.0, 20.0, 15.0])
            mask = np.zeros((30, 40), dtype=np.uint8)
            row = {
                "image": Image.fromarray(np.full((30, 40, 3), 40 * (index % 6), dtype=np.uint8)),
                "expression": f"thing {index}",
                "box": box,
                "boxes": [] if box is None else [box],
                "no_target": box is None,
                "mask": None if box is None else encode_mask(mask + 1),
                "width": 40,
                "height": 30,
                "category": None,
                "image_id": str(index),
                "ref_id": str(index),
                "sent_id": str(index),
                "source": "literal",
                "split": "val",
            }
            rows.append({**row, **part})
        return Dataset.from_list(rows, features=FEATURES)

    return make
