"""REINFORCE on the denoising chain: DDPO's score-function estimator, DDPO-SF (Black et al. 2023, arXiv 2305.13301,
section 4.3; Williams 1992), with the mean of the other trajectories as baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.agents.trust_region import policy_step
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real

RADIUS = 0.01
"""Trust region of a step from scratch, in nats per transition: without a learned value, the weights of steep energies
vary so much that longer steps run away."""


@dataclass(frozen=True)
class REINFORCEConfig:
    """Settings of REINFORCE."""

    n_trajectories: int = 32
    """Trajectories per iteration."""
    baseline: bool = True
    """Subtract from a return the mean over the other trajectories at the same step."""
    objective: str = "soft"
    """"soft" (the soft return of docs/method.md, with running cost and entropy) or "terminal" (-E(x_T) alone, as in the
    papers: nothing then keeps sigma from falling)."""
    max_grad_norm: float = 2.73
    """Largest norm of a policy gradient."""
    kernel_steps: int = 2
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.00325, sigma_learning_rate=0.00127)
    )
    """The policy."""

    def __post_init__(self) -> None:
        ops.check_objective(self.objective)
        check_integer("n_trajectories", self.n_trajectories, minimum=2 if self.baseline else 1)
        check_integer("kernel_steps", self.kernel_steps)
        check_real("max_grad_norm", self.max_grad_norm, strict=True)


class REINFORCE(Agent[REINFORCEConfig]):
    """One step per rollout along E[sum_t grad log pi(x_{t+1} | x_t) (G_t - b_t)]; no value network.

    G_t is the soft return-to-go of docs/method.md. Rewards before t are left out: times the score of step t they have
    mean zero.
    """

    name: ClassVar[str] = "reinforce"
    Config = REINFORCEConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        config = self.config
        self.temperature = ops.temperature_of(config.objective, self.mdp.tau)
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        loss = self.policy_loss(trajectory, self.advantages(trajectory).flatten())
        policy_loss = policy_step(
            self.policy_optimizer, self.policy, loss, config.max_grad_norm, trajectory, radius=RADIUS
        )
        return {"policy_loss": policy_loss}

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> Tensor:
        """G_t minus its mean over the other n - 1 trajectories: ``[T, n]``."""
        returns = ops.returns_to_go(ops.soft_rewards(self.mdp, trajectory, self.temperature))
        return ops.less_mean_of_others(returns) if self.config.baseline else returns

    def policy_loss(self, trajectory: Trajectory, advantages: Tensor) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over all transitions; its gradient is that of DDPO-SF."""
        _, x_next, _ = trajectory.transitions()
        return -(advantages * gaussian_log_prob(x_next, *self.policy.moments_along(trajectory))).mean()
