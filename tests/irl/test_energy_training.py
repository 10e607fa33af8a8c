"""Energies without a sampler: each objective at its known optimum, chains against their known law, the verbs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dxmi_rl import make_target
from dxmi_rl.irl import ENERGY_TRAINERS, EnergyTrainingConfig, train_energy
from dxmi_rl.irl.training import EnergyTrainer, GaussianNoise
from dxmi_rl.networks import EnergyMLP
from dxmi_rl.targets import EnergyTarget, GaussianMixture, TargetError
from dxmi_rl.utils.checks import DivergenceError
from dxmi_rl.utils.registry import UnknownNameError

FAST: dict[str, Any] = {"iterations": 40, "batch_size": 64, "energy.width": 16, "energy.depth": 2, "langevin_steps": 10}


def gaussian() -> GaussianMixture:
    """N((0.5, 0.5), 0.8^2 I)."""
    return GaussianMixture(torch.full((1, 2), 0.5), 0.8, plot_range=(-3.0, 3.0))


def own(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of other methods."""
    others = {key for name in ENERGY_TRAINERS for key in ENERGY_TRAINERS[name].uses} - set(ENERGY_TRAINERS[method].uses)
    return {key: value for key, value in settings.items() if key not in others}


def trainer(method: str, **settings: Any) -> EnergyTrainer:
    return ENERGY_TRAINERS[method](gaussian(), EnergyTrainingConfig(**settings), torch.Generator().manual_seed(0))


class Exact(EnergyMLP):
    """a |x - m|^2 / 2 + c with trainable a, m and c, in place of a network."""

    def __init__(self, a: float, m: float, c: float) -> None:
        super().__init__(2, 1.0, width=2, depth=1)
        self.a, self.m, self.c = (torch.nn.Parameter(torch.tensor(value)) for value in (a, m, c))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * (x - self.m).square().sum(1) / 2 + self.c


def gradients(built: EnergyTrainer, energy: Exact, rows: int = 400_000) -> list[float]:
    loss = built.loss(energy, built.target.data(rows, built.generator))
    return [
        float(g) for g in torch.autograd.grad(loss, [energy.a, energy.m, energy.c], allow_unused=True) if g is not None
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ENERGY_TRAINERS.names())
def test_every_objective_is_flat_at_its_optimum_and_not_beside_it(method: str) -> None:
    """The data's own energy; with score matching's noise, that of the noisy data."""
    chains = {"langevin_steps": 200, "langevin_noise": 0.3, "gamma": 0.0, "chains": 20_000}
    built = trainer(method, **chains)
    noise = 0.1 * built.target.scale if method == "score-matching" else 0.0
    precision = 1 / (0.64 + noise**2)
    normaliser = math.log(2 * math.pi * 0.64)
    rows = 20_000 if method in ("short-run", "persistent") else 400_000
    at_optimum = gradients(built, Exact(precision, 0.5, normaliser), rows)
    for beside in (Exact(1.5 * precision, 0.5, normaliser), Exact(precision, 0.9, normaliser)):
        aside = gradients(trainer(method, **chains), beside, rows)
        assert max(map(abs, at_optimum)) < 0.2 * max(map(abs, aside)), (at_optimum, aside)
    if method == "gaussian-noise":
        aside = gradients(trainer(method), Exact(precision, 0.5, normaliser + 0.5), rows)
        assert max(map(abs, at_optimum)) < 0.2 * max(map(abs, aside)), "it is normalised"


def test_noise_contrast_takes_a_covariance_that_rounding_made_asymmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    """As matrix products of nine columns were on one kind of processor."""
    exact = Tensor.cov
    monkeypatch.setattr(Tensor, "cov", lambda rows: exact(rows) + 1e-4 * torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    built = trainer("gaussian-noise")
    assert isinstance(built, GaussianNoise)
    assert torch.allclose(built.gaussian.covariance_matrix, 0.64 * torch.eye(2), atol=0.05)


@pytest.mark.parametrize("method", ["short-run", "persistent"])
def test_chains_have_the_law_of_unadjusted_langevin(method: str) -> None:
    """On a |x|^2 / 2 a long chain has variance 1 / (a (1 - a s^2 / 4)): s^2 / (1 - (1 - a s^2 / 2)^2)."""
    built = trainer(method, langevin_steps=300, langevin_noise=0.5, chains=10_000, restarts=0.0)
    x = built.negatives(Exact(2.0, 0.0, 0.0), torch.empty(10_000, 2))
    size = 0.5 * built.target.scale
    variance = 1 / (2 * (1 - 2 * size**2 / 4))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 20_000))
    assert abs(float(x.mean())) < 4 * math.sqrt(variance / 20_000)


