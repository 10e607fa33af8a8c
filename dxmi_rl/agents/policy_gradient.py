"""What the policy-gradient agents share: rewards, advantages, the score-function loss and the clipped surrogate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig, Rollout, importance_ratio
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError

OBJECTIVES = ["soft", "terminal"]

Moments = tuple[Tensor, Tensor]
"""Mean and log standard deviation of Gaussians, one per row."""


@dataclass(frozen=True)
class PolicyGradientConfig(GaussianConfig):
    """What is maximised."""

    objective: str = "soft"
    """"soft" (the soft return of docs/method.md, with running cost and entropy) or "terminal" (-E(x_T) alone, as in the
    papers: nothing then keeps sigma from falling)."""


@dataclass(frozen=True)
class CriticConfig(GaussianConfig):
    """Settings of advantages from a value network."""

    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1."""


@dataclass(frozen=True)
class ClippedConfig(GaussianConfig):
    """Settings of the clipped surrogate."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Minibatches per pass."""
    clip_ratio: float = 0.2
    """PPO's epsilon on the importance ratio."""


class PolicyGradientAgent(GaussianAgent):
    """A GaussianAgent that moves its policy by log pi(x_{t+1} | x_t) times an advantage, never through the energy.

    Soft reward of a step: r_t - tau log pi_old(x_{t+1} | x_t). Its sampled log pi stands for the entropy: at the
    optimum the soft advantages vanish on every path.
    """

    def _build(self) -> None:
        super()._build()
        config = self.config
        self.temperature = 0.0
        """What stands before log pi_old in the rewards; 0: they are -E(x_T) alone."""
        if isinstance(config, PolicyGradientConfig):
            if config.objective not in OBJECTIVES:
                raise UnknownNameError("objective", config.objective, OBJECTIVES)
            self.temperature = self.mdp.tau if config.objective == "soft" else 0.0
        if isinstance(config, CriticConfig) and not 0 <= check_real("gae_lambda", config.gae_lambda) <= 1:
            raise ValueError(f"gae_lambda must lie in [0, 1], got {config.gae_lambda}.")
        if isinstance(config, ClippedConfig):
            check_integer("epochs", config.epochs)
            check_integer("minibatches", config.minibatches)
            check_real("clip_ratio", config.clip_ratio, strict=True)

    # -- rewards and advantages: [T, n], or flat [T n], time-major ---------------------------------------------

    @torch.no_grad()
    def soft_rewards(self, rollout: Rollout) -> Tensor:
        """r_t - tau log pi_old(x_{t+1} | x_t); -E(x_T) alone when the temperature is 0: ``[T, n]``."""
        if self.temperature == 0:
            return self.terminal_rewards(rollout)
        return self.mdp.rewards(rollout.trajectory) - self.temperature * rollout.trajectory.log_prob

    @torch.no_grad()
    def terminal_rewards(self, rollout: Rollout) -> Tensor:
        """-E(x_T) in the last row, zeros before: ``[T, n]``. Raises EnergyError when not finite."""
        rewards = torch.zeros_like(rollout.trajectory.log_prob)
        rewards[-1] = self.mdp.terminal_reward(rollout.trajectory.final)
        self.mdp.require_finite(rewards)
        return rewards

    @torch.no_grad()
    def generalised_advantages(self, rollout: Rollout, rewards: Tensor, mix: float) -> tuple[Tensor, Tensor]:
        """A_t = sum_k mix^k delta_{t+k}, delta_t = r_t + V_{t+1} - V_t (Schulman et al. 2016, arXiv 1506.02438,
        equation 16), and the returns A_t + V_t they imply: ``[T n]`` each.
        """
        values = self.values(rollout.x, rollout.t).view(self.mdp.horizon, -1)
        following = torch.cat([values[1:], torch.zeros_like(values[:1])])
        errors = rewards + following - values
        advantages = torch.empty_like(errors)
        running = torch.zeros_like(errors[0])
        for t in reversed(range(self.mdp.horizon)):
            advantages[t] = running = errors[t] + mix * running
        return advantages.flatten(), (advantages + values).flatten()

    # -- losses ------------------------------------------------------------------------------------------------

    def new_moments(self, rollout: Rollout, rows: Tensor) -> Moments:
        """Those of the policy as it is now, at ``rows`` of a rollout."""
        reference = None if rollout.reference is None else rollout.reference[rows]
        mean, log_std = self.policy.moments(rollout.x[rows], rollout.t[rows], reference)
        return mean, log_std.expand_as(mean)

    @torch.no_grad()
    def base_moments(self, rollout: Rollout) -> Moments:
        """Those of the task's base sampler, the pretrained policy; a correction's rollout has its means already."""
        if self.owns_denoiser or rollout.reference is None:
            mean = self.mdp.base.mean(rollout.x, rollout.t)
            self.costs.denoiser_calls += len(rollout.x) * self.mdp.base.denoiser_calls
        else:
            mean = rollout.reference[:, 0] if self.informed else rollout.reference
        return mean, per_step(self.mdp.base.sigma.log(), rollout.t, mean).expand_as(mean)

    def score_loss(self, rollout: Rollout, advantages: Tensor, rows: Tensor | None = None) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over ``rows`` (all); its gradient is the policy gradient where it was drawn."""
        if rows is None:
            rows = torch.arange(len(rollout.x), device=rollout.x.device)
        return -(advantages[rows] * gaussian_log_prob(rollout.x_next[rows], *self.new_moments(rollout, rows))).mean()


class ClippedAgent(PolicyGradientAgent):
    """Several steps per rollout on the clipped surrogate E[min(rho A, clip(rho) A)] - tau KL(pi || pi_old).

    The KL term is what the entropy bonus leaves when A holds log pi_old. At each state the unclipped surrogate is the
    one-step soft objective itself; in the whole return it is right to first order.
    """

    base_weight: float = 0.0
    """Weight of KL(pi || base sampler) at the visited states."""

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor | None = None) -> dict[str, float | Tensor]:
        """``epochs`` passes of policy steps, each with a value step towards ``returns`` where there is a critic."""
        log: dict[str, float | Tensor] = {}
        with torch.no_grad():
            old_mean, old_log_std = self.policy.moments(rollout.x, rollout.t, rollout.reference)
            old_log_std = old_log_std.expand_as(old_mean)
        if self.owns_denoiser:
            self.costs.denoiser_calls += len(rollout.x)
        base = self.base_moments(rollout) if self.base_weight else None
        for _ in range(self.config.epochs):
            order = torch.randperm(len(rollout.x), generator=self.generator, device=rollout.x.device)
            for rows in order.chunk(self.config.minibatches):
                loss = self.policy_loss(rollout, advantages, old_mean, old_log_std, rows, base)
                log["policy_loss"] = self.step_policy(loss, len(rows))
                if returns is not None:
                    log["value_loss"] = self.update_value(rollout.x[rows], rollout.t[rows], returns[rows])
        return log

    def policy_loss(
        self,
        rollout: Rollout,
        advantages: Tensor,
        old_mean: Tensor,
        old_log_std: Tensor,
        rows: Tensor,
        base: Moments | None = None,
    ) -> Tensor:
        """-E[min(rho A, clip(rho) A)] (PPO equation 7) + tau KL(pi || pi_old) + w KL(pi || base) over ``rows``."""
        new, old = self.new_moments(rollout, rows), (old_mean[rows], old_log_std[rows])
        x_next, advantages = rollout.x_next[rows], advantages[rows]
        # By the same arithmetic, so that equal moments give exactly 1.
        ratio = importance_ratio(gaussian_log_prob(x_next, *new), gaussian_log_prob(x_next, *old))
        clipped = ratio.clamp(1 - self.config.clip_ratio, 1 + self.config.clip_ratio)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        if self.temperature:
            loss = loss + self.temperature * gaussian_divergence(new, old).mean()
        if base is not None:
            loss = loss + self.base_weight * gaussian_divergence(new, (base[0][rows], base[1][rows])).mean()
        return loss


def returns_to_go(rewards: Tensor) -> Tensor:
    """sum_{k >= t} r_k for every t: ``[T, n]``."""
    return rewards.flip(0).cumsum(0).flip(0)


def gaussian_divergence(new: Moments, old: Moments) -> Tensor:
    """KL(new || old) of diagonal Gaussians, in nats: ``[batch]``."""
    change = new[1] - old[1]
    shift = (new[0] - old[0]) * torch.exp(-old[1])
    return 0.5 * ((2 * change).exp() + shift.square() - 1 - 2 * change).flatten(1).sum(1)
