"""DPOK: policy gradient with KL to the pretrained sampler (Fan et al. 2023, arXiv 2305.16381)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.policy_gradient import ClippedAgent, ClippedConfig, CriticConfig
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.utils.checks import check_real


@dataclass(frozen=True)
class DPOKConfig(ClippedConfig, CriticConfig):
    """Settings of DPOK."""

    beta: float | None = None
    """Weight of KL(pi || base sampler), in nats; None: the task's tau."""
    future_kl: bool = True
    """Advantages hold the KL of later steps, which makes the optimum exact. False is what the paper runs: it drops that
    part of the gradient for simplicity."""


class DPOK(ClippedAgent):
    """Maximises E[-E(x_T)] - beta sum_t KL(pi(. | x_t) || p_base(. | x_t)), the paper's objective with reward -E.

    The optimum is p_base(x_0..x_T) exp(-E(x_T) / beta) / Z(x_0), chain by chain, not the task's exp(-E / tau): the
    base sampler is a prior here, and the backward kernel plays no part. As in PPO the KL enters by its sample,
    beta log(pi_old / p_base), and the surrogate keeps beta KL(pi || pi_old): at the optimum all advantages vanish.
    """

    name: ClassVar[str] = "dpok"
    Config: ClassVar[type] = DPOKConfig
    config: DPOKConfig

    def _build(self) -> None:
        super()._build()
        beta = self.mdp.tau if self.config.beta is None else check_real("beta", self.config.beta, strict=True)
        if beta == 0:
            raise ValueError("beta must be given, as the task's tau is 0 and without the KL there is no optimum.")
        self.beta = beta
        self.temperature, self.base_weight = (beta, 0.0) if self.config.future_kl else (0.0, beta)

    @property
    def value_unit(self) -> float:
        return self.beta * self.mdp.dim

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        return self.update(rollout, *self.advantages(rollout))

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Generalised advantages and the returns they imply, both ``[T n]``, time-major."""
        return self.generalised_advantages(rollout, self.regularised_rewards(rollout), self.config.gae_lambda)

    @torch.no_grad()
    def regularised_rewards(self, rollout: Rollout) -> Tensor:
        """beta (log p_base - log pi_old)(x_{t+1} | x_t), the last plus -E(x_T): ``[T, n]``."""
        rewards = self.terminal_rewards(rollout)
        if self.config.future_kl:
            log_base = gaussian_log_prob(rollout.x_next, *self.base_moments(rollout))
            rewards = rewards + self.beta * (log_base - rollout.log_prob).view_as(rewards)
        return rewards
