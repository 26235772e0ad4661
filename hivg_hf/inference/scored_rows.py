"""Rows as calibration sees them: what the score of each box is made of, and which boxes are right."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Image

from hivg_hf.metrics import get_protocol
from hivg_hf.metrics.no_target import count_matches
from hivg_hf.metrics.overlaps import paired_iou
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.modeling.processing_hivg import HiVGProcessor

RIGHT_FROM_IOU = 0.5
# While a value is read back from the score, it must not drive the sigmoid into its flat ends.
PROBE_SCALE = 0.01


@dataclass(frozen=True)
class ScoredRows:
    """Rows with what their score is made of.

    Args:
        values: (N,) what scale and bias act on.
        right: (N,) bool, the box reaches IoU 0.5 with a target.
        nothing: (N,) bool, the expression names nothing.
    """

    values: np.ndarray
    right: np.ndarray
    nothing: np.ndarray


@dataclass(frozen=True)
class AnsweredRows:
    """Rows with every box that a model with several queries gives them, the best first.

    Args:
        values: per row (P,) of `ScoredRows`, falling.
        targets: (N,) how many things the expression names.
        exact: (N,) bool, the first boxes, as many as targets, are found one for one.
    """

    values: list[np.ndarray]
    targets: np.ndarray
    exact: np.ndarray


def measure_rows(
    model: HiVGForVisualGrounding, processor: HiVGProcessor, dataset: Dataset, batch_size: int
) -> tuple[ScoredRows, AnsweredRows | None]:
    """Ask the model, with a score that can be read back.

    Of a model with several queries, all boxes come too, and rows of several targets only there.
    """
    several = model.config.num_queries > 1
    with _readable_score(model.config):
        values, boxes = _ask(model, processor, dataset, batch_size, several)
    targets = _targets(dataset)
    first, best = np.array([each[0] for each in values]), np.array([each[0] for each in boxes])
    rows = ScoredRows(first, _reaches_a_target(best, targets), np.array([not row for row in targets]))
    if not several:
        return rows, None
    counts = np.array([len(row) for row in targets])
    pixel = get_protocol("pixel")
    exact = [
        len(each) >= len(row) and count_matches(each[: len(row)], np.array(row), pixel) == len(row) if row else True
        for each, row in zip(boxes, targets, strict=True)
    ]
    one = counts <= 1
    return ScoredRows(first[one], rows.right[one], rows.nothing[one]), AnsweredRows(values, counts, np.array(exact))


@contextmanager
def _readable_score(config: Any) -> Iterator[None]:
    """Scores from which their value can be computed back; afterwards the config is as it was."""
    # The head's logit is divided, the difference of similarities multiplied.
    probe = {"score_temperature": 1 / PROBE_SCALE, "score_bias": 0.0, "score_threshold": None}
    probe |= {"score_similarity_scale": PROBE_SCALE, "score_similarity_bias": 0.0}
    before = {name: getattr(config, name) for name in probe}
    try:
        for name, value in probe.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def _ask(
    model: HiVGForVisualGrounding, processor: HiVGProcessor, dataset: Dataset, batch_size: int, several: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per row the values (P,) and boxes (P, 4) of its answers, the best first."""
    pipe = VisualGroundingPipeline(model, processor=processor)
    questions = dataset.select_columns(["image", "expression"]).cast_column("image", Image(decode=False))
    values, boxes = [], []
    for results in pipe(questions, batch_size=batch_size, **({"multiple": True, "threshold": 0.0} if several else {})):
        answers = list(results) if several else [results]
        values.append(np.array([_logit(answer["score"]) / PROBE_SCALE for answer in answers]))
        boxes.append(np.array([list(answer["box"].values()) for answer in answers]))
    return values, boxes


def _logit(score: float) -> float:
    if not 0 < score < 1:  # NaN, too
        raise ValueError(
            "The score of a row is 0, 1 or NaN in float32, and cannot be calibrated. Train the score head first."
        )
    return math.log(score / (1 - score))


def _reaches_a_target(boxes: np.ndarray, targets: list[list[Any]]) -> np.ndarray:
    """Whether each box (N, 4) reaches the IoU with any target of its row, (N,) bool."""
    right = np.zeros(len(targets), dtype=bool)
    for place in range(max(map(len, targets), default=0)):  # the first target of every row, then the second, ...
        filled = np.array([row[place] if place < len(row) else (0.0,) * 4 for row in targets])
        right |= (paired_iou(boxes, filled) >= RIGHT_FROM_IOU) & [place < len(row) for row in targets]
    return right


def count_targets(dataset: Dataset) -> np.ndarray:
    """(N,) how many things the expression of each row names."""
    return np.array([len(row) for row in _targets(dataset)])


def _targets(dataset: Dataset) -> list[list[Any]]:
    """Every target box of every row."""
    several = dataset["boxes"][:] if "boxes" in dataset.column_names else [None] * len(dataset)
    return [row or ([box] if box is not None else []) for row, box in zip(several, dataset["box"][:], strict=True)]
