"""Metrics against closed forms, against other implementations, and with bad input."""

import math
import subprocess
import sys

import numpy as np
import ot
import pytest
import scipy.linalg
import scipy.stats
import torch

from dxmi_rl.benchmark import statistics
from dxmi_rl.evaluation import feature_metrics, metrics
from dxmi_rl.networks.features import DigitsFeatures, load_features
from dxmi_rl.targets import list_targets, make_target
from dxmi_rl.targets.digits import load_digits_split
from dxmi_rl.utils.checks import MissingExtraError, NonFiniteError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Oracles --------------------------------------------------------------------------------------------------------------


def test_sliced_w2_of_a_shift_is_its_length_over_root_d():
    # x + c against x: every 1-D W2 is |<c, direction>|, and the mean of its square over the sphere is |c|^2 / d.
    x, shift = normal(300, 3), torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    assert metrics.sliced_w2(x + shift, x, projections=20_000) == pytest.approx(3 / math.sqrt(3), rel=0.02)
    assert metrics.sliced_w2(x, x[torch.randperm(300)]) == pytest.approx(0, abs=1e-12)


def test_sliced_w2_of_scaled_gaussians():
    # W2(N(0, 1), N(0, 4)) = 1 in every direction.
    assert metrics.sliced_w2(normal(20_000, 2), 2 * normal(20_000, 2, seed=1), 50) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("size", [40, 64, 97])
def test_sliced_w2_agrees_with_pot(size):
    x, y = normal(64, 3), 1 + 2 * normal(size, 3, seed=1)
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(150, 3, generator=generator), dim=1).double()
    expected = ot.sliced.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.T.numpy())
    assert metrics.sliced_w2(x, y, projections=150, seed=5) == pytest.approx(float(expected), rel=1e-6)
    assert metrics.sliced_w2(y, x, projections=150, seed=5) == pytest.approx(float(expected), rel=1e-6)


