"""What a learned energy is worth as a model of the data: exp(-E / tau) against the exact density, or against data."""

from __future__ import annotations

import torch
from torch import Tensor

from dxmi_rl.agents.replay import LocalSearch
from dxmi_rl.evaluation import metrics
from dxmi_rl.evaluation.grid import Grid
from dxmi_rl.mdp import Energy
from dxmi_rl.targets import Target, TargetError
from dxmi_rl.utils.checks import check_integer, check_real


def energy_quality(
    energy: Energy, target: Target, *, tau: float = 1.0, samples: int = 10_000, steps: int = 500, seed: int = 0
) -> dict[str, float]:
    """Scores of exp(-E / tau) as a model of the target's data; those that do not apply are absent.

    With an exact energy E* (in nats):
        energy_correlation    Pearson's, of E and E* over exact samples, in [-1, 1]; absent for a constant energy
        energy_slope          of E / tau regressed on E* there; 1 is right
        energy_fisher         Fisher divergence E_data |grad E / tau - grad E*|^2, in 1 / length^2
    In the plane, by the midpoint rule on 200 x 200 cells of the plotting range (what leaves it is not seen):
        energy_nll            -E_data log p, p = exp(-E / tau) normalised there, in nats; ``_floor``: the exact energy's
        energy_kl             their difference, KL(data || p), with an exact energy
        energy_mode_tv        with known modes: total variation between the masses that p has nearest to each and the
                              exact energy's, in [0, 1]
        energy_sliced_w2      of draws from p and data; ``_floor``: of data and data
    Where variances are finite:
        chains_sliced_w2      of data and the ends of MALA chains, ``steps`` steps from other data: whether the energy
                              keeps data where they are. Chains do not cross between modes: masses are not seen.

    Raises TargetError for a target with neither data nor samples, ValueError for tau <= 0.
    """
    check_real("tau", tau, strict=True)
    check_integer("samples", samples, minimum=2)
    check_integer("steps", steps)
    check_integer("seed", seed, minimum=0)
    if not target.has_samples:
        raise TargetError(f"target {target.name!r} has neither data nor samples to score an energy against.")
    generator = torch.Generator(target.device).manual_seed(seed)
    data, start = (target.test_data(samples, generator) for _ in range(2))
    scores: dict[str, float] = {}
    if target.has_energy:
        scores |= _against_exact(energy, target, data, tau)
    if target.event_shape == (2,):
        scores |= _in_the_plane(energy, target, data, tau, generator)
    if not target.heavy_tailed:
        width = torch.as_tensor(target.smallest_scale or target.scale / 10, device=data.device)
        ends, _ = LocalSearch(energy, tau, width, steps)(start, generator)
        scores["chains_sliced_w2"] = float(metrics.sliced_w2(ends.flatten(1), data.flatten(1)))
        scores["energy_sliced_w2_floor"] = float(metrics.sliced_w2(start.flatten(1), data.flatten(1)))
    return scores


def _against_exact(energy: Energy, target: Target, data: Tensor, tau: float) -> dict[str, float]:
    (learned, slope), (exact, exact_slope) = (
        _value_and_gradient(function, data) for function in (energy, target.energy)
    )
    covariance = torch.cov(torch.stack([learned / tau, exact]).double())
    scores = {
        "energy_slope": float(covariance[0, 1] / covariance[1, 1]),
        "energy_fisher": float((slope / tau - exact_slope).flatten(1).square().sum(1).mean()),
    }
    if covariance[0, 0] > 0:
        scores["energy_correlation"] = float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())
    return scores


def _in_the_plane(
    energy: Energy, target: Target, data: Tensor, tau: float, generator: torch.Generator
) -> dict[str, float]:
    grid = Grid.over(target.plot_range, device=data.device)
    learned = grid.log_density(energy, tau)
    scores: dict[str, float] = {}
    if not target.heavy_tailed:
        scores["energy_sliced_w2"] = float(metrics.sliced_w2(grid.sample(learned, len(data), generator), data))
    low, high = target.plot_range
    inside = data[((data > low) & (data < high)).all(1)]
    if not len(inside):
        return scores
    scores["energy_nll"] = -float(grid.log_density_at(inside, energy, learned, tau).mean())
    if not target.has_energy:
        return scores
    exact = grid.log_density(target.energy)
    scores["energy_nll_floor"] = -float(grid.log_density_at(inside, target.energy, exact).mean())
    scores["energy_kl"] = scores["energy_nll"] - scores["energy_nll_floor"]
    if target.modes is not None:
        centers = target.modes.centers
        nearest = torch.cdist(grid.x, centers).argmin(1)
        difference = (learned.exp() - exact.exp()) * grid.cell
        masses = difference.new_zeros(len(centers)).index_add(0, nearest, difference)
        scores["energy_mode_tv"] = float(masses.abs().sum() / 2)
    return scores


def _value_and_gradient(function: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.detach().clone().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient
