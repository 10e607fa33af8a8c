"""Statistics of benchmark scores: aggregates over runs and tasks, their confidence intervals, comparisons of agents.

Scores are arrays ``[runs]`` or ``[runs, tasks]``, one number per training run. All intervals are about repeating the
runs on the same tasks. docs/statistics.md says which interval is used when, why, and how often it covers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from dxmi_rl.benchmark.comparisons import WelchTest, probability_of_improvement, welch_t_test
from dxmi_rl.benchmark.intervals import (
    FEWEST_RUNS_FOR_PERCENTILES,
    Floats,
    Interval,
    bootstrap_bounds,
    check_array,
    check_level,
    checked_statistic,
    degrees_of_freedom,
    resample,
    resampled_statistic,
)
from dxmi_rl.utils.checks import check_real

__all__ = [
    "Interval",
    "WelchTest",
    "bootstrap_interval",
    "curve_band",
    "interquartile_mean",
    "interval",
    "median",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "welch_t_test",
]

# Aggregates -----------------------------------------------------------------------------------------------------------


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the scores left after int(n / 4) are dropped at either end, over all runs and tasks together.

    With 3 runs this is the mean, with 5 the mean of the middle three, as in rliable and
    ``scipy.stats.trim_mean(scores, 0.25, axis=None)``. Scores of several tasks are pooled, so they must be normalised.

    Raises:
        TypeError, ValueError: for scores that are no numbers, empty, not finite or not ``[runs]`` or ``[runs, tasks]``.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
    """
    return float(_interquartile_mean(check_array("scores", scores).ravel()))


def median(scores: ArrayLike) -> float:
    """Median over tasks of every task's mean over runs, as in rliable; with ``[runs]``, the median over runs.

    Raises:
        TypeError, ValueError: for scores that are no numbers, empty, not finite or not ``[runs]`` or ``[runs, tasks]``.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
    """
    return float(_medians(check_array("scores", scores)[None])[0])


def optimality_gap(scores: ArrayLike, goal: float = 1.0) -> float:
    """Mean over runs and tasks of how far a score falls short of ``goal``: goal - mean(min(score, goal)), at least 0.

    Raises:
        TypeError, ValueError: for scores that are no numbers, empty, not finite or not ``[runs]`` or ``[runs, tasks]``,
            or a goal that is not a finite number.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
    """
    values = check_array("scores", scores)
    return float(np.maximum(check_real("goal", goal, -np.inf) - values, 0.0).mean())


def _interquartile_mean(values: Floats) -> Floats:
    """Of the last dimension."""
    count = values.shape[-1]
    cut = count // 4
    middle: Floats = np.sort(values, axis=-1)[..., cut : count - cut]
    return np.asarray(middle.mean(axis=-1))


def _medians(samples: Floats) -> Floats:
    return np.median(samples if samples.ndim == 2 else samples.mean(axis=1), axis=1)


def _flat(samples: Floats) -> Floats:
    return samples.reshape(len(samples), -1)


_BATCHED: tuple[tuple[Callable[..., float], Callable[[Floats], Floats]], ...] = (
    (interquartile_mean, lambda samples: _interquartile_mean(_flat(samples))),
    (median, _medians),
    (optimality_gap, lambda samples: np.maximum(1.0 - _flat(samples), 0.0).mean(axis=1)),
    (np.mean, lambda samples: _flat(samples).mean(axis=1)),
    (np.median, lambda samples: np.median(_flat(samples), axis=1)),
)
"""Statistics with a version that takes all resamples at once, along a first dimension."""


# Intervals ------------------------------------------------------------------------------------------------------------


