"""DPOK: policy gradient with KL to the pretrained sampler (Fan et al. 2023, arXiv 2305.16381)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.actor_critic import ActorCritic, minibatch_steps
from dxmi_rl.agents.aims import warn_of_density
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.policies import base_moments, collect
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
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


class DPOK(ActorCritic[DPOKConfig]):
    """Maximises E[-E(x_T)] - beta sum_t KL(pi(. | x_t) || p_base(. | x_t)), the paper's objective with reward -E.

    The optimum is p_base(x_0..x_T) exp(-E(x_T) / beta) / Z(x_0), chain by chain, not the task's exp(-E / tau): the
    base sampler is a prior here, and the backward kernel plays no part. As in PPO rewards hold the KL's sample,
    -beta log(pi_old / p_base), and the loss holds beta KL(pi || pi_old): at the optimum all advantages vanish.
    """

    name: ClassVar[str] = "dpok"
    Config = DPOKConfig

    def _build(self) -> None:
        warn_of_density(self.name, self.task)
        self.beta = self.mdp.tau if self.config.beta is None else self.config.beta
        if self.beta == 0:
            raise ValueError("beta must be given, as the task's tau is 0 and without the KL there is no optimum.")
        self.value_unit = self.beta * self.mdp.dim
        super()._build()

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        base = base_moments(self.mdp, self.policy, trajectory)
        advantages, returns = self.advantages(trajectory, base)
        return self.update(trajectory, base, advantages.flatten(), returns.flatten())

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory, base: ops.Moments) -> tuple[Tensor, Tensor]:
        """Generalised advantages and the returns that they imply, ``[T, n]`` each."""
        return self.generalised_advantages(
            self.regularised_rewards(trajectory, base), trajectory, self.config.gae_lambda
        )

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
        with torch.no_grad():
            old = self.policy.moments_along(trajectory)
        near = old if self.config.future_kl else base

        def loss(rows: Tensor) -> Tensor:
            return self.policy_loss(trajectory, advantages, old, near, rows)

        return minibatch_steps(self, trajectory, loss, n_epochs=self.config.n_epochs, returns=returns)

    def policy_loss(
        self, trajectory: Trajectory, advantages: Tensor, old: ops.Moments, near: ops.Moments, rows: Tensor
    ) -> Tensor:
        """PPO's clipped surrogate + beta KL(pi || near) over ``rows``; near is pi_old, or p_base (``future_kl``)."""
        x_next = trajectory.transitions()[1][rows]
        new, old = self.policy.moments_along(trajectory, rows), (old[0][rows], old[1][rows])
        loss = ops.clipped_loss(x_next, new, old, advantages[rows], self.config.clip_range)
        return loss + self.beta * ops.gaussian_kl(new, (near[0][rows], near[1][rows])).mean()
