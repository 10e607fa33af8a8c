"""Comparisons of the scores of two agents: probability of improvement, Welch's t-test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from dxmi_rl.benchmark.intervals import (
    COMBINED_SCORE_INTERVAL,
    SCORE_INTERVAL,
    Interval,
    check_array,
    check_level,
    mann_whitney_bounds,
    mean_bounds,
    student_quantile,
)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, *, higher_is_better: bool = True, level: float = 0.95
) -> tuple[float, Interval | None]:
    """P(X > Y) + P(X = Y) / 2 for a run of x and a run of y of the same task, averaged over tasks, and its interval.

    The estimate is the Mann-Whitney statistic U / (m n). A task's interval is Newcombe's score interval (method 5)
    with the quantile of Student's t with m + n - 2 degrees of freedom for the normal one, which covers at 3 to 5 runs
    and does not shrink to a point when all of x is above all of y. Several tasks are combined by MOVER.

    Args:
        x: scores ``[runs]`` or ``[runs, tasks]``.
        y: scores of the other agent; the number of runs may differ, the tasks may not.
        higher_is_better: False compares by P(X < Y) + P(X = Y) / 2.
        level: coverage aimed at, in (0, 1).

    Returns:
        (probability, interval); the interval is None when either has a single run per task.

    Raises:
        TypeError, ValueError: for bad scores or level, or different tasks.

    Sources: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice; Newcombe 2006, Confidence intervals
    for an effect size measure based on the Mann-Whitney statistic, part 2; Zou and Donner 2008, Construction of
    confidence limits about effect measures: a general approach. The t quantile was chosen by simulation,
    benchmarks/compare/interval_coverage.py.
    """
    first, second = check_array("x", x), check_array("y", y)
    check_level(level)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"x and y must have the same tasks, got shapes {list(first.shape)} and {list(second.shape)} "
            "of [runs] or [runs, tasks]."
        )
    first, second = first.reshape(len(first), -1), second.reshape(len(second), -1)
    sign = np.sign(first[:, None] - second[None]) * (1 if higher_is_better else -1)
    per_task = (sign.mean(axis=(0, 1)) + 1) / 2
    m, n = len(first), len(second)
    probability = float(per_task.mean())
    if min(m, n) == 1:
        return probability, None
    bounds = mann_whitney_bounds(per_task, m, n, student_quantile(level, m + n - 2))
    low, high = mean_bounds(per_task, *bounds)
    method = SCORE_INTERVAL if len(per_task) == 1 else COMBINED_SCORE_INTERVAL
    return probability, Interval(max(low, 0.0), min(high, 1.0), method)


class WelchTest(NamedTuple):
    """What ``welch_t_test`` returns."""

    difference: float
    """mean(x) - mean(y)."""
    low: float
    high: float
    """Bounds of the difference of means."""
    t: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided."""


def welch_t_test(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> WelchTest:
    """Welch's t-test of equal means of two agents on one task, with the interval of their difference.

    t = (mean(x) - mean(y)) / sqrt(s_x^2 / m + s_y^2 / n), with Welch's degrees of freedom; variances may differ.

    Args:
        x: scores ``[runs]`` of one task, at least two runs.
        y: scores ``[runs]`` of the other agent, at least two runs.
        level: coverage of the interval, in (0, 1).

    Raises:
        TypeError, ValueError: for bad scores or level, a single run, or x and y that are both constant, where t is
            undefined.

    Sources: Welch 1947, The generalization of "Student's" problem when several different population variances are
    involved; Colas et al. 2019, A hitchhiker's guide to statistical comparisons of reinforcement learning algorithms.
    """
    samples = {name: check_array(name, values, ["runs"]) for name, values in (("x", x), ("y", y))}
    check_level(level)
    for name, sample in samples.items():
        if len(sample) < 2:
            raise ValueError(f"{name} must have at least 2 runs, got {len(sample)}.")
    first, second = samples.values()
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        raise ValueError(f"x and y must not both be constant, got {first[0]:g} and {second[0]:g} in all runs.")
    result = scipy.stats.ttest_ind(first, second, equal_var=False)
    bounds = result.confidence_interval(level)
    return WelchTest(
        float(first.mean() - second.mean()), float(bounds.low), float(bounds.high), float(result.statistic),
        float(result.df), float(result.pvalue),
    )  # fmt: skip
