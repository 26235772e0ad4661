"""Make a score mean what it says, the chance that the box is right, and decide from which score on a box is found.

A score is `sigmoid(scale * value + bias)` of one number: the logit of the trained head, or for weights that have no
head the difference of token similarity inside and outside the box. Scale and bias are fitted to rows that no training
saw (Platt's logistic fit); in the config the head's scale is `1 / score_temperature`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hivg_hf.data import NegativeRows
from hivg_hf.metrics import (
    balanced_threshold,
    base_rate_weights,
    expected_calibration_error,
    matthews_correlation,
    score_auc,
)
from hivg_hf.metrics.score_curves import FEWEST_TO_CALIBRATE
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor

from .scored_rows import AnsweredRows, ScoredRows, count_targets, measure_rows

# Without rows that name nothing there is nothing to find out about them: a box counts where it is likelier right.
EVEN_CHANCE = 0.5
# Weight of the prior scale 0, bias 0, in rows: keeps the fit finite where a threshold would separate all rows.
PRIOR_ROWS = 1.0


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it is worth on the rows that it was fitted to.

    Args:
        fields: config fields and their new values.
        rows, nothing, right: rows, those of them that name nothing, boxes that are right.
        given: boxes whose score reaches the threshold.
        base_rate: share of rows that name nothing for which it was fitted; None takes that of the rows.
        figures: `auc`, `calibration_error_before`, `calibration_error`, and at the threshold `precision` (share of
            boxes given that are right), `answered`, with rows of both kinds `n_acc`, `t_acc` and `mcc`, and with rows
            of several targets `exact` (share of all rows that get one box for each target and no more).
    """

    fields: dict[str, float | None]
    rows: int
    nothing: int
    right: int
    given: int
    base_rate: float | None
    figures: dict[str, float] = field(default_factory=dict)


def calibrate_score(
    model: HiVGForVisualGrounding,
    processor: HiVGProcessor,
    dataset: Dataset,
    precision: float | None = None,
    base_rate: float | None = None,
    batch_size: int = 16,
) -> Calibration:
    """Fit a model's score and choose its threshold on rows with known boxes, and set both in its config.

    Use rows that no training saw, and save the model afterwards. The threshold is the lowest one with the precision
    that is asked for; else that at which the smaller of N-acc and T-acc is largest; else, where every row has a
    target, 0.5. Of a model with several queries, rows of several targets choose the threshold of further boxes
    (`multiple_threshold`: most rows exact) and nothing else; without such rows an older one is moved so that it lets
    the same boxes through.

    Args:
        model: with a trained head or a similarity score.
        processor: the processor saved with it.
        dataset: rows of the schema (of `NegativeRows`, the first epoch's); 50 at the least, a few hundred with and
            without a target are better.
        precision: wanted share of right boxes among those that are given, 0 to 1.
        base_rate: expected share of expressions that name nothing. Rows are weighted so that they stand for it; this
            needs rows of both kinds. Default: as in the rows.
        batch_size: rows per pass.

    Returns:
        What was fitted. Nothing is changed where this raises.

    Raises:
        ValueError: the model computes in half precision, there are too few rows, all boxes are right or all wrong,
            the rows have no score that a head could give, cannot stand for the base rate, or no threshold has the
            precision.
    """
    if isinstance(dataset, NegativeRows):
        dataset = dataset.table()
    if len(dataset) < FEWEST_TO_CALIBRATE:
        raise ValueError(f"Calibration needs at least {FEWEST_TO_CALIBRATE} rows, got {len(dataset)}.")
    if precision is not None and not 0 < precision <= 1:
        raise ValueError(f"The precision must be above 0 and at most 1, got {precision}.")
    if base_rate is not None and not 0 <= base_rate < 1:
        raise ValueError(f"The base rate must be from 0 to below 1, got {base_rate}.")
    if model.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"This model computes in {model.dtype}, which is too coarse to read its scores back: call model.float() "
            "and calibrate then; what is fitted holds for both."
        )
    config = model.config
    before = _scale_and_bias(config)
    _check_targets(count_targets(dataset), config.num_queries > 1, base_rate)  # now, not after minutes of work
    rows, answered = measure_rows(model, processor, dataset, batch_size)
    found = fit_score(rows, config.score, precision, base_rate, before, answered, config.multiple_threshold)
    for name, value in found.fields.items():
        setattr(config, name, value)
    return found


