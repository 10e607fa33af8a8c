"""A backward kernel with several modes, fitted to the policy by maximum likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.diffusion.kernels.fitted import FittedKernel, input_scale
from dxmi_rl.diffusion.schedules import Schedule
from dxmi_rl.networks import StepMLP
from dxmi_rl.utils.checks import check_integer


class Mixture(FittedKernel):
    """A mixture of Gaussians, fitted as Learned is: for states where chains from several modes meet.

    There are ``components`` of them; None: eight in up to 16 dimensions, then 128 / d, and two at least, as their cost
    grows with both numbers. Component k has mean a_t x' + sqrt(v_t) m_k(x', t) and log std log v_t / 2 + l_k(x', t),
    per dimension; its weight is the softmax of w_k(x', t). All come from one network, which starts at random, as equal
    components stay equal.
    """

    def __init__(
        self, schedule: Schedule, event_shape: tuple[int, ...], scale: float, *, components: int | None = None,
        width: int = 64, depth: int = 3, learning_rate: float = 2e-3, steps: int = 1,
    ) -> None:  # fmt: skip
        dim = math.prod(event_shape)
        components = max(2, min(8, 128 // dim)) if components is None else components
        check_integer("components", components, minimum=2)
        net = StepMLP(
            dim, components * (2 * dim + 1), input_scale(schedule, scale), width=width, depth=depth,
            codes=schedule.codes,
        )  # fmt: skip
        super().__init__(schedule, net, learning_rate=learning_rate, steps=steps)
        self.components, self.dim = components, dim

    @classmethod
    def build(
        cls, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
    ) -> Mixture:
        return cls(schedule, event_shape, scale, **options)

    def parts(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights ``[batch, K]``, and means and log standard deviations ``[batch, K, d]``, of the components."""
        mean, log_std = (part.expand_as(x_next).flatten(1)[:, None] for part in self.start.moments(x_next, t))
        log_weight, shift, stretch = self._relative_parts(x_next, t)
        return log_weight, mean + log_std.exp() * shift, log_std + stretch

    def _relative_parts(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
        """``parts`` in units of Forward's step, as w_k, m_k and l_k."""
        out = self.net(x_next, t).view(len(x_next), self.components, 2 * self.dim + 1)
        weight, shift, stretch = out.split([1, self.dim, self.dim], dim=2)
        return weight[..., 0].log_softmax(1), shift, 4 * torch.tanh(stretch / 4)  # bounded, as Learned's

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the whole mixture, per dimension."""
        log_weight, mean, log_std = self.parts(x_next, t)
        weight = log_weight.exp()[..., None]
        center = (weight * mean).sum(1)
        variance = (weight * ((2 * log_std).exp() + (mean - center[:, None]).square())).sum(1)
        return center.view_as(x_next), 0.5 * variance.log().view_as(x_next)

    def log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        mean, log_std = self.start.moments(x_next, t)
        z = ((x_prev - mean) * torch.exp(-log_std)).flatten(1)[:, None]
        log_weight, shift, stretch = self._relative_parts(x_next, t)
        squares = ((z - shift) * torch.exp(-stretch)).square()
        each = log_weight - 0.5 * squares.sum(2) - stretch.sum(2)
        return each.logsumexp(1) - log_std.expand_as(x_next).flatten(1).sum(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, x_next: Tensor, t: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        log_weight, mean, log_std = self.parts(x_next, t)
        noise = torch.randn(x_next.shape, generator=generator, device=x_next.device, dtype=x_next.dtype)
        # By Gumbel's maximum: torch.multinomial raises for states that are not finite.
        race = log_weight - torch.empty_like(log_weight).exponential_(generator=generator).log()
        chosen = race.argmax(1)[:, None, None].expand(-1, 1, self.dim)
        mean, log_std = mean.gather(1, chosen)[:, 0], log_std.gather(1, chosen)[:, 0]
        return mean.view_as(x_next) + log_std.exp().view_as(x_next) * noise
