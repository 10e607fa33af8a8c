"""A learned last value: a network that stands in for the energy where policies are improved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dxmi_rl.agents.settings import ValueConfig
from dxmi_rl.agents.values import FADE, ValueFunction, value_network
from dxmi_rl.mdp import DenoisingMDP

ROWS = 4000
"""States x_T that are kept: of the latest rollouts. Older ones lie where the policy no longer goes."""
LEARNING_RATE = 3e-3
"""Peak rate."""
BATCH = 128
"""Rows of one step of ``fit``."""


class EnergyModel(nn.Module):
    """E_hat(x), a network fitted to the values and gradients of E at states x_T of rollouts.

    Args:
        config: the network, like that of the values, with a learning rate of its own.

    Attributes:
        value: the network and its optimizer, a ValueFunction with one step.
        x, energy, gradient: the last ROWS states ``[N, *event_shape]`` with E ``[N]`` and grad E ``[N, *event_shape]``;
            for an energy without a gradient, ``gradient`` has no rows.
    """

    def __init__(self, mdp: DenoisingMDP, config: ValueConfig) -> None:
        super().__init__()
        self.scale = mdp.state_scale[-1:]
        config = replace(config, learning_rate=LEARNING_RATE)
        self.value = ValueFunction(mdp, config, network=value_network(mdp, config, self.scale, fade=FADE))
        self.x = self.gradient = torch.zeros(0, *mdp.event_shape, device=mdp.device, dtype=mdp.dtype)
        self.energy = torch.zeros(0, device=mdp.device, dtype=mdp.dtype)
        self._live, self._swaps = mdp.energy, mdp.energy.swaps

    def forward(self, x: Tensor) -> Tensor:
        """E_hat of states ``[batch, *event_shape]``: ``[batch]``, in nats."""
        found: Tensor = self.value(x, 0)
        return found

    def add(self, x: Tensor, energy: Tensor, gradient: Tensor | None) -> None:
        """Keep states with their energies and, where E has them, gradients; the oldest leave."""
        self._swaps = self._live.swaps
        self.x = torch.cat([self.x, x])[-ROWS:]
        self.energy = torch.cat([self.energy, energy])[-ROWS:]
        if gradient is not None:
            self.gradient = torch.cat([self.gradient, gradient])[-ROWS:]

    @property
    def current(self) -> bool:
        """Whether its latest states were asked of the energy that the MDP has now, not of one that was swapped."""
        return self._swaps == self._live.swaps

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep beside the network."""
        return {f"energy_model/{key}": getattr(self, key) for key in ("x", "energy", "gradient")}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        for key in ("x", "energy", "gradient"):
            setattr(self, key, tensors[f"energy_model/{key}"].to(self.x.device))

    def clear(self) -> None:
        """Forget all states: the energy has moved."""
        self.x, self.energy, self.gradient = self.x[:0], self.energy[:0], self.gradient[:0]

    def fit(self, steps: int, generator: torch.Generator) -> Tensor:
        """Adam steps on random rows, values and gradients alike; returns the last loss."""
        loss = self.energy.new_zeros(())
        for _ in range(steps):
            rows = torch.randint(len(self.x), (BATCH,), generator=generator, device=self.x.device)
            gradient = self.gradient[rows] if len(self.gradient) else None
            loss = self.value.fit_gradients(
                self.x[rows], torch.zeros_like(rows), self.energy[rows], gradient, scale=self.scale, robust=True
            )
        return loss