def _check_targets(targets: np.ndarray, several: bool, base_rate: float | None) -> None:
    """Refuse rows that cannot be fitted whatever the model answers; `targets` (N,) counts what each row names."""
    counted = targets[targets <= 1] if several else targets
    if len(counted) < FEWEST_TO_CALIBRATE:
        raise ValueError(
            f"Calibration needs at least {FEWEST_TO_CALIBRATE} rows that name one thing or nothing, got "
            f"{len(counted)} and {len(targets) - len(counted)} that name several: give more such rows (--data)."
        )
    if not counted.any():
        which = f"of these {len(targets)} rows" + (
            " that do not name several things" if len(counted) < len(targets) else ""
        )
        raise ValueError(f"None {which} has a target, so that no box can be right: add rows that name one thing.")
    if base_rate is not None:
        base_rate_weights(counted == 0, base_rate)


def fit_score(
    rows: ScoredRows,
    kind: str,
    precision: float | None = None,
    base_rate: float | None = None,
    before: tuple[float, float] = (1.0, 0.0),
    answered: AnsweredRows | None = None,
    multiple_threshold: float | None = None,
) -> Calibration:
    """`calibrate_score` on rows that are scored already.

    Args:
        rows: the rows.
        kind: `"head"` or `"similarity"`.
        precision, base_rate: as in `calibrate_score`.
        before: scale and bias until now.
        answered: with all their boxes, rows of a model with several queries.
        multiple_threshold: that of the scores until now; without rows of several targets it is moved to stand
            for the same boxes.
    """
    weights = np.ones(len(rows.values)) if base_rate is None else base_rate_weights(rows.nothing, base_rate)
    scale, bias = fit_logistic(rows.values, rows.right, weights=weights)
    if scale <= 0:  # a negative one would turn the order of all scores round
        untrained = "score head is not trained for them" if kind == "head" else "similarity says nothing about them"
        raise ValueError(
            f"On these {len(rows.values)} rows right boxes score no higher than wrong ones: the {untrained}. Train "
            "the model first, or calibrate on rows like those of its training."
        )
    if _log_loss(rows, before, weights) <= _log_loss(rows, (scale, bias), weights):
        scale, bias = before  # few wrong boxes, say: what was known already fits these rows as well
    scores, earlier = _sigmoid(scale * rows.values + bias), _sigmoid(before[0] * rows.values + before[1])
    threshold = _choose(scores, rows, weights, precision)
    fields: dict[str, float | None] = {"score_similarity_scale": scale, "score_similarity_bias": bias}
    if kind == "head":
        fields = {"score_temperature": 1 / scale, "score_bias": bias}
    fields["score_threshold"] = threshold
    given = scores >= threshold
    figures = {
        "auc": score_auc(scores, rows.right, weights),
        "calibration_error_before": expected_calibration_error(earlier, rows.right, weights=weights),
        "calibration_error": expected_calibration_error(scores, rows.right, weights=weights),
        "precision": _precision(rows.right[given], weights[given]),
        "answered": float(weights[given].sum() / weights.sum()),
    }
    if rows.nothing.any() and not rows.nothing.all():
        figures |= {"n_acc": float((~given)[rows.nothing].mean()), "t_acc": float(given[~rows.nothing].mean())}
        figures["mcc"] = matthews_correlation(given, ~rows.nothing, weights)
    if answered is not None:
        fields["multiple_threshold"] = _carried(multiple_threshold, before, (scale, bias))
        if (answered.targets > 1).any():
            each = [_sigmoid(scale * values + bias) for values in answered.values]
            fields["multiple_threshold"], figures["exact"] = _choose_further(each, answered, threshold)
    counts = {"rows": len(scores), "nothing": int(rows.nothing.sum())}
    counts |= {"right": int(rows.right.sum()), "given": int(given.sum())}
    return Calibration(fields, **counts, base_rate=base_rate, figures=figures)


