"""Stable-Baselines3's A2C (Mnih et al. 2016, arXiv 1602.01783, section 4, in one synchronous batch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dxmi_rl.agents.library import OnPolicyConfig
from dxmi_rl.agents.sb3 import SB3OnPolicyAgent


@dataclass(frozen=True)
class SB3A2CConfig(OnPolicyConfig):
    """Settings of SB3A2C; the names in parentheses are Stable-Baselines3's."""

    learning_rate: float = 3e-3
    """Peak rate of the shared RMSprop."""
    gae_lambda: float = 1.0
    """Mixing of n-step advantages; the discount is 1, and 1 takes whole returns."""


class SB3A2C(SB3OnPolicyAgent):
    """stable_baselines3.A2C with ``ent_coef = tau``, in noise coordinates: one RMSprop step per rollout.

    As in SB3PPO the entropy is a bonus of the loss and no part of the advantages. Weights of the value's loss, norm of
    clipped gradients and RMSprop's constants are SB3's own.
    """

    name: ClassVar[str] = "sb3-a2c"
    Config: ClassVar[type] = SB3A2CConfig
    config: SB3A2CConfig

    def make_model(self, sb3: Any) -> Any:
        return sb3.A2C("MlpPolicy", self.env, **self._arguments())

    def update(self, seed: int) -> dict[str, float | Tensor]:
        self._learn(seed)
        return self._logged("policy_loss", "value_loss")
