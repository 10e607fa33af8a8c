"""SFT-PG: shortcut fine-tuning with policy gradient (Fan and Lee 2023, arXiv 2301.13362), for use inside DxMI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import GaussianConfig, Rollout
from dxmi_rl.agents.policy_gradient import PolicyGradientAgent
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class SFTPGConfig(GaussianConfig):
    """Settings of SFT-PG."""

    state_dependent_sigma: bool = False
    """The correction network also shapes sigma, per dimension; the paper's is the base sampler's."""
    sigma_learning_rate: float | None = 0.0
    """Peak rate of log sigma; 0 keeps the base sampler's, as the paper does: no entropy term would hold it up."""
    minibatches: int = 4
    """Policy steps per rollout, each on another part of it (the paper's n_generator)."""


class SFTPG(PolicyGradientAgent):
    """The critic as the only reward: E[sum_t grad log pi(x_{t+1} | x_t) (-E(x_T) - V_t(x_t))].

    The critic f of the paper is -E, trained against the sampler (its integral probability metric): here DxMI's energy,
    ``DxMI(task, agent="sft-pg")``. Without a moving energy the optimum is a point, the minimum of E.
    """

    name: ClassVar[str] = "sft-pg"
    Config: ClassVar[type] = SFTPGConfig
    config: SFTPGConfig

    def _build(self) -> None:
        super()._build()
        check_integer("minibatches", self.config.minibatches)

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        advantages, returns = self.advantages(rollout)
        order = torch.randperm(len(rollout.x), generator=self.generator, device=rollout.x.device)
        for rows in order.chunk(self.config.minibatches):
            policy_loss = self.step_policy(self.policy_loss(rollout, advantages, rows), len(rows))
            value_loss = self.update_value(rollout.x[rows], rollout.t[rows], returns[rows])
        return {"policy_loss": policy_loss, "value_loss": value_loss}

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """-E(x_T) - V_t(x_t), with the paper's baseline V, and the returns -E(x_T): ``[T n]`` each, time-major."""
        return self.generalised_advantages(rollout, self.terminal_rewards(rollout), 1.0)

    def policy_loss(self, rollout: Rollout, advantages: Tensor, rows: Tensor) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over ``rows`` (the paper's policy gradient with its baseline function)."""
        return self.score_loss(rollout, advantages, rows)
