"""What the tests of the environments share: tasks made quick, one episode, the base sampler's distribution."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dxmi_rl.diffusion import sample_base
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import TASKS, Task, list_tasks, make_task
from dxmi_rl.utils.checks import MissingExtraError

ID = "DxMIDenoise-v0"
KINDS = ["scalar", "vector", "numpy", "sb3", "torchrl"]
"""The interfaces: gym.make; gym.make_vec with tensors and with arrays; SB3VecEnv; TorchRLEnv."""


class Bowl(nn.Module):
    """A fixed energy for tasks without one, with a weight that can be trained in place."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).square().sum(1)


@pytest.fixture(scope="module", autouse=True)
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DXMI_RL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def arguments(name: str) -> dict[str, Any]:
    """A task's arguments with what it lacks: an energy, a quickly trained denoiser."""
    config, extra = TASKS[name], {}
    if config.denoiser == "learned" and config.base is not None:
        extra["pretraining"] = {"iterations": 20, "batch_size": 32, "width": 16}
    if config.reward is None:
        extra["energy"] = Bowl()
    return {"task": name, **extra}


def built(task: dict[str, Any], **changes: Any) -> Task:
    """The task that an environment builds from these arguments."""
    kwargs = task | changes
    return make_task(kwargs.pop("task"), **kwargs)


@functools.cache
def missing(name: str) -> str | None:
    """Why a task cannot be built here, or None."""
    try:
        built(arguments(name))
    except MissingExtraError as error:
        return str(error)
    return None


@pytest.fixture(name="task", params=[name for name in list_tasks() if not isinstance(TASKS[name].label, tuple)])
def every_task(request: pytest.FixtureRequest) -> dict[str, Any]:
    if missing(request.param):
        pytest.skip(missing(request.param))
    return arguments(request.param)


class Face:
    """One interface, spoken to as all others are: arrays of ``count`` rows, observations as ``[x_t, 1 - t/T]``.

    Attributes:
        env: the environment itself.
        lead: shape of a batch of actions before its last dimension.
        observation: what a policy would see next; after the last step that is a new episode where there is autoreset.
        autoresets: whether there is.
    """

    def __init__(self, kind: str, count: int = 3, **arguments: Any) -> None:
        self.kind, self.count = kind, 1 if kind == "scalar" else count
        self.autoresets = kind in ("vector", "numpy", "sb3")
        self.lead = () if kind == "scalar" else (count,)
        self.observation: Any = None
        if kind == "scalar":
            self.env: Any = gym.make(ID, **arguments)
        elif kind == "sb3":
            pytest.importorskip("stable_baselines3")
            from dxmi_rl.envs.sb3 import make_sb3_env

            self.env = make_sb3_env(num_envs=count, **arguments)
        elif kind == "torchrl":
            tensordict = pytest.importorskip("tensordict")
            from dxmi_rl.envs.torchrl import TorchRLEnv

            self.env = TorchRLEnv(num_envs=count, **arguments)
            self.state = tensordict.TensorDict({}, [count])
        else:
            self.env = gym.make_vec(ID, num_envs=count, to_numpy=kind == "numpy", **arguments)

    @property
    def mdp(self) -> DenoisingMDP:
        return self.env.get_wrapper_attr("mdp") if self.kind == "scalar" else self.env.mdp

    def reset(self, seed: Any = None) -> np.ndarray:
        if self.kind == "sb3":
            if seed is not None:
                self.env.seed(seed)
            observation = self.env.reset()
        elif self.kind == "torchrl":
            if seed is not None:
                self.env.set_seed(seed)
            self.state = self.env.reset()
            observation = self._of_state()
        else:
            observation, _ = self.env.reset(seed=seed)
        self.observation = self._rows(observation)
        return self.observation

    def step(self, action: Any) -> tuple[np.ndarray, np.ndarray, bool]:
        """(observations of x_{t+1}, also at the end; rewards; whether the episodes are over)."""
        if self.kind == "torchrl":
            # Without a device: tensordict itself would try to move the action to it.
            state = self.env.step(self.state.clone().clear_device_().set("action", action))["next"]
            self.state, reward, done = state, state["reward"], state["done"].flatten()
            final = observation = self._of_state()
        elif self.kind == "sb3":
            observation, reward, done, infos = self.env.step(action)
            final = observation
            if done.all():
                rows = [info["terminal_observation"] for info in infos]
                final = (
                    {key: np.stack([row[key] for row in rows]) for key in rows[0]}
                    if isinstance(rows[0], dict)
                    else np.stack(rows)
                )
        else:
            observation, reward, done, truncated, info = self.env.step(action)
            assert not np.any(np.asarray(truncated)), "these episodes are never truncated"
            final = info.get("final_obs", observation)
        done = np.asarray(done)
        assert done.all() == done.any()
        self.observation = self._rows(observation)
        return self._rows(final), np.asarray(reward).reshape(self.count), bool(done.all())

    def to_device(self, action: np.ndarray) -> Any:
        """For interfaces that take tensors a tensor on their device, for the others the array itself."""
        return torch.from_numpy(action).to(self.mdp.device) if self.kind in ("vector", "torchrl") else action

    def random_action(self) -> Any:
        """A draw from the action space."""
        if self.kind == "torchrl":
            return self.env.action_spec.rand()
        if self.kind == "sb3":
            return np.stack([self.env.action_space.sample() for _ in range(self.count)])
        return self.env.action_space.sample()

    def _of_state(self) -> Any:
        return self.state.get("observation", {"x": self.state["x"], "t": self.state["t"]})

    def _rows(self, observation: Any) -> np.ndarray:
        if isinstance(observation, dict):
            x, t = np.asarray(observation["x"]), np.asarray(observation["t"])
            told_of = np.float32(1 - t / self.mdp.horizon)
            return np.concatenate([x.reshape(self.count, -1), told_of.reshape(self.count, 1)], axis=1)
        return np.asarray(observation).copy().reshape(self.count, -1)


