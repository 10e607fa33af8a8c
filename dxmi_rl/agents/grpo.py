"""GRPO on the denoising chain: group-relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300,
section 4.1), as Flow-GRPO uses it on SDE samplers (Liu et al. 2025, arXiv 2505.05470).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.actor_critic import minibatch_steps
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, base_moments, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of GRPO."""

    n_trajectories: int = 64
    """Trajectories per iteration, a multiple of ``group_size``."""
    group_size: int = 8
    """Trajectories that share one start x_0."""
    normalise: bool | None = None
    """Divide advantages by the standard deviation of the group's returns, as the papers do; None: with the terminal
    objective only, as a division that differs from group to group changes the optimum of the soft return."""
    kl_weight: float = 0.0
    """Weight of KL(pi || base sampler) at the visited states, the papers' beta."""
    n_epochs: int = 4
    """Passes over each rollout."""
    n_minibatches: int = 8
    """Minibatches per pass."""
    clip_range: float = 0.0575
    """PPO's epsilon on the importance ratio."""
    objective: str = "soft"
    """"soft" (the soft return of docs/method.md, with running cost and entropy) or "terminal" (-E(x_T) alone, as in the
    papers: nothing then keeps sigma from falling)."""
    max_grad_norm: float = 7.24
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.00176, sigma_learning_rate=0.00563)
    )
    """The policy."""

    def __post_init__(self) -> None:
        ops.check_objective(self.objective)
        for key in ("n_trajectories", "n_epochs", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_integer("group_size", self.group_size, minimum=2)
        if self.n_trajectories % self.group_size:
            raise ValueError(
                f"n_trajectories must be a multiple of group_size = {self.group_size}, got {self.n_trajectories}."
            )
        if not (self.normalise is None or isinstance(self.normalise, bool)):
            raise TypeError(f"normalise must be True, False or None, got {self.normalise!r}.")
        for key in ("clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)
        check_real("kl_weight", self.kl_weight)


class GRPO(Agent[GRPOConfig]):
    """Clipped policy gradient with advantages relative to a group instead of a value network.

    In the papers a group is the answers to one prompt. There is no prompt here: the trajectories of a group share their
    start x_0 and differ in the noise of the steps, so the mean of their returns estimates the value of x_0. The loss is
    PPO's.
    """

    name: ClassVar[str] = "grpo"
    Config = GRPOConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        config = self.config
        self.temperature = ops.temperature_of(config.objective, self.mdp.tau)
        self.normalise = config.objective == "terminal" if config.normalise is None else config.normalise
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, n = self.config, self.config.n_trajectories
        start = self.mdp.reset(n // config.group_size, self.generator).repeat_interleave(config.group_size, 0)
        trajectory = collect(self, self.policy, n, on_final, kernel_steps=config.kernel_steps, start=start)
        return self.update(trajectory, self.advantages(trajectory).flatten())

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> Tensor:
        """Soft return-to-go minus the group's mean at the same step: ``[T, n]``, a group's trajectories in a row.

        ``normalise`` divides by the standard deviation of the group's whole returns. With the terminal objective this
        is the papers' (R - mean R) / std R, the same at every step (DeepSeekMath section 4.1.2, outcome supervision).
        """
        rewards = ops.soft_rewards(self.mdp, trajectory, self.temperature)
        returns = ops.returns_to_go(rewards).unflatten(1, (-1, self.config.group_size))
        advantages = returns - returns.mean(2, keepdim=True)
        if self.normalise:
            advantages = advantages / (returns[0].std(1, keepdim=True) + 1e-6)
        flat: Tensor = advantages.flatten(1)
        return flat

    def update(self, trajectory: Trajectory, advantages: Tensor) -> Log:
        """``n_epochs`` passes of policy steps; advantages are ``[T n]``, time-major."""
        with torch.no_grad():
            old = self.policy.moments_along(trajectory)
        base = base_moments(self.mdp, self.policy, trajectory) if self.config.kl_weight else None

        def loss(rows: Tensor) -> Tensor:
            return self.policy_loss(trajectory, advantages, old, base, rows)

        return minibatch_steps(self, trajectory, loss, n_epochs=self.config.n_epochs)

    def policy_loss(
        self, trajectory: Trajectory, advantages: Tensor, old: ops.Moments, base: ops.Moments | None, rows: Tensor
    ) -> Tensor:
        """-E[min(rho A, clip(rho) A)] + tau KL(pi || pi_old) + kl_weight KL(pi || base) over ``rows``."""
        x_next = trajectory.transitions()[1][rows]
        new, old = self.policy.moments_along(trajectory, rows), (old[0][rows], old[1][rows])
        loss = ops.clipped_loss(x_next, new, old, advantages[rows], self.config.clip_range)
        if self.temperature:
            loss = loss + self.temperature * ops.gaussian_kl(new, old).mean()
        if base is not None:
            loss = loss + self.config.kl_weight * ops.gaussian_kl(new, (base[0][rows], base[1][rows])).mean()
        return loss
