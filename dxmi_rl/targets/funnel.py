"""Neal's funnel in ten dimensions: exact energy, exact sampler, log Z = 0."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.targets.base import Target
from dxmi_rl.targets.extension import exp_below

NECK = 36.0
"""Below x0 = -36 (twelve standard deviations, probability 2e-33) the precision e^{-x0} goes on linearly."""


class Funnel(Target):
    """``x0 ~ N(0, 9)`` and ``x_i | x0 ~ N(0, exp(x0))`` for i = 1..9 (Neal 2003, arXiv physics/0009028), d = 10.

    ``E(x) = x0^2 / 18 + sum_i x_i^2 exp(-x0) / 2 + 9 x0 / 2`` + constants, normalised, so log Z = 0. Below x0 = -36
    exp(-x0) is continued linearly, which keeps energies and gradients finite far out and moves log Z by less than
    1e-30. The x_i are heavy-tailed (variance e^4.5, fourth moment e^18): W2 and moments of finite samples do not rank
    samplers, and ``scale`` is the robust one.
    """

    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True
    heavy_tailed: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__((10,), scale=1.5806, smallest_scale=math.exp(-3), plot_range=(-10.0, 10.0), log_z=0.0)

    def _energy(self, x: Tensor) -> Tensor:
        first, others = x[:, 0], x[:, 1:]
        width = others.shape[1]
        constant = self.dim / 2 * math.log(2 * math.pi) + math.log(3)
        quadratic = 0.5 * (others.square() * exp_below(-first, NECK)[:, None]).sum(1)
        return first.square() / 18 + quadratic + width / 2 * first + constant

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(n, self.dim, generator=generator, device=self.device, dtype=self.anchor.dtype)
        first = 3 * noise[:, :1]
        return torch.cat([first, noise[:, 1:] * (first / 2).exp()], dim=1)
