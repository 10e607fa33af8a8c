"""Settings of DxMI."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DxMIConfig:
    """Settings of the joint loop."""

    agent: str = "dxdp"
    """Name of the agent that trains the sampler."""
    agent_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that agent."""
    loss: str = "contrastive"
    """Name of the energy's loss."""
    gamma: float = 1.0
    """Weight of the energy's squared magnitude; 1 is stable, 0.1 is not."""
    energy_learning_rate: float = 1e-3
    """Adam rate of the energy."""
    energy_steps: int = 1
    """Energy steps per rollout, each on fresh data."""
    energy_width: int = 128
    """Units per layer of the energy."""
    energy_depth: int = 3
    """Hidden layers (blocks when ``energy_residual``)."""
    energy_fourier: int = 0
    """Fourier frequencies of the energy's input; they sharpen low-dimensional energies."""
    energy_residual: bool = False
    """Residual blocks in the energy."""
    data_noise: float = 0.0
    """Standard deviation of Gaussian noise on the data in the energy's loss. Images have grey levels and the sampler's
    last step has noise: without it the energy learns to tell the two by that alone."""
    replay: int = 0
    """Past batches of samples from which the energy sees as many again, drawn at random: it then does not forget what
    the policy has left. 0: only the present batch."""
    ema: float = 0.99
    """Decay of the averaged policy that ``sample`` and ``predict`` use, and of the averaged energy of ``score``; 0 uses
    the last iterates."""
    anneal: bool = False
    """Cosine rate of the energy over ``learn``'s budget."""
