"""EDM's deterministic sampler, Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.untrained.solvers import Solver


class EDMHeun(Solver):
    """Algorithm 1 with sigma(t) = t and s(t) = 1: dy / dsigma = (y - D(y; sigma)) / sigma, y = x / alpha; second order.

    A step takes one call of the denoiser, and one more where it is corrected. T calls pay for N = (T + 3) // 2 steps
    (one for T = 1), on the levels that the task's schedule has for N steps. The last two steps are Euler's, with an odd
    T the last three: there sigma falls by the largest factors, which hurts Heun's second slope when steps are few. So
    up to T = 3 this is DDIM. A fixed number of Euler steps leaves the order of convergence as it is.
    """

    name: ClassVar[str] = "edm-heun"

    @staticmethod
    def steps_within(calls: int) -> int:
        return min(calls, (calls + 3) // 2)

    def solve(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        corrected = self.mdp.horizon - self.steps  # calls beyond one per step
        y = x / self.schedule.at(0)[0]
        for t in range(self.steps):
            step, slope = self.level(t + 1) - self.level(t), self.slope(y, t)
            if t < corrected:  # lines 6 to 8: the trapezoidal rule
                slope = (slope + self.slope(y + step * slope, t + 1)) / 2
            y = y + step * slope
        return self.schedule.at(self.steps)[0] * y

    def level(self, t: int) -> float:
        """The paper's sigma: s_t / alpha_t."""
        alpha, s = self.schedule.at(t)
        return float(s / alpha)

    def slope(self, y: Tensor, t: int) -> Tensor:
        """(y - D(y; sigma)) / sigma at level t (lines 4 and 7)."""
        return (y - self.denoised(self.schedule.at(t)[0] * y, t)) / self.level(t)
