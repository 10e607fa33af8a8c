"""The base sampler itself in the backward kernel's place: what the policy must stay near to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.kernels.base import BackwardKernel
from dxmi_rl.diffusion.samplers import BaseSampler, IdentitySampler
from dxmi_rl.diffusion.schedules import per_step


class BaseReference(BackwardKernel):
    """log p_base(x_{t+1} | x_t) of the base sampler where other kernels have log qb(x_t | x_{t+1}).

    The soft return is then E[-E(x_T)] - tau KL(pi || p_base), whose optimum is p_base(x_T) exp(-E / tau) (for each
    start x_0, whose own law stays). At t = 0 ``log_prob`` has log p_0(x_0), too, so that the product over steps is the
    base sampler's density of a chain, and bounds are on the log of E_base[exp(-E)]; rewards of steps do without. It is
    no density of x_t: chains cannot be drawn backwards.

    Raises ValueError for a base sampler without noise at every step (none, or deterministic).
    """

    draws_backwards = False

    def __init__(self, base: BaseSampler) -> None:
        super().__init__()
        if base.deterministic or isinstance(base, IdentitySampler) or not bool((base.sigma > 0).all()):
            raise ValueError(
                "backward 'base' needs a base sampler with noise at every step, as 'ddpm' on track 'fine-tune' has."
            )
        self.horizon = base.schedule.horizon
        self._base = (base,)  # not a part of this module: its weights belong to the task

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        raise ValueError("backward 'base' is no density of x_t, and draws no chains backwards.")

    def step_log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        (base,) = self._base
        return gaussian_log_prob(x_next, base.mean(x_prev, t), per_step(base.sigma, t, x_prev).log())

    def log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        (base,) = self._base
        log_prob = self.step_log_prob(x_prev, x_next, t)
        if isinstance(t, int) and t:
            return log_prob
        log_std = x_prev.new_full((), math.log(base.schedule.start_std))
        start = gaussian_log_prob(x_prev, torch.zeros_like(x_prev), log_std)
        return log_prob + (start if isinstance(t, int) else torch.where(t == 0, start, 0.0))