def test_sliced_w2_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    metrics.sliced_w2(normal(5, 2), normal(5, 2, seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_mmd_agrees_with_the_double_sum():
    x, y = normal(60, 2) + 1, normal(50, 2, seed=1)
    bandwidth = torch.nn.functional.pdist(y).median()

    def kernel(a, b):
        squares = (a[:, None] - b[None]).square().sum(-1)
        return sum((-squares / (2 * (s * bandwidth) ** 2)).exp() for s in (0.25, 0.5, 1, 2, 4)) / 5

    def off_diagonal_mean(matrix):
        return (matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))

    squared = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert metrics.mmd(x, y) == pytest.approx(float(squared.sqrt()), rel=1e-9)
    blocked = metrics._kernel_sum(x, x, float(bandwidth), same=True, block=7)
    assert blocked == pytest.approx(float(kernel(x, x).sum() - 60), rel=1e-9)


@pytest.mark.slow
def test_mmd_is_near_zero_for_one_law_and_grows_with_the_shift():
    x, y = normal(2500, 2).float(), normal(2500, 2, seed=1).float()
    near, middle, far = (metrics.mmd(x + shift, y) for shift in (0.0, 0.3, 1.0))
    assert near < 0.02 < middle < far
    assert far < metrics.mmd(x + 1e4, y) < math.sqrt(2)


def test_mmd_ranks_heavy_tails_without_overflow():
    x = torch.distributions.StudentT(2.0).sample((500, 2)) * torch.tensor([1.0, 1e6])
    assert 0 <= metrics.mmd(x, x.flip(0)) < 0.01


def test_mode_statistics_of_known_counts():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    far = torch.tensor([[-4.0, 0.0]])  # nearest to mode 0, beyond three standard deviations
    x = torch.cat([centers[:1].repeat(60, 1), centers[1:2].repeat(30, 1), far.repeat(10, 1)])
    result = metrics.mode_statistics(x, centers, 1.0)
    assert result["modes"] == 2 and isinstance(result["modes"], int)
    assert result["mode_tv"] == pytest.approx(0.5 * (0.45 + 0.05 + 0.25 + 0.25))
    exact = metrics.mode_statistics(x, centers[:2], torch.tensor([1.0, 2.0]), torch.tensor([0.7, 0.3]))
    assert exact == {"modes": 2, "mode_tv": pytest.approx(0, abs=1e-6)}


@pytest.mark.parametrize(("hits", "weight", "covered"), [(9, 0.5, 1), (10, 0.5, 2), (4, 0.02, 1), (5, 0.02, 2)])
def test_a_mode_is_covered_at_one_percent_or_a_quarter_of_its_weight(hits, weight, covered):
    centers = torch.tensor([[0.0], [10.0]])
    x = torch.cat([torch.zeros(1000 - hits, 1), torch.full((hits, 1), 12.4)])
    weights = torch.tensor([1 - weight, weight], dtype=torch.float64)
    assert metrics.mode_statistics(x, centers, 1.0, weights)["modes"] == covered
    assert metrics.mode_statistics(x, centers, 0.9, weights)["modes"] == 1


def test_exact_samples_have_all_modes():
    """In any number of dimensions: 50 of gmm40-50, where three standard deviations hold nothing."""
    targets = [target for target in map(make_target, list_targets()) if target.modes and target.has_sampler]
    assert len(targets) > 5 and max(target.event_shape[0] for target in targets) == 50
    for target in targets:
        modes, x = target.modes, target.sample(10_000, torch.Generator().manual_seed(0))
        found = metrics.mode_statistics(x, modes.centers, modes.std, modes.weights)
        assert found["modes"] == len(modes.centers), target.name


def test_exact_floor_is_the_mean_over_independent_pairs():
    def sample(n, generator):
        return torch.rand(n, 1, generator=generator)

    seen = []
    value = metrics.exact_floor(
        lambda x, y: seen.append((x, y)) or float(len(seen)), sample, 5, pairs=4, generator=torch.Generator()
    )
    assert value == 2.5
    assert len({float(x[0]) for pair in seen for x in pair}) == 8


def test_log_weights_of_known_weights():
    result = metrics.log_weight_statistics(torch.tensor([1.0, 2.0, 3.0, 6.0]).log() + 1000)
    assert result["log_z"] == pytest.approx(1000 + math.log(3), abs=1e-4)
    assert result["elbo"] == pytest.approx(1000 + math.log(36) / 4, abs=1e-4)
    assert result["ess"] == pytest.approx(144 / (4 * 50), abs=1e-4)
    equal = metrics.log_weight_statistics(torch.full((7,), -3.0))
    assert equal == pytest.approx({"elbo": -3, "log_z": -3, "ess": 1}) and equal["ess"] <= 1


def test_bounds_and_errors_of_lognormal_weights():
    # Under the policy log w ~ N(log Z - s^2/2, s^2), under the target N(log Z + s^2/2, s^2); E[w^2]/E[w]^2 = e^{s^2}.
    s, n = 0.7, 200_000
    log_w = 2.0 - s**2 / 2 + s * normal(n)
    result, errors = metrics.log_weight_statistics(log_w), metrics.log_weight_errors(log_w)
    assert abs(result["elbo"] - (2 - s**2 / 2)) < 4 * errors["elbo_se"]
    assert abs(result["log_z"] - 2) < 4 * errors["log_z_se"]
    assert result["ess"] == pytest.approx(math.exp(-(s**2)), rel=0.02)
    assert errors["elbo_se"] == pytest.approx(s / math.sqrt(n), rel=0.01)
    assert errors["log_z_se"] == pytest.approx(math.sqrt(math.expm1(s**2) / n), rel=0.02)
    assert metrics.eubo(2.0 + s**2 / 2 + s * normal(n, seed=1)) == pytest.approx(2 + s**2 / 2, abs=0.01)


def test_auc_of_known_sets():
    assert metrics.auc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert metrics.auc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])) == 0.75
    assert metrics.auc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    # Gaussians one unit apart: Phi(1 / sqrt 2).
    expected = scipy.stats.norm.cdf(1 / math.sqrt(2))
    assert metrics.auc(1 + normal(20_000), normal(20_000, seed=1)) == pytest.approx(expected, abs=0.01)


def test_frechet_distance_of_gaussians_in_closed_form():
    # Commuting covariances: |m|^2 + sum (s_x - s_y)^2.
    x = normal(50_000, 2)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # exactly N(0, I) in two moments
    y = x * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -1.0])
    assert feature_metrics.frechet_distance(x, y) == pytest.approx(10 + 1 + 0.25, rel=1e-9)
    assert feature_metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert feature_metrics.frechet_distance(x[:, :1], y[:, :1]) == pytest.approx(9 + 1, rel=1e-9)


