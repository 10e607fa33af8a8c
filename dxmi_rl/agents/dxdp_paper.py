"""DxDP as published (Yoon et al. 2024, arXiv 2407.00626, section 4 and algorithm 1), with the options of its release.

``dxdp.py`` is the strong agent: it differs by sampled entropies, TD(lambda), replay, many small steps and a warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.guidance import GuidedAgent
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.trust_region import GUARD, policy_step
from dxmi_rl.agents.values import Lookahead, ValueFunction, value_network
from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion.gaussian import HALF_LOG_TWO_PI
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import frozen


@dataclass(frozen=True)
class DxDPPaperConfig:
    """Settings of the published agent; its kernel is the task's ``backward="brownian"``.

    On images the paper has ``time_dependent_value=False, entropy_in_value=False, cost_in_value=False, time_cost=1.0``.
    """

    n_trajectories: int = 256
    """Trajectories per iteration."""
    tau1: float | None = None
    """Entropy coefficient per dimension; None: the task's tau (times d)."""
    tau2: float | None = None
    """Running-cost coefficient per dimension; None: the task's tau (times d)."""
    value_steps: int = 1
    """Value regressions per rollout."""
    policy_steps: int = 1
    """Policy steps per rollout, each with fresh next states."""
    policy_trajectories: int | None = 52
    """Trajectories that a policy step sees, drawn from the rollout. 52 are 260 transitions at T = 5; the paper has 256
    transitions. None: all."""
    entropy_in_value: bool = True
    """The entropy belongs to the value target; the policy step always has it."""
    cost_in_value: bool = True
    """The running cost belongs to the value target; the policy step always has it."""
    time_cost: float = 0.0
    """Nats c of the sigmoid time cost c [s(T // 2 - t) - s(T // 2 - t - 1)] in the value target, s the sigmoid."""
    time_dependent_value: bool = True
    """V_t(x); False: one V(x) for all steps."""
    max_grad_norm: float = 0.1
    """Largest norm of a policy gradient."""
    kernel_steps: int = 1
    """Fits of the backward kernel per rollout: with Brownian, adaptive velocity regularisation; Forward has no fit."""
    anneal: bool = False
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(width=128, state_dependent_sigma=False))
    """The policy; its sigma is one number per step, so ``state_dependent_sigma`` must be False."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(width=128, fourier=0, learning_rate=1e-3))
    """The value network."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "value_steps", "policy_steps", "kernel_steps"):
            check_integer(key, getattr(self, key))
        if self.policy_trajectories is not None:
            check_integer("policy_trajectories", self.policy_trajectories)
        for key in ("tau1", "tau2", "time_cost"):
            if (value := getattr(self, key)) is not None:
                check_real(key, value)
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        if self.policy.state_dependent_sigma:
            raise ValueError("policy.state_dependent_sigma must be False (one sigma per step), got True.")


