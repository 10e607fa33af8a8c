"""What the GFlowNet and log-variance agents share: off-policy paths, their log-weights, flows, exploration, replay.

With log w = -E(x_T) / tau - log p_0(x_0) + sum_t [log qb(x_t | x_{t+1}) - log pi(x_{t+1} | x_t)], each loss is zero
exactly where log w is what it should be on every path, so any full-support distribution of paths will do: wider
exploration, replayed x_T. Paths are constants; gradients flow through log pi and the flows only.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig, Rollout
from dxmi_rl.agents.policy import GaussianPolicy, Recorder
from dxmi_rl.agents.replay import LocalSearch, ReplayBuffer
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import adam


@dataclass(frozen=True)
class GFlowNetConfig(GaussianConfig):
    """Settings of every GFlowNet agent."""

    updates: int = 2
    """Gradient steps on each batch; the losses hold off-policy."""
    exploration: float = 0.2
    """Extra standard deviation of the rollouts' steps, in units of the base step's sigma, added in quadrature. Wider
    ones (0.5, 1) find modes that are lost otherwise, and cost accuracy where none are."""
    exploration_part: float = 0.5
    """Part of the budget over which ``exploration`` falls linearly to 0."""
    replay: int = 0
    """Capacity of the buffer of final states; 0: no replay."""
    replay_fraction: float = 0.1
    """Part of a batch's paths that are drawn backwards from the buffer, on top of ``batch_size`` rollouts. The paper's
    half is for a hundred steps: few Gaussian steps cannot balance everywhere, and spread to cover what is replayed."""
    local_search_steps: int = 20
    """MALA steps that improve ``batch_size`` replayed states; 0: no local search."""
    local_search_every: int = 10
    """Iterations from one local search to the next."""


class LogZ(nn.Module):
    """The learned log Z of trajectory and detailed balance; it starts at the first batch's estimate."""

    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def start(self, guess: Tensor) -> None:
        """Take ``guess``, the first time only."""
        self.value.copy_(torch.where(self.started, self.value, guess))
        self.started.fill_(True)


