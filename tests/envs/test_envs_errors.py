"""Environments given what they must refuse: one clear error each."""

from __future__ import annotations

import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_cases import ID, Bowl, small_cache  # noqa: F401
from gymnasium.error import ResetNeeded

from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv
from dxmi_rl.mdp import EnergyError
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.checks import NonFiniteError
from dxmi_rl.utils.registry import UnknownNameError


@pytest.mark.parametrize("make", [DenoiseEnv, DenoiseVectorEnv])
@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"task": "8gausians"}, UnknownNameError, "Did you mean '8gaussians'"),
        ({"target": "gmm24"}, UnknownNameError, "'gmm25'"),
        ({"coordinates": "noises"}, UnknownNameError, "'noise'"),
        ({"observation": "flatt"}, UnknownNameError, "'flat'"),
        ({"render_mode": "rgb_aray"}, UnknownNameError, "'rgb_array'"),
        ({"backward": "lerned"}, UnknownNameError, "'learned'"),
        ({"horizn": 3}, UnknownNameError, "'horizon'"),
        ({"coordinate": "noise"}, UnknownNameError, "'coordinates'"),
        ({"horizon": 0}, ValueError, "horizon"),
        ({"tau": -1.0}, ValueError, "tau"),
        ({"action_bound": 0.0}, ValueError, "action_bound"),
        ({"action_bound": math.inf}, ValueError, "action_bound"),
        ({"device": "warp"}, ValueError, "device"),
        ({"task": "gmm25", "target": "gmm25"}, ValueError, "task and target"),
        ({"task": "digits"}, EnergyError, "energy="),
        ({"energy": 3}, TypeError, "energy"),
        ({"energy": lambda x: x}, EnergyError, r"shape \[2\]"),
        ({"base": "ddim", "eta": 0.0}, ValueError, "eta > 0"),
    ],
)  # fmt: skip
def test_bad_arguments(make: Any, kwargs: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(**kwargs)


@pytest.mark.parametrize(
    "error", [UnknownNameError("task", "gmm24", ["gmm25"]), NonFiniteError("too large"), EnergyError("no energy")]
)
def test_errors_come_back_from_other_processes(error: Exception) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error) and str(other) == str(error)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_bad_num_envs(count: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="num_envs"):
        DenoiseVectorEnv(num_envs=count)


@pytest.mark.parametrize("make", [lambda: (DenoiseEnv(), ()), lambda: (DenoiseVectorEnv(num_envs=3), (3,))])
def test_bad_actions(make: Any) -> None:
    env, lead = make()
    good = np.full((*lead, 2), 30.0)  # beyond the box, and double: both are taken
    with pytest.raises(ResetNeeded):
        env.step(good)
    env.reset(seed=0)
    env.step(good)
    before = env._episodes.x
    bad: list[tuple[Any, type[Exception], str]] = [
        (good[..., :1], ValueError, "action must have shape"),
        (np.zeros((*lead, 3)), ValueError, "action must have shape"),
        (torch.zeros(5, 2), ValueError, "action must have shape"),
        (good.astype(int), TypeError, "floating dtype"),
        (torch.zeros(*lead, 2, dtype=torch.int64), TypeError, "floating dtype"),
        (good.tolist(), TypeError, "list"),
        (torch.zeros(*lead, 2, device="meta"), ValueError, "device"),
        (good * np.nan, NonFiniteError, "action"),
        (good * np.inf, NonFiniteError, "action"),
        (good * 1e30, NonFiniteError, "running reward"),
    ]
    for action, error, words in bad:
        with pytest.raises(error, match=words):
            env.step(action)
    assert env._episodes.x is before and env._episodes.t == 1  # a step that fails changes nothing
    env.step(good)


def test_bad_energies_and_moments() -> None:
    for value in (math.nan, math.inf):
        env = DenoiseVectorEnv(num_envs=2, energy=lambda x, value=value: x.sum(1) * 0 + value, horizon=1)
        env.reset()
        with pytest.raises(EnergyError, match="energy"):
            env.step(torch.zeros(2, 2))
    later = DenoiseEnv(horizon=1, energy=lambda x: x.sum(1) if len(x) == 2 else x)  # wrong on one row only
    later.reset()
    with pytest.raises(EnergyError, match="shape"):
        later.step(np.zeros(2, np.float32))
    env = DenoiseEnv(horizon=1)
    env.reset()
    env.step(np.zeros(2, np.float32))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="reset_mask"):
        DenoiseVectorEnv(num_envs=2).reset(options={"reset_mask": np.array([True, False])})
    built = make_task("8gaussians-data", pretraining={"iterations": 20, "width": 16})
    with pytest.raises(EnergyError, match="energy="):
        DenoiseEnv(built)
    built.mdp.set_energy(Bowl())
    DenoiseEnv(built)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_do_not_wait_for_the_gpu() -> None:
    venv = DenoiseVectorEnv(num_envs=256, device="cuda")
    venv.reset(seed=0)
    action = torch.zeros(256, 2, device="cuda")
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(4):
            observation, *_ = venv.step(action)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    venv.step(action)
    assert observation.is_cuda
    venv.step(action * math.nan)
    with pytest.raises(ValueError, match="device"):
        venv.step(action.cpu())
    for _ in range(3):
        venv.step(action)
    with pytest.raises(NonFiniteError, match="action"):
        venv.step(action)
    with pytest.raises(ResetNeeded):
        venv.step(action)
    assert gym.make_vec(ID, num_envs=2, device="cuda", to_numpy=True).reset()[0].dtype == np.float32


@pytest.mark.parametrize("options", [3, "seed", [1]])
def test_options_are_a_dict(options: object) -> None:
    for env in (DenoiseEnv(), DenoiseVectorEnv(num_envs=2)):
        with pytest.raises(TypeError, match="options must be a dict or None"):
            env.reset(options=options)
