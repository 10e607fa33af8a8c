"""DDIM: the deterministic sampler of the denoising chain (Song et al. 2021, arXiv 2010.02502, eta = 0)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.untrained.solvers import Solver


class DDIM(Solver):
    """x_{t+1} = alpha_{t+1} D + s_{t+1} (x_t - alpha_t D) / s_t  (equation 12 with sigma_t = 0).

    In y = x / alpha and sigma = s / alpha this is Euler's step of the probability-flow ODE (equation 13): first order.
    """

    name: ClassVar[str] = "ddim"

    def solve(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        for t in range(self.steps):
            x = self.policy.mean(x, t)
        return x
