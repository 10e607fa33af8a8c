"""Densities of energies in the plane, normalised over a square by the midpoint rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl.mdp import Energy
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class Grid:
    """Centres ``x`` ``[points^2, 2]`` of the cells of a square, each of area ``cell``; x runs slower than y."""

    x: Tensor
    cell: float

    @classmethod
    def over(cls, plot_range: tuple[float, float], points: int = 200, device: torch.device | None = None) -> Grid:
        """``points`` cells per side of the square ``plot_range`` squared."""
        low, high = plot_range
        width = (high - low) / check_integer("points", points)
        axis = low + width * (torch.arange(points, device=device) + 0.5)
        return cls(torch.cartesian_prod(axis, axis), width**2)

    def log_density_at(self, x: Tensor, energy: Energy, log_density: Tensor, tau: float = 1.0) -> Tensor:
        """log p of points between the centres, ``[n]``, where ``log_density`` is that of this energy and tau."""
        with torch.no_grad():
            log_z = -energy(self.x[:1].clone()).double() / tau - log_density[:1]
            return -energy(x.clone()).double() / tau - log_z

    def sample(self, log_density: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``[n, 2]`` of a density on the cells, uniform within each."""
        rows = torch.multinomial(log_density.exp().float(), n, replacement=True, generator=generator)
        inside = torch.rand(n, 2, generator=generator, device=rows.device) - 0.5
        return self.x[rows] + math.sqrt(self.cell) * inside

    def log_density(self, energy: Energy, tau: float = 1.0) -> Tensor:
        """log of exp(-E / tau), normalised over the square by the midpoint rule: ``[points^2]``, float64."""
        with torch.no_grad():
            exponent = -energy(self.x.clone()).double() / tau
        return exponent - torch.logsumexp(exponent, 0) - math.log(self.cell)
