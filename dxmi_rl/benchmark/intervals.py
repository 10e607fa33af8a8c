"""What ``statistics`` is built of: stratified resampling and its bounds, score bounds of the Mann-Whitney statistic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtrit

from dxmi_rl.utils.checks import NonFiniteError, check_integer, check_real

Floats = NDArray[np.float64]
FEWEST_RUNS_FOR_PERCENTILES = 10
"""With fewer, quantiles of the resampled statistic are too coarse: at 3 runs its tails hold 1/27 each."""
T_INTERVAL = "t interval, bootstrap standard error"
EXPANDED_PERCENTILE = "expanded percentile bootstrap"
SCORE_INTERVAL = "Newcombe score interval, t quantile"
COMBINED_SCORE_INTERVAL = "MOVER of Newcombe score intervals, t quantile"


class Interval(NamedTuple):
    """A confidence interval and the method behind it."""

    low: float
    high: float
    method: str
    """A label to print, such as "t interval, bootstrap standard error"."""


# Checks ---------------------------------------------------------------------------------------------------------------


def check_level(level: float) -> float:
    """Return ``level`` as a float; raises TypeError or ValueError unless it lies strictly between 0 and 1."""
    number = check_real("level", level, strict=True)
    if not number < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}.")
    return number


def check_array(name: str, values: ArrayLike, shapes: Sequence[str] = ("runs", "runs, tasks")) -> Floats:
    """Return ``values`` as finite floats of one of the named ``shapes``.

    Raises TypeError when they are not numbers, ValueError when empty or of another shape, NonFiniteError for NaN and
    infinities.
    """
    allowed = " or ".join(f"[{shape}]" for shape in shapes)
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be real numbers of shape {allowed}, got {values!r}.") from error
    if array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of shape {allowed}, got shape {list(array.shape)}.")
    if array.ndim not in {shape.count(",") + 1 for shape in shapes}:
        raise ValueError(f"{name} must have shape {allowed}, got {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name} must be finite: {int((~np.isfinite(array)).sum())} of {array.size} are not.")
    return array


# The stratified bootstrap ---------------------------------------------------------------------------------------------


def resample(runs: int, tasks: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Runs drawn with replacement, independently within every task: indices ``[resamples, runs, tasks]``."""
    check_integer("resamples", resamples)
    generator = np.random.default_rng(check_integer("seed", seed, minimum=0))
    return generator.integers(runs, size=(resamples, runs, tasks))


def resampled_statistic(
    values: Floats,
    indices: NDArray[np.int64],
    statistic: Callable[[Floats], float],
    batched: Callable[[Floats], Floats] | None,
) -> Floats:
    """The statistic of every resample of ``values`` ``[runs]`` or ``[runs, tasks]``: ``[resamples]``.

    ``batched`` is its version for all resamples at once, along a first dimension. Raises TypeError when the statistic
    is not one number and NonFiniteError when it is not finite.
    """
    samples = values[indices[..., 0]] if values.ndim == 1 else values[indices, np.arange(values.shape[1])]
    if batched is not None:
        return batched(samples)
    return np.array([checked_statistic(statistic, sample) for sample in samples])


def checked_statistic(statistic: Callable[[Floats], float], values: Floats) -> float:
    """The statistic as a float; raises TypeError unless it is one number, NonFiniteError unless that is finite."""
    result = statistic(values)
    try:
        number = float(result)
    except (TypeError, ValueError) as error:
        raise TypeError(f"statistic must return one number, got {result!r}.") from error
    if not np.isfinite(number):
        raise NonFiniteError(f"statistic must be finite on every resample, got {number}.")
    return number


