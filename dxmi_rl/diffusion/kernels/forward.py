"""The noising kernel of the schedule as backward kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.diffusion.gaussian import standard_log_prob
from dxmi_rl.diffusion.kernels.base import BackwardKernel
from dxmi_rl.diffusion.schedules import Schedule, per_step


class Forward(BackwardKernel):
    """The noising kernel of the schedule: N(a_t x_{t+1}, v_t I), a_t = alpha_t / alpha_{t+1} (docs/method.md)."""

    gain: Tensor
    log_std: Tensor

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.horizon = schedule.horizon
        gain, variance = schedule.forward_kernel()
        self.register_buffer("gain", gain)
        self.register_buffer("log_std", 0.5 * variance.log())
        self._numbers = list(zip(self.gain.tolist(), self.log_std.tolist(), strict=True))

    @classmethod
    def build(
        cls, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
    ) -> Forward:
        return cls(schedule, **options)

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return per_step(self.gain, t, x_next) * x_next, per_step(self.log_std, t, x_next)

    def log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        if not isinstance(t, int):
            return super().log_prob(x_prev, x_next, t)
        gain, log_std = self._numbers[t]  # the same with numbers, which cost no work on the device
        return standard_log_prob(torch.sub(x_prev, x_next, alpha=gain) * math.exp(-log_std), log_std)
