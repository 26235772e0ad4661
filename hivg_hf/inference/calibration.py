"""Make the similarity score of a model without a score head mean what it says: the chance that its box is right."""

import math
from typing import Any

import numpy as np
from datasets import Dataset, Image

from hivg_hf.metrics.overlaps import paired_iou
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.modeling.processing_hivg import HiVGProcessor

RIGHT_FROM_IOU = 0.5
FEWEST_ROWS = 20
# While the difference of similarities is read back from the score, it must not drive the sigmoid into its flat ends.
PROBE_SCALE = 0.01
# Weight of the prior scale 0, bias 0, in rows: keeps the fit finite where a threshold would separate all rows.
PRIOR_ROWS = 1.0


def calibrate_similarity_score(
    model: HiVGForVisualGrounding, processor: HiVGProcessor, dataset: Dataset, batch_size: int = 16
) -> tuple[float, float]:
    """Fit `score_similarity_scale` and `score_similarity_bias` on rows with known boxes, and set them in the config.

    Platt's logistic fit of "the box is right" (IoU at least 0.5; never for rows without a target) on the difference
    between the mean token similarity inside and outside the predicted box. Use rows that no training saw, and save the
    model afterwards.

    Args:
        model: with `config.score == "similarity"`.
        processor: the processor saved with it.
        dataset: rows of the schema; a few hundred are enough.
        batch_size: rows per pass.

    Returns:
        (scale, bias).

    Raises:
        ValueError: the model has a score head, there are too few rows, or all boxes are right or all wrong.
    """
    config = model.config
    if config.score != "similarity":
        raise ValueError("This model has a trained score head; only a similarity score can be calibrated.")
    if len(dataset) < FEWEST_ROWS:
        raise ValueError(f"Calibration needs at least {FEWEST_ROWS} rows, got {len(dataset)}.")
    before = config.score_similarity_scale, config.score_similarity_bias
    config.score_similarity_scale, config.score_similarity_bias = PROBE_SCALE, 0.0
    try:
        differences, right = _measure(VisualGroundingPipeline(model, processor=processor), dataset, batch_size)
        fitted = fit_logistic(differences, right)
    except BaseException:
        config.score_similarity_scale, config.score_similarity_bias = before
        raise
    config.score_similarity_scale, config.score_similarity_bias = fitted
    return fitted


def fit_logistic(values: np.ndarray, right: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Scale and bias for which `sigmoid(scale * value + bias)` is the likeliest chance of `right`, by Newton's method.

    Args:
        values: (N,) any real numbers.
        right: (N,) bool.
        steps: at most so many Newton steps; a handful are enough.

    Raises:
        ValueError: all are right or all are wrong.
    """
    right = np.asarray(right, dtype=bool)
    if right.all() or not right.any():
        raise ValueError(
            f"All {len(right)} boxes are {'right' if right.all() else 'wrong'}: a score cannot be fitted."
        )
    values = np.asarray(values, dtype=np.float64)
    centre, spread = values.mean(), max(values.std(), 1e-12)
    design = np.stack([(values - centre) / spread, np.ones_like(values)], axis=1)  # (N, 2)
    weights = np.zeros(2)
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        gradient = design.T @ (chance - right) + PRIOR_ROWS * weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + PRIOR_ROWS * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    scale = weights[0] / spread
    return float(scale), float(weights[1] - scale * centre)


def _measure(pipe: VisualGroundingPipeline, dataset: Dataset, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of similarities (N,), and whether each box is right (N,)."""
    asked = dataset.select_columns(["image", "expression"]).cast_column("image", Image(decode=False))
    logits, boxes = [], []
    for result in pipe(asked, batch_size=batch_size):
        logits.append(math.log(result["score"] / (1 - result["score"])))
        boxes.append(list(result["box"].values()))
    targets: list[Any] = dataset["box"][:]
    known = np.array([target is not None for target in targets])
    filled = np.array([target if target is not None else (0.0, 0.0, 0.0, 0.0) for target in targets])
    right = (paired_iou(np.array(boxes), filled) >= RIGHT_FROM_IOU) & known
    return np.array(logits) / PROBE_SCALE, right
