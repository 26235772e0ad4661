"""Resolves a parsed expression over proposals: which box is the cat left of the dog.

A noun phrase gives every proposal a match in 0..1 (how likely it is one of those objects). A relation keeps what has
a matching anchor on the right side. A rank ("second from the left") is the probability that exactly so many matching
proposals lie farther out, which is exact where matches are independent, and needs no threshold on them.
"""

from collections.abc import Mapping

import numpy as np

from .relation_parser import CORNERS, Query, Rank, Relation

INSIDE_SHARE = 0.8  # of a box that lies in another one
FAINT = 1e-12


def resolve(query: Query, matches: Mapping[str, np.ndarray], boxes_xyxy: np.ndarray) -> np.ndarray:
    """How well each proposal fits the whole expression.

    Args:
        query: the parsed expression.
        matches: per noun phrase of `query.nouns`, the match of every proposal (K,), in 0..1.
        boxes_xyxy: (K, 4) xyxy in one unit.

    Returns:
        (K,) in 0..1; all 0 where no proposal fits, for example when a relation has no second proposal.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    fits = np.asarray(matches[query.noun], dtype=np.float64)
    if query.relation is not None:
        fits = fits * _relation_holds(query.relation, matches, boxes)
    return fits if query.rank is None else fits * _rank_is(query.rank, fits, boxes)


def _relation_holds(relation: Relation, matches: Mapping[str, np.ndarray], boxes: np.ndarray) -> np.ndarray:
    """(K,) probability that the relation holds for each proposal."""
    anchors = resolve(relation.anchor, matches, boxes)  # (K,)
    if relation.kind == "between":
        assert relation.second is not None
        return _between(anchors, resolve(relation.second, matches, boxes), boxes)
    holds = relation_matrix(relation.kind, boxes)  # (K, K): does it hold of i to j
    if relation.count is not None:
        # "two cups to its left": cups j that are left of i.
        return _exactly(relation.count, holds.T * anchors[None, :])
    weights = anchors / max(anchors.sum(), FAINT)  # one anchor is meant: its probability is shared out
    return (holds * weights[None, :]).max(axis=1)


def relation_matrix(kind: str, boxes: np.ndarray) -> np.ndarray:
    """(K, K) in 0..1: whether box i is `kind` to box j; 0 on the diagonal.

    Sides compare centers, sizes compare areas, "inside" needs `INSIDE_SHARE` of the smaller box; "near" falls with
    the gap between the boxes relative to their size.
    """
    center_x, center_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    areas = _areas(boxes)
    if kind in ("left", "right", "above", "below", "larger", "smaller"):
        along = {
            **{"left": -center_x, "right": center_x, "above": -center_y, "below": center_y},
            **{"larger": areas, "smaller": -areas},
        }[kind]
        holds = (along[:, None] > along[None, :]).astype(np.float64)
    elif kind in ("inside", "contains"):
        share = _intersections(boxes) / np.maximum(areas, FAINT)[:, None]
        holds = ((share >= INSIDE_SHARE) & (areas[:, None] < areas[None, :])).astype(np.float64)
        holds = holds if kind == "inside" else holds.T
    elif kind == "near":
        gap_x = np.maximum(np.maximum(boxes[:, None, 0] - boxes[None, :, 2], boxes[None, :, 0] - boxes[:, None, 2]), 0)
        gap_y = np.maximum(np.maximum(boxes[:, None, 1] - boxes[None, :, 3], boxes[None, :, 1] - boxes[:, None, 3]), 0)
        reach = np.sqrt(np.maximum(areas[:, None], areas[None, :]))
        holds = np.exp(-np.hypot(gap_x, gap_y) / np.maximum(reach, FAINT))
    else:
        raise ValueError(f"Expected a relation of two boxes, got {kind!r}.")
    np.fill_diagonal(holds, 0.0)
    return holds


def axis_positions(axis: str, boxes: np.ndarray) -> np.ndarray:
    """(K,): how far along an axis of `relation_parser.AXES` each box stands; the first has the largest value."""
    center_x, center_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    if axis == "center":
        return -np.hypot(center_x - center_x.mean(), center_y - center_y.mean())
    if axis in CORNERS:  # both sides, in one unit
        first, second = axis.split()
        return axis_positions(first, boxes) + axis_positions(second, boxes)
    height = boxes[:, 3] - boxes[:, 1]
    return {
        **{"left": -center_x, "right": center_x, "top": -center_y, "bottom": center_y},
        **{"large": _areas(boxes), "small": -_areas(boxes), "tall": height, "short": -height},
    }[axis]


def _rank_is(rank: Rank, fits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(K,) probability that exactly `number - 1` other fitting proposals stand farther along the axis."""
    along = axis_positions(rank.axis, boxes)
    farther = (along[None, :] > along[:, None]).astype(np.float64)  # (K, K): is j farther than i
    return _exactly(rank.number - 1, farther * np.minimum(fits, 1.0)[None, :])


def _exactly(number: int, chances: np.ndarray) -> np.ndarray:
    """(K, J) independent chances -> (K,) probability that exactly `number` of each row's J come true."""
    counts = np.zeros((len(chances), number + 1))
    counts[:, 0] = 1.0
    for chance in np.clip(chances, 0.0, 1.0).T:  # one more event for all rows at once
        stay, step = counts * (1 - chance)[:, None], counts[:, :-1] * chance[:, None]
        counts = stay
        counts[:, 1:] += step
    return counts[:, number]


def _between(first: np.ndarray, second: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(K,): best pair of anchors whose centers have the proposal's center between them, along the line and near it."""
    centers = np.stack([boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], axis=-1) / 2  # (K, 2)
    count = len(boxes)
    fits = np.zeros(count)
    for one in range(count):
        for other in range(count):
            line = centers[other] - centers[one]
            length = float(line @ line)
            if one == other or length == 0:
                continue
            along = (centers - centers[one]) @ line / length  # (K,): 0 at one anchor, 1 at the other
            aside = np.abs((centers - centers[one]) @ np.array([-line[1], line[0]])) / length
            holds = (along > 0) & (along < 1) & (aside < 0.5)
            holds[[one, other]] = False
            fits = np.maximum(fits, holds * first[one] * second[other])
    return fits


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersections(boxes: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)  # (K, K)
