"""PPO on the denoising chain: DDPO with importance ratios (Black et al. 2023, arXiv 2305.13301), a value baseline,
generalised advantages and clipping (Schulman et al. 2017, arXiv 1707.06347).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.trust_region import policy_step
from dxmi_rl.agents.values import ValueFunction
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
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


class PPO(Agent[PPOConfig]):
    """Clipped policy gradient on the soft return of docs/method.md, with a value baseline.

    Several steps per rollout on E[min(rho A, clip(rho) A)] - tau KL(pi || pi_old). A already holds -tau log pi_old, so
    the KL is what remains of the entropy bonus. At each state the unclipped surrogate is exactly the one-step soft
    objective; of the whole return it is a first-order approximation.
    """

    name: ClassVar[str] = "ppo"
    Config = PPOConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        config = self.config
        self.temperature = ops.temperature_of(config.objective, self.mdp.tau)
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        self.value = ValueFunction(self.mdp, config.value)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, "value": self.value.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        advantages, returns = self.advantages(trajectory)
        return self.update(trajectory, advantages.flatten(), returns.flatten())

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Generalised soft advantages (PPO equation 11) and the returns that they imply, ``[T, n]`` each."""
        rewards = ops.soft_rewards(self.mdp, trajectory, self.temperature)
        x, _, t = trajectory.transitions()
        return ops.gae(rewards, self.value(x, t).view_as(rewards), self.config.gae_lambda)

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        found: Tensor = self.value(x, t)
        return found

    def update(self, trajectory: Trajectory, advantages: Tensor, returns: Tensor) -> Log:
        """``n_epochs`` passes of policy and value steps; advantages and returns are ``[T n]``, time-major."""
        config, log = self.config, Log()
        x, _, t = trajectory.transitions()
        with torch.no_grad():
            old = self.policy.moments_along(trajectory)
        steps = config.n_epochs * config.n_minibatches
        for _ in range(config.n_epochs):
            order = torch.randperm(len(x), generator=self.generator, device=x.device)
            for rows in order.chunk(config.n_minibatches):
                loss = self.policy_loss(trajectory, advantages, old, rows)
                log["policy_loss"] = policy_step(
                    self.policy_optimizer, self.policy, loss, config.max_grad_norm, trajectory, steps=steps
                )
                log["value_loss"] = self.value.fit(x[rows], t[rows], returns[rows])
        return log

    def policy_loss(self, trajectory: Trajectory, advantages: Tensor, old: ops.Moments, rows: Tensor) -> Tensor:
        """-E[min(rho A, clip(rho) A)] (PPO equation 7) + tau KL(pi || pi_old) over ``rows`` of the transitions."""
        x_next = trajectory.transitions()[1][rows]
        new, old = self.policy.moments_along(trajectory, rows), (old[0][rows], old[1][rows])
        # Both log-probabilities by the same arithmetic, so that equal moments give exactly 1.
        ratio = ops.importance_ratio(gaussian_log_prob(x_next, *new), gaussian_log_prob(x_next, *old))
        loss = ops.clipped_surrogate(ratio, advantages[rows], self.config.clip_range)
        if self.temperature:
            loss = loss + self.temperature * ops.gaussian_kl(new, old).mean()
        return loss
