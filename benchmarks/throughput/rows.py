"""The ways to run episodes that benchmarks/throughput/throughput.py compares, and the rows of its tables."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from dxmi_rl.agents.untrained.base_sampler import BasePolicy
from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.tasks import Task, make_task

Episodes = Callable[[], object]
"""Runs n whole episodes, from reset to the last step."""

# Every row draws its actions by the same call, N x d normal numbers a step, so that ratios compare equal work.


@dataclass(frozen=True)
class Row:
    """A way to run episodes: ``build(task, n, seed)`` makes a function that runs n of them."""

    label: str
    build: Callable[[Task, int, int], Episodes]
    largest: int | None = None
    """Largest N that is measured."""
    excuse: str = ""
    """Why no larger N is."""


def _generator(task: Task, seed: int) -> torch.Generator:
    return torch.Generator(task.device).manual_seed(seed)


def _actions(task: Task, n: int, seed: int) -> Callable[[], Tensor]:
    """Draws of N(0, I), ``[n, d]``: in noise coordinates, the base sampler."""
    generator, dim, device = _generator(task, seed), task.mdp.dim, task.device
    return lambda: torch.randn(n, dim, generator=generator, device=device)


def _bare(task: Task, n: int, seed: int) -> Episodes:
    mdp, generator = task.mdp, _generator(task, seed)

    def run() -> None:
        x = mdp.reset(n, generator)
        for t in range(mdp.horizon):
            action = torch.randn(n, *mdp.event_shape, generator=generator, device=mdp.device)
            x, _ = mdp.step(x, t, action)

    return run


def _scalar(task: Task, n: int, seed: int) -> Episodes:
    env, draw = DenoiseEnv(task), _actions(task, n, seed)
    env.reset(seed=seed)

    def run() -> None:
        env.reset()
        for _ in range(task.mdp.horizon):
            env.step(draw()[0].cpu().numpy())

    return run


def _vector(task: Task, n: int, seed: int, steps: int | None = None) -> Episodes:
    env, draw = DenoiseVectorEnv(task, num_envs=n), _actions(task, n, seed)
    env.reset(seed=seed)
    steps = task.mdp.horizon if steps is None else steps

    def run() -> None:
        for _ in range(steps):  # it starts the next episodes by itself
            env.step(draw())

    return run


def _vector_of_several(task: Task, n: int, seed: int) -> Episodes:
    """With T - 1, T or T + 1 steps, so T on average. Raises ValueError for T = 1 and tasks without a name."""
    horizon = task.mdp.horizon
    if task.spec is None:
        raise ValueError("task must have a name.")
    several = make_task(**task.spec | {"horizon": (horizon - 1, horizon, horizon + 1)}, device=task.device)
    return _vector(several, n, seed, steps=horizon)


def _sync_vector(task: Task, n: int, seed: int) -> Episodes:
    makers = [lambda: DenoiseEnv(task)] * n
    env = gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    draw = _actions(task, n, seed)
    env.reset(seed=seed)

    def run() -> None:
        for _ in range(task.mdp.horizon):
            env.step(draw().cpu().numpy())

    return run


def _sb3(task: Task, n: int, seed: int, read: bool = False) -> Episodes:
    from dxmi_rl.envs.sb3 import make_sb3_env

    env, draw = make_sb3_env(task, num_envs=n), _actions(task, n, seed)
    env.seed(seed)
    env.reset()

    def run() -> None:
        for _ in range(task.mdp.horizon):
            infos = env.step(draw().cpu().numpy())[3]
            for info in infos if read else ():  # as Stable-Baselines3's algorithms do
                info.get("episode")

    return run


def _sb3_read(task: Task, n: int, seed: int) -> Episodes:
    return _sb3(task, n, seed, read=True)


def _torchrl_env(task: Task, n: int, seed: int) -> Any:
    os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
    from dxmi_rl.envs.torchrl import TorchRLEnv

    env = TorchRLEnv(task, num_envs=n)
    env.set_seed(seed)
    return env


def _torchrl_step(task: Task, n: int, seed: int) -> Episodes:
    env, draw = _torchrl_env(task, n, seed), _actions(task, n, seed)

    def run() -> None:
        data = env.reset()
        for _ in range(task.mdp.horizon):
            data = env.step(data.set("action", draw()))["next"]

    return run


def _torchrl_rollout(task: Task, n: int, seed: int) -> Episodes:
    env, draw = _torchrl_env(task, n, seed), _actions(task, n, seed)
    return lambda: env.rollout(task.mdp.horizon, lambda tensordict: tensordict.set("action", draw()))


def _rollout(task: Task, n: int, seed: int, **options: bool) -> Episodes:
    policy, generator = BasePolicy(task.mdp), _generator(task, seed)
    return lambda: task.mdp.rollout(policy, n, generator, **options)


def _rollout_with_rewards(task: Task, n: int, seed: int) -> Episodes:
    rollout = _rollout(task, n, seed)
    return lambda: task.mdp.rewards(rollout())  # type: ignore[arg-type]


def _compiled(task: Task, n: int, seed: int) -> Episodes:
    return _rollout(task, n, seed, compile=True)


def _graph(task: Task, n: int, seed: int) -> Episodes:
    return _rollout(task, n, seed, graph=True)


def _sample(task: Task, n: int, seed: int) -> Episodes:
    policy, generator = BasePolicy(task.mdp), _generator(task, seed)
    return lambda: task.mdp.sample(policy, n, generator)


BARE = Row("mdp.step (bare)", _bare)
SCALAR = Row("DenoiseEnv.step", _scalar, 1, "one environment is one episode")
VECTOR = Row("VectorEnv.step", _vector)
SEVERAL = Row("VectorEnv.step, T - 1 to T + 1", _vector_of_several)
TORCHRL_STEP = Row("TorchRL env.step", _torchrl_step)
TORCHRL_ROLLOUT = Row("TorchRL env.rollout", _torchrl_rollout)
SB3 = Row("SB3 VecEnv.step", _sb3)
SB3_READ = Row("SB3 VecEnv.step, infos read", _sb3_read)
SYNC = Row("SyncVectorEnv.step", _sync_vector, 1_024, "steps one after another would take minutes")
REWARDS = Row("mdp.rollout + rewards", _rollout_with_rewards)
ROLLOUT = Row("mdp.rollout", _rollout)
SAMPLE = Row("mdp.sample", _sample)
COMPILED = Row("mdp.rollout, compiled", _compiled)
GRAPH = Row("mdp.rollout, CUDA graph", _graph)

ROWS = (BARE, SCALAR, VECTOR, SEVERAL, TORCHRL_STEP, TORCHRL_ROLLOUT, SB3, SB3_READ, SYNC, REWARDS, ROLLOUT, SAMPLE)
TIME_ROWS = (BARE, VECTOR, REWARDS, ROLLOUT, SAMPLE)
"""Rows whose time is measured against N, T and d."""
MEMORY_ROWS = (ROLLOUT, SAMPLE)
"""Rows whose memory is: the one keeps all states, the other the last."""


def mixture(dim: int) -> GaussianMixture:
    """Eight Gaussians in ``dim`` dimensions, the same ones every time: the target of the runs against d."""
    means = 4 * torch.randn(8, dim, generator=torch.Generator().manual_seed(0))
    return GaussianMixture(means, 1.0, plot_range=(-12.0, 12.0))
