"""Bootstrap intervals of ratios of sums.

Every figure of this package is a ratio of two sums over rows: accuracy is correct rows over rows, overall mask IoU is
shared pixels over covered pixels. Expressions of one image are not independent, so whole images are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

DEFAULT_RESAMPLES = 2000
_CHUNK_CELLS = 4_000_000  # resamples x clusters held at once: 32 MB


def ratio_intervals(
    numerators: np.ndarray,
    denominators: np.ndarray,
    clusters: Sequence,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> np.ndarray:
    """Percentile bootstrap interval of sum(numerators) / sum(denominators), for K figures at once.

    Args:
        numerators, denominators: (N, K), one row per expression.
        clusters: N hashable keys; rows of equal key are drawn together.
        resamples: how many sets are drawn, each of as many clusters as there are.
        seed: of the draw; the same seed gives the same interval.
        level: share of the resamples that the interval holds.

    Returns:
        (K, 2) low and high; NaN where no resample has a denominator above 0.
    """
    return _percentiles(_ratio_resamples(numerators, denominators, clusters, resamples, seed), level)


def ratio_difference_intervals(
    first: np.ndarray,
    second: np.ndarray,
    denominators: np.ndarray,
    clusters: Sequence,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> np.ndarray:
    """Interval of the difference, first minus second, of two figures measured on the same rows (paired).

    Args:
        first, second: (N, K) numerators of the two models, row by row on the same expressions.
        denominators: (N, K), common to both.
        clusters, resamples, seed, level: as in `ratio_intervals`.

    Returns:
        (K, 2) low and high.
    """
    return ratio_intervals(first - second, denominators, clusters, resamples, seed, level)


def _ratio_resamples(
    numerators: np.ndarray, denominators: np.ndarray, clusters: Sequence, resamples: int, seed: int
) -> np.ndarray:
    codes = _cluster_codes(clusters)
    n_clusters = int(codes.max()) + 1 if len(codes) else 0
    if n_clusters == 0:
        return np.full((resamples, numerators.shape[1]), np.nan)
    sums = [_cluster_sums(values, codes, n_clusters) for values in (numerators, denominators)]
    chunks = []
    for weights in _resample_weights(n_clusters, resamples, seed):
        tops, bottoms = weights @ sums[0], weights @ sums[1]  # (chunk, K) each
        chunks.append(np.divide(tops, bottoms, out=np.full_like(tops, np.nan), where=bottoms > 0))
    return np.concatenate(chunks)


def _cluster_codes(clusters: Sequence) -> np.ndarray:
    """Keys to 0, 1, ... in order of appearance, so that the draw does not depend on how keys sort."""
    known: dict = {}
    return np.array([known.setdefault(key, len(known)) for key in clusters], dtype=np.int64)


def _cluster_sums(values: np.ndarray, codes: np.ndarray, n_clusters: int) -> np.ndarray:
    sums = np.zeros((n_clusters, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def _resample_weights(n_clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster was drawn, (chunk, n_clusters) at a time."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n_clusters)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = generator.integers(0, n_clusters, size=(rows, n_clusters))
        drawn += np.arange(rows)[:, None] * n_clusters
        yield np.bincount(drawn.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters).astype(np.float64)


def _percentiles(samples: np.ndarray, level: float) -> np.ndarray:
    tail = 50.0 * (1.0 - level)
    intervals = np.full((samples.shape[1], 2), np.nan)
    for column in range(samples.shape[1]):
        values = samples[:, column]
        values = values[~np.isnan(values)]
        if len(values):
            intervals[column] = np.percentile(values, [tail, 100.0 - tail])
    return intervals
