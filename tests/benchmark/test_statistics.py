"""dxmi_rl.benchmark.statistics: hand-computed values, scipy, rliable, coverage by simulation, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from dxmi_rl.benchmark import statistics
from dxmi_rl.benchmark.intervals import degrees_of_freedom, mann_whitney_bounds, mean_bounds, resample
from dxmi_rl.benchmark.statistics import Interval, interquartile_mean, interval, median, optimality_gap
from dxmi_rl.utils.checks import NonFiniteError


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def bounds(found: Interval | None) -> tuple[float, float]:
    assert found is not None
    return found.low, found.high


# Aggregates -----------------------------------------------------------------------------------------------------------


def test_aggregates_of_known_scores():
    assert interquartile_mean([5.0, 1.0, 100.0, 2.0, 3.0]) == pytest.approx(10 / 3)  # of 2, 3, 5
    assert interquartile_mean([[0.0, 1.0], [2.0, 9.0]]) == pytest.approx(1.5)  # pooled: of 1, 2
    assert median([5.0, 1.0, 100.0, 2.0]) == 3.5
    assert median([[0.0, 1.0, 10.0], [2.0, 9.0, 10.0]]) == 5.0  # of the means 1, 5, 10
    assert optimality_gap([0.5, 1.0, 3.0, -1.0]) == pytest.approx(2.5 / 4)
    assert optimality_gap([[0.5, 1.0], [3.0, -1.0]], goal=2.0) == pytest.approx((1.5 + 1 + 0 + 3) / 4)
    assert optimality_gap([2.0, 3.0]) == 0.0


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4,), (7,), (8,), (10,), (5, 4), (1, 3)])
def test_interquartile_mean_is_scipys(shape):
    scores = normal(*shape)
    assert interquartile_mean(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))


# rliable --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rliable():
    """(rliable.metrics, rliable.library)"""
    pytest.importorskip("rliable")
    from rliable import library, metrics

    return metrics, library


@pytest.mark.parametrize("shape", [(3, 1), (5, 4), (10, 3), (20, 7)])
def test_aggregates_are_rliables(rliable, shape):
    metrics, _ = rliable
    scores = 1 + 0.5 * normal(*shape)
    assert interquartile_mean(scores) == pytest.approx(metrics.aggregate_iqm(scores), abs=1e-3)
    assert median(scores) == pytest.approx(metrics.aggregate_median(scores), abs=1e-3)
    for goal in (0.7, 1.0):
        assert optimality_gap(scores, goal) == pytest.approx(metrics.aggregate_optimality_gap(scores, goal), abs=1e-3)


@pytest.mark.parametrize("tasks", [1, 4])
def test_probability_of_improvement_is_rliables(rliable, tasks):
    metrics, _ = rliable
    x, y = np.round(normal(7, tasks), 1), np.round(normal(5, tasks, seed=1), 1)  # rounded: with ties
    expected = metrics.probability_of_improvement(x, y)
    assert statistics.probability_of_improvement(x, y)[0] == pytest.approx(expected, abs=1e-3)
    assert statistics.probability_of_improvement(x, y, higher_is_better=False)[0] == pytest.approx(
        1 - expected, abs=1e-3
    )


@pytest.mark.slow
def test_performance_profile_is_rliables(rliable):
    _, library = rliable
    scores, thresholds = normal(10, 4), np.linspace(-2, 2, 9)
    np.random.seed(0)  # rliable draws from numpy's global generator
    profiles, limits = library.create_performance_profile({"agent": scores}, thresholds, reps=2000)
    profile, low, high = statistics.performance_profile(scores, thresholds, resamples=2000)
    np.testing.assert_allclose(profile, profiles["agent"], atol=1e-3)
    # fractions are multiples of 1 / 40, so quantiles of 2,000 resamples differ by at most one or two steps
    np.testing.assert_allclose([low, high], limits["agent"], atol=2 / 40 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iqm", "median", "optimality_gap"])
def test_percentile_interval_is_rliables(rliable, name):
    metrics, library = rliable
    scores = 0.8 + 0.3 * normal(10, 4)
    own = {"iqm": interquartile_mean, "median": median, "optimality_gap": optimality_gap}[name]
    theirs = getattr(metrics, f"aggregate_{name}")
    np.random.seed(0)
    _, found = library.get_interval_estimates({"agent": scores}, lambda x: np.array([theirs(x)]), reps=2000)
    low, high = statistics.bootstrap_interval(scores, own, resamples=2000)
    # A 2.5 % quantile of B draws of standard deviation s has standard error sqrt(0.025 0.975 / B) / 0.058 s = 0.06 s
    # for normal draws; the difference of two 0.085 s; 4 of those allowed, with s a quarter of the width.
    assert [low, high] == pytest.approx(found["agent"].ravel(), abs=0.34 * (high - low) / 4)


# Intervals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [2, 3, 5, 9])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_of_a_mean_of_few_runs_is_students(runs, level):
    scores = 3 + normal(runs)
    found = interval(scores, np.mean, level=level, resamples=20_000)
    expected = scipy.stats.t.interval(level, runs - 1, scores.mean(), scipy.stats.sem(scores))
    assert found is not None and found.method == "t interval, bootstrap standard error"
    assert bounds(found) == pytest.approx(expected, abs=0.02 * (expected[1] - expected[0]))  # 4 standard errors of SD


@pytest.mark.slow
def test_interval_of_many_runs_is_the_t_interval_of_the_mean_and_barely_wider_than_percentiles():
    scores = normal(200)
    found = interval(scores, np.mean, resamples=20_000)
    expected = scipy.stats.t.interval(0.95, 199, scores.mean(), scipy.stats.sem(scores))
    assert found is not None and found.method == "expanded percentile bootstrap"
    assert bounds(found) == pytest.approx(expected, abs=0.03 * (expected[1] - expected[0]))
    low, high = bounds(interval(scores))
    percentile = statistics.bootstrap_interval(scores)
    assert low < percentile[0] and high > percentile[1]
    assert (high - low) < 1.03 * (percentile[1] - percentile[0])


def test_degrees_of_freedom_are_welchs():
    runs, scales = 6, np.array([1.0, 2.0, 0.5])
    scores = scales * normal(runs, 3)
    indices = resample(runs, 3, 100_000, seed=0)
    draws = scores[indices, np.arange(3)].mean(axis=(1, 2))
    variances = ((scores - scores.mean(axis=0)) ** 2).sum(axis=0)
    expected = variances.sum() ** 2 / (variances**2 / (runs + 1)).sum() - 2
    assert 5 < expected < 15
    assert degrees_of_freedom(indices, draws) == pytest.approx(expected, rel=0.05)


def test_degrees_of_freedom_lie_between_those_of_one_task_and_of_all():
    indices = resample(3, 4, 5000, seed=0)
    alone = np.zeros((3, 4))
    alone[:, 0] = [1.0, 2.0, 4.0]
    assert degrees_of_freedom(indices, alone[indices, np.arange(4)].mean(axis=(1, 2))) == pytest.approx(2, abs=0.1)
    same = np.repeat([[1.0], [2.0], [4.0]], 4, axis=1)
    assert degrees_of_freedom(indices, same[indices, np.arange(4)].mean(axis=(1, 2))) == 8
    assert degrees_of_freedom(indices, np.ones(5000)) == 2
    assert degrees_of_freedom(indices[..., :1], normal(5000)) == 2


def covered(runs: int, tasks: int, repeats: int = 2000) -> float:
    shape = (repeats, runs, tasks) if tasks > 1 else (repeats, runs)
    found = [bounds(interval(scores, resamples=400, seed=i)) for i, scores in enumerate(normal(*shape, seed=runs))]
    return float(np.mean([low <= 0 <= high for low, high in found]))


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_intervals_of_normal_scores_cover(runs, tasks):
    assert 0.93 <= covered(runs, tasks) <= 0.97  # standard error of 2,000 repeats: 0.005


def test_percentiles_of_three_runs_do_not_cover():
    found = [statistics.bootstrap_interval(scores, resamples=400) for scores in normal(500, 3)]
    assert 0.69 <= np.mean([low <= 0 <= high for low, high in found]) <= 0.81  # all three on one side: 1 in 4


STATISTICS: list[Callable[..., float]] = [
    interquartile_mean, median, optimality_gap, np.mean, np.median, lambda x: float(np.max(x)), lambda x: x.std(),
]  # fmt: skip


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("shape", [(2,), (3,), (5,), (10,), (30,), (2, 4), (3, 1), (5, 4), (10, 4)])
def test_intervals_enclose_the_estimate_of_any_statistic(statistic, shape):
    for seed in range(3):
        scores = np.exp(normal(*shape, seed=seed))
        low, high = bounds(interval(scores, statistic, resamples=100))
        assert math.isfinite(low) and math.isfinite(high)
        assert low <= float(statistic(scores)) <= high


@pytest.mark.parametrize("shape", [(5,), (5, 4), (12,), (12, 4)])
def test_batched_statistics_are_the_statistics(shape):
    scores = normal(*shape)
    for statistic in STATISTICS[:5]:
        one_by_one = interval(scores, lambda x, f=statistic: f(x), resamples=200)
        if statistic is interquartile_mean:  # a wrapped one is a statistic like any other: always widened
            assert bounds(one_by_one)[0] <= bounds(interval(scores, resamples=200))[0] + 1e-12
        else:
            assert bounds(interval(scores, statistic, resamples=200)) == pytest.approx(bounds(one_by_one))
        expected = statistics.bootstrap_interval(scores, lambda x, f=statistic: f(x), resamples=200)
        assert statistics.bootstrap_interval(scores, statistic, resamples=200) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(3,), (5, 4), (10,), (10, 4)])
def test_intervals_are_deterministic_move_with_the_scores_and_grow_with_the_level(shape):
    scores = normal(*shape)
    found = interval(scores)
    assert found == interval(scores) != interval(scores, seed=1)
    low, high = bounds(found)
    assert bounds(interval(3 * scores - 7)) == pytest.approx((3 * low - 7, 3 * high - 7))
    inner = bounds(interval(scores, level=0.5))
    assert low < inner[0] < inner[1] < high


def test_interval_of_one_run_is_none_and_of_constant_scores_a_point():
    assert interval([1.0]) is None and interval([[1.0, 2.0]]) is None
    for runs in (2, 5, 12):
        assert bounds(interval(np.tile([0.0, 10.0, 20.0], (runs, 1)))) == (10.0, 10.0)


# Curves and profiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [2, 3, 5, 10, 20])
def test_curve_band_is_the_interval_at_every_point(runs):
    curves = normal(runs, 6)
    middle, low, high = statistics.curve_band(curves)
    for point in range(6):
        assert middle[point] == pytest.approx(interquartile_mean(curves[:, point]))
        assert (low[point], high[point]) == pytest.approx(bounds(interval(curves[:, point])))


def test_curve_band_of_one_run_is_the_curve():
    for line in statistics.curve_band([[1.0, 2.0, 3.0]]):
        assert line.tolist() == [1.0, 2.0, 3.0]


def test_performance_profile_of_known_scores():
    profile, low, high = statistics.performance_profile([[0.0, 1.0], [1.0, 3.0]], [-1.0, 0.0, 1.0, 2.0, 3.0])
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.25, 0.0]  # strictly above
    assert ((low <= profile) & (profile <= high)).all()
    assert (low[0], high[0], low[-1], high[-1]) == (1.0, 1.0, 0.0, 0.0)
    profile, low, high = statistics.performance_profile(normal(50), [0.0], resamples=20_000)
    count = int(50 * profile[0])
    expected = scipy.stats.binom.ppf([0.025, 0.975], 50, count / 50) / 50
    assert [low[0], high[0]] == pytest.approx(expected, abs=0.02)


# Comparisons ----------------------------------------------------------------------------------------------------------


def test_probability_of_improvement_of_known_scores():
    assert statistics.probability_of_improvement([1.0, 2.0, 3.0], [0.0, 2.0])[0] == pytest.approx(4.5 / 6)
    assert statistics.probability_of_improvement([1.0, 2.0], [0.0, 2.0], higher_is_better=False)[0] == 0.375
    x, y = normal(6), normal(8, seed=1)
    expected = scipy.stats.mannwhitneyu(x, y).statistic / 48
    assert statistics.probability_of_improvement(x, y)[0] == pytest.approx(expected)
    two = statistics.probability_of_improvement(np.array([[1.0, 1.0]]), np.array([[0.0, 2.0]]))
    assert two == (0.5, None)  # a single run


@pytest.mark.parametrize(("m", "n"), [(3, 3), (5, 3), (10, 20)])
def test_score_bounds_solve_newcombes_equation(m, n):
    def excess(p: float, estimate: float) -> float:
        half = (m + n) / 2 - 1
        variance = p * (1 - p) / (m * n) * (1 + half * (1 - p) / (2 - p) + half * p / (1 + p))
        return (estimate - p) ** 2 - 1.96**2 * variance

    for estimate in (0.5, 0.8, 1.0):
        low, high = (float(bound[0]) for bound in mann_whitney_bounds(np.array([estimate]), m, n, 1.96))
        assert low == pytest.approx(scipy.optimize.brentq(excess, 1e-9, estimate - 1e-9, args=(estimate,)), abs=1e-8)
        if estimate < 1:
            expected = scipy.optimize.brentq(excess, estimate + 1e-9, 1 - 1e-9, args=(estimate,))
            assert high == pytest.approx(expected, abs=1e-8)
        else:
            assert high == 1


def test_improvement_interval_of_separated_runs_has_width_and_of_one_agent_with_itself_is_symmetric():
    probability, found = statistics.probability_of_improvement([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert probability == 1 and found is not None
    assert found.method == "Newcombe score interval, t quantile"
    assert 0.3 < found.low < 0.5 and found.high == 1  # 3 against 3 runs: the exact two-sided p-value is 0.1
    low, high = bounds(statistics.probability_of_improvement(normal(5) + 9, normal(5))[1])
    assert 0.5 < low < 0.7 and high == 1  # 5 against 5: p = 0.008
    mirrored = bounds(statistics.probability_of_improvement(normal(5), normal(5) + 9)[1])
    assert mirrored == pytest.approx((1 - high, 1 - low))
    low, high = bounds(statistics.probability_of_improvement(normal(4), normal(4))[1])
    assert low == pytest.approx(1 - high) and 0.1 < low < 0.5


def test_improvement_intervals_of_equal_tasks_shrink_by_the_root_of_their_number():
    x, y = normal(5, 1), normal(5, 1, seed=3)
    probability, found = statistics.probability_of_improvement(x, y)
    repeated, combined = statistics.probability_of_improvement(np.repeat(x, 4, axis=1), np.repeat(y, 4, axis=1))
    assert repeated == probability and combined is not None and "MOVER" in combined.method
    low, high = bounds(found)
    assert bounds(combined) == pytest.approx(
        (probability - (probability - low) / 2, probability + (high - probability) / 2)
    )
    found = mean_bounds(np.array([0.5, 0.9]), np.array([0.2, 0.5]), np.array([0.6, 1.0]))
    assert found == pytest.approx((0.7 - 0.5 / 2, 0.7 + math.sqrt(0.02) / 2))  # by hand


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "tasks", "lowest"), [(3, 1, 0.93), (5, 1, 0.93), (5, 4, 0.92)])
@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_improvement_intervals_cover(runs, tasks, lowest, probability):
    repeats = 500
    x = normal(repeats, runs, tasks, seed=1) + math.sqrt(2) * scipy.stats.norm.ppf(probability)
    found = [
        bounds(statistics.probability_of_improvement(*pair)[1])
        for pair in zip(x, normal(repeats, runs, tasks, seed=2), strict=True)
    ]
    assert np.mean([low <= probability <= high for low, high in found]) >= lowest - 0.02  # two standard errors


def test_welch_t_test_of_known_scores():
    found = statistics.welch_t_test([1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0])  # variances 1 / 3 and 5 / 3 of the means
    freedom = 4 / (1 / 18 + 25 / 27)
    assert found.difference == -3
    assert found.t == pytest.approx(-3 / math.sqrt(2))
    assert found.degrees_of_freedom == pytest.approx(freedom)
    assert found.p_value == pytest.approx(2 * scipy.stats.t.cdf(-3 / math.sqrt(2), freedom))
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half))
    narrow = statistics.welch_t_test([1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0], level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


# Errors ---------------------------------------------------------------------------------------------------------------

GOOD = [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: interquartile_mean([]), ValueError, r"scores must be a non-empty array of shape .* got shape \[0\]"),
        (lambda: median([0.0, math.nan]), NonFiniteError, "scores must be finite: 1 of 2"),
        (lambda: optimality_gap(np.zeros((2, 2, 2))), ValueError, r"scores .*\[runs, tasks\], got \[2, 2, 2\]"),
        (lambda: optimality_gap(3.0), ValueError, r"scores .*\[runs\] or"),
        (lambda: optimality_gap(GOOD, math.nan), ValueError, "goal"),
        (lambda: optimality_gap(GOOD, "1"), TypeError, "goal"),
        (lambda: interquartile_mean(["a", "b"]), TypeError, "scores must be real numbers"),
        (lambda: interquartile_mean([[1.0], [1.0, 2.0]]), TypeError, "scores must be real numbers"),
        (lambda: interval([[]]), ValueError, "scores"),
        (lambda: interval(GOOD, level=1.0), ValueError, r"level must lie in \(0, 1\), got 1.0"),
        (lambda: interval(GOOD, level=0), ValueError, "level"),
        (lambda: interval(GOOD, level="0.9"), TypeError, "level"),
        (lambda: interval(GOOD, resamples=0), ValueError, "resamples must be >= 1"),
        (lambda: interval(GOOD, resamples=10.0), TypeError, "resamples"),
        (lambda: interval(GOOD, seed=-1), ValueError, "seed"),
        (lambda: interval(GOOD, lambda x: x), TypeError, "statistic must return one number"),
        (lambda: interval(GOOD, lambda x: math.inf), NonFiniteError, "statistic"),
        (lambda: statistics.bootstrap_interval(GOOD, level=-0.5), ValueError, "level"),
        (lambda: statistics.curve_band(GOOD), ValueError, r"curves must have shape \[runs, points\], got \[3\]"),
        (lambda: statistics.curve_band([[1.0, math.inf]]), NonFiniteError, "curves must be finite: 1 of 2"),
        (lambda: statistics.curve_band([GOOD], level=2), ValueError, "level"),
        (lambda: statistics.performance_profile(GOOD, []), ValueError, "thresholds must be a non-empty"),
        (lambda: statistics.performance_profile(GOOD, 0.5), ValueError, r"thresholds must have shape \[thresholds\]"),
        (lambda: statistics.performance_profile([], [0.0]), ValueError, "scores"),
        (lambda: statistics.probability_of_improvement(GOOD, []), ValueError, "y must be a non-empty"),
        (lambda: statistics.probability_of_improvement([math.nan], GOOD), NonFiniteError, "x must be finite"),
        (
            lambda: statistics.probability_of_improvement([[1.0, 2.0]], [[1.0, 2.0, 3.0]]),
            ValueError,
            r"x and y must have the same tasks, got shapes \[1, 2\] and \[1, 3\]",
        ),
        (lambda: statistics.probability_of_improvement(GOOD, [GOOD]), ValueError, "same tasks"),
        (lambda: statistics.probability_of_improvement(GOOD, GOOD, level=1), ValueError, "level"),
        (lambda: statistics.welch_t_test([1.0], GOOD), ValueError, "x must have at least 2 runs, got 1"),
        (lambda: statistics.welch_t_test(GOOD, [GOOD]), ValueError, r"y must have shape \[runs\]"),
        (lambda: statistics.welch_t_test([1.0, 1.0], [2.0, 2.0]), ValueError, "both be constant, got 1 and 2"),
        (lambda: statistics.welch_t_test(GOOD, GOOD, level=0.0), ValueError, "level"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
