"""Stable-Baselines3's A2C (Mnih et al. 2016, arXiv 1602.01783, section 4, in one synchronous batch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dxmi_rl.agents.base import Log
from dxmi_rl.agents.wrapped.sb3 import SB3OnPolicyAgent, logged
from dxmi_rl.agents.wrapped.settings import OnPolicyConfig


@dataclass(frozen=True)
class SB3A2CConfig(OnPolicyConfig):
    """Settings of SB3A2C."""

    n_trajectories: int = 32
    """Trajectories per iteration, one per environment."""
    learning_rate: float = 0.0068
    """Peak rate of the shared RMSprop."""
    gae_lambda: float = 0.98
    """Mixing of n-step advantages; the discount is 1, and 1 takes whole returns."""


class SB3A2C(SB3OnPolicyAgent[SB3A2CConfig]):
    """stable_baselines3.A2C with ``ent_coef = tau``, in noise coordinates: one RMSprop step per rollout.

    As in SB3PPO the entropy is a bonus of the loss and no part of the advantages. Weights of the value's loss, norm of
    clipped gradients and RMSprop's constants are SB3's own.
    """

    name: ClassVar[str] = "sb3-a2c"
    Config = SB3A2CConfig

    def make_model(self, sb3: Any) -> Any:
        return sb3.A2C("MlpPolicy", self.env, **self.arguments())

    def losses(self) -> Log:
        return logged(self.model, "policy_loss", "value_loss")
