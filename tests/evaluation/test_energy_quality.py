"""Scores of a learned energy: perfect for the exact one, and each sees the fault that it is there for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dxmi_rl import make_target
from dxmi_rl.evaluation import Grid, energy_quality
from dxmi_rl.targets import EnergyTarget, TargetError

QUICK = {"samples": 2000, "steps": 200}
UNEQUAL = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8gaussians", "gmm9"])
def test_the_exact_energy_is_perfect_at_any_temperature_and_zero(name: str) -> None:
    target = make_target(name)
    scores = energy_quality(lambda x: 0.3 * target.energy(x) + 5, target, tau=0.3, **QUICK)
    assert scores["energy_correlation"] == pytest.approx(1, abs=1e-5)
    assert scores["energy_slope"] == pytest.approx(1, abs=1e-4)
    assert scores["energy_fisher"] < 1e-6
    assert scores["energy_kl"] == pytest.approx(0, abs=1e-4)
    assert scores["energy_mode_tv"] == pytest.approx(0, abs=1e-4)
    assert scores["energy_nll"] == pytest.approx(scores["energy_nll_floor"], abs=1e-4)
    assert scores["energy_nll_floor"] == pytest.approx(float(target.energy(target.sample(100_000)).mean()), abs=0.09)


@pytest.mark.slow
def test_a_flatter_energy() -> None:
    """E = E* / 2: slope a half, Fisher divergence a quarter of the Fisher information, KL by a finer grid."""
    target = make_target("8gaussians")
    scores = energy_quality(lambda x: target.energy(x) / 2, target, **QUICK)
    assert scores["energy_slope"] == pytest.approx(0.5, abs=1e-4)
    x = target.sample(200_000).requires_grad_()
    (gradient,) = torch.autograd.grad(target.energy(x).sum(), x)
    information = float(gradient.square().sum(1).mean())
    assert scores["energy_fisher"] == pytest.approx(information / 4, rel=0.1)
    grid = Grid.over(target.plot_range, points=600)
    exact, flat = grid.log_density(target.energy), grid.log_density(target.energy, tau=2.0)
    assert scores["energy_kl"] == pytest.approx(float((exact.exp() * (exact - flat)).sum() * grid.cell), abs=0.03)
    assert scores["energy_mode_tv"] < 0.01, "but for what the square cuts off"


@pytest.mark.slow
def test_wrong_masses_of_modes_are_seen() -> None:
    """By all scores of p in the plane, and not by those that look at one mode at a time."""
    target, equal = make_target("8gaussians", weights=UNEQUAL), make_target("8gaussians")
    scores = energy_quality(equal.energy, target, samples=50_000, steps=1)
    shares = torch.tensor(UNEQUAL) / 20
    assert scores["energy_mode_tv"] == pytest.approx(float((shares - 1 / 8).abs().sum() / 2), abs=0.01)
    kl = float((shares * (8 * shares).log()).sum())
    assert scores["energy_kl"] == pytest.approx(kl, abs=0.02)
    assert scores["energy_fisher"] < 1.0, "inside a mode nothing is wrong"
    right = energy_quality(target.energy, target, samples=50_000, steps=1)
    assert right["energy_sliced_w2"] < 1.5 * right["energy_sliced_w2_floor"] + 0.02
    assert scores["energy_sliced_w2"] > 5 * right["energy_sliced_w2"]


@pytest.mark.slow
def test_samples_of_the_energy_are_where_it_is_low() -> None:
    """Draws from p, and chains, which leave the data where the energy says so."""
    target = make_target("8gaussians")

    def one_mode(x: Tensor) -> Tensor:
        return 4 * (x - target.means[0]).square().sum(1)

    wrong, right = (energy_quality(energy, target, **QUICK) for energy in (one_mode, target.energy))
    for key in ("energy_sliced_w2", "chains_sliced_w2"):
        assert wrong[key] > 2
        assert right[key] < 2 * right["energy_sliced_w2_floor"]


@pytest.mark.slow
def test_a_constant_energy_and_data_without_a_variance_leave_scores_out() -> None:
    flat = energy_quality(lambda x: 0.0 * x.sum(1), make_target("8gaussians"), **QUICK)
    assert "energy_correlation" not in flat and flat["energy_slope"] == 0
    assert all(math.isfinite(value) for value in flat.values())
    heavy = make_target("mos10")
    assert not {"energy_sliced_w2", "chains_sliced_w2"} & energy_quality(heavy.energy, heavy, **QUICK).keys()


@pytest.mark.slow
def test_data_without_an_energy_have_a_likelihood_and_chains() -> None:
    scores = energy_quality(lambda x: x.square().sum(1), make_target("moons"), **QUICK)
    assert scores.keys() == {"energy_nll", "energy_sliced_w2", "energy_sliced_w2_floor", "chains_sliced_w2"}


def test_many_dimensions_have_no_quadrature() -> None:
    target = make_target("manywell32")
    scores = energy_quality(target.energy, target, samples=200, steps=5)
    exact = {"energy_correlation", "energy_slope", "energy_fisher"}
    assert scores.keys() == exact | {"chains_sliced_w2", "energy_sliced_w2_floor"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores() -> None:
    target = make_target("8gaussians")
    first, again = (energy_quality(target.energy, target, **QUICK, seed=3) for _ in range(2))
    assert first == again


def test_a_grid_is_normalised_and_ordered() -> None:
    grid = Grid.over((-6.0, 6.0), points=300)
    density = grid.log_density(lambda x: x.square().sum(1) / 2)
    assert float(density.exp().sum() * grid.cell) == pytest.approx(1)
    assert float(density.max()) == pytest.approx(-math.log(2 * math.pi), abs=1e-3)
    assert (grid.x[0] < grid.x[1]).tolist() == [False, True]


def test_what_cannot_be_scored() -> None:
    target = make_target("8gaussians")
    with pytest.raises(ValueError, match="tau must be"):
        energy_quality(target.energy, target, tau=0.0)
    nothing = EnergyTarget(lambda x: x.square().sum(1), (2,))
    with pytest.raises(TargetError, match="neither data nor samples"):
        energy_quality(nothing.energy, nothing)
