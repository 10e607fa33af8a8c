"""Wrappers, CleanRL's loop and Stable-Baselines3's algorithms on the environments."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_cases import ID, every_task, is_base_sampler, small_cache  # noqa: F401
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers import vector as vector_wrappers

from dxmi_rl.envs import DenoiseVectorEnv, make_sb3_env

# -- wrappers and the loops of others --------------------------------------------------------------------------------


def test_torch_action_wrappers() -> None:
    venv = vector_wrappers.RescaleAction(DenoiseVectorEnv(num_envs=3, action_bound=5.0), -1.0, 1.0)
    venv = vector_wrappers.TransformReward(vector_wrappers.ClipAction(venv), lambda reward: 2 * reward)
    plain = DenoiseVectorEnv(num_envs=3)
    start, _ = plain.reset(seed=0)
    assert torch.equal(venv.reset(seed=0)[0], start)
    observation, reward, *_ = venv.step(torch.tensor([[9.0, 0.0], [0.2, 0.2], [-9.0, 1.0]]))
    expected, unscaled, *_ = plain.step(torch.tensor([[5.0, 0.0], [1.0, 1.0], [-5.0, 5.0]]))
    torch.testing.assert_close(observation, expected)
    torch.testing.assert_close(reward, 2 * unscaled)


def test_cleanrl_loop_sees_the_same_keys() -> None:
    def keys(info: Any) -> Any:
        return {key: keys(value) for key, value in info.items()} if isinstance(info, dict) else None

    def loop(envs: Any) -> tuple[Any, float]:
        envs.reset(seed=0)
        for _ in range(5):
            *_, infos = envs.step(np.zeros((3, 2), np.float32))
        episode = infos["final_info"]["episode"]
        assert infos["final_info"]["_episode"].all() and episode["l"].tolist() == [5] * 3
        assert len(infos["final_obs"]) == 3
        return keys(infos), np.asarray(episode["r"]).std()

    make = lambda: RecordEpisodeStatistics(gym.make(ID))
    theirs, _ = loop(SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP))
    for to_numpy in (True, False):
        ours, spread = loop(gym.make_vec(ID, num_envs=3, to_numpy=to_numpy))
        assert ours == theirs and spread > 0
    recorded = vector_wrappers.RecordEpisodeStatistics(gym.make_vec(ID, num_envs=3, to_numpy=True))
    recorded.reset(seed=0)
    for _ in range(10):
        *_, infos = recorded.step(np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(infos["episode"]["r"], infos["final_info"]["episode"]["r"], rtol=1e-5)


# -- Stable-Baselines3 -----------------------------------------------------------------------------------------------


def test_sb3_adapter_infos_and_seeds() -> None:
    pytest.importorskip("stable_baselines3")
    env = make_sb3_env("8gaussians", num_envs=3, horizon=2)
    assert env.seed(4) == [4, 5, 6]
    first = env.reset()
    second = env.reset()
    env.seed(4)
    assert np.array_equal(env.reset(), first) and not np.array_equal(first, second) and first.dtype == np.float32
    _, rewards, dones, infos = env.step(np.zeros((3, 2), np.float32))
    total = rewards.copy()
    assert not dones.any() and infos == [{}, {}, {}]
    observation, rewards, dones, infos = env.step(np.zeros((3, 2), np.float32))
    total += rewards
    assert dones.all() and (observation[:, -1] == 1).all() and rewards.dtype == np.float32
    for i, info in enumerate(infos):
        assert info["terminal_observation"].shape == (3,) and info["terminal_observation"][-1] == 0
        assert info["TimeLimit.truncated"] is False
        assert info["episode"]["r"] == pytest.approx(float(total[i]), rel=1e-5) and info["episode"]["l"] == 2
    assert env.get_attr("num_envs", [0, 1]) == [3, 3] and env.env_method("render") == [None] * 3
    env.set_attr("render_mode", None)
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    with pytest.raises(AttributeError):
        env.get_attr("colour")
    with pytest.raises(ValueError, match="to_numpy"):
        type(env)(DenoiseVectorEnv(num_envs=2))
    env.close()


@pytest.mark.slow
def test_untrained_sb3_ppo_is_the_base_sampler_and_learns() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy

    env = make_sb3_env(num_envs=4000)
    options = {"gamma": 1.0, "gae_lambda": 1.0, "normalize_advantage": False, "device": "cpu", "seed": 0}
    model = sb3.PPO("MlpPolicy", env, n_steps=5, batch_size=20_000, n_epochs=2, **options)
    observation = env.reset()
    for _ in range(5):
        action, _ = model.predict(observation, deterministic=False)
        observation, _, _, infos = env.step(action)
    assert is_base_sampler(np.stack([info["terminal_observation"] for info in infos])[:, :-1], env.mdp)
    model.learn(40_000)
    assert model.num_timesteps == 40_000 and len(model.ep_info_buffer) == 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _ = evaluate_policy(model, env, n_eval_episodes=4000, deterministic=False)
    assert math.isfinite(mean)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["flat", "dict"])
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_sb3_learns_on_every_task(task: dict[str, Any], algorithm: str, layout: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = make_sb3_env(**task, num_envs=8, observation=layout, action_bound=5.0)
    policy = "MlpPolicy" if layout == "flat" else "MultiInputPolicy"
    size = {"n_steps": env.mdp.horizon} if algorithm == "PPO" else {"learning_starts": 40}
    model = getattr(sb3, algorithm)(policy, env, gamma=1.0, device="cpu", batch_size=8, **size)
    model.learn(64)
    assert model.num_timesteps >= 64


@pytest.mark.slow
def test_environments_run_in_processes() -> None:
    envs = gym.make_vec(ID, num_envs=2, vectorization_mode="async")
    try:
        observation, _ = envs.reset(seed=0)
        alone, _ = gym.make(ID).reset(seed=0)
        np.testing.assert_array_equal(observation[0], alone)
        for _ in range(6):
            _, reward, *_ = envs.step(envs.action_space.sample())
            assert np.isfinite(reward).all()
    finally:
        envs.close()
