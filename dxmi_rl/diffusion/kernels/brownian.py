"""Brownian motion with adaptive velocity regularisation, the paper's backward kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.diffusion.kernels.base import LOST, BackwardKernel
from dxmi_rl.diffusion.schedules import Schedule, per_step
from dxmi_rl.utils.checks import NonFiniteError, check_real


class Brownian(BackwardKernel):
    """N(x_{t+1}, s_t^2 I) with adaptive velocity regularisation: the paper's kernel (DxMI section 4.3).

    ``fit``: s_t^2 <- rate s_t^2 + (1 - rate) mean ||x_{t+1} - x_t||^2 / d, the running maximum-likelihood fit.
    """

    variance: Tensor

    def __init__(self, variance: Tensor, *, rate: float = 0.99) -> None:
        super().__init__()
        if not 0 <= check_real("rate", rate) <= 1:
            raise ValueError(f"rate must lie in [0, 1], got {rate}.")
        if variance.dim() != 1 or not bool((variance > 0).all()):
            raise ValueError(f"variance must be a positive vector [T], got {variance}.")
        self.horizon, self.rate = len(variance), rate
        self.register_buffer("variance", variance.clone())

    @classmethod
    def build(
        cls, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
    ) -> Brownian:
        """Start at the spread of a base step: its noise, and the shrinking of the remaining level."""
        levels = schedule.levels
        start = (levels[:-1] ** 2 - levels[1:] ** 2) * schedule.alpha[:-1] ** 2
        return cls(torch.maximum(start, sigma**2), **options)

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return x_next, 0.5 * per_step(self.variance, t, x_next).log()

    @torch.no_grad()
    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        squared = (x_next - x).square().flatten(1).mean(1)
        total = torch.zeros_like(self.variance).index_add_(0, t, squared)
        count = torch.zeros_like(self.variance).index_add_(0, t, torch.ones_like(squared))
        fitted = torch.where(count > 0, total / count.clamp_min(1), self.variance)
        variance = self.variance.lerp(fitted, 1 - self.rate)
        if not bool(((variance > 0) & (variance < math.inf)).all()):
            raise NonFiniteError(f"{LOST}: its variances would be {variance.tolist()}.")
        self.variance.copy_(variance)
