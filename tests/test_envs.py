"""The Gymnasium and Stable-Baselines3 faces of the MDP: thin, exact, and strict about what they are given."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers import vector as vector_wrappers
from torch import Tensor, nn

import dxmi_rl
from dxmi_rl.checks import MissingExtraError, NonFiniteError
from dxmi_rl.diffusion import sample_base
from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv, make_sb3_env, register_envs
from dxmi_rl.mdp import DenoisingMDP, EnergyError, Trajectory
from dxmi_rl.registry import UnknownNameError
from dxmi_rl.tasks import TASKS, list_tasks, make_task

ID = "DxMIDenoise-v0"


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
        extra["pretraining"] = {"iterations": 20}
    if config.reward is None:
        extra["energy"] = Bowl()
    return {"task": name, **extra}


@pytest.fixture(params=list_tasks())
def task(request: pytest.FixtureRequest) -> dict[str, Any]:
    kwargs = arguments(request.param)
    try:
        make_task(kwargs["task"], **{key: value for key, value in kwargs.items() if key != "task"})
    except MissingExtraError as error:
        pytest.skip(str(error))
    return kwargs


def play(env: Any, actions: np.ndarray, seed: int) -> tuple[list[Any], list[Any]]:
    """Observations and rewards of one episode of a scalar environment."""
    observation, _ = env.reset(seed=seed)
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    return observations, rewards


# -- Gymnasium's contract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "dict"])
@pytest.mark.parametrize("coordinates", ["noise", "next_state"])
def test_gymnasium_check_env(task: dict[str, Any], coordinates: str, layout: str) -> None:
    env = gym.make(ID, **task, coordinates=coordinates, observation=layout).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # States are unbounded and actions are in natural units: both are meant.
        warnings.filterwarnings("ignore", ".*A Box observation space m.* value is -?infinity")
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space")
        check_env(env)


@pytest.mark.parametrize("layout", ["flat", "dict"])
def test_sb3_check_env(task: dict[str, Any], layout: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        # In dict observations an image is a float state, noise included, not a picture of bytes.
        warnings.filterwarnings("ignore", "It seems that your observation (space )?x is an image but")
        warnings.filterwarnings("ignore", "The minimal resolution for an image is 36x36")
        checker.check_env(DenoiseEnv(**task, observation=layout))


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
    assert gym.make(ID, energy=energy).unwrapped.mdp._energy is energy
    assert gym.make_vec(ID, num_envs=2, energy=energy).mdp._energy is energy


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


def test_same_step_autoreset_starts_new_episodes(task: dict[str, Any]) -> None:
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
        assert not torch.equal(observation, start)


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_seeds_fix_everything(task: dict[str, Any], kind: str) -> None:
    def first_states(seed: int | None, env: Any) -> np.ndarray:
        return np.stack([np.asarray(env.reset(seed=seed)[0]), np.asarray(env.reset()[0])])

    env = DenoiseEnv(**task) if kind == "scalar" else DenoiseVectorEnv(**task, num_envs=3)
    one, again, other = first_states(1, env), first_states(1, env), first_states(2, env)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other) and not np.array_equal(one[0], one[1])
    assert not np.array_equal(first_states(None, copy.deepcopy(env)), first_states(3, env))


def test_next_state_coordinates_are_the_same_mdp(task: dict[str, Any]) -> None:
    noise_env, state_env = DenoiseVectorEnv(**task, num_envs=6), DenoiseVectorEnv(**task, num_envs=6, coordinates="next_state")  # fmt: skip
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
    env, venv = DenoiseEnv(**task, observation="dict"), DenoiseVectorEnv(**task, num_envs=3, observation="dict", to_numpy=True)  # fmt: skip
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


def is_base_sampler(final: np.ndarray, mdp: DenoisingMDP) -> bool:
    """Are samples like the base sampler's? Kolmogorov-Smirnov tests of 7 projections and of the energy against fresh
    ones; wrong once in 10,000 times (asymptotic KS law, Bonferroni over the 8 tests)."""
    from scipy.stats import ks_2samp

    base = sample_base(mdp.base, len(final), mdp.event_shape, torch.Generator().manual_seed(1))
    directions = np.random.default_rng(0).standard_normal((7, final.shape[1]))
    pairs = [(final @ d, base.numpy() @ d) for d in directions]
    pairs.append((mdp.energy(torch.from_numpy(final)).numpy(), mdp.energy(base).numpy()))
    return min(ks_2samp(*pair, method="asymp").pvalue for pair in pairs) > 1e-4 / len(pairs)


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
    venv = DenoiseVectorEnv(num_envs=4000, to_numpy=True)
    rng = np.random.default_rng(0)
    venv.reset(seed=0)
    for _ in range(venv.mdp.horizon):
        *_, info = venv.step(std * rng.standard_normal((4000, 2)))
    assert is_base_sampler(info["final_obs"][:, :-1], venv.mdp) == (std == 1.0)  # 0.8: the test can tell


# -- rewards are live ------------------------------------------------------------------------------------------------


def final_rewards(step: Any, env: Any, shape: tuple[int, ...]) -> float:
    env.reset()
    for _ in range(env.mdp.horizon):
        reward = step(np.zeros(shape, np.float32))
    return float(np.sum(np.asarray(reward)))


def test_energy_is_swapped_and_trained_live() -> None:
    pytest.importorskip("stable_baselines3")
    scalar, vector, sb3 = DenoiseEnv(tau=0.0), DenoiseVectorEnv(num_envs=2, tau=0.0), make_sb3_env(num_envs=2, tau=0.0)
    faces = [(scalar, (2,)), (vector, (2, 2)), (sb3, (2, 2))]
    for env, shape in faces:
        energy = Bowl(0.0)
        env.mdp.set_energy(energy)
        step = lambda action, env=env: env.step(action)[1]  # noqa: E731
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


# -- bad inputs ------------------------------------------------------------------------------------------------------


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
    built = make_task("8gaussians-data", pretraining={"iterations": 20})
    with pytest.raises(EnergyError, match="energy="):
        DenoiseEnv(built)
    built.mdp.set_energy(Bowl())
    DenoiseEnv(built)


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


def test_untrained_sb3_ppo_is_the_base_sampler_and_learns() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy

    env = make_sb3_env(num_envs=4000)
    model = sb3.PPO("MlpPolicy", env, gamma=1.0, gae_lambda=1.0, n_steps=5, batch_size=20_000, n_epochs=2, seed=0, device="cpu", normalize_advantage=False)  # fmt: skip
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


@pytest.mark.parametrize("layout", ["flat", "dict"])
@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_sb3_learns_on_every_task(task: dict[str, Any], algorithm: str, layout: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = make_sb3_env(**task, num_envs=8, observation=layout, action_bound=5.0)
    policy = "MlpPolicy" if layout == "flat" else "MultiInputPolicy"
    options: dict[str, Any] = {"n_steps": env.mdp.horizon, "batch_size": 8} if algorithm == "PPO" else {"learning_starts": 40, "batch_size": 16}  # fmt: skip
    model = getattr(sb3, algorithm)(policy, env, gamma=1.0, device="cpu", **options)
    model.learn(64)
    assert model.num_timesteps >= 64


# -- CUDA ------------------------------------------------------------------------------------------------------------


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
