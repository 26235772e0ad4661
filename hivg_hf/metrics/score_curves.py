"""What a score is worth as a probability and as a ground for staying silent, at any expected share of empty questions.

Every function takes weights, so that rows in which half of the expressions name nothing can stand for a use in which a
tenth do: `base_rate_weights` gives them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FEWEST_TO_CALIBRATE = 50  # rows that a score is fitted to


def base_rate_weights(no_target: np.ndarray, base_rate: float) -> np.ndarray:
    """A weight for each row with which a share of `base_rate` of all weight falls on rows without a target.

    Args:
        no_target: (N,) bool, True where the expression names nothing in the picture.
        base_rate: the share expected in use, 0 to below 1.

    Returns:
        (N,) with mean 1.

    Raises:
        ValueError: the rate is out of range, or no row is of a kind that it needs.
    """
    no_target = np.asarray(no_target, dtype=bool)
    if not 0 <= base_rate < 1:
        raise ValueError(f"The base rate of expressions that name nothing must be from 0 to below 1, got {base_rate}.")
    share = no_target.mean() if len(no_target) else 0.0
    if share == 1 or (share == 0 and base_rate > 0):
        kind = "that names something" if share == 1 else "without a target"
        raise ValueError(
            f"A base rate of {base_rate} needs rows of both kinds; none of these {len(no_target)} {kind}."
        )
    return np.where(no_target, base_rate / share if share else 0.0, (1 - base_rate) / (1 - share))


def reliability_bins(
    scores: np.ndarray, correct: np.ndarray, bins: int = 10, weights: np.ndarray | None = None
) -> list[dict[str, float]]:
    """A reliability diagram: mean score and share of right boxes in equally wide bins, empty ones left out.

    Args:
        scores: (N,) in 0..1.
        correct: (N,) bool.
        bins: number of bins between 0 and 1.
        weights: (N,) of the rows; None counts each once.

    Returns:
        For each bin `low`, `high`, `score`, `accuracy`, and `share` of all weight.
    """
    scores, correct, weights = _columns(scores, correct, weights)
    places = np.clip((scores * bins).astype(int), 0, bins - 1)
    total, score, right = (
        np.bincount(places, weights=weights * values, minlength=bins)
        for values in (np.ones(len(scores)), scores, correct)
    )
    return [
        {
            **{"low": place / bins, "high": (place + 1) / bins},
            **{"score": float(score[place] / total[place]), "accuracy": float(right[place] / total[place])},
            "share": float(total[place] / total.sum()),
        }
        for place in np.flatnonzero(total)
    ]


def expected_calibration_error(
    scores: np.ndarray, correct: np.ndarray, bins: int = 10, weights: np.ndarray | None = None
) -> float:
    """Mean distance between score and accuracy over equally wide bins, weighted by their rows (Guo et al., 2017).

    Args:
        scores, correct, bins, weights: as in `reliability_bins`.
    """
    found = reliability_bins(scores, correct, bins, weights)
    return float(sum(entry["share"] * abs(entry["accuracy"] - entry["score"]) for entry in found))


def risk_coverage(
    scores: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of answers given, and share of those that are wrong, when the least sure ones are withheld.

    Args:
        scores, correct, weights: as in `reliability_bins`.

    Returns:
        Coverage (L,), rising to 1, and risk (L,), one entry for each of L different scores, the highest first.
    """
    scores, correct, weights = _columns(scores, correct, weights)
    levels, places = np.unique(-scores, return_inverse=True)
    given = np.cumsum(np.bincount(places, weights=weights, minlength=len(levels)))
    wrong = np.cumsum(np.bincount(places, weights=weights * (1 - correct), minlength=len(levels)))
    known = given > 0
    return given[known] / given[-1], wrong[known] / given[known]


def area_under_risk_coverage(scores: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> float:
    """AURC (Geifman et al., 2019): the risk, averaged over all coverages; 0 where nothing is wrong, lower is better.

    Rows of equal score are given together, each at the risk of all of them: an order of rows within a tie, which the
    score does not say, changes nothing.
    """
    coverage, risk = risk_coverage(scores, correct, weights)
    return float((np.diff(coverage, prepend=0.0) * risk).sum())


def matthews_correlation(answered: np.ndarray, has_target: np.ndarray, weights: np.ndarray | None = None) -> float:
    """MCC of "an answer is given" with "there is something": 1 perfect, 0 as good as guessing, at any base rate.

    Args:
        answered: (N,) bool.
        has_target: (N,) bool.
        weights: (N,) of the rows; None counts each once.

    Returns:
        -1 to 1; 0 where all rows are answered, or none, or all are of one kind.
    """
    answered, has_target, weights = _columns(answered, has_target, weights)
    both = (weights * answered * has_target).sum() / weights.sum()
    first, second = (float((weights * values).sum() / weights.sum()) for values in (answered, has_target))
    spread = first * (1 - first) * second * (1 - second)
    return float((both - first * second) / np.sqrt(spread)) if spread > 0 else 0.0


def score_report(
    scores: np.ndarray, correct: np.ndarray, no_target: np.ndarray, base_rate: float | None = None
) -> dict[str, Any]:
    """Calibration and selection at one share of expressions that name nothing, or as the rows are.

    Returns:
        `rate` of rows without target, `calibration_error`, `aurc`, `bins` of the reliability diagram, and `curve`: the
        risk at coverages 0.1 to 1.
    """
    weights = None if base_rate is None else base_rate_weights(no_target, base_rate)
    coverage, risk = risk_coverage(scores, correct, weights)
    tenths = np.arange(1, 11) / 10
    return {
        "rate": float(np.mean(no_target)) if base_rate is None else float(base_rate),
        "calibration_error": expected_calibration_error(scores, correct, weights=weights),
        "aurc": area_under_risk_coverage(scores, correct, weights),
        "bins": reliability_bins(scores, correct, weights=weights),
        "curve": [
            {"coverage": float(share), "risk": float(risk[min(place, len(risk) - 1)])}
            for share, place in zip(tenths, np.searchsorted(coverage, tenths - 1e-9), strict=True)
        ],
    }


def _columns(
    first: np.ndarray, second: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As float64, with a weight of 1 for each row where there are none."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(first):
        raise ValueError("No rows: what a score is worth is measured on some.")
    return first, second, np.ones(len(first)) if weights is None else np.asarray(weights, dtype=np.float64)
