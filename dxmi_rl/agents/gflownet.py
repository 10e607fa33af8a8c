"""What the GFlowNet and log-variance agents share: off-policy paths, their log-weights, flows, exploration, replay.

They compare log w = -E(x_T) / tau - log p_0(x_0) + sum_t [log qb(x_t | x_{t+1}) - log pi(x_{t+1} | x_t)] with log Z.
At the optimum their losses are zero on every path, so paths may come from any distribution with full support: from
exploration with extra noise, from replayed x_T. Paths are constants; gradients flow through log pi and the flows only.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, Recorder, collect, make_policy, policy_optimizer
from dxmi_rl.agents.replay import LocalSearch, ReplayBuffer
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.trust_region import RADIUS, trust_region
from dxmi_rl.agents.values import ValueFunction
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.live_energy import require_finite
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_open_fraction, check_real
from dxmi_rl.utils.torch_tools import adam


@dataclass(frozen=True)
class GFlowNetConfig:
    """Settings of every GFlowNet agent."""

    n_trajectories: int = 32
    """Trajectories per iteration."""
    gradient_steps: int = 2
    """Gradient steps on each batch; the losses hold off-policy."""
    exploration: float = 0.0
    """Extra standard deviation of the rollouts' steps, in units of the base step's sigma, added in quadrature. More
    (0.5, 1) finds modes that are lost otherwise, and costs accuracy where none are."""
    exploration_fraction: float = 0.5
    """Part of the budget over which ``exploration`` falls linearly to 0."""
    buffer_size: int = 0
    """Capacity of the buffer of final states; 0: no replay."""
    replay_fraction: float = 0.1
    """Part of a batch's paths that are drawn backwards from the buffer, on top of ``n_trajectories`` rollouts. The
    paper has a half, for a hundred steps. A few Gaussian steps cannot balance on all paths, and become broader to cover
    the replayed ones."""
    local_search_steps: int = 20
    """MALA steps that improve ``n_trajectories`` replayed states; 0: no local search."""
    local_search_every: int = 10
    """Iterations from one local search to the next."""
    max_grad_norm: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy."""
    value: ValueConfig = field(default_factory=ValueConfig)
    """The network of flows."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "gradient_steps", "local_search_every", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        check_real("exploration", self.exploration)
        if check_fraction("exploration_fraction", self.exploration_fraction) == 0:
            raise ValueError("exploration_fraction must lie in (0, 1], got 0.")
        check_open_fraction("replay_fraction", self.replay_fraction)
        check_integer("local_search_steps", self.local_search_steps, minimum=0)
        if 0 < check_integer("buffer_size", self.buffer_size, minimum=0) < self.n_trajectories:
            raise ValueError(
                f"buffer_size must be 0 or >= n_trajectories = {self.n_trajectories}, got {self.buffer_size}."
            )


ConfigT = TypeVar("ConfigT", bound=GFlowNetConfig)


class ExploringPolicy(GaussianPolicy):
    """A policy with extra noise: variance sigma_pi^2 + extra_t^2, extra ``[T]``, but not at its frozen steps."""

    def __init__(self, policy: GaussianPolicy, extra: Tensor) -> None:
        super().__init__()
        extra = extra.clone()
        extra[: policy.frozen_steps] = 0.0
        self.policy, self.log_variance = policy, 2 * extra.log()

    def base_mean(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        return self.policy.base_mean(x, t)

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy.moments(x, t, base_mean)
        return mean, 0.5 * torch.logaddexp(2 * log_std, per_step(self.log_variance, t, x))


class LogZ(nn.Module):
    """The learned log Z of trajectory and detailed balance; it starts at the first batch's estimate."""

    started: Tensor

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.register_buffer("started", torch.tensor(False))
        self.learning_rate = learning_rate

    @torch.no_grad()
    def start(self, guess: Tensor) -> None:
        """Take ``guess``, the first time only."""
        self.value.copy_(torch.where(self.started, self.value, guess))
        self.started.fill_(True)