def test_frechet_distance_agrees_with_the_matrix_root_and_survives_singular_covariances():
    x, y = normal(200, 5) @ normal(5, 5, seed=2), normal(150, 5, seed=1) + 0.5
    c_x, c_y = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(c_x + c_y - 2 * root)
    assert feature_metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert feature_metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-8)
    few = normal(4, 30)
    assert feature_metrics.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_is_an_unbiased_mmd():
    from sklearn.metrics.pairwise import polynomial_kernel

    x, y = normal(40, 3), normal(30, 3, seed=1) + 0.5
    xx, yy, xy = (polynomial_kernel(a.double(), b.double()) for a, b in ((x, x), (y, y), (x, y)))
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    assert feature_metrics.kernel_distance(x, y) == pytest.approx(sum(within) - 2 * xy.mean(), rel=1e-9)
    repeated = [
        feature_metrics.kernel_distance(normal(50, 3, seed=2 * i), normal(50, 3, seed=2 * i + 1)) for i in range(60)
    ]
    assert abs(np.mean(repeated)) < 3 * np.std(repeated) / 60**0.5, "no bias"
    assert min(repeated) < 0


@pytest.mark.slow
def test_precision_and_recall(capsys):
    real, fake = normal(300, 2), normal(300, 2, seed=1)
    assert min(feature_metrics.neighbour_scores(real, fake).values()) > 0.85
    assert set(feature_metrics.neighbour_scores(real, fake + 100).values()) == {0.0}
    collapsed = feature_metrics.neighbour_scores(real, 0.1 * fake)
    assert collapsed["precision"] > 0.95 and collapsed["recall"] < 0.1
    assert capsys.readouterr().out == ""


def test_digits_features_classify_the_test_digits():
    model = load_features("digits")
    _, _, images, labels = load_digits_split()
    features = model(images)
    assert features.shape == (360, 64) and float(features.min()) >= 0 and not features.requires_grad
    assert float((model.logits(images).argmax(1) == labels).double().mean()) >= 0.98
    assert load_features("digits", "cpu") is model


def test_digits_features_tell_digits_from_noise():
    train, _, test, _ = load_digits_split()
    model = load_features("digits")
    noise = normal(360, 1, 8, 8).float().clamp(-1, 1)
    floor = feature_metrics.frechet_distance(model(train), model(test))
    assert floor < 0.1 * feature_metrics.frechet_distance(model(train), model(noise))


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5,), (10,), (5, 7)])
def test_interquartile_mean_is_scipys(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    assert statistics.interquartile_mean(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25, axis=None))


def test_bootstrap_interval_covers_the_mean():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        low, high = statistics.bootstrap_interval(generator.normal(size=20), np.mean, resamples=200)
        inside += low <= 0 <= high
    assert 84 <= inside <= 99  # 0.95 aimed at; the percentile interval of 20 runs covers about 0.92


def test_bootstrap_interval_agrees_with_scipy_and_resamples_within_tasks():
    scores = np.random.default_rng(1).normal(size=30)
    expected = scipy.stats.bootstrap((scores,), np.mean, method="percentile", rng=0).confidence_interval
    assert statistics.bootstrap_interval(scores, np.mean) == pytest.approx(tuple(expected), abs=0.03)
    assert statistics.bootstrap_interval(scores) == statistics.bootstrap_interval(scores, seed=0)
    constant_per_task = np.tile([0.0, 10.0, 20.0], (5, 1))
    assert statistics.bootstrap_interval(constant_per_task, np.mean, resamples=50) == (10.0, 10.0)


# Bad input ------------------------------------------------------------------------------------------------------------

