"""DPOK: policy gradient with KL to the pretrained sampler (Fan et al. 2023, arXiv 2305.16381)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.aims import warn_of_density
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, base_moments, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.trust_region import policy_step
from dxmi_rl.agents.values import ValueFunction
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_real


@dataclass(frozen=True)
class DPOKConfig:
    """Settings of DPOK."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    beta: float | None = None
    """Weight of KL(pi || base sampler), in nats; None: the task's tau."""
    future_kl: bool = True
    """Advantages hold the KL of later steps, which makes the optimum exact. False is what the paper runs: it drops that
    part of the gradient for simplicity."""
    n_epochs: int = 16
    """Passes over each rollout."""
    n_minibatches: int = 1
    """Minibatches per pass."""
    clip_range: float = 0.133
    """PPO's epsilon on the importance ratio."""
    gae_lambda: float = 0.8
    """Mixing of n-step advantages; the discount is 1."""
    max_grad_norm: float = 1.28
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; it plays no part in the objective, but scores are taken with it."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.00292, sigma_learning_rate=0.00603)
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.000788))
    """The value network."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "n_epochs", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        for key in ("clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)
        check_fraction("gae_lambda", self.gae_lambda)
        if self.beta is not None:
            check_real("beta", self.beta, strict=True)


class DPOK(Agent[DPOKConfig]):
    """Maximises E[-E(x_T)] - beta sum_t KL(pi(. | x_t) || p_base(. | x_t)), the paper's objective with reward -E.

    The optimum is p_base(x_0..x_T) exp(-E(x_T) / beta) / Z(x_0), chain by chain, not the task's exp(-E / tau): the
    base sampler is a prior here, and the backward kernel plays no part. As in PPO rewards hold the KL's sample,
    -beta log(pi_old / p_base), and the loss holds beta KL(pi || pi_old): at the optimum all advantages vanish.
    """

    name: ClassVar[str] = "dpok"
    Config = DPOKConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        warn_of_density(self.name, self.task)
        config = self.config
        self.beta = self.mdp.tau if config.beta is None else config.beta
        if self.beta == 0:
            raise ValueError("beta must be given, as the task's tau is 0 and without the KL there is no optimum.")
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        self.value = ValueFunction(self.mdp, config.value, unit=self.beta * self.mdp.dim)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, "value": self.value.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        base = base_moments(self.mdp, self.policy, trajectory)
        advantages, returns = self.advantages(trajectory, base)
        return self.update(trajectory, base, advantages.flatten(), returns.flatten())

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory, base: ops.Moments) -> tuple[Tensor, Tensor]:
        """Generalised advantages and the returns that they imply, ``[T, n]`` each."""
        rewards = self.regularised_rewards(trajectory, base)
        x, _, t = trajectory.transitions()
        return ops.gae(rewards, self.value(x, t).view_as(rewards), self.config.gae_lambda)

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        found: Tensor = self.value(x, t)
        return found

    @torch.no_grad()
    def regularised_rewards(self, trajectory: Trajectory, base: ops.Moments) -> Tensor:
        """beta (log p_base - log pi_old)(x_{t+1} | x_t), the last plus -E(x_T): ``[T, n]``.

        Without ``future_kl`` -E(x_T) alone.
        """
        rewards = ops.terminal_rewards(self.mdp, trajectory)
        if self.config.future_kl:
            _, x_next, _ = trajectory.transitions()
            log_base = gaussian_log_prob(x_next, *base).view_as(rewards)
            rewards = rewards + self.beta * (log_base - trajectory.log_prob)
        return rewards

    def update(self, trajectory: Trajectory, base: ops.Moments, advantages: Tensor, returns: Tensor) -> Log:
        """``n_epochs`` passes of policy and value steps; advantages and returns are ``[T n]``, time-major."""
        config, log = self.config, Log()
        x, _, t = trajectory.transitions()
        with torch.no_grad():
            old = self.policy.moments_along(trajectory)
        near = old if config.future_kl else base
        steps = config.n_epochs * config.n_minibatches
        for _ in range(config.n_epochs):
            order = torch.randperm(len(x), generator=self.generator, device=x.device)
            for rows in order.chunk(config.n_minibatches):
                loss = self.policy_loss(trajectory, advantages, old, near, rows)
                log["policy_loss"] = policy_step(
                    self.policy_optimizer, self.policy, loss, config.max_grad_norm, trajectory, steps=steps
                )
                log["value_loss"] = self.value.fit(x[rows], t[rows], returns[rows])
        return log

    def policy_loss(
        self, trajectory: Trajectory, advantages: Tensor, old: ops.Moments, near: ops.Moments, rows: Tensor
    ) -> Tensor:
        """PPO's clipped surrogate + beta KL(pi || near) over ``rows``; near is pi_old, or p_base (``future_kl``)."""
        x_next = trajectory.transitions()[1][rows]
        new, old = self.policy.moments_along(trajectory, rows), (old[0][rows], old[1][rows])
        # Both log-probabilities by the same arithmetic, so that equal moments give exactly 1.
        ratio = ops.importance_ratio(gaussian_log_prob(x_next, *new), gaussian_log_prob(x_next, *old))
        loss = ops.clipped_surrogate(ratio, advantages[rows], self.config.clip_range)
        return loss + self.beta * ops.gaussian_kl(new, (near[0][rows], near[1][rows])).mean()
