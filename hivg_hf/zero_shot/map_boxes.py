"""From a heat map to one box: the best rectangle of all, or the largest blob at the best of several levels.

Both rate a region by how well the map says "high inside, low outside". With m the mean inside minus the mean outside
and p the region's share of the map, `difference` is m alone and is drawn to single cells; `correlation` is
m * sqrt(p * (1 - p)), up to the map's standard deviation the correlation of the map with the region's indicator (as
Otsu's threshold maximizes it), which needs no preferred size.
"""

from typing import Any

import numpy as np

CRITERIA = ("correlation", "difference")
METHODS = ("rectangle", "levels")
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the way from the map's lowest value to its highest
MOST_CELLS = 32  # per side, in the exhaustive search: 32 * 33 / 2 squared, 279 thousand rectangles
SMOOTHING = 0.02  # standard deviation of the Gaussian, relative to the longer side


def box_from_map(values: Any, method: str = "rectangle", criterion: str = "correlation") -> tuple[np.ndarray, float]:
    """The box that a heat map shows.

    Args:
        values: (H, W), higher where the object is.
        method: "rectangle", the best of all rectangles on a grid of at most `MOST_CELLS` cells a side; "levels", the
            box around the largest connected component above the best of `LEVELS`.
        criterion: one of `CRITERIA`.

    Returns:
        The box, float xyxy in cells of `values` (right and bottom edges exclusive), and the correlation of the map
        with it in -1..1, 0 for a flat map.

    Raises:
        ValueError: the map is not two-dimensional or not finite, or a name is unknown.
    """
    if method not in METHODS or criterion not in CRITERIA:
        raise ValueError(
            f"Expected method in {', '.join(METHODS)} and criterion in {', '.join(CRITERIA)}, "
            f"got {method!r} and {criterion!r}."
        )
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise ValueError(f"Expected a finite map of shape (height, width), got shape {values.shape}.")
    box = _best_rectangle_of(values, criterion) if method == "rectangle" else _best_level(values, criterion)
    return box, map_correlation(values, box)


def best_rectangle(values: np.ndarray, criterion: str = "correlation") -> tuple[tuple[int, int, int, int], float]:
    """The best of all rectangles of whole cells, found exactly: every one is rated, by an integral image.

    Of equal ones the first wins, by top, then bottom, left and right edge. The rectangle that is the whole map has no
    outside and is never taken, except of a map of one cell.

    Args:
        values: (H, W); time and memory grow with (H * W) ** 2.
        criterion: one of `CRITERIA`.

    Returns:
        (x1, y1, x2, y2) in cells, right and bottom edges exclusive, and its rating.
    """
    height, width = values.shape
    values = values - values.mean()  # keeps the sums small
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = values.cumsum(0).cumsum(1)
    tops, bottoms = np.triu_indices(height + 1, 1)  # (R,)
    lefts, rights = np.triu_indices(width + 1, 1)  # (C,)
    rows = integral[bottoms] - integral[tops]  # (R, W + 1): sums over the rows of each pair of edges
    inside = rows[:, rights] - rows[:, lefts]  # (R, C)
    share = ((bottoms - tops)[:, None] * (rights - lefts)[None, :]) / (height * width)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The values sum to 0, so that the outside sums to minus the inside: mean inside - mean outside.
        rating = inside / (height * width) / (share * (1 - share))
        if criterion == "correlation":
            rating = inside / (height * width) / np.sqrt(share * (1 - share))
    rating[share == 1] = -np.inf
    if height * width == 1:
        rating[:] = 0.0
    best = np.unravel_index(int(rating.argmax()), rating.shape)
    box = (int(lefts[best[1]]), int(tops[best[0]]), int(rights[best[1]]), int(bottoms[best[0]]))
    return box, float(rating[best])


def map_correlation(values: np.ndarray, box: Any) -> float:
    """Correlation of a map with the indicator of a box (xyxy in cells), -1..1; 0 where the map is flat."""
    inside = _indicator(values.shape, box)
    share, spread = inside.mean(), values.std()
    if spread < 1e-12 or share in (0.0, 1.0):
        return 0.0
    difference = values[inside].mean() - values[~inside].mean()
    return float(np.clip(difference * np.sqrt(share * (1 - share)) / spread, -1.0, 1.0))


def _best_rectangle_of(values: np.ndarray, criterion: str) -> np.ndarray:
    """`best_rectangle` of the map averaged to at most `MOST_CELLS` cells a side, in cells of `values`."""
    rows, columns = (np.linspace(0, side, min(side, MOST_CELLS) + 1).round().astype(int) for side in values.shape)
    sums = np.add.reduceat(np.add.reduceat(values, rows[:-1], axis=0), columns[:-1], axis=1)
    means = sums / (np.diff(rows)[:, None] * np.diff(columns)[None, :])
    (x1, y1, x2, y2), _ = best_rectangle(means, criterion)
    return np.array([columns[x1], rows[y1], columns[x2], rows[y2]], dtype=np.float64)


def _best_level(values: np.ndarray, criterion: str) -> np.ndarray:
    boxes = level_boxes(values)
    ratings = []
    for box in boxes:
        inside = _indicator(values.shape, box)
        share = inside.mean()
        difference = 0.0 if share == 1 else values[inside].mean() - values[~inside].mean()
        ratings.append(difference * (np.sqrt(share * (1 - share)) if criterion == "correlation" else 1.0))
    return boxes[int(np.argmax(ratings))]


def level_boxes(values: np.ndarray, largest_only: bool = True) -> np.ndarray:
    """Boxes (K, 4), xyxy in cells, around the connected components above each of `LEVELS`, of the smoothed map.

    Args:
        values: (H, W).
        largest_only: of each level only the component with the most cells, else all, without repetitions.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.asarray(values, dtype=np.float64), SMOOTHING * max(values.shape))
    low, high = smooth.min(), smooth.max()
    boxes = []
    for level in LEVELS:
        labels, count = ndimage.label(smooth >= low + level * (high - low))
        sizes = np.bincount(labels.ravel())[1:]
        chosen = [int(sizes.argmax())] if largest_only else range(count)
        slices = ndimage.find_objects(labels)
        boxes += [(slices[n][1].start, slices[n][0].start, slices[n][1].stop, slices[n][0].stop) for n in chosen]
    return np.array(list(dict.fromkeys(boxes)), dtype=np.float64).reshape(-1, 4)


def _indicator(shape: tuple[int, ...], box: Any) -> np.ndarray:
    x1, y1, x2, y2 = (round(float(edge)) for edge in box)
    inside = np.zeros(shape, dtype=bool)
    inside[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return inside
