"""DDPM: ancestral sampling of the denoising chain (Ho et al. 2020, arXiv 2006.11239, algorithm 2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.untrained.solvers import Solver


class DDPM(Solver):
    """x_{t+1} ~ q(x_{t+1} | x_t, x_clean = D(x_t, t)), the posterior of equation 7; without noise at the last step.

    It is the base sampler of most tasks but for that step, where Base draws with ``sigma_last``.
    """

    name: ClassVar[str] = "ddpm"
    eta: ClassVar[float] = 1.0

    def solve(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        last = self.steps - 1
        for t in range(last):
            x = self.policy.step(x, t, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
        return self.policy.mean(x, last)
