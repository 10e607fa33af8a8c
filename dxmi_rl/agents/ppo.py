"""PPO on the denoising chain: DDPO with importance ratios (Black et al. 2023, arXiv 2305.13301), a value baseline,
generalised advantages and clipping (Schulman et al. 2017, arXiv 1707.06347).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.policy_gradient import ClippedAgent, ClippedConfig, CriticConfig, PolicyGradientConfig


@dataclass(frozen=True)
class PPOConfig(ClippedConfig, CriticConfig, PolicyGradientConfig):
    """Settings of PPO."""


class PPO(ClippedAgent):
    """Clipped policy gradient on the soft return of docs/method.md, with a value baseline.

    The loss is ``ClippedAgent.policy_loss``, PPO's equation 7 with the exact tau KL(pi || pi_old).
    """

    name: ClassVar[str] = "ppo"
    Config: ClassVar[type] = PPOConfig
    config: PPOConfig

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        return self.update(rollout, *self.advantages(rollout))

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Generalised soft advantages (PPO equation 11) and the returns they imply, both ``[T n]``, time-major."""
        return self.generalised_advantages(rollout, self.soft_rewards(rollout), self.config.gae_lambda)