def test_persistent_chains_go_on_and_restart() -> None:
    built = trainer("persistent", langevin_steps=1, langevin_noise=1e-6, chains=64, restarts=0.0, batch_size=64)
    before = built.chains.clone()
    built.negatives(Exact(0.0, 0.0, 0.0), torch.empty(64, 2))
    torch.testing.assert_close(built.chains, before, atol=1e-4, rtol=0)
    restarting = trainer("persistent", langevin_steps=1, langevin_noise=1e-6, chains=2000, restarts=0.25)
    before = restarting.chains.clone()
    restarting.negatives(Exact(0.0, 0.0, 0.0), torch.empty(2000, 2))
    moved = (restarting.chains - before).abs().amax(1) > 1e-3
    assert float(moved.double().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("method", ENERGY_TRAINERS.names())
def test_training_is_seeded_and_counted(method: str) -> None:
    target = make_target("moons")
    first, again, other = (train_energy(target, method, seed=seed, **own(method, FAST)) for seed in (0, 0, 1))
    x = target.data(32, torch.Generator().manual_seed(0))
    assert torch.equal(first.energy(x), again.energy(x))
    assert not torch.equal(first.energy(x), other.energy(x))
    assert not first.energy.training and not any(p.requires_grad for p in first.energy.parameters())
    evaluations = {"score-matching": 64, "gaussian-noise": 128}.get(method, 128 + 10 * 64)
    assert first.energy_evals == 40 * evaluations
    assert first.energy_grad_evals == 40 * (
        0 if method == "gaussian-noise" else 64 if method == "score-matching" else 640
    )
    assert first.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ENERGY_TRAINERS.names())
def test_energies_end_lower_on_data_than_on_noise(method: str) -> None:
    """In standard deviations of the energies, and against the untrained network."""
    target = make_target("rings")
    settings = FAST | {"energy.width": 32, "learning_rate": 3e-3, "ema": 0.9}
    data = target.data(2000, torch.Generator().manual_seed(0))
    noise = 6 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)) - 3
    gaps = []
    for iterations in (1, 300):
        energy = train_energy(target, method, **own(method, settings | {"iterations": iterations})).energy
        energies = energy(torch.cat([data, noise]))
        gaps.append(float((energies[2000:].mean() - energies[:2000].mean()) / energies.std()))
    assert gaps[1] > gaps[0] + 0.15, gaps


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"method": "persistant"}, UnknownNameError, "Did you mean 'persistent'"),
        ({"iteration": 3}, UnknownNameError, "Did you mean 'iterations'"),
        ({"iterations": 0}, ValueError, "iterations must be >= 1"),
        ({"ema": 1.0}, ValueError, r"ema must lie in \[0, 1\)"),
        ({"langevin_noise": 0.0}, ValueError, "langevin_noise"),
        ({"energy.width": 0}, ValueError, r"energy\.width must be >= 1"),
        ({"chains": 10}, ValueError, "chains must be >= batch_size"),
        ({"seed": -1}, ValueError, "seed must be >= 0"),
        ({"method": "score-matching", "gamma": 0.1}, ValueError, "'gamma' means nothing to method 'score-matching'"),
        ({"energy": {"spectral_norm": True, "residual": True}}, ValueError, "spectral_norm must be False"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        train_energy(make_target("moons"), **settings)


def test_no_data_no_energy() -> None:
    with pytest.raises(TargetError, match="neither data nor a sampler"):
        train_energy(EnergyTarget(lambda x: x.square().sum(1), (2,)))


@pytest.mark.slow
def test_divergence_is_said() -> None:
    with pytest.raises(DivergenceError, match="short-run on 'moons' diverged"):
        train_energy(make_target("moons"), "short-run", **FAST | {"learning_rate": 1e30})