class TimelessNetwork(nn.Module):
    """One V(x) for all steps: ``network`` has a single step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        value: Tensor = self.network(x, torch.zeros_like(t) if isinstance(t, Tensor) else 0)
        return value


class DxDPPaper(GuidedAgent[DxDPPaperConfig]):
    """Soft value iteration, one regression and one policy step per rollout.

    With d dimensions, H the entropy of the policy and qb the backward kernel (the paper's log qb(x | x') is, but for a
    constant, -|x - x'|^2 / (2 s_t^2)):

        V_T = E
        V_t(x_t) <- V_{t+1}(x_{t+1}) - tau2 / d log qb(x_t | x_{t+1}) - tau1 / d H(pi(. | x_t))          (evaluation)
        min over theta of
            E_{x' ~ pi_theta}[V_{t+1}(x') - tau2 / d log qb(x_t | x') - tau1 / d H(pi_theta(. | x_t))]  (improvement)

    The first is a regression on the rollout's own next states, TD(0); the second is reparameterised through one step.
    From scratch, where energies may be of any size, that step is kept in the trust region of docs/method.md.
    """

    name: ClassVar[str] = "dxdp-paper"
    needs_gradient: ClassVar[bool] = True
    Config = DxDPPaperConfig
    policy: GaussianPolicy
    lookahead: Lookahead | None = None
    """None: the published V is the network alone."""

    def _build(self) -> None:
        self.require_energy()
        config, mdp = self.config, self.mdp
        self.policy = make_policy(mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        timed = config.time_dependent_value
        # One value for all steps: with several horizons in units that they have in common.
        scale = mdp.state_scale[-1:] if mdp.base.schedule.several_horizons else mdp.state_scale[-2:-1]
        network: nn.Module = value_network(mdp, config.value, None if timed else scale)
        network = network if timed else TimelessNetwork(network)
        self.value = ValueFunction(mdp, config.value, network=network)
        self.entropy_weight = mdp.tau if config.tau1 is None else config.tau1 / mdp.dim
        self.cost_weight = mdp.tau if config.tau2 is None else config.tau2 / mdp.dim
        steps_left = mdp.horizon // 2 - torch.arange(mdp.horizon + 1.0, device=mdp.device)
        self.time_costs = -config.time_cost * steps_left.sigmoid().diff()

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, "value": self.value.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        found: Tensor = self.value(x, t)
        return -found

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, log = self.config, Log()
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        x, _, t = trajectory.transitions()
        targets = self.value_targets(trajectory).flatten()
        steps = max(config.value_steps, config.policy_steps)
        for step in range(steps):
            if ops.due(step, config.value_steps, steps):
                log["value_loss"] = self.value.fit(x, t, targets)
            if ops.due(step, config.policy_steps, steps):
                log["policy_loss"] = self.update_policy(trajectory)
        return log

    def entropy_cost(self, log_std: Tensor) -> Tensor:
        """-tau1 / d H(pi(. | x_t)), from log sigma that broadcasts over the event: ``[batch]``."""
        log_stds = log_std.expand(-1, *self.mdp.event_shape).flatten(1).sum(1)
        return -self.entropy_weight * (log_stds + self.mdp.dim * (HALF_LOG_TWO_PI + 0.5))

    def running_cost(self, x: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """-tau2 / d log qb(x_t | x_{t+1}): ``[batch]``."""
        if not self.cost_weight:
            return x.new_zeros(len(x))
        return -self.cost_weight * self.mdp.kernel.step_log_prob(x, x_next, t)

    @torch.no_grad()
    def value_targets(self, trajectory: Trajectory) -> Tensor:
        """c_t + V_{t+1}(x_{t+1}), V_T = E: ``[T, n]``; c_t holds the time cost, and the terms that are not left out."""
        x, x_next, t = trajectory.transitions()
        n, cost = trajectory.n, self.time_costs[t]
        if self.config.entropy_in_value:
            cost = cost + self.entropy_cost(per_step(self.policy.trained_log_sigma(), t, x))
        if self.config.cost_in_value:
            cost = cost + self.running_cost(x, x_next, t)
        values: Tensor = self.value(x[n:], t[n:])
        following = torch.cat([values.view(-1, n), self.mdp.finite_energy(trajectory.final)[None]])
        return cost.view(-1, n) + following

    def policy_loss(self, trajectory: Trajectory) -> Tensor:
        """Mean of V_{t+1}(x') + c_t(x_t, x') over fresh x' ~ pi(. | x_t) at every state of the rollout."""
        x, _, t = trajectory.transitions()
        n = trajectory.n
        mean, log_std = self.policy.moments_along(trajectory)
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device, dtype=mean.dtype)
        x_next = mean + log_std.exp() * noise
        count_draws(len(x_next))
        cost = self.entropy_cost(log_std) + self.running_cost(x, x_next, t)
        loss = cost.sum() + self.mdp.energy(x_next[-n:]).sum()
        if trajectory.horizon > 1:
            loss = loss + self.value(x_next[:-n], t[:-n] + 1).sum()
        return loss / len(x)

    def update_policy(self, trajectory: Trajectory) -> Tensor:
        """One step on ``policy_trajectories`` of the rollout; V, the kernel and the energy stay fixed."""
        n = self.config.policy_trajectories or trajectory.n
        if n < trajectory.n:
            chosen = torch.randperm(trajectory.n, generator=self.generator, device=trajectory.x.device)[:n]
            trajectory = trajectory.select(chosen)
        fixed = [*self.value.parameters(), *self.mdp.kernel.parameters(), *self.mdp.energy.parameters()]
        with frozen(fixed):
            loss = self.policy_loss(trajectory.from_step(self.policy.frozen_steps))
            return policy_step(
                self.policy_optimizer, self.policy, loss, self.config.max_grad_norm, trajectory,
                radius=GUARD / self.config.policy_steps,
            )  # fmt: skip
