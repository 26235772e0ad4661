"""Which rows a breakdown puts together: by length of the expression, size of the object, shape of the image, ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .matching import matched_array
from .protocols import MetricProtocol, ref_l4_class

Buckets = dict[str, np.ndarray]

# Official: engine.py:147, words between single spaces.
LENGTH_BUCKETS = {"1-5": (0, 5), "6-7": (6, 7), "8-10": (8, 10), "11+": (11, np.inf)}
WIDE_FROM = 4 / 3  # width over height; the inverse is where "tall" begins


def by_length(references: Sequence[Mapping[str, Any]], protocol: MetricProtocol) -> Buckets:
    """Words of the expression, in the four groups that the HiVG paper shows (figure 4c)."""
    words = np.array([_word_count(reference.get("expression"), protocol) for reference in references])
    return {name: (words >= low) & (words <= high) for name, (low, high) in LENGTH_BUCKETS.items()}


def by_object_size(references: Sequence[Mapping[str, Any]], protocol: MetricProtocol) -> Buckets:
    """Square root of the target's area in pixels of the original image, between the protocol's edges."""
    boxes = [reference["box"] if "box" in reference else reference.get("box_xyxy") for reference in references]
    corners = np.array([[np.nan] * 4 if box is None else box for box in boxes], dtype=np.float64).reshape(-1, 4)
    sides = np.sqrt((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    small, large = protocol.size_edges
    return {"small": sides < small, "medium": (sides >= small) & (sides <= large), "large": sides > large}


def by_image_shape(references: Sequence[Mapping[str, Any]], protocol: MetricProtocol) -> Buckets:
    """Wide (width at least 4/3 of the height), tall (the same turned), square (all between)."""
    ratios = matched_array(references, "width") / matched_array(references, "height")
    wide, tall = ratios >= WIDE_FROM, ratios <= 1 / WIDE_FROM
    return {"wide": wide, "tall": tall, "square": ~wide & ~tall & ~np.isnan(ratios)}


def by_category(references: Sequence[Mapping[str, Any]], protocol: MetricProtocol) -> Buckets:
    """The category of the target, where the source has one; merged as Ref-L4 does where its classes are averaged."""
    if not protocol.class_average:
        return _by_name(references, "category")
    named = [reference.get("category") for reference in references]
    classes = [{"category": None if name is None else ref_l4_class(str(name))} for name in named]
    return _by_name(classes, "category")


def by_source(references: Sequence[Mapping[str, Any]], protocol: MetricProtocol) -> Buckets:
    """The dataset that a row comes from: a mixture is reported set by set."""
    return _by_name(references, "source")


BREAKDOWNS: dict[str, Callable[[Sequence[Mapping[str, Any]], MetricProtocol], Buckets]] = {
    "expression_length": by_length,
    "object_size": by_object_size,
    "image_shape": by_image_shape,
    "category": by_category,
    "source": by_source,
}


def _word_count(expression: str | None, protocol: MetricProtocol) -> float:
    if expression is None:
        return np.nan
    return len(expression.split(" ") if protocol.canvas else expression.split())


def _by_name(references: Sequence[Mapping[str, Any]], key: str) -> Buckets:
    names = [reference.get(key) for reference in references]
    known = sorted({str(name) for name in names if name is not None})
    return {name: np.array([given is not None and str(given) == name for given in names]) for name in known}
