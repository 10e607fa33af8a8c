"""What agents whose algorithm is another library's share: their own randomness, rollouts, replay.

They act in noise coordinates, where N(0, I) is the base sampler, and are sampled in bulk on the device by the exact
density that ``ActionDensity`` reads from the library's policy: never through an environment.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.agents.action_density import ActionDensity
from dxmi_rl.agents.base import Agent, FinalStateHook
from dxmi_rl.agents.episode_replay import EpisodeReplay, Transitions
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class LibraryConfig:
    """Settings of every agent of another library."""

    batch_size: int = 256
    """Trajectories per iteration, one per environment."""
    learning_rate: float = 1e-3
    """Peak rate of the library's optimizers."""
    width: int = 64
    """Units of each of the two hidden layers of actor and critics."""
    anneal: bool = True
    """Cosine learning rate over ``learn``'s budget."""


class LibraryAgent(Agent):
    """Lends this agent's generators to a library that draws from the global ones."""

    config: Any
    _torch_state: Tensor
    _cuda_state: Tensor | None = None
    _numpy_state: Any

    def _check_settings(self, *positive: str) -> None:
        """Raise TypeError or ValueError for common settings and these integers when they are not allowed."""
        for key in ("batch_size", "width", *positive):
            check_integer(key, getattr(self.config, key))
        check_real("learning_rate", self.config.learning_rate)

    @contextlib.contextmanager
    def _own_randomness(self, fresh: bool = False) -> Iterator[None]:
        """Inside, the global generators of torch and numpy are this agent's; afterwards they are the user's again."""
        numpy_state: Any = np.random.get_state()
        device = self.mdp.device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            if fresh:
                torch.manual_seed(self.seed)
                np.random.seed(self.seed % 2**32)
            else:
                torch.set_rng_state(self._torch_state)
                if self._cuda_state is not None:
                    torch.cuda.set_rng_state(self._cuda_state, device)
                np.random.set_state(self._numpy_state)
            try:
                yield
            finally:
                self._torch_state, self._numpy_state = torch.get_rng_state(), np.random.get_state()
                self._cuda_state = torch.cuda.get_rng_state(device) if cuda else None
                np.random.set_state(numpy_state)

    def _count_rollout(self) -> None:
        n = self.timesteps_per_iteration
        self.costs.timesteps += n
        self.costs.policy_draws += n
        self.costs.denoiser_calls += n * self.mdp.base.denoiser_calls
        self.costs.energy_evals += self.config.batch_size

    def _extra_tensors(self) -> dict[str, Tensor]:
        _, keys, position, _, _ = self._numpy_state
        return ({} if self._cuda_state is None else {"cuda_state": self._cuda_state}) | {
            "torch_state": self._torch_state,
            "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
            "numpy_position": torch.tensor(position),
        }

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._torch_state = tensors["torch_state"]
        if self.mdp.device.type == "cuda":  # a checkpoint from a CPU has none: then the fresh one goes on
            self._cuda_state = tensors.get("cuda_state", self._cuda_state)
        keys = tensors["numpy_keys"].numpy().astype(np.uint32)
        self._numpy_state = ("MT19937", keys, int(tensors["numpy_position"]), 0, 0.0)


@dataclass(frozen=True)
class OnPolicyConfig(LibraryConfig):
    """Settings of every on-policy agent of another library."""

    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1."""


class OnPolicyAgent(LibraryAgent):
    """One rollout of whole episodes through the library's environment, then its updates on it."""

    def _check_settings(self, *positive: str) -> None:
        super()._check_settings(*positive)
        if not 0 <= check_real("gae_lambda", self.config.gae_lambda) <= 1:
            raise ValueError(f"gae_lambda must lie in [0, 1], got {self.config.gae_lambda}.")

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        if on_final is not None:  # before the rollout, whose rewards are those of the new energy
            on_final(self.sample(self.config.batch_size))
            self.costs.policy_draws += self.timesteps_per_iteration
            self.costs.denoiser_calls += self.timesteps_per_iteration * self.mdp.base.denoiser_calls
        # The rollout starts from a seeded reset, so that the environment has no state that a checkpoint would need.
        seed = int(torch.randint(2**31, (), generator=self.generator, device=self.mdp.device))
        with self._own_randomness():
            log = self.update(seed)
        self._count_rollout()
        return log

    @abc.abstractmethod
    def update(self, seed: int) -> dict[str, float | Tensor]:
        """Seed the environment, roll out T steps, update. Returns losses to log."""


