"""DxDP: diffusion by dynamic programming, soft value iteration (Yoon et al. 2024, arXiv 2407.00626, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook, frozen
from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig, Rollout
from dxmi_rl.checks import check_integer, check_real
from dxmi_rl.diffusion.kernels import gaussian_log_prob

MAX_WARMUP = 0.1
"""Largest part of a budget that goes into warming up."""


@dataclass(frozen=True)
class DxDPConfig(GaussianConfig):
    """Settings of DxDP."""

    tau1: float | None = None
    """Entropy coefficient per dimension, the paper's; None: the task's tau (times d)."""
    tau2: float | None = None
    """Running-cost coefficient per dimension, the paper's; None: the task's tau (times d)."""
    td_lambda: float = 0.9
    """Mixing of n-step soft returns in the value target; 0 is the paper's one-step target."""
    value_steps: int = 2
    """Value regressions per rollout."""
    policy_steps: int = 4
    """Policy steps per rollout, each with fresh next states."""
    warmup_iterations: int = 20
    """First rollouts that train only the value, on the base sampler's states; at most a tenth of ``learn``'s budget."""
    warmup_value_steps: int = 10
    """Value regressions per warm-up rollout."""


class DxDP(GaussianAgent):
    """Soft value iteration with the kernel's bound on the entropy: nothing is back-propagated through time.

    V_T = E;  V_t(x) = E_{x' ~ pi}[V_{t+1}(x') - tau log qb(x | x') + tau log pi(x' | x)]      (evaluation)
    theta: min E_{x_t, x' ~ pi_theta}[V_{t+1}(x') - tau log qb(x_t | x') + tau log pi_theta(x' | x_t)]  (improvement)

    Evaluation is a regression on soft TD(lambda) returns of the policy's own rollout; improvement is reparameterised
    through one step. Both use the sampled log pi, not its mean -H: near the optimum the three terms cancel on every
    single path, so targets and gradients lose their variance.
    """

    name: ClassVar[str] = "dxdp"
    Config: ClassVar[type] = DxDPConfig
    config: DxDPConfig

    def _build(self) -> None:
        super()._build()
        config = self.config
        for key in ("value_steps", "policy_steps"):
            check_integer(key, getattr(config, key))
        for key in ("warmup_iterations", "warmup_value_steps"):
            check_integer(key, getattr(config, key), minimum=0)
        if not 0 <= check_real("td_lambda", config.td_lambda) <= 1:
            raise ValueError(f"td_lambda must lie in [0, 1], got {config.td_lambda}.")
        dim = self.mdp.dim
        self.entropy_weight = self.mdp.tau if config.tau1 is None else check_real("tau1", config.tau1) / dim
        self.cost_weight = self.mdp.tau if config.tau2 is None else check_real("tau2", config.tau2) / dim
        self.warmup_left = config.warmup_iterations

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        targets = self.value_targets(rollout)
        warming = self.warmup_left > 0 and self.progress < MAX_WARMUP
        for _ in range(self.config.warmup_value_steps if warming else self.config.value_steps):
            value_loss = self.update_value(rollout.x, rollout.t, targets)
        if warming:
            self.warmup_left -= 1
            return {"value_loss": value_loss}
        for _ in range(self.config.policy_steps):
            policy_loss = self.update_policy(rollout)
        return {"value_loss": value_loss, "policy_loss": policy_loss}

    def step_cost(self, x: Tensor, x_next: Tensor, t: Tensor, log_prob: Tensor) -> Tensor:
        """-tau2 / d log qb(x_t | x_{t+1}) + tau1 / d log pi(x_{t+1} | x_t): ``[batch]``."""
        cost = self.entropy_weight * log_prob
        if self.cost_weight:
            cost = cost - self.cost_weight * self.mdp.kernel.log_prob(x, x_next, t)
        return cost

    @torch.no_grad()
    def value_targets(self, rollout: Rollout) -> Tensor:
        """Soft TD(lambda) returns G_t = c_t + (1 - lambda) V_{t+1} + lambda G_{t+1}, G_T = E: ``[T n]``, time-major."""
        horizon, mix = self.mdp.horizon, self.config.td_lambda
        cost = self.step_cost(rollout.x, rollout.x_next, rollout.t, rollout.log_prob).view(horizon, -1)
        values = self.values(rollout.x, rollout.t).view(horizon, -1)
        future = self.mdp.energy(rollout.trajectory.final)
        targets = torch.empty_like(cost)
        for t in reversed(range(horizon)):
            bootstrap = future if t == horizon - 1 else (1 - mix) * values[t + 1] + mix * future
            targets[t] = future = cost[t] + bootstrap
        return targets.flatten()

    def policy_loss(self, rollout: Rollout) -> Tensor:
        """Mean of V_{t+1}(x') + c_t(x_t, x') over fresh reparameterised x' ~ pi(. | x_t) at every stored state."""
        n = rollout.trajectory.x.shape[1]
        mean, log_std = self.policy.moments(rollout.x, rollout.t, rollout.reference)
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
        x_next = mean + log_std.exp() * noise
        # log pi at fixed parameters: its direct score has mean zero and would only add variance (Roeder et al. 2017).
        log_prob = gaussian_log_prob(x_next, mean.detach(), log_std.detach())
        cost = self.step_cost(rollout.x, x_next, rollout.t, log_prob)
        future = self.values(x_next[:-n], rollout.t[:-n] + 1)
        self.costs.policy_draws += len(x_next)
        self.costs.energy_evals += n
        self.costs.energy_grad_evals += n
        return (cost.sum() + future.sum() + self.mdp.energy(x_next[-n:]).sum()) / len(x_next)

    def update_policy(self, rollout: Rollout) -> Tensor:
        """One reparameterised policy step; V, the kernel and the energy stay fixed."""
        with frozen([*self.value.parameters(), *self.mdp.kernel.parameters(), *self.mdp.energy_parameters()]):
            return self.step_policy(self.policy_loss(rollout), len(rollout.x))

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {"warmup_left": torch.tensor(self.warmup_left)}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.warmup_left = int(tensors["warmup_left"])
