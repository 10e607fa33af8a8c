"""What the kernels share that are fitted to the policy by maximum likelihood."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion.kernels.base import LOST, BackwardKernel
from dxmi_rl.diffusion.kernels.forward import Forward
from dxmi_rl.diffusion.schedules import Schedule
from dxmi_rl.networks import StepMLP
from dxmi_rl.utils.checks import NonFiniteError, check_integer


class FittedKernel(BackwardKernel):
    """A network, in units of Forward's step, that takes ``steps`` Adam steps on the given transitions per ``fit``."""

    def __init__(self, schedule: Schedule, net: StepMLP, *, learning_rate: float, steps: int) -> None:
        super().__init__()
        check_integer("steps", steps)
        self.horizon, self.steps, self.learning_rate = schedule.horizon, steps, learning_rate
        self.start = Forward(schedule)
        self.net = net
        self.optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)

    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        assert self.optimizer is not None
        x, x_next = x.detach(), x_next.detach()
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

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
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


def input_scale(schedule: Schedule, scale: float) -> Tensor:
    """Root mean square of a coordinate of x_1..x_T, for data of that ``scale``: ``[T]``."""
    return (schedule.alpha**2 * scale**2 + schedule.s**2).sqrt()[1:]
