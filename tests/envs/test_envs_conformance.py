"""Every registered task through every interface: the checkers, seeds, autoreset, copies, devices, finite rewards.

TorchRL's ``check_env_specs`` is in test_torchrl.py.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_cases import ID, KINDS, Face, every_task, follow, small_cache  # noqa: F401
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from torch import nn

from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv
from dxmi_rl.mdp import COORDINATES
from dxmi_rl.tasks import TASKS

LAYOUTS = ["flat", "dict"]
EPISODES = 100

# -- the checkers of others ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_gymnasium_check_env(task: dict[str, Any], coordinates: str, layout: str) -> None:
    env = gym.make(ID, **task, coordinates=coordinates, observation=layout).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # States are unbounded and actions are in natural units: both are meant.
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is -?infinity")
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space")
        check_env(env)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_sb3_check_env(task: dict[str, Any], coordinates: str, layout: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        # In dict observations an image is a float state, noise included, not a picture of bytes.
        warnings.filterwarnings("ignore", "It seems that your observation (space )?x is an image but")
        warnings.filterwarnings("ignore", "The minimal resolution for an image is 36x36")
        checker.check_env(DenoiseEnv(**task, coordinates=coordinates, observation=layout))


# -- episodes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_interface_plays_the_mdp(task: dict[str, Any], kind: str, coordinates: str, layout: str) -> None:
    """States, rewards, final observations and what follows them, over two episodes."""
    face = Face(kind, **task, coordinates=coordinates, observation=layout)
    rng = np.random.default_rng(0)
    start = face.reset(seed=0)
    for _ in range(2):
        assert (face.observation[:, -1] == 1).all()
        for t in range(face.mdp.horizon):
            action = rng.standard_normal((*face.lead, face.mdp.dim), np.float32)
            expected, rewards = follow(face, face.observation, action, coordinates)
            observation, reward, done = face.step(action)
            np.testing.assert_array_equal(observation, expected)
            np.testing.assert_array_equal(reward, rewards)
            assert done == (t == face.mdp.horizon - 1)
        assert (observation[:, -1] == 0).all()
        if face.autoresets:
            assert not np.array_equal(face.observation, start)
        else:
            np.testing.assert_array_equal(face.observation, observation)
            assert not np.array_equal(face.reset(), start)
        start = face.observation


def test_same_step_autoreset(task: dict[str, Any]) -> None:
    venv = DenoiseVectorEnv(**task, num_envs=4)
    assert venv.autoreset_mode is venv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    start, info = venv.reset(seed=0)
    assert info == {} and start.shape == (4, venv.mdp.dim + 1)
    for _ in range(2):
        for t in range(venv.mdp.horizon):
            observation, _, terminated, truncated, info = venv.step(torch.zeros(4, venv.mdp.dim))
            last = t == venv.mdp.horizon - 1
            assert terminated.tolist() == [last] * 4 and truncated.tolist() == [False] * 4 and bool(info) == last
        assert (info["final_obs"][:, -1] == 0).all() and (observation[:, -1] == 1).all()
        assert info["_final_obs"].all() and info["final_info"]["episode"]["l"].tolist() == [venv.mdp.horizon] * 4


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", KINDS)
def test_random_episodes_have_finite_rewards(task: dict[str, Any], kind: str, coordinates: str) -> None:
    face = Face(kind, EPISODES, **task, coordinates=coordinates)
    torch.manual_seed(0)
    if kind != "torchrl":
        face.env.action_space.seed(0)
    for episode in range(EPISODES // face.count):
        face.reset(seed=episode)
        for _ in range(face.mdp.horizon):
            observation, reward, done = face.step(face.random_action())
            assert np.isfinite(observation).all() and np.isfinite(reward).all()
        assert done


# -- seeds, copies, devices ------------------------------------------------------------------------------------------


def trajectory(face: Face, seed: int | None, episodes: int = 2) -> np.ndarray:
    """All observations and rewards under fixed actions; the later episodes continue the stream of random numbers."""
    rng, rows = np.random.default_rng(1), []
    for episode in range(episodes):
        observation = face.reset(seed=seed if episode == 0 else None)
        for _ in range(face.mdp.horizon):
            rows.append(observation)
            observation, reward, _ = face.step(rng.standard_normal((*face.lead, face.mdp.dim), np.float32))
            rows.append(np.column_stack([observation, reward])[:, 1:])
    return np.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_seeds_fix_the_trajectory(task: dict[str, Any], kind: str) -> None:
    face, other = Face(kind, **task), Face(kind, **task)
    one = trajectory(face, 1)
    torch.manual_seed(5)  # the global generator plays no part
    np.testing.assert_array_equal(trajectory(face, 1), one)
    np.testing.assert_array_equal(trajectory(other, 1), one)
    assert not np.array_equal(trajectory(face, 2), one)
    half = len(one) // 2
    assert not np.array_equal(one[:half], one[half:])
    torch.manual_seed(0)
    unseeded = trajectory(Face(kind, **task), None, 1)
    torch.manual_seed(0)
    assert not np.array_equal(trajectory(Face(kind, **task), None, 1), unseeded)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["copied", "pickled"])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_go_on_alone(task: dict[str, Any], kind: str, how: str) -> None:
    """In the middle of an episode: the copy goes on as the original does, and neither sees what the other does."""
    if TASKS[task["task"]].backward == "base":
        pytest.skip("the base sampler is in the kernel's place")
    face = Face(kind, **task, backward="brownian", fit_backward=True)
    rng = np.random.default_rng(0)
    face.reset(seed=0)
    face.step(rng.standard_normal((*face.lead, face.mdp.dim), np.float32))
    other = copy.deepcopy(face) if how == "copied" else pickle.loads(pickle.dumps(face))
    variance = face.mdp.kernel.variance.clone()
    actions = rng.standard_normal((2 * face.mdp.horizon - 1, *face.lead, face.mdp.dim), np.float32)

    def go_on(face: Face) -> list[np.ndarray]:
        rows = []
        for action in actions:
            observation, reward, done = face.step(action)
            rows.append(np.column_stack([observation, reward]))
            if done and not face.autoresets:
                face.reset()
        return rows

    theirs = go_on(other)
    assert torch.equal(face.mdp.kernel.variance, variance) and not torch.equal(other.mdp.kernel.variance, variance)
    other.mdp.set_energy(lambda x: torch.zeros(len(x)))
    np.testing.assert_array_equal(go_on(face), theirs)


def tensors(part: object) -> list[torch.Tensor]:
    """All tensors of a module, also those that are plain attributes."""
    if not isinstance(part, nn.Module):
        return []
    own = [value for module in part.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return [*part.parameters(), *part.buffers(), *own]


def test_moving_leaves_nothing_behind(task: dict[str, Any]) -> None:
    """To the meta device, which every machine has and where a tensor left on the CPU shows."""
    pytest.importorskip("torchrl")
    from dxmi_rl.envs import torchrl as module

    based = TASKS[task["task"]].backward == "base"
    for backward in ("base",) if based else ("forward", "learned", "brownian"):
        env = module.TorchRLEnv(**copy.deepcopy(task), num_envs=2, backward=backward)
        assert env.to("cpu") is env
        module._move(env.task, torch.device("meta"))
        mdp = env.mdp
        assert mdp.device.type == "meta"
        for part in (env.task.target, mdp.base, mdp.kernel, mdp.energy.function):
            assert {tensor.device.type for tensor in tensors(part)} <= {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_gives_the_same_numbers(task: dict[str, Any], kind: str, coordinates: str) -> None:
    face, gpu = (Face(kind, **task, coordinates=coordinates, device=device) for device in ("cpu", "cuda"))
    rng = np.random.default_rng(0)
    observation = gpu.reset(seed=0)
    for _ in range(face.mdp.horizon):
        action = rng.standard_normal((*face.lead, face.mdp.dim), np.float32)
        expected, rewards = follow(face, observation, action, coordinates)
        observation, reward, _ = gpu.step(gpu.to_device(action))
        np.testing.assert_allclose(observation, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(reward, rewards, rtol=1e-3, atol=1e-2)
