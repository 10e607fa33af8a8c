"""A backward kernel that is fitted to the policy by maximum likelihood."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion.kernels.base import LOST, BackwardKernel
from dxmi_rl.diffusion.kernels.forward import Forward
from dxmi_rl.diffusion.schedules import Schedule
from dxmi_rl.networks import StepMLP
from dxmi_rl.utils.checks import NonFiniteError, check_integer


class Learned(BackwardKernel):
    """Mean and variance from a network, starting as Forward, fitted by maximum likelihood on the policy's trajectories.

    A trainable destruction process (cf. arXiv 2506.01541): mean = a_t x' + sqrt(v_t) m(x', t), log std = log v_t / 2 +
    l(x', t), per dimension. ``fit`` does ``steps`` Adam steps on the given transitions. ``coordinate_width`` adds a
    network that sees one coordinate at a time (``StepMLP``).
    """

    def __init__(
        self, schedule: Schedule, event_shape: tuple[int, ...], scale: float, *, width: int = 64, depth: int = 3,
        learning_rate: float = 2e-3, steps: int = 1, coordinate_width: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("steps", steps)
        check_integer("coordinate_width", coordinate_width, minimum=0)
        self.horizon, self.steps, self.learning_rate = schedule.horizon, steps, learning_rate
        self.start = Forward(schedule)
        dim = math.prod(event_shape)
        rms = (schedule.alpha**2 * scale**2 + schedule.s**2).sqrt()[1:]
        self.net = StepMLP(
            dim, 2 * dim, rms, width=width, depth=depth, zero=True, dim=dim, coordinate_width=coordinate_width
        )
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate)

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

    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        assert self.optimizer is not None
        with torch.enable_grad():
            for _ in range(self.steps):
                self.optimizer.zero_grad(set_to_none=True)
                loss = -self.log_prob(x, x_next, t).mean()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
                if not math.isfinite(norm):  # one such step would leave NaN for good
                    raise NonFiniteError(f"{LOST}: its loss is {loss.item():g} and the gradient's norm {float(norm)}.")
                self.optimizer.step()

    def set_progress(self, progress: float) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def __deepcopy__(self, memo: dict[int, object]) -> Learned:
        copied = type(self).__new__(type(self))
        nn.Module.__init__(copied)
        memo[id(self)] = copied
        for name, value in self.__dict__.items():
            if name != "optimizer":
                copied.__dict__[name] = copy.deepcopy(value, memo)
        copied.optimizer = torch.optim.Adam(copied.net.parameters(), lr=self.learning_rate)
        if self.optimizer is not None:
            copied.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return copied
