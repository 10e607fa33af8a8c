"""PPO on the denoising chain: DDPO with importance ratios (Black et al. 2023, arXiv 2305.13301), a value baseline,
generalised advantages and clipping (Schulman et al. 2017, arXiv 1707.06347).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.actor_critic import ActorCritic, minibatch_steps
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.policies import collect
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_real


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO."""

    n_trajectories: int = 128
    """Trajectories per iteration."""
    n_epochs: int = 8
    """Passes over each rollout."""
    n_minibatches: int = 4
    """Minibatches per pass."""
    clip_range: float = 0.342
    """PPO's epsilon on the importance ratio."""
    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1."""
    objective: str = "soft"
    """"soft" (the soft return of docs/method.md, with running cost and entropy) or "terminal" (-E(x_T) alone, as in the
    papers: nothing then keeps sigma from falling)."""
    max_grad_norm: float = 2.69
    """Largest norm of a policy gradient."""
    kernel_steps: int = 2
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.00645, sigma_learning_rate=0.00402)
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.00134))
    """The value network."""

    def __post_init__(self) -> None:
        ops.check_objective(self.objective)
        for key in ("n_trajectories", "n_epochs", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        for key in ("clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)
        check_fraction("gae_lambda", self.gae_lambda)


class PPO(ActorCritic[PPOConfig]):
    """Clipped policy gradient on the soft return of docs/method.md, with a value baseline.

    Several steps per rollout on E[min(rho A, clip(rho) A)] - tau KL(pi || pi_old). A already holds -tau log pi_old, so
    the KL is what remains of the entropy bonus. At each state the unclipped surrogate is exactly the one-step soft
    objective; of the whole return it is a first-order approximation.
    """

    name: ClassVar[str] = "ppo"
    Config = PPOConfig

    def _build(self) -> None:
        super()._build()
        self.temperature = ops.temperature_of(self.config.objective, self.mdp.tau)

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        advantages, returns = self.advantages(trajectory)
        return self.update(trajectory, advantages.flatten(), returns.flatten())

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Generalised soft advantages (PPO equation 11) and the returns that they imply, ``[T, n]`` each."""
        rewards = ops.soft_rewards(self.mdp, trajectory, self.temperature)
        return self.generalised_advantages(rewards, trajectory, self.config.gae_lambda)

    def update(self, trajectory: Trajectory, advantages: Tensor, returns: Tensor) -> Log:
        """``n_epochs`` passes of policy and value steps; advantages and returns are ``[T n]``, time-major."""
        with torch.no_grad():
            old = self.policy.moments_along(trajectory)

        def loss(rows: Tensor) -> Tensor:
            return self.policy_loss(trajectory, advantages, old, rows)

        return minibatch_steps(self, trajectory, loss, n_epochs=self.config.n_epochs, returns=returns)

    def policy_loss(self, trajectory: Trajectory, advantages: Tensor, old: ops.Moments, rows: Tensor) -> Tensor:
        """-E[min(rho A, clip(rho) A)] (PPO equation 7) + tau KL(pi || pi_old) over ``rows`` of the transitions."""
        x_next = trajectory.transitions()[1][rows]
        new, old = self.policy.moments_along(trajectory, rows), (old[0][rows], old[1][rows])
        loss = ops.clipped_loss(x_next, new, old, advantages[rows], self.config.clip_range)
        if self.temperature:
            loss = loss + self.temperature * ops.gaussian_kl(new, old).mean()
        return loss
