"""Environments of several horizons: every episode draws one, through every interface."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from dxmi_rl import AnyStep, evaluate, make_task
from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv
from dxmi_rl.envs.observations import observe, observed_horizon, parse_observation, told_of

ID = "DxMIDenoise-v0"
HORIZONS = (1, 2, 4)
LAYOUTS = ["flat", "dict"]
TASK: dict[str, Any] = {"task": "gmm9", "horizon": HORIZONS}


def played(env: Any, episodes: int, seed: int = 0) -> list[int]:
    """The lengths of episodes under random actions."""
    lengths = []
    env.action_space.seed(seed)
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        done = False
        steps = 0
        while not done:
            assert observation in env.observation_space
            observation, reward, done, truncated, info = env.step(env.action_space.sample())
            steps += 1
            assert np.isfinite(reward) and not truncated and ("energy" in info) == done
        lengths.append(steps)
    return lengths


# -- one episode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gymnasium_check_env(layout: str) -> None:
    env = gym.make(ID, **TASK, observation=layout).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is -?infinity")
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space")
        check_env(env)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sb3_check_env(layout: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        checker.check_env(DenoiseEnv(**TASK, observation=layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_horizon_is_drawn_and_a_seed_fixes_them(layout: str) -> None:
    env = DenoiseEnv(**TASK, observation=layout)
    lengths = played(env, 60)
    assert set(lengths) == set(HORIZONS)
    assert min(lengths.count(length) for length in HORIZONS) >= 10
    assert played(env, 60) == lengths
    assert played(env, 60, seed=1) != lengths


def test_what_observations_tell() -> None:
    env, other = DenoiseEnv(**TASK), DenoiseEnv(**TASK, observation="dict")
    for seed in range(12):
        flat, named = env.reset(seed=seed)[0], other.reset(seed=seed)[0]
        horizon = env.mdp.horizon
        assert named["horizon"] == horizon == other.mdp.horizon
        for t in range(horizon + 1):
            assert np.array_equal(flat[:2], named["x"]) and named["t"] == t
            assert np.allclose(flat[2:], [1 - t / horizon, max(0, 1 - (t + 1) / horizon)])
            if t == horizon:
                break
            assert observed_horizon(env.mdp, flat) == observed_horizon(env.mdp, named) == horizon
            x, step, single = parse_observation(env.mdp, flat)
            assert single and int(step) == t and np.allclose(x[0], flat[:2])
            assert np.allclose(observe(env.mdp, x, t)[0], flat)
            flat, named = env.step(np.ones(2, np.float32))[0], other.step(np.ones(2, np.float32))[0]


def test_a_step_is_that_of_the_drawn_horizon() -> None:
    env = DenoiseEnv(**TASK)
    for seed in range(8):
        flat, _ = env.reset(seed=seed)
        mdp = make_task("gmm9", horizon=env.mdp.horizon).mdp  # the ordinary task of that horizon
        x = torch.as_tensor(flat[None, :2])
        action = torch.full((1, 2), 0.3)
        x_next, reward = mdp.step(x, 0, action)
        observed, found, *_ = env.step(action[0].numpy())
        assert np.allclose(observed[:2], x_next[0], atol=1e-5) and found == pytest.approx(float(reward), rel=1e-4)


def test_the_energy_of_all_horizons_is_one() -> None:
    env = DenoiseEnv(**TASK)
    env.mdp.set_energy(lambda x: 0 * x.sum(1) + 7.0)
    for _ in range(8):
        env.reset()
        done, info = False, {}
        while not done:
            _, _, done, _, info = env.step(np.zeros(2, np.float32))
        assert info["energy"] == 7.0


def test_one_horizon_is_as_before() -> None:
    env = DenoiseEnv("gmm9", horizon=(3,))
    assert env.observation_space.shape == (3,) and told_of(env.mdp, 1) == (pytest.approx(2 / 3),)
    assert set(DenoiseEnv("gmm9", horizon=3, observation="dict").observation_space.spaces) == {"x", "t"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("horizon", [(), (2, 2), (4, 1), (0, 2)])
def test_bad_horizons(horizon: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="horizon must"):
        gym.make(ID, task="gmm9", horizon=horizon)


# -- many episodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_of_episodes_has_one_horizon(layout: str) -> None:
    venv = gym.make_vec(ID, num_envs=5, **TASK, observation=layout)
    assert isinstance(venv, DenoiseVectorEnv)
    observation, _ = venv.reset(seed=0)
    lengths, steps = [], 0
    for _ in range(80):
        horizon = venv.mdp.horizon
        if isinstance(observation, dict):
            assert observation["horizon"].tolist() == [horizon] * 5 and observation["t"].tolist() == [steps] * 5
        else:
            assert observation.shape == (5, 4)
        observation, reward, done, _, info = venv.step(torch.zeros(5, 2))
        steps += 1
        assert bool(done.all()) == bool(done.any()) == (steps == horizon) and bool(reward.isfinite().all())
        if done.all():
            assert info["final_info"]["episode"]["l"].tolist() == [horizon] * 5
            final = info["final_obs"]
            assert (final["t"] if isinstance(final, dict) else final[:, 2:]).unique().tolist() == (
                [horizon] if isinstance(final, dict) else [0.0]
            )
            lengths.append(horizon)
            steps = 0
    assert set(lengths) == set(HORIZONS)


@pytest.mark.slow
def test_an_agent_plays_through_the_environment() -> None:
    """The returns of AnyStep's own actions are those of its own rollouts, whatever T was drawn."""
    task = make_task("gmm9", horizon=HORIZONS)
    agent = AnyStep(task, seed=0, agent="ppo").learn(4000)
    venv = DenoiseVectorEnv(task, num_envs=2000, to_numpy=True)
    observation, _ = venv.reset(seed=0)
    returns: dict[int, float] = {}
    while len(returns) < len(HORIZONS):
        horizon = venv.mdp.horizon
        total = np.zeros(2000)
        for _ in range(horizon):
            action, _ = agent.predict(observation)
            observation, reward, *_ = venv.step(action)
            total += reward
        returns[horizon] = float(total.mean())
    for horizon, found in returns.items():
        view = agent.at(horizon)
        trajectory = view.sample_trajectory(2000, seed=1)
        x, x_next, t = trajectory.transitions()
        rewards = view.mdp.running_reward(x, x_next, t).view(horizon, -1).sum(0) - view.mdp.energy(trajectory.final)
        error = float(rewards.std()) / 2000**0.5
        assert abs(found - float(rewards.mean())) < 6 * error, horizon