def follow(face: Face, observation: np.ndarray, action: np.ndarray, coordinates: str) -> tuple[np.ndarray, np.ndarray]:
    """What ``mdp.step`` makes of it: the observations that come next, and the rewards."""
    mdp, horizon = face.mdp, face.mdp.horizon
    x, step = torch.from_numpy(observation[:, :-1]), horizon - round(float(observation[0, -1]) * horizon)
    shape = (face.count, *mdp.event_shape)
    x_next, reward = mdp.step(
        x.reshape(shape), step, torch.from_numpy(np.float32(action)).reshape(shape), coordinates=coordinates
    )
    told_of = np.full((face.count, 1), 1 - (step + 1) / horizon, np.float32)
    return np.concatenate([x_next.flatten(1).numpy(), told_of], axis=1), reward.numpy()


def play(env: Any, actions: np.ndarray, seed: int) -> tuple[list[Any], list[Any]]:
    """Observations and rewards of one episode of a scalar environment."""
    observation, _ = env.reset(seed=seed)
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards


def is_base_sampler(final: np.ndarray, mdp: DenoisingMDP) -> bool:
    """Are samples like the base sampler's? Kolmogorov-Smirnov tests of 7 projections and of the energy against fresh
    ones; wrong once in 10,000 times (asymptotic KS law, Bonferroni over the 8 tests)."""
    from scipy.stats import ks_2samp

    base = sample_base(mdp.base, len(final), mdp.event_shape, torch.Generator().manual_seed(1))
    directions = np.random.default_rng(0).standard_normal((7, final.shape[1]))
    pairs = [(final @ d, base.numpy() @ d) for d in directions]
    pairs.append((mdp.energy(torch.from_numpy(final)).numpy(), mdp.energy(base).numpy()))
    return min(ks_2samp(*pair, method="asymp").pvalue for pair in pairs) > 1e-4 / len(pairs)