GOOD = torch.zeros(4, 2)
BAD_SAMPLES = [
    (np.zeros((4, 2)), TypeError, "floating torch.Tensor"),
    (torch.zeros(4, 2, dtype=torch.int64), TypeError, "int64"),
    (torch.zeros(4), ValueError, r"\[n, d\]"),
    (torch.zeros(4, 1, 2), ValueError, r"\[n, d\]"),
    (torch.zeros(0, 2), ValueError, "at least"),
    (torch.zeros(4, 0), ValueError, "one column"),
    (torch.zeros(4, 3), ValueError, "equal width"),
    (torch.full((4, 2), math.nan), NonFiniteError, "8 of 8"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_SAMPLES)
@pytest.mark.parametrize(
    "function",
    [
        metrics.sliced_w2,
        metrics.mmd,
        feature_metrics.frechet_distance,
        lambda x, y: feature_metrics.neighbour_scores(x, y, k=1),
        lambda x, y: metrics.mode_statistics(x, y, 1.0),
    ],
    ids=["sliced_w2", "mmd", "frechet_distance", "neighbour_scores", "mode_statistics"],
)
def test_bad_samples_are_refused(function, bad, error, message):
    with pytest.raises(error, match=message):
        function(bad, GOOD)
    with pytest.raises(error, match=message):
        function(GOOD, bad)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "floating torch.Tensor"),
        (torch.arange(3), TypeError, "int64"),
        (torch.zeros(2, 2), ValueError, r"shape \[n\]"),
        (torch.zeros(0), ValueError, "at least"),
        (torch.tensor([0.0, -math.inf]), NonFiniteError, "1 of 2"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [
        metrics.log_weight_statistics,
        metrics.log_weight_errors,
        metrics.eubo,
        lambda x: metrics.auc(x, torch.zeros(2)),
        lambda x: metrics.auc(torch.zeros(2), x),
    ],
    ids=["log_weight_statistics", "log_weight_errors", "eubo", "auc positive", "auc negative"],
)
def test_bad_vectors_are_refused(function, bad, error, message):
    with pytest.raises(error, match=message):
        function(bad)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.sliced_w2(GOOD, GOOD, projections=0), ValueError, "projections"),
        (lambda: metrics.mmd(normal(4, 2), normal(1, 2)), ValueError, "at least 2"),
        (lambda: metrics.mmd(GOOD, GOOD), ValueError, "copies of one point"),
        (lambda: metrics.mode_statistics(GOOD, GOOD, 0.0), ValueError, "std"),
        (lambda: metrics.mode_statistics(GOOD, GOOD, math.nan), ValueError, "std"),
        (lambda: metrics.mode_statistics(GOOD, GOOD, torch.ones(3)), ValueError, "std"),
        (lambda: metrics.mode_statistics(GOOD, GOOD, 1.0, torch.ones(3)), ValueError, "4 values"),
        (lambda: metrics.mode_statistics(GOOD, GOOD, 1.0, torch.ones(4)), ValueError, "sum to one"),
        (lambda: metrics.mode_statistics(GOOD, GOOD, 1.0, radius=0.0), ValueError, "radius"),
        (lambda: metrics.exact_floor(metrics.mmd, torch.randn, 0), ValueError, "n must be"),
        (lambda: metrics.exact_floor(metrics.mmd, torch.randn, 5, pairs=0), ValueError, "pairs"),
        (lambda: metrics.log_weight_errors(torch.zeros(1)), ValueError, "at least 2"),
        (lambda: feature_metrics.frechet_distance(GOOD[:1], GOOD), ValueError, "at least 2"),
        (lambda: feature_metrics.neighbour_scores(GOOD, GOOD, k=3), ValueError, "at least 5"),
        (lambda: feature_metrics.neighbour_scores(GOOD, GOOD, k=0), ValueError, "k must be"),
        (lambda: DigitsFeatures()(torch.zeros(2, 64)), ValueError, "8, 8"),
        (lambda: load_features("digits", "nowhere"), ValueError, "device"),
        (lambda: statistics.interquartile_mean([]), ValueError, "non-empty"),
        (lambda: statistics.interquartile_mean([0.0, math.nan]), NonFiniteError, "1 of 2"),
        (lambda: statistics.bootstrap_interval([0.0, math.inf]), NonFiniteError, "1 of 2"),
        (lambda: statistics.bootstrap_interval(np.zeros((2, 2, 2))), ValueError, "tasks"),
        (lambda: statistics.bootstrap_interval([0.0, 1.0], level=1.0), ValueError, "level"),
        (lambda: statistics.bootstrap_interval([0.0, 1.0], resamples=0), ValueError, "resamples"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prdc", None)
    with pytest.raises(MissingExtraError, match=r"dxmi_rl\[bench\]"):
        feature_metrics.neighbour_scores(normal(9, 2), normal(9, 2))


@pytest.mark.slow
def test_importing_metrics_imports_nothing_heavy():
    modules = "{'ot', 'sklearn', 'prdc', 'scipy.stats'}"
    code = f"import sys, dxmi_rl.evaluation.metrics; print(sorted({modules} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
