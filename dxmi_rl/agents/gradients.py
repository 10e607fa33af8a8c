"""What a policy may be given of the energy or of a value: their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.live_energy import LiveEnergy
from dxmi_rl.utils.torch_tools import input_gradient


class EnergyGradient:
    """-grad E of an MDP's live energy, which copies of a policy share and copies of an agent do not.

    Gradients flow through it to x, unless ``constant`` stops them, as the public code of PIS and DDS does.
    """

    def __init__(self, energy: LiveEnergy, constant: bool = False) -> None:
        self.energy, self.constant = energy, constant

    def __call__(self, x: Tensor) -> Tensor:
        """-grad E(x), ``[batch, *event]``."""
        return -self.energy.gradient(x, create_graph=torch.is_grad_enabled() and not self.constant)

    def __deepcopy__(self, memo: dict[int, Any]) -> EnergyGradient:
        copied = memo.get(id(self.energy))  # an agent copies its MDP before its policy
        return self if copied is None else EnergyGradient(copied, self.constant)


class ValueGradient:
    """-grad V_{t+1} / tau at a base mean, V_{t+1} = ``next_value(x, t)``: an agent's method, which copies of a policy
    share and copies of the agent do not.
    """

    def __init__(self, next_value: Callable[[Tensor, Tensor | int], Tensor], tau: float) -> None:
        self.next_value, self.tau = next_value, tau

    def __call__(self, mean: Tensor, t: Tensor | int) -> Tensor:
        """In the shape of ``mean``."""
        return -input_gradient(lambda point: self.next_value(point, t), mean) / (self.tau or 1.0)

    def __deepcopy__(self, memo: dict[int, Any]) -> ValueGradient:
        copied = memo.get(id(getattr(self.next_value, "__self__", None)))
        return self if copied is None else ValueGradient(getattr(copied, self.next_value.__name__), self.tau)
