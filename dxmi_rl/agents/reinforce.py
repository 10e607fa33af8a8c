"""REINFORCE on the denoising chain: DDPO's score-function estimator, DDPO-SF (Black et al. 2023, arXiv 2305.13301,
section 4.3; Williams 1992), with the mean of the other trajectories as baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.policy_gradient import PolicyGradientAgent, PolicyGradientConfig, returns_to_go
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class REINFORCEConfig(PolicyGradientConfig):
    """Settings of REINFORCE."""

    baseline: bool = True
    """Subtract from a return the mean over the other trajectories at the same step."""


class REINFORCE(PolicyGradientAgent):
    """One step per rollout along E[sum_t grad log pi(x_{t+1} | x_t) (G_t - b_t)]; no value network.

    G_t is the soft return-to-go of docs/method.md. What was earned before t is left out: it has mean zero there.
    """

    name: ClassVar[str] = "reinforce"
    Config: ClassVar[type] = REINFORCEConfig
    config: REINFORCEConfig
    uses_value: bool = False

    def _build(self) -> None:
        super()._build()
        if self.config.baseline:
            check_integer("batch_size", self.config.batch_size, minimum=2)

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        loss = self.policy_loss(rollout, self.advantages(rollout))
        return {"policy_loss": self.step_policy(loss, len(rollout.x))}

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Tensor:
        """G_t minus its mean over the other n - 1 trajectories, n / (n - 1) (G_t - mean G_t): ``[T n]``, time-major."""
        returns = returns_to_go(self.soft_rewards(rollout))
        if self.config.baseline:
            n = returns.shape[1]
            returns = n / (n - 1) * (returns - returns.mean(1, keepdim=True))
        return returns.flatten()

    def policy_loss(self, rollout: Rollout, advantages: Tensor) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over all transitions; its gradient is that of DDPO_SF."""
        return self.score_loss(rollout, advantages)
