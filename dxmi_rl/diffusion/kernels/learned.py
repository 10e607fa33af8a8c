"""A Gaussian backward kernel that is fitted to the policy by maximum likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.diffusion.kernels.fitted import FittedKernel, input_scale
from dxmi_rl.diffusion.schedules import Schedule
from dxmi_rl.networks import StepMLP
from dxmi_rl.utils.checks import check_integer


class Learned(FittedKernel):
    """Mean and variance from a network, starting as Forward, fitted by maximum likelihood on the policy's trajectories.

    A trainable destruction process (cf. arXiv 2506.01541): mean = a_t x' + sqrt(v_t) m(x', t), log std = log v_t / 2 +
    l(x', t), per dimension. ``fit`` does ``steps`` Adam steps on the given transitions. ``coordinate_width`` adds a
    network that sees one coordinate at a time (``StepMLP``).
    """

    def __init__(
        self, schedule: Schedule, event_shape: tuple[int, ...], scale: float, *, width: int = 64, depth: int = 3,
        learning_rate: float = 2e-3, steps: int = 1, coordinate_width: int = 0,
    ) -> None:  # fmt: skip
        check_integer("coordinate_width", coordinate_width, minimum=0)
        dim = math.prod(event_shape)
        net = StepMLP(
            dim, 2 * dim, input_scale(schedule, scale), width=width, depth=depth, zero=True, dim=dim,
            coordinate_width=coordinate_width, codes=schedule.codes,
        )  # fmt: skip
        super().__init__(schedule, net, learning_rate=learning_rate, steps=steps)

    @classmethod
    def build(
        cls, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
    ) -> Learned:
        return cls(schedule, event_shape, scale, **options)

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        mean, log_std = self.start.moments(x_next, t)
        shift, stretch = self.net(x_next, t).chunk(2, dim=1)
        # A soft bound on the variance: one outlier must not blow up the likelihood.
        return mean + log_std.exp() * shift.view_as(x_next), log_std + 4 * torch.tanh(stretch / 4).view_as(x_next)
