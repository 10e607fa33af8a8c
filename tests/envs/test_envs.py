"""The Gymnasium and Stable-Baselines3 faces of the MDP: how they are made, thin and exact, with live rewards.

What every interface must do on every task is in test_envs_conformance.py, bad input in test_envs_errors.py and
test_envs_fuzz.py.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from env_cases import ID, Bowl, every_task, is_base_sampler, play, small_cache  # noqa: F401
from gymnasium.utils import seeding
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

import dxmi_rl
from dxmi_rl.diffusion import sample_base
from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv, make_sb3_env, register_envs
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import make_task

# -- how they are made -------------------------------------------------------------------------------------------------


def test_made_by_id_with_and_without_the_module_and_twice() -> None:
    register_envs()
    assert isinstance(gym.make("dxmi_rl:" + ID, horizon=3).unwrapped, DenoiseEnv)
    env = gym.make(ID, target="gmm25", horizon=10, backward="learned", tau=1.0).unwrapped
    assert (env.task.target.name, env.mdp.horizon, env.spec.max_episode_steps) == ("gmm25", 10, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
        assert isinstance(gym.make_vec(ID, num_envs=3), DenoiseVectorEnv)
        assert isinstance(gym.make_vec("dxmi_rl:" + ID, num_envs=3, vectorization_mode="sync"), SyncVectorEnv)


@pytest.mark.slow
def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, dxmi_rl, gymnasium as gym; gym.make('DxMIDenoise-v0').reset();"
        "print([m for m in ('stable_baselines3', 'torchrl', 'matplotlib', 'dxmi_rl.agents') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    assert dxmi_rl.__doc__


def test_a_built_task_and_a_bare_mdp_are_held_by_reference() -> None:
    built = make_task("8gaussians", horizon=3)
    assert DenoiseEnv(built).mdp is built.mdp is DenoiseVectorEnv(target=built, num_envs=2).mdp
    bare = DenoiseEnv(built.mdp, coordinates="next_state")
    assert bare.mdp is built.mdp
    play(bare, np.zeros((3, 2), np.float32), 0)
    energy = Bowl()
    assert gym.make(ID, energy=energy).unwrapped.mdp.energy.function is energy
    assert gym.make_vec(ID, num_envs=2, energy=energy).mdp.energy.function is energy


# -- one definition, three faces -------------------------------------------------------------------------------------


def test_scalar_vector_and_mdp_agree_exactly(task: dict[str, Any]) -> None:
    env, venv = DenoiseEnv(**task), DenoiseVectorEnv(**task, num_envs=1)
    mdp = env.mdp
    actions = np.random.default_rng(0).standard_normal((mdp.horizon, mdp.dim), np.float32)
    observations, rewards = play(env, actions, seed=5)
    batch, _ = venv.reset(seed=5)
    x = batch[:, :-1].reshape(1, *mdp.event_shape)
    states = [x]
    for t, action in enumerate(actions):
        np.testing.assert_array_equal(batch[0].numpy(), observations[t])
        assert observations[t][-1] == np.float32(1 - t / mdp.horizon)
        noise = torch.from_numpy(action)[None]
        batch, reward, terminated, truncated, info = venv.step(noise)
        x, expected = mdp.step(x, t, noise.reshape(x.shape))
        states.append(x)
        assert reward.tolist() == [rewards[t]] == expected.tolist()
        assert bool(terminated) == (t == mdp.horizon - 1) and not bool(truncated)
    np.testing.assert_array_equal(info["final_obs"][0].numpy(), observations[-1])
    np.testing.assert_array_equal(x.flatten().numpy(), observations[-1][:-1])
    total = mdp.rewards(Trajectory(torch.stack(states), torch.zeros(mdp.horizon, 1))).detach()
    torch.testing.assert_close(torch.tensor(rewards), total[:, 0])
    torch.testing.assert_close(info["final_info"]["energy"], mdp.energy(x).detach())
    assert float(info["final_info"]["episode"]["r"]) == pytest.approx(float(total.sum()), rel=1e-5)


def test_next_state_coordinates_are_the_same_mdp(task: dict[str, Any]) -> None:
    noise_env = DenoiseVectorEnv(**task, num_envs=6)
    state_env = DenoiseVectorEnv(**task, num_envs=6, coordinates="next_state")
    mdp, generator = noise_env.mdp, torch.Generator().manual_seed(0)
    one, _ = noise_env.reset(seed=3)
    two, _ = state_env.reset(seed=3)
    for t in range(mdp.horizon):
        noise = torch.randn(6, mdp.dim, generator=generator)
        x = one[:, :-1].reshape(6, *mdp.event_shape)
        x_next = mdp.next_state(x, t, noise.reshape(x.shape))
        torch.testing.assert_close(mdp.action(x, t, x_next).flatten(1), noise, atol=1e-2, rtol=1e-3)
        one, reward_one, *_, info_one = noise_env.step(noise)
        two, reward_two, *_, info_two = state_env.step(x_next.flatten(1))
        torch.testing.assert_close(reward_one, reward_two)
        torch.testing.assert_close(info_one.get("final_obs", one), info_two.get("final_obs", two))


def test_outputs_are_copies_and_actions_are_copied() -> None:
    for layout in ("flat", "dict"):
        venv = DenoiseVectorEnv(num_envs=2, coordinates="next_state", observation=layout)
        observation, _ = venv.reset(seed=0)
        before = venv._episodes.x.clone()
        (observation["x"] if layout == "dict" else observation).fill_(9.0)
        assert torch.equal(venv._episodes.x, before)
        action = torch.ones(2, 2)
        venv.step(action)
        action.fill_(7.0)
        assert torch.equal(venv._episodes.x, torch.ones(2, 2))


def test_dict_observations(task: dict[str, Any]) -> None:
    env = DenoiseEnv(**task, observation="dict")
    venv = DenoiseVectorEnv(**task, num_envs=3, observation="dict", to_numpy=True)
    observation, _ = env.reset(seed=0)
    batch, _ = venv.reset(seed=0)
    for t in range(env.mdp.horizon + 1):
        assert observation in env.observation_space and int(observation["t"]) == t
        assert batch in venv.observation_space and batch["t"].tolist() == [t] * 3
        if t < env.mdp.horizon:
            # What Agent.predict gives for dict observations has the event's shape; both shapes are understood.
            observation, *_ = env.step(np.zeros(env.mdp.event_shape, np.float32))
            step = venv.step(np.zeros((3, env.mdp.dim), np.float32))
            batch = step[-1].get("final_obs", step[0])


# -- the base sampler in noise coordinates ---------------------------------------------------------------------------


def test_standard_normal_policy_is_the_base_sampler_exactly(task: dict[str, Any]) -> None:
    venv = DenoiseVectorEnv(**task, num_envs=50)
    mdp = venv.mdp
    seed = int(seeding.np_random(11)[0].integers(2**63 - 1))  # how ``reset`` seeds torch
    expected = sample_base(mdp.base, 50, mdp.event_shape, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    mdp.reset(50, generator)
    venv.reset(seed=11)
    for _ in range(mdp.horizon):
        *_, info = venv.step(torch.randn(50, *mdp.event_shape, generator=generator).flatten(1))
    torch.testing.assert_close(info["final_obs"][:, :-1], expected.flatten(1), rtol=0, atol=0)


@pytest.mark.parametrize("std", [1.0, 0.8])
def test_standard_normal_policy_is_the_base_sampler_in_distribution(std: float) -> None:
    venv = DenoiseVectorEnv(num_envs=16_000, to_numpy=True)
    rng = np.random.default_rng(0)
    venv.reset(seed=0)
    for _ in range(venv.mdp.horizon):
        *_, info = venv.step(std * rng.standard_normal((16_000, 2)))
    assert is_base_sampler(info["final_obs"][:, :-1], venv.mdp) == (std == 1.0)  # 0.8: the test can tell


# -- rewards are live ------------------------------------------------------------------------------------------------


def final_rewards(step: Any, env: Any, shape: tuple[int, ...]) -> float:
    env.reset()
    for _ in range(env.mdp.horizon):
        reward = step(np.zeros(shape, np.float32))
    return float(np.sum(np.asarray(reward)))


def test_energy_is_swapped_and_trained_live() -> None:
    pytest.importorskip("stable_baselines3")
    with pytest.raises(TypeError, match="n_envs is called num_envs, as in Gymnasium: pass num_envs=4"):
        make_sb3_env("8gaussians", n_envs=4)
    scalar, vector, sb3 = DenoiseEnv(tau=0.0), DenoiseVectorEnv(num_envs=2, tau=0.0), make_sb3_env(num_envs=2, tau=0.0)
    faces = [(scalar, (2,)), (vector, (2, 2)), (sb3, (2, 2))]
    for env, shape in faces:
        energy = Bowl(0.0)
        env.mdp.set_energy(energy)
        step = lambda action, env=env: env.step(action)[1]
        assert final_rewards(step, env, shape) == 0
        with torch.no_grad():
            energy.weight.fill_(1.0)
        assert final_rewards(step, env, shape) < 0
        assert all(parameter.grad is None for parameter in energy.parameters())


@pytest.mark.parametrize("backward", ["brownian", "learned", "forward"])
def test_the_kernel_is_fitted_only_on_request(backward: str) -> None:
    def parameters(fit: bool) -> tuple[list[Tensor], list[Tensor]]:
        venv = DenoiseVectorEnv(num_envs=64, backward=backward, fit_backward=fit)
        before = [value.clone() for value in venv.mdp.kernel.state_dict().values()]
        venv.reset(seed=0)
        for t in range(venv.mdp.horizon):
            assert all(map(torch.equal, before, venv.mdp.kernel.state_dict().values())), t
            venv.step(torch.zeros(64, 2))
        return before, list(venv.mdp.kernel.state_dict().values())

    assert all(map(torch.equal, *parameters(False)))
    assert all(map(torch.equal, *parameters(True))) == (backward == "forward")
    env = DenoiseEnv(backward="brownian", fit_backward=True)
    variance = env.mdp.kernel.variance.clone()
    play(env, np.zeros((5, 2), np.float32), 0)
    assert (variance != env.mdp.kernel.variance).all()
