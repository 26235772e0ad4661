"""Predictions and references paired by id, with errors that list what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_LISTED = 20  # ids named in one message


def match_predictions(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The prediction of each reference, in the order of the references.

    Raises:
        ValueError: an id is absent, repeated or unknown, a number is NaN or infinite, or a box is inverted.
    """
    if not references:
        raise ValueError("There are no references: an accuracy over nothing does not exist. Is the split empty?")
    problems = []
    for name, rows in (("prediction", predictions), ("reference", references)):
        nameless = [position for position, row in enumerate(rows) if row.get("id") is None]
        if nameless:
            raise ValueError(f"{name.capitalize()}s without an id at positions {_listed(nameless)}.")
        repeated = [key for key, count in Counter(row["id"] for row in rows).items() if count > 1]
        if repeated:
            problems.append(f"ids that more than one {name} has: {_listed(repeated)}")
    by_id = {prediction["id"]: prediction for prediction in predictions}
    known = {reference["id"] for reference in references}
    missing = [reference["id"] for reference in references if reference["id"] not in by_id]
    unknown = [key for key in by_id if key not in known]
    if missing:
        problems.append(f"ids without a prediction: {_listed(missing)}")
    if unknown:
        problems.append(f"ids of predictions that no reference has: {_listed(unknown)}")
    problems += _broken_numbers(predictions) + _broken_targets(references)
    if problems:
        raise ValueError(
            "Expected one finite prediction for every reference; " + "; ".join(problems) + ". Nothing was computed."
        )
    return [by_id[reference["id"]] for reference in references]


def matched_array(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One number per row, (N,) float64; NaN where it is absent."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _broken_numbers(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    not_finite, wrong_shape, inverted = [], [], []
    for prediction in predictions:
        # A model that answers "nothing" says so by an empty `boxes_xyxy`.
        boxes = [prediction.get("box_xyxy"), prediction.get("canvas_box"), *(_or_empty(prediction.get("boxes_xyxy")))]
        given = [np.asarray(box, dtype=np.float64) for box in boxes if box is not None]
        if prediction.get("box_xyxy") is None and prediction.get("boxes_xyxy") is None:
            wrong_shape.append(prediction["id"])
        elif any(box.shape != (4,) for box in given):
            wrong_shape.append(prediction["id"])
        elif not all(np.isfinite(box).all() for box in given) or not _scores_finite(prediction):
            not_finite.append(prediction["id"])
        elif prediction.get("box_xyxy") is not None and (given[0][2:] < given[0][:2]).any():
            inverted.append(prediction["id"])
    problems = []
    if wrong_shape:
        problems.append(
            f"predictions without a box_xyxy of four numbers (or boxes_xyxy, [] for no answer): {_listed(wrong_shape)}"
        )
    if not_finite:
        problems.append(f"predictions with NaN or infinity: {_listed(not_finite)}")
    if inverted:
        problems.append(f"predictions whose box_xyxy ends before it begins (is it xywh?): {_listed(inverted)}")
    return problems


def _scores_finite(prediction: Mapping[str, Any]) -> bool:
    scores = [] if prediction.get("score") is None else [prediction["score"]]
    return bool(np.isfinite(np.array([*scores, *_or_empty(prediction.get("scores"))], dtype=np.float64)).all())


def _broken_targets(references: Sequence[Mapping[str, Any]]) -> list[str]:
    broken = []
    for reference in references:
        box = reference["box"] if "box" in reference else reference.get("box_xyxy")
        boxes = ([] if box is None else [box]) + list(_or_empty(reference.get("boxes")))
        arrays = [np.asarray(one, dtype=np.float64) for one in boxes]
        if not all(one.shape == (4,) and np.isfinite(one).all() and (one[2:] >= one[:2]).all() for one in arrays):
            broken.append(reference["id"])
    return [f"references whose box is not four finite numbers x1 <= x2, y1 <= y2: {_listed(broken)}"] if broken else []


def _or_empty(value: Any) -> Any:
    return [] if value is None else value


def _listed(keys: Sequence[Any]) -> str:
    shown = ", ".join(repr(key) for key in keys[:_LISTED])
    return f"{shown} and {len(keys) - _LISTED} more" if len(keys) > _LISTED else shown
