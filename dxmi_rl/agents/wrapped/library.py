"""What agents whose algorithm is another library's share: their own randomness, and rollouts for off-policy learning.

They act in noise coordinates, where N(0, I) is the base sampler, and are sampled in bulk on the device by the exact
density that ``ActionDensity`` reads from the library's policy: never through an environment.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent, FinalStateHook
from dxmi_rl.agents.checkpoint import set_training_state, training_state
from dxmi_rl.agents.trust_region import limited_step, some_rows
from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.agents.wrapped.episode_replay import EpisodeReplay, Transitions
from dxmi_rl.costs import count_draws

ROLLOUT_RADIUS = 0.01
"""Largest mean of KL(new || old) over the states of a rollout, in nats per transition, of all updates of an actor on
it, taken as quadratic in their way: the losses of other libraries may be of any size."""
Explore = Callable[[ActionDensity, Tensor, Tensor | int, Tensor], Tensor]
"""The action of a rollout, ``[batch, d]``, from (density, x_t, t, N(0, I) noise)."""


def copied(agent: Agent[Any], memo: dict[int, Any]) -> Agent[Any]:
    """``__deepcopy__`` of an agent whose library's objects refer to each other in ways that copies do not follow: a new
    one on a copy of the task, in the same state of training.
    """
    memo[id(agent)] = other = type(agent)(copy.deepcopy(agent.task, memo), seed=agent.seed, config=agent.config)
    set_training_state(other, {key: value.detach().clone() for key, value in training_state(agent).items()})
    other.costs, other.progress, other.log = copy.deepcopy((agent.costs, agent.progress, agent.log), memo)
    return other


class OwnRandomness:
    """The state of torch's and numpy's global generators that belongs to one agent: its library draws from these."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.torch_state: Tensor
        self.cuda_state: Tensor | None = None
        self.numpy_state: Any
        with self.lent(seed):
            pass

    @contextlib.contextmanager
    def lent(self, seed: int | None = None) -> Iterator[None]:
        """Inside, the global generators are this agent's, from ``seed`` or from where they were; then the user's."""
        numpy_state: Any = np.random.get_state()
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            if seed is not None:
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)
            else:
                torch.set_rng_state(self.torch_state)
                if self.cuda_state is not None:
                    torch.cuda.set_rng_state(self.cuda_state, self.device)
                np.random.set_state(self.numpy_state)
            try:
                yield
            finally:
                self.torch_state, self.numpy_state = torch.get_rng_state(), np.random.get_state()
                self.cuda_state = torch.cuda.get_rng_state(self.device) if cuda else None
                np.random.set_state(numpy_state)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        _, keys, position, _, _ = self.numpy_state
        return ({} if self.cuda_state is None else {"cuda_state": self.cuda_state}) | {
            "torch_state": self.torch_state,
            "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
            "numpy_position": torch.tensor(position),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.torch_state = tensors["torch_state"]
        if self.device.type == "cuda":  # a checkpoint from a CPU has none: then the fresh one goes on
            self.cuda_state = tensors.get("cuda_state", self.cuda_state)
        keys = tensors["numpy_keys"].numpy().astype(np.uint32)
        self.numpy_state = ("MT19937", keys, int(tensors["numpy_position"]), 0, 0.0)


def prepare_rollout(agent: Agent[Any], on_final: FinalStateHook | None) -> int:
    """The seed of an on-policy agent's next rollout through its environment, which is counted here.

    ``on_final`` gets samples before the rollout, whose rewards are those of the new energy. The rollout starts from a
    seeded reset, so that the environment has no state that a checkpoint would need.
    """
    if on_final is not None:
        on_final(agent.sample(agent.timesteps_per_iteration // agent.mdp.horizon))
    agent.costs.timesteps += agent.timesteps_per_iteration
    count_draws(agent.timesteps_per_iteration)
    return int(torch.randint(2**31, (), generator=agent.generator, device=agent.mdp.device))


@contextlib.contextmanager
def guarded(density: ActionDensity, observations: Tensor, parameters: Iterable[Tensor]) -> Iterator[None]:
    """Shorten to ROLLOUT_RADIUS the way that an actor's ``parameters`` go inside, in all updates on a rollout together.

    ``observations`` are those of the rollout, ``[T n, d + 1]``, one step after the other.
    """
    some = observations[some_rows(len(observations), observations.device)]
    with limited_step(list(parameters), lambda: density.gaussian(some), ROLLOUT_RADIUS):
        yield


def squashed_start_std(action_bound: float) -> float:
    """Standard deviation before the squashing for which a = b tanh(u) has about that of the base sampler, 1.

    Var tanh(u) = s^2 - 2 s^4 + ... for u ~ N(0, s^2), which is 1 / b^2 at s^2 = 1 / (b^2 - 2) up to s^6.
    """
    return 1 / math.sqrt(action_bound**2 - 2)


class OffPolicyData:
    """Episodes drawn in bulk on the device into an EpisodeReplay, and minibatches of it.

    Args:
        agent: whose episodes these are.
        buffer_size: transitions that are kept, rounded down to whole iterations, at least one.
        batch_size: transitions of a minibatch, rounded up to a multiple of T: every step t has as many.
    """

    def __init__(self, agent: Agent[Any], buffer_size: int, batch_size: int) -> None:
        self.agent = agent
        self.n = agent.timesteps_per_iteration // agent.mdp.horizon
        kept = max(1, buffer_size // agent.timesteps_per_iteration)
        self.replay = EpisodeReplay(agent.mdp, kept * self.n)
        self.per_step = math.ceil(batch_size / agent.mdp.horizon)

    @property
    def rows(self) -> int:
        """Transitions of a minibatch."""
        return self.per_step * self.agent.mdp.horizon

    def collect(self, explore: Explore, on_final: FinalStateHook | None) -> None:
        """Roll out an iteration's episodes, hand x_T to ``on_final``, let the kernel adapt once, keep the episodes."""
        agent = self.agent
        explorer: Any = Explorer(agent, explore)  # has no log_prob, which a rollout does not ask for
        trajectory = agent.mdp.rollout(explorer, self.n, agent.generator)
        agent.costs.timesteps += agent.timesteps_per_iteration
        if on_final is not None:
            on_final(trajectory.final)
        for _ in range(agent.config.kernel_steps):
            agent.mdp.kernel.fit(*trajectory.transitions())
        self.replay.add(trajectory.x, torch.stack(explorer.actions))

    def draw(self) -> Transitions:
        """A minibatch."""
        return self.replay.draw(self.per_step, self.agent.generator)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        return {f"replay/{key}": value for key, value in self.replay.tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        self.replay.set_tensors({key[7:]: value for key, value in tensors.items() if key.startswith("replay/")})


def explore_by_policy(density: ActionDensity, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
    """The policy's own action, ``[batch, d]``."""
    return density.act(x, t, noise)[0]


class Explorer:
    """An ``Explore`` as a policy for ``mdp.rollout``; keeps its actions, T of ``[n, d]``."""

    def __init__(self, agent: Agent[Any], explore: Explore) -> None:
        self.mdp, self.explore = agent.mdp, explore
        density = agent.density()
        assert isinstance(density, ActionDensity)
        self.density = density
        self.actions: list[Tensor] = []

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1}, and zeros in place of a log-density, which replay has no use for."""
        action = self.explore(self.density, x, t, noise)
        self.actions.append(action)
        return self.mdp.next_state(x, t, action.view_as(x)), x.new_zeros(len(x))
