"""Schedules, denoisers and base samplers against quadrature, Bayes' rule and published numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dxmi_rl.diffusion import (
    SCHEDULES,
    DenoiserMLP,
    IdentitySampler,
    MixtureDenoiser,
    PretrainingConfig,
    ReverseSampler,
    Schedule,
    make_schedule,
    mixture_sigma_last,
    pretrained_denoiser,
    sample_base,
)
from dxmi_rl.diffusion.schedules import var_betas
from dxmi_rl.networks import FourierFeatures
from dxmi_rl.targets import GaussianMixture, Target, make_target
from dxmi_rl.tasks import TASKS, list_tasks, make_task
from dxmi_rl.utils.checks import DivergenceError
from dxmi_rl.utils.registry import UnknownNameError

QUICK = PretrainingConfig(iterations=20, batch_size=32, width=16, depth=2)


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES.names())
@pytest.mark.parametrize("horizon", [1, 2, 4, 5, 10, 100])
def test_every_schedule_falls_to_zero(name: str, horizon: int) -> None:
    if horizon == 1 and name in ("var-linear", "var-quadratic", "quadratic", "sigmoid"):
        with pytest.raises(ValueError, match="horizon must be >= 2"):
            make_schedule(name, horizon)
        return
    schedule = make_schedule(name, horizon)
    levels = schedule.levels
    assert schedule.horizon == horizon
    assert levels.shape == (horizon + 1,)
    assert bool((levels.diff() < 0).all())
    assert float(levels[-1]) == 0.0
    assert bool((schedule.alpha > 0).all())
    gain, variance = schedule.forward_kernel()
    assert gain.shape == variance.shape == (horizon,)
    assert bool((variance > 0).all())


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    horizon=st.integers(1, 60),
    low=st.floats(0.01, 1.0),
    ratio=st.floats(1.5, 1000.0),
    rho=st.floats(0.5, 10.0),
    scale=st.floats(0.1, 20.0),
)
def test_karras_and_geometric_ladders_are_what_they_say(
    horizon: int, low: float, ratio: float, rho: float, scale: float
) -> None:
    high = low * ratio
    for schedule in (
        make_schedule("karras", horizon, level_max=high, level_min=low, rho=rho, scale=scale),
        make_schedule("geometric", horizon, level_max=high, level_min=low),
    ):
        levels = schedule.levels
        assert bool((levels.diff() < 0).all())
        assert float(levels[0]) == pytest.approx(high, rel=1e-4)
        if horizon > 1:
            assert float(levels[-2]) == pytest.approx(low, rel=1e-4)
        # Composing the noising kernels from clean to x_0 gives s_0: no variance is lost between steps.
        gain, variance = schedule.forward_kernel()
        total = torch.zeros(())
        for t in reversed(range(horizon)):
            total = gain[t] ** 2 * total + variance[t]
        assert float(total) == pytest.approx(float(schedule.s[0] ** 2), rel=1e-3)
        assert float(gain.prod()) == pytest.approx(float(schedule.alpha[0] / schedule.alpha[-1]), rel=1e-3)


@given(horizon=st.integers(1, 50), alpha_bar_min=st.floats(1e-4, 0.9))
@settings(max_examples=40, deadline=None)
def test_cosine_ends_where_it_is_told(horizon: int, alpha_bar_min: float) -> None:
    schedule = make_schedule("cosine", horizon, alpha_bar_min=alpha_bar_min)
    assert float(schedule.alpha[0] ** 2) == pytest.approx(alpha_bar_min, rel=1e-3)
    assert bool((schedule.levels.diff() < 0).all())
    assert torch.allclose(schedule.alpha**2 + schedule.s**2, torch.ones(horizon + 1), atol=1e-6)


def test_quadratic_and_sigmoid_have_their_betas() -> None:
    """beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} from clean to noisy, against sums by hand."""
    for name, wanted in (
        ("quadratic", [(0.05**0.5 + i / 4 * (0.8**0.5 - 0.05**0.5)) ** 2 for i in range(5)]),
        ("sigmoid", [1e-5 + (1e-2 - 1e-5) / (1 + math.exp(6 - 3 * i)) for i in range(5)]),
    ):
        schedule = make_schedule(name, 5)
        alpha_bar = schedule.alpha.double().square().flip(0)
        betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
        torch.testing.assert_close(betas, torch.tensor(wanted, dtype=torch.float64), rtol=1e-3, atol=2e-7)
        assert schedule.start_std == 1.0


def test_cosine_is_nichol_and_dhariwals() -> None:
    """Equation 17 at the same times: alpha-bar(u) = f(u) / f(0), f(u) = cos^2((u + 0.008) / 1.008 pi / 2)."""
    schedule = make_schedule("cosine", 4, alpha_bar_min=0.01)

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    last = math.acos(0.1 * math.sqrt(f(0))) * 2 / math.pi * 1.008 - 0.008
    wanted = [f(u) / f(0) for u in np.linspace(last, 0, 5)]
    assert (schedule.alpha**2).numpy() == pytest.approx(wanted, abs=1e-6)


def test_default_ladder() -> None:
    """The default levels, alpha-bar = 1 / (1 + level^2), start N(0, I)."""
    schedule = make_task("8gaussians").mdp.base.schedule
    assert schedule.levels.numpy() == pytest.approx([10, 5.347, 2.422, 0.823, 0.15, 0], abs=5e-4)
    assert (schedule.alpha**2).numpy() == pytest.approx(1 / (1 + schedule.levels.numpy() ** 2), rel=1e-5)
    assert schedule.start_std == 1.0


def test_var_quadratic_betas() -> None:
    assert var_betas(5, "quadratic") == pytest.approx([1e-4, 0.04, 0.1521, 0.3364, 0.5929], abs=1e-9)
    schedule = make_schedule("var-quadratic", 5)
    alpha_bar = np.cumprod(1 - np.array([1e-4, 0.04, 0.1521, 0.3364, 0.5929]))[::-1]
    assert (schedule.alpha**2).numpy() == pytest.approx([*alpha_bar, 1.0], rel=1e-5)


@pytest.mark.parametrize("shape", ["linear", "quadratic"])
@pytest.mark.parametrize("horizon", [20, 50, 200])
def test_var_betas_keep_the_total_noise(shape: str, horizon: int) -> None:
    wanted = np.log1p(-np.linspace(1e-4, 0.02, 1000)).sum()
    betas = var_betas(horizon, shape)
    assert betas[0] == pytest.approx(1e-4)
    total = np.log1p(-betas).sum()
    capped = shape == "quadratic" and math.sqrt(betas[1] / 1e-4) - 1 > 0.9499 / (horizon * 0.01)
    if capped:
        assert total > wanted, "only the cap may leave more signal"
    else:
        assert total == pytest.approx(wanted, rel=1e-6)
    assert capped == (shape == "quadratic" and horizon == 20)


def test_var_linear_is_ddpms_own_at_a_thousand_steps() -> None:
    assert var_betas(1000, "linear") == pytest.approx(np.linspace(1e-4, 0.02, 1000), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("kosine", {}, UnknownNameError, "Did you mean 'cosine'"),
        ("var-quadratics", {}, UnknownNameError, "Did you mean 'var-quadratic'"),
        ("karras", {"horizon": 0}, ValueError, "horizon must be >= 1"),
        ("karras", {"horizon": 2.5}, TypeError, "horizon must be an integer"),
        ("karras", {"level_min": 0.0}, ValueError, "level_min must be finite and > 0"),
        ("karras", {"level_max": float("nan")}, ValueError, "level_max"),
        ("karras", {"level_max": 0.1}, ValueError, "fall strictly"),
        ("karras", {"rhp": 1.0}, UnknownNameError, "rho"),
        ("geometric", {"level_min": 9.0}, ValueError, "fall strictly"),
        ("quadratic", {"beta_last": 1.0}, ValueError, "betas must have 0 < beta_first <= beta_last < 1"),
        ("sigmoid", {"beta_first": 0.5}, ValueError, "betas must have 0 < beta_first"),
        ("cosine", {"alpha_bar_min": 1.5}, ValueError, "alpha_bar_min must lie in"),
    ],
)
def test_schedules_refuse_bad_input(name: str, options: dict[str, Any], error: type[Exception], text: str) -> None:
    options = {"horizon": 5, **options}
    with pytest.raises(error, match=text):
        make_schedule(name, **options)


@pytest.mark.parametrize(
    ("alpha", "s", "text"),
    [
        ([1.0], [0.0], "shape"),
        ([1.0, 1.0], [1.0, 0.5, 0.0], "shape"),
        ([0.0, 1.0], [1.0, 0.0], "fall strictly"),
        ([1.0, 1.0], [1.0, 1.0], "fall strictly"),
        ([1.0, 1.0], [1.0, -0.1], "fall strictly"),
        ([1.0, 1.0], [np.inf, 0.0], "fall strictly"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_schedule_of_your_own_is_checked(alpha: list[float], s: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Schedule(np.array(alpha), np.array(s), 1.0)


# The exact denoiser ---------------------------------------------------------------------------------------------------


def noised_density(target: GaussianMixture, x: Tensor, alpha: float, s: float) -> Tensor:
    """log p_t(x) of x = alpha x_clean + s eps, written out component by component."""
    variance = alpha**2 * target.std**2 + s**2
    squared = torch.cdist(x, alpha * target.means) ** 2
    return (
        torch.logsumexp(-squared / (2 * variance), 1) - math.log(2 * math.pi * variance) - math.log(len(target.means))
    )


def noisy_points(target: GaussianMixture, alpha: float, s: float, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return alpha * target.sample(n, generator) + s * torch.randn(n, 2, generator=generator)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["8gaussians", "gmm25"])
def test_mixture_denoiser_against_quadrature(name: str) -> None:
    """D(x) = integral of x_clean q(x_clean) N(x; alpha x_clean, s^2) over that of q N, on a grid of 600 x 600."""
    target = make_target(name)
    assert isinstance(target, GaussianMixture)
    schedule = make_task(name).mdp.base.schedule
    low, high = target.plot_range
    axis = torch.linspace(low - 2, high + 2, 601)
    clean = torch.cartesian_prod(axis, axis)
    log_q = -target.energy(clean)
    denoiser = MixtureDenoiser(target)
    for t in range(schedule.horizon):
        alpha, s = float(schedule.alpha[t]), float(schedule.s[t])
        x = noisy_points(target, alpha, s, 6)
        weights = torch.softmax(log_q - torch.cdist(x, alpha * clean) ** 2 / (2 * s**2), dim=1)
        wanted = weights @ clean
        got = denoiser(x, schedule.alpha[t], schedule.s[t])
        assert float((got - wanted).norm() / wanted.norm()) < 1e-4, t


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["8gaussians", "gmm25"])
@pytest.mark.parametrize("level", [0.05, 0.3, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_mixture_denoiser_is_tweedies(name: str, level: float, alpha: float) -> None:
    """alpha D = x + s^2 grad log p_t, the gradient by central differences."""
    target = make_target(name)
    assert isinstance(target, GaussianMixture)
    s = alpha * level
    x = noisy_points(target, alpha, s, 64)
    h = 1e-4 * s
    gradient = torch.stack(
        [
            (noised_density(target, x + h * d, alpha, s) - noised_density(target, x - h * d, alpha, s)) / (2 * h)
            for d in torch.eye(2)
        ],
        dim=1,
    )
    wanted = (x + s**2 * gradient) / alpha
    got = MixtureDenoiser(target)(x, torch.tensor(alpha), torch.tensor(s))
    assert float((got - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize(
    "make", [lambda: MixtureDenoiser(make_target("gmm25")), lambda: trained_mlp(make_target("gmm25"))]
)
def test_denoisers_take_one_level_or_one_per_row(make: Any) -> None:
    denoiser = make()
    x = torch.randn(6, 2)
    alpha, s = torch.tensor([0.2, 0.5, 0.9]).repeat(2), torch.tensor([0.9, 0.4, 0.1]).repeat(2)
    rows = torch.cat([denoiser(x[i : i + 1], alpha[i], s[i]) for i in range(6)])
    assert torch.allclose(denoiser(x, alpha, s), rows, atol=1e-5)


# Trained denoisers ----------------------------------------------------------------------------------------------------


def trained_mlp(target: Target) -> DenoiserMLP:
    return pretrained_denoiser(target, QUICK)


@pytest.mark.slow
def test_pretraining_is_cached_under_its_configuration(empty_cache: Path) -> None:
    target = make_target("8gaussians")
    first = pretrained_denoiser(target, QUICK)
    files = sorted(empty_cache.iterdir())
    assert [file.name[:14] == "denoiser-early" for file in files] in ([True, False], [False, True])
    before = [file.stat().st_mtime_ns for file in files]
    second = pretrained_denoiser(target, QUICK)
    assert [file.stat().st_mtime_ns for file in files] == before, "trained once"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = pretrained_denoiser(target, replace(QUICK, seed=1))
    assert len(list(empty_cache.iterdir())) == 4
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not any(p.requires_grad for p in first.parameters())


def test_pretraining_leaves_the_global_generator_alone(empty_cache: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    pretrained_denoiser(make_target("8gaussians"), QUICK)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.slow
def test_pretraining_that_diverges_says_so(empty_cache: Path) -> None:
    with pytest.raises(DivergenceError, match="pretraining"):
        pretrained_denoiser(make_target("8gaussians"), replace(QUICK, iterations=501, learning_rate=1e30, width=4))
    assert not empty_cache.exists() or not list(empty_cache.iterdir())


@pytest.mark.slow
def test_pretraining_approaches_the_exact_denoiser(empty_cache: Path) -> None:
    target = make_target("8gaussians")
    assert isinstance(target, GaussianMixture)
    network = pretrained_denoiser(target, PretrainingConfig(iterations=800, width=64, residual=True))
    alpha, s = torch.tensor(0.77), torch.tensor(0.64)
    x = noisy_points(target, 0.77, 0.64, 2000)
    exact = MixtureDenoiser(target)(x, alpha, s)
    error = (network(x, alpha, s) - exact).square().mean()
    level = s / alpha
    linear = target.scale**2 / (target.scale**2 + level**2) * x / alpha  # the best for a Gaussian of the same variance
    assert float(error) < 0.2 * float((linear - exact).square().mean())


def test_fourier_features_are_a_setting_of_pretraining(empty_cache: Path) -> None:
    network = pretrained_denoiser(make_target("rings"), replace(QUICK, fourier=3))
    assert isinstance(network.net.features, FourierFeatures) and len(network.net.features.frequencies) == 3
    assert not isinstance(pretrained_denoiser(make_target("rings"), QUICK).net.features, FourierFeatures)


# Base samplers --------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A denoiser that always answers ``value``: the reverse kernel is then the posterior given x_clean = value."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        return self.value.expand_as(x)  # type: ignore[operator]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_ddpm_is_bayes_rule(name: str) -> None:
    """q(x_{t+1} | x_t, x_clean) from prior N(alpha_{t+1} c, s_{t+1}^2) and likelihood N(x_t; a x_{t+1}, v)."""
    schedule = make_schedule(name, 6)
    clean = torch.tensor([0.7, -1.3])
    sampler = ReverseSampler(schedule, Constant(clean), sigma_last=0.1)
    gain, variance = schedule.forward_kernel()
    x = torch.randn(5, 2)
    for t in range(5):
        prior = 1 / schedule.s[t + 1] ** 2
        precision = prior + gain[t] ** 2 / variance[t]
        mean = (prior * schedule.alpha[t + 1] * clean + gain[t] / variance[t] * x) / precision
        assert torch.allclose(sampler.sigma[t], precision.rsqrt(), rtol=1e-9)
        assert torch.allclose(sampler.mean(x, t), mean, rtol=1e-8, atol=1e-8)
    assert float(sampler.sigma[-1]) == 0.1
    assert torch.allclose(sampler.mean(x, 5), schedule.alpha[-1] * clean.expand_as(x))


@pytest.mark.usefixtures("float64")
def test_ddim_interpolates_from_deterministic_to_ddpm() -> None:
    task, half, none = (make_task("8gaussians", base="ddim", eta=eta).mdp.base for eta in (1.0, 0.5, 0.0))
    ddpm = make_task("8gaussians").mdp.base
    assert torch.equal(task.sigma, ddpm.sigma)
    assert torch.allclose(half.sigma[:-1], 0.5 * ddpm.sigma[:-1])
    x = torch.randn(7, 2)
    schedule = ddpm.schedule
    for t in range(5):
        assert torch.equal(task.mean(x, t), ddpm.mean(x, t))
        # Song et al., equation 12 with sigma = 0, written with eps.
        denoised = MixtureDenoiser(make_target("8gaussians"))(x, schedule.alpha[t], schedule.s[t])
        noise = (x - schedule.alpha[t] * denoised) / schedule.s[t]
        assert torch.allclose(none.mean(x, t), schedule.alpha[t + 1] * denoised + schedule.s[t + 1] * noise)
    assert none.deterministic and not half.deterministic


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_ddpm_of_a_gaussian_reproduces_it_for_many_steps() -> None:
    target = GaussianMixture(torch.tensor([[1.0, -0.5]]), 0.6, plot_range=(-3, 3))
    task = make_task(target, horizon=400, schedule_options={"level_max": 40.0, "level_min": 0.02})
    x = sample_base(task.mdp.base, 20_000, (2,), torch.Generator().manual_seed(0))
    assert x.mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.02)
    assert x.std(0).tolist() == pytest.approx([0.6, 0.6], rel=0.03)


def test_last_sigma_of_mixtures() -> None:
    assert float(make_task("8gaussians").mdp.base.sigma[-1]) == pytest.approx(0.138, abs=5e-4)
    assert mixture_sigma_last(0.5, 1.2) == pytest.approx((1 / 0.25 + 1 / 1.44) ** -0.5)
    assert float(make_task("8gaussians", sigma_last=0.3).mdp.base.sigma[-1]) == pytest.approx(0.3)


@pytest.mark.usefixtures("float64")
def test_the_walk_without_a_base_spans_the_ladder() -> None:
    schedule = make_schedule("geometric", 6, level_max=5.0, level_min=0.3)
    sampler = IdentitySampler(schedule)
    x = torch.randn(3, 2)
    assert all(torch.equal(sampler.mean(x, t), x) for t in range(6))
    levels = schedule.levels
    assert torch.allclose(sampler.sigma[:-1] ** 2, levels[:-2] ** 2 - levels[1:-1] ** 2)
    assert float(sampler.sigma[-1]) == pytest.approx(0.3)
    assert float(sampler.sigma.square().sum()) == pytest.approx(25.0)
    assert schedule.start_std == 5.0


@pytest.mark.parametrize("name", [name for name in list_tasks() if TASKS[name].label is None])
def test_base_samplers_take_one_step_or_one_per_row(name: str) -> None:
    base = make_task(name, pretraining=vars(QUICK)).mdp.base
    shape = make_target(make_task(name, pretraining=vars(QUICK)).target.name).event_shape
    x, t = torch.randn(2 * len(base.sigma), *shape), torch.arange(len(base.sigma)).repeat(2)
    rows = torch.cat([base.mean(x[i : i + 1], int(t[i])) for i in range(len(x))])
    assert torch.allclose(base.mean(x, t), rows, atol=1e-5)
    assert bool((base.sigma > 0).all())


def test_sample_base_can_leave_out_the_last_noise() -> None:
    base = copy.deepcopy(make_task("8gaussians").mdp.base)
    noisy, clean = (
        sample_base(base, 4000, (2,), torch.Generator().manual_seed(0), last_noise=last_noise)
        for last_noise in (True, False)
    )
    difference = noisy - clean
    assert float(difference.std()) == pytest.approx(float(base.sigma[-1]), rel=0.05)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"eta": -0.1}, "eta must be finite"), ({"sigma_last": -1.0}, "sigma_last"), ({"eta": float("nan")}, "eta")],
)
def test_samplers_refuse_bad_input(options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ReverseSampler(make_schedule("karras", 4), Constant(torch.zeros(2)), **options)
