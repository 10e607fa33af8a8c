"""Networks that serve several numbers of steps."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from dxmi_rl.networks.conv import StepConv
from dxmi_rl.networks.mlp import StepMLP
from dxmi_rl.networks.particles import ParticleMLP


class OneStepApart(nn.Module):
    """A ``network`` of (x, t) for several horizons, with a copy of it that serves T = 1 alone.

    The leap from noise to samples asks for a finer function than any step of a chain; with shared weights the chains
    blur it.
    """

    def __init__(self, network: StepMLP | StepConv | ParticleMLP) -> None:
        super().__init__()
        self.chain, self.one_step = network, copy.deepcopy(network)

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        """As ``network``; T is the number of steps that it has codes for."""
        out: Tensor = (self.chain if len(self.chain.codes) > 1 else self.one_step)(x, t)
        return out

    def soft_clip(self, x: Tensor, limit: float) -> Tensor:
        """As ``network``'s."""
        assert not isinstance(self.chain, StepConv)
        return self.chain.soft_clip(x, limit)