def degrees_of_freedom(indices: NDArray[np.int64], draws: Floats) -> float:
    """Degrees of freedom of the bootstrap variance of a statistic of several tasks, between R - 1 and K (R - 1).

    With R runs and K tasks, the share of task k in the variance is its infinitesimal-jackknife estimate
    V_k = sum_i cov(N_ik, statistic)^2, N_ik being how often run i of task k is drawn, and

        degrees of freedom = (sum_k V_k)^2 / sum_k (V_k^2 / (R + 1)) - 2

    is Welch's approximation, whose -2 and +2 allow for V_k being estimated on R - 1 degrees of freedom themselves.

    Sources: Welch 1947, The generalization of "Student's" problem when several different population variances are
    involved; Efron 2014, Estimation and accuracy after model selection (theorem 1).
    """
    resamples, runs, tasks = indices.shape
    fewest = runs - 1
    if tasks == 1:
        return float(fewest)
    weights = np.broadcast_to((draws - draws.mean())[:, None, None], indices.shape)
    places = indices * tasks + np.arange(tasks)
    covariance = np.bincount(places.ravel(), weights.ravel(), minlength=runs * tasks) / resamples
    variances = (covariance.reshape(runs, tasks) ** 2).sum(axis=0)
    largest = variances.max()
    if largest == 0:
        return float(fewest)
    shares = variances / largest  # no underflow
    return float(np.clip(shares.sum() ** 2 / (shares**2 / (runs + 1)).sum() - 2, fewest, tasks * fewest))


def student_quantile(level: float, freedom: float) -> float:
    """The quantile of Student's t that bounds a two-sided interval."""
    return float(stdtrit(freedom, (1 + level) / 2))


def bootstrap_bounds(
    draws: Floats, estimate: ArrayLike, runs: int, level: float, freedom: float | None, *, trimmed: bool
) -> tuple[Floats, Floats, str]:
    """Lower and upper bounds and their label from ``draws`` ``[resamples, ...]`` of a statistic; see ``interval``.

    Args:
        draws: the statistic of every resample; trailing dimensions are independent statistics.
        estimate: the statistic of the scores themselves, ``[...]``; the bounds always enclose it.
        runs: runs per task R.
        level: coverage aimed at.
        freedom: degrees of freedom of the t quantile; R - 1 by default.
        trimmed: that the statistic is a trimmed mean whose bootstrap variance is not too small.
    """
    correction = 1.0 if trimmed else np.sqrt(runs / (runs - 1))
    quantile = correction * student_quantile(level, runs - 1 if freedom is None else freedom)
    if runs < FEWEST_RUNS_FOR_PERCENTILES:
        half = quantile * draws.std(axis=0)
        low, high, method = estimate - half, estimate + half, T_INTERVAL
    else:
        low, high = np.quantile(draws, [ndtr(-quantile), ndtr(quantile)], axis=0)
        method = EXPANDED_PERCENTILE
    return np.minimum(low, estimate), np.maximum(high, estimate), method


# The Mann-Whitney statistic -------------------------------------------------------------------------------------------


def mann_whitney_bounds(probability: Floats, m: int, n: int, quantile: float) -> tuple[Floats, Floats]:
    """Score bounds of P(X > Y) + P(X = Y) / 2 from m and n runs: where |estimate - p| = quantile sqrt(V(p)).

    V(p) = p (1 - p) [1 + N ((1 - p) / (2 - p) + p / (1 + p))] / (m n) with N = (m + n) / 2 - 1: the variance of the
    Mann-Whitney statistic for exponential scores, at p rather than at the estimate, so that it does not vanish when
    all of X lies above all of Y.

    Source: Newcombe 2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2
    (method 5).
    """
    inside = np.broadcast_to(probability, (2, *probability.shape))
    outside = np.stack([np.zeros_like(probability), np.ones_like(probability)])
    for _ in range(50):  # bisection of both sides
        p = (inside + outside) / 2
        spread = 1 + ((m + n) / 2 - 1) * ((1 - p) / (2 - p) + p / (1 + p))
        holds = (probability - p) ** 2 <= quantile**2 / (m * n) * p * (1 - p) * spread
        inside, outside = np.where(holds, p, inside), np.where(holds, outside, p)
    return inside[0], inside[1]


def mean_bounds(estimates: Floats, low: Floats, high: Floats) -> tuple[float, float]:
    """Bounds of the mean of independent estimates from the bounds of each (MOVER).

    low = mean - sqrt(sum_k (estimate_k - low_k)^2) / K and high likewise.
    Source: Zou and Donner 2008, Construction of confidence limits about effect measures: a general approach.
    """
    mean, count = float(estimates.mean()), len(estimates)
    below, above = (float(np.sqrt(((estimates - bound) ** 2).sum())) / count for bound in (low, high))
    return mean - below, mean + above
