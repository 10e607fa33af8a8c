"""What every backward kernel qb(x_t | x_{t+1}), the paper's auxiliary distribution, can do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import Schedule

LOST = "the backward kernel cannot be fitted to these transitions, which are too large (or all zero)"
"""Message of a fit that is not finite."""


class BackwardKernel(nn.Module):
    """qb(x_t | x_{t+1}); subclasses give ``moments`` and, when they adapt, ``fit``.

    It is N(mean, diag std^2), unless they give ``log_prob`` and ``sample``, too.
    """

    horizon: int
    draws_backwards: bool = True
    """It is a density of x_t: chains can be drawn backwards from x_T."""
    optimizer: torch.optim.Optimizer | None = None

    @property
    def adapts(self) -> bool:
        """Whether ``fit`` changes it."""
        return type(self).fit is not BackwardKernel.fit

    @classmethod
    def build(
        cls, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
    ) -> BackwardKernel:
        """The kernel for a schedule; ``sigma`` is the base sampler's ``[T]``, ``options`` those of the kernel."""
        raise TypeError(f"{cls.__name__} must define build.")

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log standard deviation (broadcastable) of x_t given x_{t+1}."""
        raise TypeError(f"{type(self).__name__} must define moments.")

    def log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log qb(x_t = x_prev | x_{t+1} = x_next): ``[batch]``, in nats, summed over dimensions."""
        mean, log_std = self.moments(x_next, t)
        return gaussian_log_prob(x_prev, mean, log_std)

    def step_log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """What a step is rewarded with: ``log_prob``, without terms that no action changes."""
        return self.log_prob(x_prev, x_next, t)

    def sample(self, x_next: Tensor, t: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x_t given x_{t+1}, the shape of x_next."""
        mean, log_std = self.moments(x_next, t)
        noise = torch.randn(x_next.shape, generator=generator, device=x_next.device, dtype=x_next.dtype)
        return mean + log_std.exp() * noise

    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        """Adapt to transitions ``[batch, *event]`` at steps t ``[batch]``; kernels without parameters do nothing.

        Raises NonFiniteError for transitions so large that the fit is not finite; the kernel is then as it was.
        """

    def set_progress(self, progress: float) -> None:
        """Told by agents: the fraction of training that is done, 0..1, for learning-rate schedules."""