class GFlowNet(Agent[ConfigT]):
    """An agent whose loss is a square of log w or of its steps, and so may also train on paths that it did not draw.

    With exploration on, the final states handed to ``on_final`` (DxMI) are the exploring policy's, and the kernel is
    fitted to its paths. Replay adds chains drawn by the kernel from buffered x_T; they train the policy and its flows,
    not the kernel, and are no rollout transitions.
    """

    policy: GaussianPolicy
    value: ValueFunction | None
    """The flows, or None for an agent that learns none."""
    log_z: LogZ | None

    def _build(self) -> None:
        config = self.config
        self.iterations = 0
        searches = bool(config.buffer_size and config.local_search_steps)
        self.require_energy(gradient=searches)
        if self.mdp.tau == 0:
            raise ValueError(f"agent {self.name!r} aims at exp(-E / tau) and needs tau > 0, got tau = 0.")
        if config.buffer_size and not self.mdp.kernel.draws_backwards:
            raise ValueError(
                f"buffer_size must be 0 on a task whose backward kernel draws no chains, got {config.buffer_size}."
            )
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        self.value = ValueFunction(self.mdp, config.value) if self.learns_flows() else None
        rate = self.log_z_learning_rate()
        self.log_z = None if rate is None else LogZ(rate).to(self.mdp.device)
        self.log_z_optimizer = None if self.log_z is None else adam([([self.log_z.value], self.log_z.learning_rate)])
        self.buffer = ReplayBuffer(self.mdp, config.buffer_size) if config.buffer_size else None
        # The last step's noise is of the size of the target's finest structure.
        finest, steps = self.mdp.base.sigma[-1], config.local_search_steps
        self.search = LocalSearch(self.mdp.energy, self.mdp.tau, finest, steps) if searches else None

    def learns_flows(self) -> bool:
        """Whether there is a value network."""
        return True

    def log_z_learning_rate(self) -> float | None:
        """Peak rate of log Z, or None for an agent that learns none."""
        return None

    def flow_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Those of the flows and of log Z."""
        flows: dict[str, torch.optim.Optimizer] = {} if self.value is None else {"value": self.value.optimizer}
        return flows | ({} if self.log_z_optimizer is None else {"log_z": self.log_z_optimizer})

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, **self.flow_optimizers()}

    def modules(self) -> dict[str, nn.Module]:
        learned: dict[str, nn.Module | None] = {"value": self.value, "log_z": self.log_z}
        return super().modules() | {name: module for name, module in learned.items() if module is not None}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        self.iterations += 1
        paths = collect(self, self.behaviour(), config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        rows = None
        if self.buffer is not None and (size := len(self.buffer)):
            if self.energy_swapped():
                self.buffer.energy[:size] = self.mdp.finite_energy(self.buffer.x[:size]).detach()
            self.improve(self.buffer)
            rows = self.buffer.draw(self.replayed, self.generator)
            paths = paths.cat(self.backwards(self.buffer.x[rows]))
        log_targets, energy = self.log_targets(paths)
        if self.buffer is not None:
            n = config.n_trajectories
            if rows is not None:  # DxMI's energy moves
                self.buffer.energy[rows] = energy[n:]
            self.buffer.add(paths.final[:n], energy[:n])
        if self.log_z is not None:
            guess = log_targets.sum(0) - paths.log_prob.sum(0)
            self.log_z.start((guess - self.mdp.start_log_prob(paths.x[0])).mean())
        return self.train(paths, log_targets)

    def train(self, paths: Trajectory, log_targets: Tensor) -> Log:
        """``gradient_steps`` on one batch; ``log_targets`` ``[T, n]`` as from the method."""
        with torch.no_grad():
            start = self.log_forward(paths)
        for _ in range(self.config.gradient_steps):
            loss = self.loss(paths, log_targets, start)
            self.descend(loss, paths)
        return {"policy_loss": loss.detach()}

    @abc.abstractmethod
    def loss(self, paths: Trajectory, log_targets: Tensor, start: Tensor) -> Tensor:
        """The algorithm's loss on paths; ``start`` is ``log_forward`` before the first step on them, ``[T, n]``."""

    def behaviour(self) -> GaussianPolicy:
        """The policy of the rollouts: with extra noise at first, without it after ``exploration_fraction``."""
        left = max(0.0, 1 - self.progress / self.config.exploration_fraction)
        extra = self.config.exploration * left
        return ExploringPolicy(self.policy, extra * self.mdp.base.sigma) if extra else self.policy

    @torch.no_grad()
    def log_targets(self, paths: Trajectory) -> tuple[Tensor, Tensor]:
        """log qb(x_t | x_{t+1}), the last one with -E(x_T) / tau: ``[T, n]``; and E(x_T) ``[n]``."""
        log_targets = self.mdp.kernel.log_prob(*paths.transitions()).view(self.mdp.horizon, -1)
        energy = self.mdp.finite_energy(paths.final)
        require_finite(log_targets)
        log_targets[-1] -= ops.compressed(energy) / self.mdp.tau
        return log_targets, energy

    def log_forward(self, paths: Trajectory) -> Tensor:
        """log pi(x_{t+1} | x_t) of the agent's own policy, with gradient: ``[T, n]``."""
        x, x_next, t = paths.transitions()
        moments = self.policy.moments(x, t, paths.base_means())
        return gaussian_log_prob(x_next, *moments).view(self.mdp.horizon, -1)

    def log_weights(self, paths: Trajectory, steps: Tensor) -> Tensor:
        """log w ``[n]`` from its steps log qb - log pi ``[T, n]``, the last with -E / tau (not for detailed balance).

        p_0 is given, and the policy cannot change it. With a kernel whose chains do not end in p_0, log w depends on
        x_0 even at the optimum, where log w = log Z + f(x_0) (soft value: log Z + f + log p_0 = -V_0 / tau). The policy
        cannot change its frozen steps either: f is then a function of the state where training starts, and the steps
        before it count with their mean over the batch.
        """
        first = self.policy.frozen_steps
        before = steps[:first].sum(0) - self.mdp.start_log_prob(paths.x[0])
        return steps[first:].sum(0) + (before.detach().mean() if first else before)

    def flow(self, paths: Trajectory) -> Tensor | float:
        """f(x_0) ``[n]``, or of the state where training starts, where the agent learns it, else 0."""
        first = self.policy.frozen_steps
        return 0.0 if self.value is None else self.value(paths.x[first], first) / self.mdp.tau

    def path_residuals(
        self, paths: Trajectory, log_targets: Tensor, start: Tensor, log_z: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the policy and what the flows are to make constant over paths, ``[n]`` each.

        The flows' is log w - f(x_0), less ``log_z`` where it is given. The policy's is beta times that at ``start``,
        less what log pi has gained since: at beta = 1 the same number. beta is ``ops.tempering`` of the weights, so
        that the policy goes a part of the way only where few paths have all the weight. In both outliers count little.
        """
        forward = self.log_forward(paths)
        there = self.log_weights(paths, log_targets - start)
        gained = (forward - start)[self.policy.frozen_steps :].sum(0)
        known = there - self.flow(paths) - (0.0 if log_z is None else log_z)
        constant = known.detach()
        limited = ops.compress_outliers(constant)
        return ops.tempering(constant) * limited - gained, known - constant + limited - gained.detach()

    def descend(self, loss: Tensor, paths: Trajectory) -> None:
        """One Adam step of the policy and of its flows on loss / (2 T).

        On-policy the gradient of that is the reverse KL's per transition, as in other agents. The policy stays in its
        trust region at states of ``paths``.
        """
        for optimizer in self.optimizers().values():
            optimizer.zero_grad(set_to_none=True)
        (loss / (2 * self.mdp.horizon)).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if self.value is not None:
            nn.utils.clip_grad_norm_(self.value.parameters(), 10.0)
        with trust_region(self.policy, paths, RADIUS * paths.n):
            self.policy_optimizer.step()
        for optimizer in self.flow_optimizers().values():
            optimizer.step()

    # -- replay ------------------------------------------------------------------------------------------------

    @property
    def replayed(self) -> int:
        """Paths that are drawn backwards, per iteration."""
        fraction = self.config.replay_fraction
        return max(1, round(self.config.n_trajectories * fraction / (1 - fraction)))

    def improve(self, buffer: ReplayBuffer) -> None:
        """Every ``local_search_every`` iterations: MALA from ``n_trajectories`` drawn states, which join the buffer."""
        if self.search is None or self.iterations % self.config.local_search_every:
            return
        rows = buffer.draw(self.config.n_trajectories, self.generator)
        buffer.add(*self.search(buffer.x[rows], self.generator))

    def backwards(self, final: Tensor) -> Trajectory:
        """Chains from x_T to x_0, drawn by the kernel."""
        recorder = Recorder(self.policy)
        trajectory = self.mdp.backward_rollout(recorder, final, self.generator)
        trajectory.base_mean = torch.stack(recorder.base_means[::-1]) if recorder.base_means else None
        return trajectory

    def extra_tensors(self) -> dict[str, Tensor]:
        parts = [part for part in (self.buffer, self.search) if part is not None]  # a buffer may be empty
        found = {key: value for part in parts for key, value in part.tensors().items()}
        return found | {"iterations": torch.tensor(self.iterations)} if parts else found

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        for part in (self.buffer, self.search):
            if part is not None:
                part.restore(tensors)
                self.iterations = int(tensors["iterations"])
