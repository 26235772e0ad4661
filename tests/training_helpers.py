"""Small rows and models for the training tests."""

import copy
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


def coloured_box_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the schema: one coloured rectangle on grey, named by its colour; pictures of several shapes."""
    rng = np.random.default_rng(seed)
    return [_row(rng, index) for index in range(count)]


def _row(rng: np.random.Generator, index: int) -> dict[str, Any]:
    width, height = (int(side) for side in rng.integers(48, 97, size=2))
    x1, y1 = int(rng.integers(0, width - 24)), int(rng.integers(0, height - 24))
    x2, y2 = x1 + int(rng.integers(12, 24)), y1 + int(rng.integers(12, 24))
    colour = sorted(COLOURS)[index % 2]
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    pixels[y1:y2, x1:x2] = COLOURS[colour]
    return {
        "image": Image.fromarray(pixels),
        "expression": f"the {colour} box" if index % 3 else f"{colour}",
        "box": [float(edge) for edge in (x1, y1, x2, y2)],
        "boxes": [[float(edge) for edge in (x1, y1, x2, y2)]],
        "no_target": False,
        "mask": None,
        "width": width,
        "height": height,
        "category": None,
        "image_id": f"image-{index}",
        "ref_id": str(index),
        "sent_id": str(index),
        "source": "boxes",
        "split": "train",
    }


def fresh(model: Any) -> Any:
    """A copy that may be trained."""
    return copy.deepcopy(model)