@dataclass(frozen=True)
class ReplayConfig(LibraryConfig):
    """Settings of every off-policy agent of another library."""

    gradient_steps: int = 10
    """Gradient steps per iteration."""
    minibatch_size: int = 512
    """Transitions per gradient step, rounded up to as many of each of the T steps."""
    replay_size: int = 50_000
    """Transitions that are kept, rounded down to whole iterations, at least one."""
    target_rate: float = 0.02
    """Rate at which target networks follow (the libraries' ``tau``, which is no temperature)."""
    action_bound: float = 5.0
    """Half width of the box that actions are squashed to, in standard deviations of the base sampler's noise."""


class ReplayAgent(LibraryAgent):
    """Episodes drawn in bulk on the device into an EpisodeReplay, then the library's gradient steps on it."""

    replay: EpisodeReplay

    def _check_settings(self, *positive: str) -> None:
        super()._check_settings("gradient_steps", "minibatch_size", "replay_size", *positive)
        check_real("action_bound", self.config.action_bound, 2.0)  # less has no room for the base sampler
        if check_real("target_rate", self.config.target_rate, strict=True) > 1:
            raise ValueError(f"target_rate must lie in (0, 1], got {self.config.target_rate}.")

    def _make_replay(self) -> None:
        n = self.config.batch_size
        kept = max(1, self.config.replay_size // self.timesteps_per_iteration)
        self.replay = EpisodeReplay(self.mdp, kept * n)

    @property
    def start_std(self) -> float:
        """Standard deviation before the squashing for which a = b tanh(u) has about that of the base sampler, 1.

        Var tanh(u) = s^2 - 2 s^4 + ... for u ~ N(0, s^2), which is 1 / b^2 at s^2 = 1 / (b^2 - 2) up to s^6.
        """
        return 1 / math.sqrt(self.config.action_bound**2 - 2)

    @property
    def per_step(self) -> int:
        """Transitions of each step t in a minibatch."""
        return math.ceil(self.config.minibatch_size / self.mdp.horizon)

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        self.collect(on_final)
        with self._own_randomness():
            log = self.update()
        rows = self.per_step * self.mdp.horizon
        self.costs.policy_draws += self.draws_per_row() * rows
        if self.replay.stale:
            self.costs.energy_evals += self.config.gradient_steps * self.per_step
        return log

    def collect(self, on_final: FinalStateHook | None) -> None:
        """Roll out ``batch_size`` episodes, hand x_T to ``on_final``, let the kernel adapt once, keep the episodes."""
        explorer: Any = Explorer(self)  # has no log_prob, which a rollout does not ask for
        trajectory = self.mdp.rollout(explorer, self.config.batch_size, self.generator)
        if on_final is not None:
            on_final(trajectory.final)
        self.mdp.kernel.fit(*trajectory.transitions())
        self.replay.add(trajectory.x, torch.stack(explorer.actions))
        self._count_rollout()

    def explore(self, density: ActionDensity, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """The action of a rollout, ``[batch, d]``, from N(0, I) noise: the policy's own."""
        return density.act(x, t, noise)[0]

    def draw(self) -> Transitions:
        """A minibatch of the replay."""
        return self.replay.draw(self.per_step, self.generator)

    @abc.abstractmethod
    def update(self) -> dict[str, float | Tensor]:
        """The gradient steps of one iteration. Returns losses to log."""

    def draws_per_row(self) -> int:
        """Actions that the updates of one iteration draw at each row of a minibatch: at x_t and at x_{t+1}."""
        return 2 * self.config.gradient_steps

    def _extra_tensors(self) -> dict[str, Tensor]:
        return super()._extra_tensors() | {f"replay/{key}": value for key, value in self.replay.tensors().items()}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        super()._set_extra_tensors(tensors)
        self.replay.set_tensors({key[7:]: value for key, value in tensors.items() if key.startswith("replay/")})


class Explorer:
    """``ReplayAgent.explore`` as a policy for ``mdp.rollout``; keeps its actions, T of ``[n, d]``."""

    def __init__(self, agent: ReplayAgent) -> None:
        self.agent, self.density = agent, agent.density()
        self.actions: list[Tensor] = []

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1}, and zeros in place of a log-density, which replay has no use for."""
        action = self.agent.explore(self.density, x, t, noise)
        self.actions.append(action)
        return self.agent.mdp.next_state(x, t, action.view_as(x)), x.new_zeros(len(x))