def fit_logistic(
    values: np.ndarray, right: np.ndarray, steps: int = 50, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Scale and bias for which `sigmoid(scale * value + bias)` is the likeliest chance of `right`, by Newton's method.

    Args:
        values: (N,) any real numbers.
        right: (N,) bool.
        steps: at most so many Newton steps; a handful are enough.
        weights: (N,) of the rows; None counts each once.

    Raises:
        ValueError: all are right or all are wrong.
    """
    right = np.asarray(right, dtype=bool)
    weights = np.ones(len(right)) if weights is None else np.asarray(weights, dtype=np.float64)
    counted = right[weights > 0]
    if counted.all() or not counted.any():
        kind, advice = "wrong", "train the model first, or see whether the rows' boxes mean what was said"
        if counted.all():
            kind, advice = "right", "add rows that are harder, or that name nothing"
        raise ValueError(f"All {len(counted)} boxes are {kind}: a score cannot be fitted; {advice}.")
    values = np.asarray(values, dtype=np.float64)
    center, spread = values.mean(), max(values.std(), 1e-12)
    design = np.stack([(values - center) / spread, np.ones_like(values)], axis=1)  # (N, 2)
    solution = np.zeros(2)
    for _ in range(steps):
        chance = _sigmoid(design @ solution)
        gradient = design.T @ (weights * (chance - right)) + PRIOR_ROWS * solution
        curvature = (design * (weights * chance * (1 - chance))[:, None]).T @ design + PRIOR_ROWS * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        solution -= step
        if np.abs(step).max() < 1e-10:
            break
    scale = solution[0] / spread
    return float(scale), float(solution[1] - scale * center)


def _log_loss(rows: ScoredRows, line: tuple[float, float], weights: np.ndarray) -> float:
    """Mean negative log likelihood of which boxes are right, by `sigmoid(scale * value + bias)`."""
    signed = np.where(rows.right, 1, -1) * (line[0] * rows.values + line[1])
    return float((weights * np.logaddexp(0, -signed)).sum() / weights.sum())


def _choose(scores: np.ndarray, rows: ScoredRows, weights: np.ndarray, precision: float | None) -> float:
    """The threshold; see `calibrate_score`."""
    if precision is None:
        mixed = rows.nothing.any() and not rows.nothing.all()
        return balanced_threshold(scores, rows.nothing) if mixed else EVEN_CHANCE
    levels, places = np.unique(scores, return_inverse=True)
    given, right = (
        np.cumsum(np.bincount(places, weights=weights * counted, minlength=len(levels))[::-1])[::-1]
        for counted in (np.ones(len(scores)), rows.right)
    )  # (L,) each, of all scores from a level on
    reached = right / np.maximum(given, 1e-12)
    if not (reached >= precision).any():
        best = int(np.argmax(reached))
        raise ValueError(
            f"No threshold has a precision of {precision} on these {len(scores)} rows: the highest is "
            f"{reached[best]:.3f}, from a score of {levels[best]:.3f} on."
        )
    place = int(np.argmax(reached >= precision))
    return float((levels[place - 1] + levels[place]) / 2 if place else levels[0])


def _carried(threshold: float | None, before: tuple[float, float], after: tuple[float, float]) -> float | None:
    """The threshold of the new scores that lets the same boxes through as one of the old scores did."""
    if threshold is None or not 0 < threshold < 1:  # None, or one that lets all or nothing through
        return threshold
    value = (math.log(threshold / (1 - threshold)) - before[1]) / before[0]
    return float(_sigmoid(np.array(after[0] * value + after[1])))


def _choose_further(scores: list[np.ndarray], rows: AnsweredRows, threshold: float) -> tuple[float, float]:
    """The threshold of further boxes with most rows exact, and their share, where the best need `threshold`.

    Of a row with T targets, exactly T boxes are given while it lies above the score of box T + 1 and not above that of
    box T; the first one is given anyhow.
    """
    given = np.array([len(each) > 0 and each[0] >= threshold for each in scores])
    high = np.array(
        [1.0 if count == 1 else each[count - 1 : count].sum() for each, count in zip(scores, rows.targets)]
    )
    low = np.array([each[count : count + 1].sum() for each, count in zip(scores, rows.targets)])
    possible = given & rows.exact & (rows.targets > 0)
    levels = np.unique(np.concatenate([[0.0, 1.0], low[possible], high[possible]]))
    candidates = (levels[:-1] + levels[1:]) / 2
    # Rows whose `low` lies below a candidate, without those whose `high` does, too.
    right = np.searchsorted(np.sort(low[possible]), candidates) - np.searchsorted(np.sort(high[possible]), candidates)
    best = int(np.argmax(right))
    silent = int((~given & (rows.targets == 0)).sum())  # nothing said of nothing
    return float(candidates[best]), float((right[best] + silent) / len(scores))


def _precision(right: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * right).sum() / weights.sum()) if weights.sum() else 0.0


def _scale_and_bias(config: Any) -> tuple[float, float]:
    if config.score == "head":
        return 1 / config.score_temperature, config.score_bias
    return config.score_similarity_scale, config.score_similarity_bias


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -500, 500)))
