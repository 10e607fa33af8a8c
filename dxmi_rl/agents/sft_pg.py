"""SFT-PG: shortcut fine-tuning with policy gradient (Fan and Lee 2023, arXiv 2301.13362), for use inside DxMI."""

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
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class SFTPGConfig:
    """Settings of SFT-PG."""

    n_trajectories: int = 32
    """Trajectories per iteration."""
    n_minibatches: int = 8
    """Policy steps per rollout, each on another part of it (the paper's n_generator)."""
    max_grad_norm: float = 1.06
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; it plays no part in the objective, but scores are taken with it."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(
            learning_rate=0.000328,
            state_dependent_sigma=False,
            sigma_learning_rate=0.0,
            sigma_fine_tuning_rate=0.0,
        )
    )
    """The policy. Its sigma stays the base sampler's, as in the paper: no entropy term would hold it up."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.00308))
    """The value network, the paper's baseline function."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)


class SFTPG(ActorCritic[SFTPGConfig]):
    """The critic as the only reward: E[sum_t grad log pi(x_{t+1} | x_t) (-E(x_T) - V_t(x_t))].

    The critic f of the paper is -E, trained against the sampler (its integral probability metric): here DxMI's energy,
    ``DxMI(task, agent="sft-pg")``. Without a moving energy the optimum is a point, the minimum of E.
    """

    name: ClassVar[str] = "sft-pg"
    held_by_beta: ClassVar[bool] = False
    Config = SFTPGConfig

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        advantages, returns = (part.flatten() for part in self.advantages(trajectory))

        def loss(rows: Tensor) -> Tensor:
            return self.policy_loss(trajectory, advantages, rows)

        return minibatch_steps(self, trajectory, loss, returns=returns, clipped=False)

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """-E(x_T) - V_t(x_t), with the paper's baseline V, and the returns -E(x_T): ``[T, n]`` each."""
        return self.generalised_advantages(ops.terminal_rewards(self.mdp, trajectory), trajectory, 1.0)

    def policy_loss(self, trajectory: Trajectory, advantages: Tensor, rows: Tensor) -> Tensor:
        """-E[A log pi(x_{t+1} | x_t)] over ``rows`` (the paper's policy gradient with its baseline function)."""
        x_next = trajectory.transitions()[1][rows]
        return -(advantages[rows] * gaussian_log_prob(x_next, *self.policy.moments_along(trajectory, rows))).mean()