class GFlowNet(GaussianAgent):
    """An agent with a squared loss on log w (or on its steps), for paths from anywhere.

    With exploration on, the final states handed to ``on_final`` (DxMI) are the exploring policy's, and the kernel is
    fitted to its paths. Replay adds chains drawn by the kernel from buffered x_T; they train the policy and its flows,
    not the kernel, and are no rollout transitions.
    """

    learns_log_z: ClassVar[bool] = False

    def _build(self) -> None:
        super()._build()
        config = self.config
        if self.mdp.tau == 0:
            raise ValueError(f"agent {self.name!r} aims at exp(-E / tau) and needs tau > 0, got tau = 0.")
        check_integer("updates", config.updates)
        check_real("exploration", config.exploration)
        if not 0 < check_real("exploration_part", config.exploration_part) <= 1:
            raise ValueError(f"exploration_part must lie in (0, 1], got {config.exploration_part}.")
        if not 0 < check_real("replay_fraction", config.replay_fraction) < 1:
            raise ValueError(f"replay_fraction must lie strictly between 0 and 1, got {config.replay_fraction}.")
        check_integer("local_search_steps", config.local_search_steps, minimum=0)
        check_integer("local_search_every", config.local_search_every)
        if 0 < check_integer("replay", config.replay, minimum=0) < config.batch_size:
            raise ValueError(f"replay must be 0 or >= batch_size = {config.batch_size}, got {config.replay}.")
        self.buffer = ReplayBuffer(self.mdp, config.replay) if config.replay else None
        searches = config.replay and config.local_search_steps
        # The last step's noise is of the size of the target's finest structure.
        finest, steps = self.mdp.base.sigma[-1], config.local_search_steps
        self.search = LocalSearch(self.mdp.energy, self.mdp.tau, finest, steps) if searches else None
        if self.learns_log_z:
            self.log_z = LogZ().to(self.mdp.device)
            rate = check_real("log_z_learning_rate", config.log_z_learning_rate)
            self.log_z_optimizer = adam([([self.log_z.value], rate)])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return super().optimizers() | ({"log_z": self.log_z_optimizer} if self.learns_log_z else {})

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | ({"log_z": self.log_z} if self.learns_log_z else {})

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        paths = self.collect(on_final, self.behaviour())
        rollouts = paths.trajectory.x.shape[1]
        rows = None
        if self.buffer is not None and len(self.buffer):
            self.improve(self.buffer)
            rows = self.buffer.draw(self.replayed, self.generator)
            paths = joined(paths, self.backwards(self.buffer.x[rows]))
        log_targets, energy = self.log_targets(paths)
        if self.buffer is not None:
            if rows is not None:  # DxMI's energy moves
                self.buffer.energy[rows] = energy[rollouts:]
            self.buffer.add(paths.trajectory.final[:rollouts], energy[:rollouts])
        if self.learns_log_z:
            guess = log_targets.sum(0) - paths.trajectory.log_prob.sum(0)
            self.log_z.start((guess - self.mdp.start_log_prob(paths.trajectory.x[0])).mean())
        return self.train(paths, log_targets)

    def train(self, paths: Rollout, log_targets: Tensor) -> dict[str, float | Tensor]:
        """``updates`` steps on one batch; ``log_targets`` ``[T, n]`` as from the method."""
        for _ in range(self.config.updates):
            loss = self.loss(paths, log_targets)
            self.descend(loss, len(paths.x))
        return {"policy_loss": loss.detach()}

    @abc.abstractmethod
    def loss(self, paths: Rollout, log_targets: Tensor) -> Tensor:
        """The algorithm's loss on paths."""

    def behaviour(self) -> GaussianPolicy:
        """The policy of the rollouts: wider at first, the agent's own after ``exploration_part`` of the budget."""
        return self.wider(self.config.exploration, self.config.exploration_part)

    @torch.no_grad()
    def log_targets(self, paths: Rollout) -> tuple[Tensor, Tensor]:
        """log qb(x_t | x_{t+1}), the last one with -E(x_T) / tau: ``[T, n]``; and E(x_T) ``[n]``."""
        log_targets = self.mdp.kernel.log_prob(paths.x, paths.x_next, paths.t).view(self.mdp.horizon, -1)
        energy = self.mdp.energy(paths.trajectory.final)
        self.mdp.require_finite(log_targets, energy)
        log_targets[-1] -= energy / self.mdp.tau
        return log_targets, energy

    def log_forward(self, paths: Rollout) -> Tensor:
        """log pi(x_{t+1} | x_t) of the agent's own policy, with gradient: ``[T, n]``."""
        moments = self.policy.moments(paths.x, paths.t, paths.reference)
        return gaussian_log_prob(paths.x_next, *moments).view(self.mdp.horizon, -1)

    def log_weights(self, paths: Rollout, log_targets: Tensor, conditional: bool) -> Tensor:
        """log w: ``[n]``; ``conditional`` takes off f(x_0), learned, what a given p_0 leaves unbalanced.

        The start is not the policy's to choose: with a kernel whose chains do not end in p_0, log w depends on x_0 even
        at the optimum, where log w = log Z + f(x_0) (soft value: log Z + f + log p_0 = -V_0 / tau). Nor are the states
        that held steps lead to: f is then of the state where training starts, and the mean of the steps before stands
        for them.
        """
        held, steps = self.policy.held_steps, log_targets - self.log_forward(paths)
        before = steps[:held].sum(0) - self.mdp.start_log_prob(paths.trajectory.x[0])
        log_weights = steps[held:].sum(0) + (before.detach().mean() if held else before)
        return log_weights - self.values(paths.trajectory.x[held], held) / self.mdp.tau if conditional else log_weights

    def descend(self, loss: Tensor, transitions: int) -> None:
        """One Adam step of the policy and of its flows; half the loss per step of a path, as other agents' losses."""
        flows = [optimizer for name, optimizer in self.optimizers().items() if name != "policy"]
        for optimizer in flows:
            optimizer.zero_grad(set_to_none=True)
        self.step_policy(loss / (2 * self.mdp.horizon), transitions)
        if self.uses_value:
            nn.utils.clip_grad_norm_(self.value.parameters(), 10.0)
        for optimizer in flows:
            optimizer.step()

    # -- replay ------------------------------------------------------------------------------------------------

    @property
    def replayed(self) -> int:
        """Paths that are drawn backwards, per iteration."""
        fraction = self.config.replay_fraction
        return max(1, round(self.config.batch_size * fraction / (1 - fraction)))

    def improve(self, buffer: ReplayBuffer) -> None:
        """Every ``local_search_every`` iterations: MALA from ``batch_size`` drawn states; the ends join the buffer."""
        iteration = self.costs.timesteps // self.timesteps_per_iteration
        if self.search is None or iteration % self.config.local_search_every:
            return
        n = self.config.batch_size
        buffer.add(*self.search(buffer.x[buffer.draw(n, self.generator)], self.generator))
        self.costs.energy_evals += n * (self.config.local_search_steps + 1)
        self.costs.energy_grad_evals += n * (self.config.local_search_steps + 1)

    def backwards(self, final: Tensor) -> Rollout:
        """Chains from x_T to x_0, drawn by the kernel."""
        recorder = Recorder(self.policy)
        trajectory = self.mdp.backward_rollout(recorder, final, self.generator)
        recorder.references.reverse()
        x, x_next, t = trajectory.transitions()
        self.costs.energy_evals += len(final)
        self.count_references(len(x))
        return Rollout(trajectory, x, x_next, t, trajectory.log_prob.flatten(), recorder.stacked())

    def _extra_tensors(self) -> dict[str, Tensor]:
        parts = [part for part in (self.buffer, self.search) if part is not None]  # a buffer may be empty
        return {key: value for part in parts for key, value in part.tensors().items()}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        for part in (self.buffer, self.search):
            if part is not None:
                part.restore(tensors)


def joined(first: Rollout, second: Rollout) -> Rollout:
    """The paths of both."""
    states = torch.cat([first.trajectory.x, second.trajectory.x], dim=1)
    log_prob = torch.cat([first.trajectory.log_prob, second.trajectory.log_prob], dim=1)
    reference = None
    if first.reference is not None and second.reference is not None:
        parts = (part.view(len(log_prob), -1, *part.shape[1:]) for part in (first.reference, second.reference))
        reference = torch.cat(list(parts), dim=1).flatten(0, 1)
    trajectory = Trajectory(states, log_prob)
    return Rollout(trajectory, *trajectory.transitions(), log_prob.flatten(), reference)
