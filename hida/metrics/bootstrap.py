"""Percentile bootstrap intervals of means (Efron, 1979)."""

from __future__ import annotations

import numpy as np

_CHUNK = 256  # resamples drawn at once, so that memory stays small for thousands of images


def mean_interval(
    values: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Compute the interval of the mean of each column of (N, K) ``values``, from the same resamples for all columns.

    Returns:
        (low, high), each (K,); None for fewer than two rows, since one image says nothing of the spread.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return None
    draw = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _CHUNK):
        rows = draw.integers(0, len(values), (min(_CHUNK, resamples - start), len(values)))
        # One column at a time: a gathered column stays in the cache.
        means.append(np.stack([column[rows].mean(1) for column in np.ascontiguousarray(values.T)], 1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
