"""A2C on the denoising chain: advantage actor-critic, synchronous (Mnih et al. 2016, arXiv 1602.01783)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.actor_critic import ActorCritic
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.policies import collect
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.trust_region import policy_step
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_real


@dataclass(frozen=True)
class A2CConfig:
    """Settings of A2C."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    value_steps: int = 8
    """Value regressions per rollout; 1 is the paper's."""
    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1, and lambda = 1 is the paper's n-step form."""
    objective: str = "soft"
    """"soft" (the soft return of docs/method.md, with running cost and entropy) or "terminal" (-E(x_T) alone, as in the
    papers: nothing then keeps sigma from falling)."""
    max_grad_norm: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(learning_rate=0.005, sigma_learning_rate=0.0075))
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.005))
    """The value network."""

    def __post_init__(self) -> None:
        ops.check_objective(self.objective)
        for key in ("n_trajectories", "value_steps", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        check_fraction("gae_lambda", self.gae_lambda)


class A2C(ActorCritic[A2CConfig]):
    """One step per rollout along E[sum_t grad log pi(x_{t+1} | x_t) A_t] with advantages from a value network.

    Rewards are the soft ones of docs/method.md. Their sampled log pi replaces the paper's entropy bonus, which counts
    the entropy of the present step alone.
    """

    name: ClassVar[str] = "a2c"
    Config = A2CConfig

    def _build(self) -> None:
        super()._build()
        self.temperature = ops.temperature_of(self.config.objective, self.mdp.tau)

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        advantages, returns = self.advantages(trajectory)
        loss = self.policy_loss(trajectory, advantages.flatten())
        policy_loss = policy_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm, trajectory)
        x, _, t = trajectory.transitions()
        for _ in range(config.value_steps):
            value_loss = self.value.fit(x, t, returns.flatten())
        return {"policy_loss": policy_loss, "value_loss": value_loss}

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Generalised soft advantages and the returns that they imply, ``[T, n]`` each."""
        rewards = ops.soft_rewards(self.mdp, trajectory, self.temperature)
        return self.generalised_advantages(rewards, trajectory, self.config.gae_lambda)

    def policy_loss(self, trajectory: Trajectory, advantages: Tensor) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over all transitions, the paper's actor-critic update."""
        _, x_next, _ = trajectory.transitions()
        return -(advantages * gaussian_log_prob(x_next, *self.policy.moments_along(trajectory))).mean()