def test_fit_backward_trains_one_kernel() -> None:
    task = make_task("gmm9", horizon=HORIZONS, backward="learned")
    venv = DenoiseVectorEnv(task, num_envs=16, fit_backward=True)
    venv.reset(seed=0)
    before = [parameter.clone() for parameter in task.mdp.kernel.parameters()]
    for _ in range(12):
        venv.step(torch.randn(16, 2))
    kernels = [task.at(horizon).mdp.kernel for horizon in HORIZONS]
    assert not all(map(torch.equal, before, kernels[-1].parameters()))
    assert all(a is b for kernel in kernels for a, b in zip(kernel.parameters(), kernels[0].parameters(), strict=True))


def test_stable_baselines3_trains_and_is_scored_at_every_horizon() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from dxmi_rl.envs.sb3 import make_sb3_env

    env = make_sb3_env("gmm9", num_envs=16, horizon=HORIZONS)
    env.reset()
    ended = [info["episode"]["l"] for _ in range(60) for info in env.step(np.zeros((16, 2)))[3] if info]
    assert set(ended) == set(HORIZONS)
    model = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=64, gamma=1.0, seed=0).learn(512)
    for horizon in (1, 3, 4):
        scores = evaluate(model, horizon=horizon, samples=200, draws=1, trajectories=200, fit=False, floors=False)
        assert np.isfinite(scores["elbo"])


# -- TorchRL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_envs", [None, 6])
def test_torchrl_check_env_specs(layout: str, num_envs: int | None) -> None:
    pytest.importorskip("torchrl")
    from torchrl.envs.utils import check_env_specs

    from dxmi_rl.envs.torchrl import TorchRLEnv

    check_env_specs(TorchRLEnv(**TASK, num_envs=num_envs, observation=layout))


def test_torchrl_rows_of_several_horizons() -> None:
    pytest.importorskip("torchrl")
    from tensordict import TensorDict

    from dxmi_rl.envs.torchrl import TorchRLEnv

    env = TorchRLEnv(**TASK)
    env.set_seed(0)
    starts = {}
    while len(starts) < len(HORIZONS):
        start = env.reset(TensorDict({}, [3]))
        starts[int(start["horizon"][0])] = start
    assert set(starts) == set(HORIZONS) and start["observation"].shape == (3, 4)
    mixed = torch.cat([starts[2], starts[4]]).set("action", torch.ones(6, 2))
    whole = env.step(mixed.clone())["next"]
    for rows, horizon in ((slice(3), 2), (slice(3, 6), 4)):
        apart = env.step(starts[horizon].clone().set("action", torch.ones(3, 2)))["next"]
        for key in ("x", "t", "horizon", "observation", "reward", "done"):
            assert torch.equal(whole[key][rows], apart[key]), (horizon, key)
    bare = env.step(mixed.exclude("observation"))["next"]
    assert torch.equal(bare["x"], whole["x"])
    second = env.step(whole.set("action", torch.ones(6, 2)).exclude("reward", "done", "terminated"))["next"]
    assert second["done"].flatten().tolist() == [True] * 3 + [False] * 3
    for wrong in (3, 9):
        other = starts[2].clone().set("action", torch.ones(3, 2)).set("horizon", torch.full((3,), wrong))
        with pytest.raises(ValueError, match="'horizon' must be one of"):
            env.step(other)


def test_torchrl_rollouts_have_the_drawn_length() -> None:
    pytest.importorskip("torchrl")
    from dxmi_rl.envs.torchrl import TorchRLEnv

    env = TorchRLEnv(**TASK, num_envs=4)
    env.set_seed(1)
    lengths = [len(env.rollout(10)[0]) for _ in range(20)]
    assert set(lengths) == set(HORIZONS)
    env.set_seed(1)
    assert [len(env.rollout(10)[0]) for _ in range(20)] == lengths


def test_one_horizon_of_several_tells_it_too() -> None:
    task = make_task(TASK["task"], horizon=HORIZONS).at(2)
    observation, _ = DenoiseEnv(task, observation="dict").reset(seed=0)
    assert observation["horizon"] == 2 and DenoiseEnv(task).observation_space.shape == (4,)