def interval(
    scores: ArrayLike,
    statistic: Callable[[Floats], float] = interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Confidence interval of a statistic of runs; None with a single run per task.

    The bootstrap is stratified: the runs of every task are resampled independently. With R runs per task, K tasks and
    t(nu) the quantile at (1 + level) / 2 of Student's t with nu degrees of freedom:

        2 <= R <= 9   estimate -+ c t(nu) SD, SD the standard deviation of the resampled statistic and nu = R - 1 for
                      one task, Welch's degrees of freedom for several
        R >= 10       the quantiles of the resampled statistic at Phi(-c t(R - 1)) and Phi(c t(R - 1))

    c = sqrt(R / (R - 1)) makes up for the variance of a resample being (R - 1) / R of the runs'. It is 1 for the
    interquartile mean of one task from 4 runs on and of several from 10 on: trimming makes its bootstrap variance
    large enough. For the mean of one task below 10 runs this is Student's interval up to the error of resampling,
    2 % of the width at 2,000 resamples. The interval encloses the statistic of the scores; other tasks are not its
    subject.

    Args:
        scores: ``[runs]`` or ``[runs, tasks]``.
        statistic: function of an array of the shape of ``scores``. This module's, ``np.mean`` and ``np.median`` are
            evaluated for all resamples at once, others one by one.
        level: coverage aimed at, in (0, 1).
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Raises:
        TypeError, ValueError: for bad scores (see ``interquartile_mean``), level, resamples or seed, or a statistic
            that does not return one finite number.

    Sources: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice (stratified bootstrap); Hesterberg
    2015, What teachers should know about the bootstrap (c, expanded percentiles); Welch 1947 (degrees of freedom).
    Which goes with how many runs, and where c is 1, was decided by simulation: benchmarks/compare/interval_coverage.py.
    """
    values = check_array("scores", scores)
    check_level(level)
    runs, tasks = len(values), values.shape[1] if values.ndim == 2 else 1
    indices = resample(runs, tasks, resamples, seed)
    estimate = checked_statistic(statistic, values)
    if runs == 1:
        return None
    draws = _draws(values, statistic, indices)
    trimmed = statistic is interquartile_mean and runs >= (4 if tasks == 1 else FEWEST_RUNS_FOR_PERCENTILES)
    freedom = degrees_of_freedom(indices, draws) if runs < FEWEST_RUNS_FOR_PERCENTILES else None
    low, high, method = bootstrap_bounds(draws, estimate, runs, level, freedom, trimmed=trimmed)
    return Interval(float(low), float(high), method)


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[[Floats], float] = interquartile_mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of runs, stratified by task, as in rliable: too short for few runs.

    Args:
        scores: ``[runs]`` or ``[runs, tasks]``; the runs of each task are resampled independently.
        statistic: function of an array of the shape of ``scores``; the interquartile mean by default.
        level: coverage aimed at, in (0, 1). ``interval`` has it, this one has less: 0.75 with 3 runs of one task.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Returns:
        (low, high).

    Raises:
        TypeError, ValueError: as ``interval``.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
    """
    values = check_array("scores", scores)
    check_level(level)
    indices = resample(len(values), values.shape[1] if values.ndim == 2 else 1, resamples, seed)
    low, high = np.quantile(_draws(values, statistic, indices), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draws(values: Floats, statistic: Callable[[Floats], float], indices: np.ndarray) -> Floats:
    batched = next((version for known, version in _BATCHED if known is statistic), None)
    return resampled_statistic(values, indices, statistic, batched)


def curve_band(
    curves: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Interquartile mean of learning curves with its interval at every point: ``(middle, low, high)``, each [points].

    Each point has the ``interval`` of its runs, by itself: the band covers a point with probability ``level``, not
    the whole curve. The same resamples of runs serve all points. With one run all three are the curve.

    Args:
        curves: ``[runs, points]``.
        level: coverage aimed at, in (0, 1).
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Raises:
        TypeError, ValueError: for bad curves, level, resamples or seed.
    """
    values = np.ascontiguousarray(check_array("curves", curves, ["runs, points"]).T)
    check_level(level)
    runs = values.shape[1]
    indices = resample(runs, 1, resamples, seed)[..., 0]
    middle = _interquartile_mean(values)
    if runs == 1:
        return middle, middle.copy(), middle.copy()
    low, high = np.empty_like(middle), np.empty_like(middle)
    for point, scores in enumerate(values):
        draws = _interquartile_mean(scores[indices])
        low[point], high[point], _ = bootstrap_bounds(draws, middle[point], runs, level, None, trimmed=runs >= 4)
    return middle, low, high


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """Fraction of runs, averaged over tasks, that score above each threshold: ``(profile, low, high)``.

    The bounds are percentiles of the stratified bootstrap, threshold by threshold. They have no width where all runs
    are on one side of a threshold, however few they are: below 10 runs read them as a sketch.

    Args:
        scores: ``[runs]`` or ``[runs, tasks]``.
        thresholds: ``[thresholds]``.
        level: coverage aimed at, in (0, 1).
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Raises:
        TypeError, ValueError: for bad scores, thresholds, level, resamples or seed.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice (run-score distributions).
    """
    values = check_array("scores", scores)
    values = values.reshape(len(values), -1)
    limits = check_array("thresholds", thresholds, ["thresholds"])
    check_level(level)
    indices = resample(*values.shape, resamples, seed)
    places = indices * values.shape[1] + np.arange(values.shape[1]) + values.size * np.arange(resamples)[:, None, None]
    counts = np.bincount(places.ravel(), minlength=resamples * values.size).reshape(resamples, values.size)
    above = (values.reshape(-1, 1) > limits).astype(np.float64)
    profile = above.mean(axis=0)
    low, high = np.quantile(counts @ above / values.size, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return profile, np.minimum(low, profile), np.maximum(high, profile)
