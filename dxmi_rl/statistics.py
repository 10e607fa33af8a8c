"""Scores of runs: interquartile mean and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxmi_rl.checks import NonFiniteError, check_integer, check_real


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the scores left after int(n / 4) are dropped at either end, over all runs and tasks together.

    With 3 runs this is the mean, with 5 the mean of the middle three, as in rliable and
    ``scipy.stats.trim_mean(scores, 0.25, axis=None)``. Raises ValueError when scores are empty or not finite.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
    """
    return _interquartile_mean(_check_scores(scores))


def _interquartile_mean(scores: NDArray[np.float64]) -> float:
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float] = _interquartile_mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of runs, stratified by task.

    Args:
        scores: ``[runs]`` or ``[runs, tasks]``; the runs of each task are resampled independently.
        statistic: function of an array of the shape of ``scores``; the interquartile mean by default.
        level: coverage aimed at, in (0, 1). With 3 to 5 runs the true coverage is lower.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Returns:
        (low, high).

    Raises:
        TypeError, ValueError: for scores that are empty, not finite or of more than two dimensions, or a bad level.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
    """
    values = _check_scores(scores)
    if values.ndim not in (1, 2):
        raise ValueError(f"scores must have shape [runs] or [runs, tasks], got {list(values.shape)}.")
    if not check_real("level", level, strict=True) < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}.")
    generator = np.random.default_rng(seed)
    indices = generator.integers(len(values), size=(check_integer("resamples", resamples), *values.shape))
    columns = np.arange(values.shape[1]) if values.ndim == 2 else None
    draws = [statistic(values[index] if columns is None else values[index, columns]) for index in indices]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_scores(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"scores must be a non-empty array, got shape {list(values.shape)}.")
    if not np.isfinite(values).all():
        raise NonFiniteError(f"scores must be finite: {int((~np.isfinite(values)).sum())} of {values.size} are not.")
    return values
