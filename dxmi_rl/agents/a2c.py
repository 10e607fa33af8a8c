"""A2C on the denoising chain: advantage actor-critic, synchronous (Mnih et al. 2016, arXiv 1602.01783)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.policy_gradient import CriticConfig, PolicyGradientAgent, PolicyGradientConfig
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class A2CConfig(CriticConfig, PolicyGradientConfig):
    """Settings of A2C."""

    value_steps: int = 4
    """Value regressions per rollout; 1 is the paper's."""


class A2C(PolicyGradientAgent):
    """One step per rollout along E[sum_t grad log pi(x_{t+1} | x_t) A_t] with advantages from a value network.

    Rewards are the soft ones of docs/method.md: their sampled log pi takes the place of the paper's entropy bonus,
    which is of the present step only.
    """

    name: ClassVar[str] = "a2c"
    Config: ClassVar[type] = A2CConfig
    config: A2CConfig

    def _build(self) -> None:
        super()._build()
        check_integer("value_steps", self.config.value_steps)

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        advantages, returns = self.advantages(rollout)
        policy_loss = self.step_policy(self.policy_loss(rollout, advantages), len(rollout.x))
        for _ in range(self.config.value_steps):
            value_loss = self.update_value(rollout.x, rollout.t, returns)
        return {"policy_loss": policy_loss, "value_loss": value_loss}

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Generalised soft advantages and the returns they imply, ``[T n]``; lambda = 1 is the paper's n-step form."""
        return self.generalised_advantages(rollout, self.soft_rewards(rollout), self.config.gae_lambda)

    def policy_loss(self, rollout: Rollout, advantages: Tensor) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over all transitions, the paper's actor-critic update."""
        return self.score_loss(rollout, advantages)
