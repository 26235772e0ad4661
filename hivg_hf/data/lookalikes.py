"""Pictures that are the same by content: copies that were saved again, scaled or renamed.

A picture's signature is a thumbnail of 16 x 16 colors. Two pictures are near-identical where no cell of it differs by
more than compression and scaling explain. Other moments of a scene, crops and mirrored copies are other pictures.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from hivg_hf.modeling.image_loading_hivg import load_grounding_image

SIDE = 16
QUADRANTS = 4  # cells a side of the coarse thumbnail by which candidates are found
MOST_CELL_DIFFERENCE = 20  # of 255, in any color of any cell
MOST_MEAN_DIFFERENCE = 3.0
MOST_ASPECT_DIFFERENCE = 0.05


def signature(image: Any) -> np.ndarray | None:
    """The thumbnail (16 * 16 * 3 + 1,) float32 of a picture, its aspect last; None where it cannot be read.

    Args:
        image: path, `{"path", "bytes"}`, or a PIL image.
    """
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return _signature_of(image["bytes"])
        image = image.get("path")
    if not isinstance(image, (str, os.PathLike)):
        return None if image is None else _signature_of(image)
    try:
        status = os.stat(image)
    except (OSError, ValueError):
        return None
    return _signature_of_file(os.fspath(image), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _signature_of_file(path: str, size: int, modified_ns: int) -> np.ndarray | None:
    return _signature_of(path)


def _signature_of(image: Any) -> np.ndarray | None:
    try:
        picture = load_grounding_image(image)
    except (OSError, ValueError, TypeError):
        return None
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    cells = np.asarray(small, dtype=np.float32).reshape(-1)  # (16, 16, 3) -> (768,)
    return np.append(cells, np.float32(np.log(picture.width / picture.height)))


def group_lookalikes(images: Mapping[Any, Any]) -> dict[Any, Any]:
    """For every picture, by its name, the first name of the pictures that are near-identical to it.

    A picture that cannot be read is its own group: its rows are refused elsewhere.
    """
    names = list(images)
    signatures = [signature(images[name]) for name in names]
    readable = [position for position, found in enumerate(signatures) if found is not None]
    leader = list(range(len(names)))

    def find(position: int) -> int:
        while leader[position] != position:
            leader[position] = leader[leader[position]]
            position = leader[position]
        return position

    for first, second in _near_pairs([signatures[position] for position in readable]):
        one, other = sorted((find(readable[first]), find(readable[second])))
        leader[other] = one
    return {name: names[find(position)] for position, name in enumerate(names)}


def _near_pairs(signatures: Sequence[Any]) -> list[tuple[int, int]]:
    """Pairs of positions whose signatures are near; of equal ones, only each with the first."""
    from scipy.spatial import cKDTree

    if len(signatures) < 2:
        return []
    table = np.stack(signatures)  # (N, 769)
    unique, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    pairs = [(int(first[group]), position) for position, group in enumerate(inverse.reshape(-1))]
    step = SIDE // QUADRANTS
    cells = unique[:, :-1].reshape(-1, QUADRANTS, step, QUADRANTS, step, 3)
    coarse = cells.mean(axis=(2, 4)).reshape(len(unique), -1)  # (U, 4 * 4 * 3)
    tree = cKDTree(coarse)
    for position, point in enumerate(coarse):
        for other in tree.query_ball_point(point, MOST_MEAN_DIFFERENCE * 2, p=np.inf):
            if other > position and _near(unique[position], unique[other]):
                pairs.append((int(first[position]), int(first[other])))
    return [pair for pair in pairs if pair[0] != pair[1]]


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    difference = np.abs(one - other)
    return bool(
        difference[:-1].max() <= MOST_CELL_DIFFERENCE
        and difference[:-1].mean() <= MOST_MEAN_DIFFERENCE
        and difference[-1] <= MOST_ASPECT_DIFFERENCE
    )
