"""DPM-Solver++(2M): a second-order multistep solver of the probability-flow ODE (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.untrained.solvers import Solver


class DPMSolver(Solver):
    """Algorithm 2, x_i from x_{i-1}. With lambda = log(alpha / s), h_i = lambda_i - lambda_{i-1}, r_i = h_{i-1} / h_i:

        D_i = (1 + 1 / (2 r_i)) D(x_{i-1}) - 1 / (2 r_i) D(x_{i-2})
        x_i = s_i / s_{i-1} x_{i-1} - alpha_i (e^{-h_i} - 1) D_i

    The first step knows no earlier D, and the last, to s = 0, has h = infinity: both are of first order, DDIM's.
    """

    name: ClassVar[str] = "dpm-solver"

    def solve(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        before, h_before = x, math.inf  # r = infinity: the first step is of first order
        for t in range(self.steps):
            (alpha, s), (alpha_next, s_next) = self.schedule.at(t), self.schedule.at(t + 1)
            decay = float((s_next / alpha_next) / (s / alpha))  # e^{-h}
            h = -math.log(decay) if decay > 0 else math.inf
            denoised = self.denoised(x, t)
            weight = h / (2 * h_before) if h < math.inf else 0.0  # 1 / (2 r)
            x = (s_next / s) * x + alpha_next * (1 - decay) * ((1 + weight) * denoised - weight * before)
            before, h_before = denoised, h
        return x
