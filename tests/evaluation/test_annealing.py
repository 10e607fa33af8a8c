"""Annealed importance sampling against known normalisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dxmi_rl import make_target
from dxmi_rl.evaluation.annealing import (
    AnnealedEstimate,
    _leapfrog,
    _next_beta,
    _Path,
    _resample,
    _width,
    annealed_importance_sampling,
)
from dxmi_rl.smc import systematic
from dxmi_rl.utils.checks import NonFiniteError


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x.square().flatten(1).sum(1)


def estimate(energy: Any = quadratic, event_shape: Any = (2,), **arguments: Any) -> AnnealedEstimate:
    return annealed_importance_sampling(energy, event_shape, **{"scale": 2.0, "chains": 64} | arguments)


# Known normalisers ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tau", [1.0, 0.01])
def test_an_ill_conditioned_gaussian(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    deviations = torch.logspace(-1, 1, 64, base=4.0)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    mean = 0.5 * torch.randn(64, generator=generator)

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (((x.flatten(1) - mean) @ rotation) / deviations).square().sum(1)

    result = estimate(energy, (1, 8, 8), tau=tau, chains=512, cess=0.95)
    truth = float(deviations.log().sum()) + 32 * math.log(2 * math.pi * tau)
    assert result.log_z == pytest.approx(truth, abs=max(4 * result.standard_error, 1.0))
    assert result.standard_error < 0.6
    assert result.samples.shape == (512, 1, 8, 8)
    z = (result.samples.flatten(1) - mean) @ rotation / (deviations * tau**0.5)
    torch.testing.assert_close(z.mean(0), torch.zeros(64), atol=0.6, rtol=0)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale", "bound"), [("gmm25", 15, 0.4), ("8gaussians", 3, 0.3), ("funnel10", 4, 0.8), ("manywell32", 2, 1)]
)
def test_targets_with_known_normalisers(name: str, scale: float, bound: float) -> None:
    target = make_target(name)
    result = annealed_importance_sampling(target.energy, target.event_shape, scale=scale)
    assert target.log_z is not None
    assert result.log_z == pytest.approx(target.log_z, abs=bound)
    assert 0.05 < result.ess <= 1 and 0.5 < result.acceptance < 0.95
    assert result.energy_grad_evals == 512 * (1 + 8 * result.levels)
    if target.event_shape == (2,):  # in many dimensions 512 chains have too few ancestors
        exact = target.sample(10_000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(result.samples.mean(0), exact.mean(0), atol=0.5 * target.scale, rtol=0)
        assert float(result.samples.var(0).mean()) == pytest.approx(float(exact.var(0).mean()), rel=0.2)


@pytest.mark.slow
def test_the_standard_error_and_neal_weights() -> None:
    target = make_target("8gaussians")
    for resample in (True, False):
        results = [
            estimate(target.energy, scale=3.0, seed=seed, resample=resample, chains=64, cess=0.95) for seed in range(10)
        ]
        errors = torch.tensor([(result.log_z, result.standard_error) for result in results]).double()
        assert float(errors[:, 0].std()) == pytest.approx(float(errors[:, 1].square().mean().sqrt()), rel=0.7)
        assert abs(float(errors[:, 0].mean())) < 4 * float(errors[:, 0].std()) / 10**0.5 + 0.05
    assert min(result.ess for result in results) < 0.5, "never resampled, so the weights have drifted apart"


def test_a_start_that_is_the_target_has_no_error() -> None:
    result = estimate(lambda x: quadratic((x - 3) / 2), (5,), center=3.0)
    assert result.levels == 1
    assert result.log_z == pytest.approx(2.5 * math.log(2 * math.pi) + 5 * math.log(2), abs=1e-5)
    moved = estimate(quadratic, (5,), center=torch.full((5,), 1.0), cess=0.99, chains=512)
    assert moved.log_z == pytest.approx(2.5 * math.log(2 * math.pi), abs=0.3)


def test_points_without_density_get_no_weight() -> None:
    def energy(x: Tensor) -> Tensor:  # half a Gaussian
        return torch.where(x[:, 0] > 0, quadratic(x), torch.nan)

    result = estimate(energy, chains=512, scale=1.5)
    assert bool((result.samples[:, 0] > 0).all())
    assert result.log_z == pytest.approx(math.log(math.pi), abs=0.15)


def test_results_follow_the_seed_only() -> None:
    first = estimate(seed=3)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    module = nn.Linear(2, 1).train()
    again = estimate(seed=3)
    assert torch.equal(first.samples, again.samples) and first[:3] == again[:3]
    assert estimate(seed=4).log_z != first.log_z
    torch.manual_seed(5)
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        estimate(lambda x: quadratic(x) + module(x).squeeze(-1) * 0)
    assert module.weight.grad is None


# Parts ----------------------------------------------------------------------------------------------------------------


def test_leapfrog_is_reversible_and_as_by_hand() -> None:
    torch.manual_seed(0)
    path = _Path(lambda x: x.pow(4).sum((1, 2)).double(), (3, 1), 2.0, 0.5, 0.0)
    x, momentum = torch.randn(16, 3, 1).double(), torch.randn(16, 3).double()
    width, size = _width(x), torch.full((16, 1), 0.02).double()
    start = path.at(x)
    end, last = _leapfrog(path, start, momentum, 0.7, width, size, 20)
    back, first = _leapfrog(path, end, -last, 0.7, width, size, 20)
    torch.testing.assert_close(back.x, x)
    torch.testing.assert_close(-first, momentum)
    energies = [path.potential(points, 0.7) + p.square().sum(1) / 2 for points, p in ((start, momentum), (end, last))]
    torch.testing.assert_close(energies[0], energies[1], atol=0.5, rtol=0)

    def force(row: Tensor) -> Tensor:
        return -(0.7 * 4 * row**3 / 0.5 + 0.3 * row / 4)

    row, p, root = x[0, :, 0], momentum[0], width[0]
    for _ in range(20):
        p = p + 0.01 * root.T @ force(row)
        row = row + 0.02 * root @ p
        p = p + 0.01 * root.T @ force(row)
    torch.testing.assert_close(end.x[0, :, 0], row)
    torch.testing.assert_close(last[0], p)


def test_each_half_moves_by_the_other_half() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(500, 2), 3 * torch.randn(500, 2)])
    first, second = _width(x)
    torch.testing.assert_close(first @ first.T, 9 * torch.eye(2), atol=1.5, rtol=0)
    torch.testing.assert_close(second @ second.T, torch.eye(2), atol=0.2, rtol=0)
    assert bool(_width(torch.ones(16, 3)).isfinite().all()), "all chains at one point"


def test_the_next_level_has_the_conditional_ess() -> None:
    torch.manual_seed(0)
    log_ratio = torch.randn(800, dtype=torch.float64) * 50
    log_w = torch.randn(800, dtype=torch.float64)
    beta = _next_beta(0.1, log_ratio, log_w, 0.9)
    weights = torch.softmax(log_w.view(8, 100), 1).flatten() / 8
    u = ((beta - 0.1) * log_ratio).exp()
    assert float((weights @ u) ** 2 / (weights @ u.square())) == pytest.approx(0.9, abs=1e-6)
    assert _next_beta(0.1, log_ratio * 1e-6, log_w, 0.9) == 1.0


def test_resampling_is_by_weight_and_within_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64)
    counts = torch.stack([torch.bincount(systematic(weights, 4, generator)[0], minlength=4) for _ in range(1000)])
    torch.testing.assert_close(counts.double().mean(0), 4 * weights[0], atol=0.05, rtol=0)
    assert bool(((counts - 4 * weights[0]).abs() < 1).all())
    log_w = torch.zeros(8, 10, dtype=torch.float64)
    log_w[2, 3] = 9.0
    ancestors, after = _resample(log_w.flatten(), 0.5, generator)
    kept = torch.arange(80) // 10 != 2
    assert torch.equal(ancestors[kept], torch.arange(80)[kept])
    assert bool((ancestors[~kept] // 10 == 2).all()) and int((ancestors == 23).sum()) >= 9
    torch.testing.assert_close(after.view(8, 10).logsumexp(1), log_w.logsumexp(1))


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"energy": 3}, TypeError, "energy must be a module or function, got 3"),
        ({"energy": lambda x: x}, ValueError, r"energy must return a tensor of shape \[64\], got \[64, 2\]"),
        ({"energy": lambda x: 1.0}, ValueError, r"energy must return a tensor of shape \[64\], got float"),
        ({"energy": lambda x: torch.zeros(len(x))}, ValueError, "energy must be differentiable in x"),
        ({"energy": lambda x: quadratic(x) * torch.nan}, NonFiniteError, "energy must be finite"),
        ({"event_shape": 2}, TypeError, "event_shape must be a tuple of positive integers, got 2"),
        ({"event_shape": (0,)}, ValueError, "event_shape must be >= 1, got 0"),
        ({"scale": 0.0}, ValueError, "scale must be finite and > 0, got 0.0"),
        ({"tau": -1.0}, ValueError, "tau must be finite and > 0, got -1.0"),
        ({"center": math.inf}, ValueError, "center must be finite"),
        ({"center": torch.zeros(3)}, ValueError, "center must have shape"),
        ({"chains": 8}, ValueError, "chains must be >= 16, got 8"),
        ({"chains": 65}, ValueError, "chains must be a multiple of 8, got 65"),
        ({"cess": 1.0}, ValueError, r"cess must lie in \(0, 1\), got 1.0"),
        ({"leapfrog_steps": 0}, ValueError, "leapfrog_steps must be >= 1, got 0"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"device": "nowhere"}, ValueError, "device must name a torch device"),
    ],
)
def test_errors_say_what_is_allowed(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        estimate(**arguments)
