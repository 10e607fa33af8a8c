"""PPO on the denoising chain: DDPO with importance ratios (Black et al. 2023, arXiv 2305.13301), a value baseline,
generalised advantages and clipping (Schulman et al. 2017, arXiv 1707.06347).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig, Rollout
from dxmi_rl.checks import check_integer, check_real
from dxmi_rl.diffusion.kernels import gaussian_log_prob


@dataclass(frozen=True)
class PPOConfig(GaussianConfig):
    """Settings of PPO."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Minibatches per pass."""
    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1."""
    clip_ratio: float = 0.2
    """PPO's epsilon on the importance ratio."""


class PPO(GaussianAgent):
    """Clipped policy gradient on the soft return of docs/method.md.

    Soft reward of a step: r_t - tau log pi_old(x_{t+1} | x_t). Its sampled log pi stands for the entropy: at the
    optimum the advantages vanish on every path. The surrogate is E[min(rho A, clip(rho) A)] - tau KL(pi || pi_old);
    the KL term is what the entropy bonus leaves when A holds log pi_old, so the surrogate is exact to second order.
    """

    name: ClassVar[str] = "ppo"
    Config: ClassVar[type] = PPOConfig
    config: PPOConfig

    def _build(self) -> None:
        super()._build()
        config = self.config
        for key in ("epochs", "minibatches"):
            check_integer(key, getattr(config, key))
        check_real("clip_ratio", config.clip_ratio, strict=True)
        if not 0 <= check_real("gae_lambda", config.gae_lambda) <= 1:
            raise ValueError(f"gae_lambda must lie in [0, 1], got {config.gae_lambda}.")

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        advantages, returns = self.advantages(rollout)
        with torch.no_grad():
            old_mean, old_log_std = self.policy.moments(rollout.x, rollout.t, rollout.reference)
            old_log_std = old_log_std.expand_as(old_mean)
        for _ in range(self.config.epochs):
            order = torch.randperm(len(rollout.x), generator=self.generator, device=rollout.x.device)
            for rows in order.chunk(self.config.minibatches):
                loss = self.policy_loss(rollout, advantages, old_mean, old_log_std, rows)
                policy_loss = self.step_policy(loss, len(rows))
                value_loss = self.update_value(rollout.x[rows], rollout.t[rows], returns[rows])
        return {"policy_loss": policy_loss, "value_loss": value_loss}

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Generalised soft advantages and the returns they imply, both ``[T n]``, time-major."""
        horizon = self.mdp.horizon
        soft = self.mdp.rewards(rollout.trajectory) - self.mdp.tau * rollout.trajectory.log_prob
        values = self.values(rollout.x, rollout.t).view(horizon, -1)
        following = torch.cat([values[1:], torch.zeros_like(values[:1])])
        errors = soft + following - values
        advantages = torch.empty_like(errors)
        running = torch.zeros_like(errors[0])
        for t in reversed(range(horizon)):
            advantages[t] = running = errors[t] + self.config.gae_lambda * running
        return advantages.flatten(), (advantages + values).flatten()

    def policy_loss(
        self, rollout: Rollout, advantages: Tensor, old_mean: Tensor, old_log_std: Tensor, rows: Tensor
    ) -> Tensor:
        """Clipped surrogate (PPO equation 7) plus tau KL(pi || pi_old), averaged over ``rows``."""
        reference = None if rollout.reference is None else rollout.reference[rows]
        mean, log_std = self.policy.moments(rollout.x[rows], rollout.t[rows], reference)
        log_std = log_std.expand_as(mean)
        log_prob = gaussian_log_prob(rollout.x_next[rows], mean, log_std)
        ratio = (log_prob - rollout.log_prob[rows]).exp()
        clipped = ratio.clamp(1 - self.config.clip_ratio, 1 + self.config.clip_ratio)
        surrogate = torch.minimum(ratio * advantages[rows], clipped * advantages[rows]).mean()
        change = log_std - old_log_std[rows]
        shift = (mean - old_mean[rows]) * torch.exp(-old_log_std[rows])
        divergence = 0.5 * ((2 * change).exp() + shift.square() - 1 - 2 * change).flatten(1).sum(1).mean()
        return self.mdp.tau * divergence - surrogate
