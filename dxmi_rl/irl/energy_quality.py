"""What a learned energy is worth as a model of the data: exp(-E / tau) against the exact density, or against data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl import metrics
from dxmi_rl.agents.replay import LocalSearch
from dxmi_rl.checks import check_integer, check_real
from dxmi_rl.targets import GaussianMixture, Target, TargetError

EnergyFunction = Callable[[Tensor], Tensor]
"""``[n, *event_shape] -> [n]``."""


@dataclass(frozen=True)
class Grid:
    """Centres ``x`` ``[points^2, 2]`` of the cells of a square, each of area ``cell``; x runs slower than y."""

    x: Tensor
    cell: float
    points: int

    @classmethod
    def over(cls, plot_range: tuple[float, float], points: int = 200, device: torch.device | None = None) -> Grid:
        """``points`` cells per side of the square ``plot_range`` squared."""
        low, high = plot_range
        width = (high - low) / check_integer("points", points)
        axis = low + width * (torch.arange(points, device=device) + 0.5)
        return cls(torch.cartesian_prod(axis, axis), width**2, points)

    def log_density(self, energy: EnergyFunction, tau: float = 1.0) -> Tensor:
        """log of exp(-E / tau), normalised over the square by the midpoint rule: ``[points^2]``, float64."""
        with torch.no_grad():
            exponent = -energy(self.x).double() / tau
        return exponent - torch.logsumexp(exponent, 0) - math.log(self.cell)


def energy_quality(
    energy: EnergyFunction, target: Target, *, tau: float = 1.0, samples: int = 10_000, steps: int = 500, seed: int = 0
) -> dict[str, float]:
    """Scores of exp(-E / tau) as a model of the target's data; those that do not apply are absent.

    With an exact energy E* (in nats):
        energy_correlation    Pearson's, of E and E* over exact samples, in [-1, 1]
        energy_slope          of E / tau regressed on E* there; 1 is right
        energy_fisher         Fisher divergence E_data |grad E / tau - grad E*|^2, in 1 / length^2
    In the plane, by the midpoint rule on 200 x 200 cells of the plotting range (what leaves it is not seen):
        energy_nll            -E_data log p, p = exp(-E / tau) normalised there, in nats; ``_floor``: the exact energy's
        energy_kl             their difference, KL(data || p), with an exact energy
        energy_mode_tv        of mixtures: total variation between the masses that p has nearest to each mean and the
                              exact energy's, in [0, 1]
    By MALA, ``steps`` steps of ``samples`` chains from uniform starts over the plotting range, so that also the masses
    of modes are the energy's business:
        energy_sliced_w2      of the chains' ends and data

    Raises TargetError for a target with neither data nor samples, ValueError for tau <= 0.
    """
    check_real("tau", tau, strict=True)
    check_integer("samples", samples, minimum=2)
    if not (target.has_data or target.has_sampler):
        raise TargetError(f"target {target.name!r} has neither data nor samples to score an energy against.")
    generator = torch.Generator(target.device).manual_seed(seed)
    data = target.test_data(samples, generator)
    scores: dict[str, float] = {}
    if target.has_energy:
        scores |= _against_exact(energy, target, data, tau)
    if target.event_shape == (2,):
        scores |= _in_the_plane(energy, target, data, tau)
    low, high = target.plot_range
    start = low + (high - low) * torch.rand(data.shape, generator=generator, device=data.device)
    width = torch.as_tensor(target.smallest_scale or target.scale / 10, device=data.device)
    ends, _ = LocalSearch(energy, tau, width, check_integer("steps", steps))(start, generator)
    scores["energy_sliced_w2"] = float(metrics.sliced_w2(ends.flatten(1), data.flatten(1)))
    return scores


def _against_exact(energy: EnergyFunction, target: Target, data: Tensor, tau: float) -> dict[str, float]:
    (learned, slope), (exact, exact_slope) = (
        _value_and_gradient(function, data) for function in (energy, target.energy)
    )
    covariance = torch.cov(torch.stack([learned / tau, exact]).double())
    return {
        "energy_correlation": float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()),
        "energy_slope": float(covariance[0, 1] / covariance[1, 1]),
        "energy_fisher": float((slope / tau - exact_slope).flatten(1).square().sum(1).mean()),
    }


def _in_the_plane(energy: EnergyFunction, target: Target, data: Tensor, tau: float) -> dict[str, float]:
    grid = Grid.over(target.plot_range, device=data.device)
    low, high = target.plot_range
    inside = data[((data > low) & (data < high)).all(1)]

    def nll(function: EnergyFunction, temperature: float) -> float:
        with torch.no_grad():
            exponents = function(grid.x).double() / temperature
            log_z = torch.logsumexp(-exponents, 0) + math.log(grid.cell)
            return float((function(inside).double() / temperature).mean() + log_z)

    scores = {"energy_nll": nll(energy, tau)}
    if not target.has_energy:
        return scores
    scores["energy_nll_floor"] = nll(target.energy, 1.0)
    scores["energy_kl"] = scores["energy_nll"] - scores["energy_nll_floor"]
    if isinstance(target, GaussianMixture):
        nearest = torch.cdist(grid.x, target.means).argmin(1)
        masses = [
            torch.zeros(len(target.means), dtype=torch.float64, device=data.device).index_add(
                0, nearest, grid.log_density(function, temperature).exp() * grid.cell
            )
            for function, temperature in ((energy, tau), (target.energy, 1.0))
        ]
        scores["energy_mode_tv"] = float((masses[0] - masses[1]).abs().sum() / 2)
    return scores


def _value_and_gradient(function: EnergyFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.detach().clone().requires_grad_()
    value = function(point)
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient
