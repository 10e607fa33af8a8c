"""Agents of Stable-Baselines3 and TorchRL: the closed-form policy of an LQG, replay with present rewards, costs."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import plain_agent, same, skip_without_extra, small, state
from lqg_cases import START_STD, VARIANCE, B, P, solve
from torch import Tensor, nn

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import Agent
from dxmi_rl.agents.wrapped.episode_replay import EpisodeReplay
from dxmi_rl.costs import counting
from dxmi_rl.diffusion import Brownian
from dxmi_rl.targets import Target
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import MissingExtraError

ON_POLICY = ["sb3-ppo", "sb3-a2c", "torchrl-ppo"]
OFF_POLICY = ["sb3-sac", "sb3-td3", "torchrl-sac"]

# The linear-quadratic Gaussian task ----------------------------------------------------------------------------------


class Isotropic(Target):
    """E = p |x|^2 / 2 + b x: the optimal standard deviation is the same in both coordinates."""

    has_energy = True
    precision = 3.0

    def __init__(self) -> None:
        super().__init__((2,), scale=0.7, plot_range=(-3.0, 3.0), smallest_scale=self.precision**-0.5)
        self.register_buffer("b", torch.tensor(B))

    def _energy(self, x: Tensor) -> Tensor:
        return (0.5 * self.precision * x**2 + self.b * x).sum(1)


@dataclass
class Optimum:
    """N(gain_t x + shift_t, std_t^2) per coordinate, ``[T, 2]``."""

    gain: Tensor
    shift: Tensor
    std: Tensor


def optimum(precision: tuple[float, float], variance: Tensor) -> Optimum:
    """V_t has precision 1 / w_t with w_t = w_{t+1} + v_t, w_T = 1 / P, and its minimum stays at -b / P.

    The policy is N(., w_{t+1} v_t / w_t) around the mean (w_{t+1} x - v_t b / P) / w_t.
    """
    p, b, v = torch.tensor(precision), torch.tensor(B), variance[:, None]
    later = 1 / p + v.flip(0).cumsum(0).flip(0) - v
    return Optimum(later / (later + v), -v * b / p / (later + v), (later * v / (later + v)).sqrt())


def ladder_task(horizon: int = 5, ratio: float = 0.8) -> tuple[Task, Optimum]:
    """A task whose optimum has one standard deviation of the action, ``ratio``, at all steps: SB3's PPO and A2C have
    no other. w_t is a geometric ladder, so the gain is 0.65 at all steps; sigma_t of the base sampler x_{t+1} = x +
    sigma_t a is std_t / ratio."""
    levels = 0.65 ** -torch.arange(float(horizon), -1.0, -1.0) / Isotropic.precision
    variance = levels[:-1] - levels[1:]
    best = optimum((Isotropic.precision,) * 2, variance)
    options = {"level_max": START_STD, "level_min": 0.35}
    task = make_task(Isotropic(), horizon=horizon, base=None, schedule="geometric", schedule_options=options, tau=1.0)
    task.mdp.kernel = Brownian(variance, rate=1.0)
    task.mdp.base._set_sigma(best.std[:, 0] / ratio)
    return task, best


def errors(agent: Agent, best: Optimum) -> dict[str, float]:
    """Largest over t: RMS of the mean's error over the standard deviation of the optimal mean, on the agent's own
    states; RMS of std / std* - 1. Moments by Gauss-Hermite quadrature, since squashed policies give none."""
    density, states = agent.density(), agent.sample_trajectory(2000, seed=1).x
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    rows: dict[str, list[float]] = {"mean": [], "std": []}
    with torch.no_grad():
        for t, x in enumerate(states[:-1]):
            drawn = torch.stack([density.transport(x, t, torch.full_like(x, float(node)))[0] for node in nodes])
            weight = torch.tensor(weights / weights.sum(), dtype=x.dtype)[:, None, None]
            mean = (weight * drawn).sum(0)
            std = (weight * (drawn - mean).square()).sum(0).sqrt()
            wanted = best.gain[t] * x + best.shift[t]
            rows["mean"].append(float((mean - wanted).square().sum(1).mean().sqrt() / wanted.var(0).sum().sqrt()))
            rows["std"].append(float((std / best.std[t] - 1).square().mean().sqrt()))
    return {key: max(values) for key, values in rows.items()}


def test_the_closed_form_is_the_recursion_of_the_lqg() -> None:
    ours, wanted = optimum((P[0], P[1]), torch.tensor(VARIANCE)), solve()
    for mine, theirs in ((ours.gain, wanted.gain), (ours.shift, wanted.shift), (ours.std, wanted.std)):
        torch.testing.assert_close(mine, torch.stack(theirs).float())


SAC = {"batch_size": 256, "gradient_steps": 20, "target_rate": 0.05, "learning_rate": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "horizon", "steps", "settings", "mean", "std"),
    [
        ("sb3-ppo", 5, 400_000, {"learning_rate": 3e-3}, 0.05, 0.02),
        ("sb3-a2c", 5, 500_000, {"learning_rate": 1e-2}, 0.05, 0.02),
        ("torchrl-ppo", 5, 400_000, {"learning_rate": 3e-3}, 0.06, 0.06),
        # Critics learn the chain step by step, from the end: at T = 5 gains are still off by 0.1 after as long.
        ("sb3-sac", 2, 38_400, SAC, 0.05, 0.08),
        ("torchrl-sac", 2, 38_400, SAC, 0.05, 0.08),
    ],
)
def test_they_find_the_optimal_policy(
    name: str, horizon: int, steps: int, settings: dict[str, Any], mean: float, std: float
) -> None:
    skip_without_extra(name)
    task, best = ladder_task(horizon)
    agent = plain_agent(name, task, seed=0, **settings)
    before = errors(agent, best)
    error = errors(agent.learn(steps), best)
    assert error["mean"] < mean, error
    assert error["std"] < std, error
    assert min(before.values()) > 0.2, "not where it began"


# Replay ---------------------------------------------------------------------------------------------------------------


def filled(energy: Any, episodes: int = 6, capacity: int = 6) -> tuple[EpisodeReplay, Tensor]:
    """A replay of ``episodes`` in two batches, whose energies were counted as rows."""
    task = make_task("8gaussians", horizon=3)
    task.mdp.set_energy(energy)
    replay = EpisodeReplay(task.mdp, capacity)
    generator = torch.Generator().manual_seed(0)
    x, action = torch.randn(4, episodes, 2, generator=generator), torch.randn(3, episodes, 2, generator=generator)
    for rows in torch.arange(episodes).chunk(2):
        replay.add(x[:, rows], action[:, rows])
    return replay, x


class Scaled(nn.Module):
    """E = scale |x|^2, counting its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.scale * x.square().sum(1)


def wanted_rewards(replay: EpisodeReplay, batch: Any) -> Tensor:
    mdp = replay.mdp
    terminal = torch.where(batch.last, mdp.terminal_reward(batch.x_next), 0.0)
    return (mdp.running_reward(batch.x, batch.x_next, batch.t) + terminal).detach()


def test_transitions_of_the_replay_are_those_that_came() -> None:
    replay, x = filled(Scaled())
    batch = replay.draw(50, torch.Generator().manual_seed(1))
    assert batch.t.tolist() == [0] * 50 + [1] * 50 + [2] * 50 and torch.equal(batch.last, batch.t == 2)
    for row in range(150):
        t = int(batch.t[row])
        (episode,) = (x[t] == batch.x[row]).all(1).nonzero().flatten().tolist()
        assert torch.equal(x[t + 1, episode], batch.x_next[row])
        assert torch.equal(replay.action[t, episode], batch.action[row])
    assert len({tuple(row) for row in batch.x.tolist()}) == 3 * 6, "all of them come up"
    torch.testing.assert_close(batch.reward, wanted_rewards(replay, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-a2c"])
def test_training_leaves_no_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's own logger makes one in the temporary directory at every call of learn."""
    skip_without_extra(name)
    small(name).learn(160)  # torch's own folder is made once in a process
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    small(name).learn(1000)
    assert list(tmp_path.iterdir()) == []


def test_an_energy_that_stays_is_paid_for_once() -> None:
    energy = Scaled()
    replay, _ = filled(energy)
    energy.rows = 0
    assert not replay.stale
    replay.draw(50, torch.Generator())
    assert energy.rows == 0


@pytest.mark.parametrize("change", ["step", "fused step", "swap", "kernel", "function"])
def test_rewards_on_replay_are_those_of_the_present(change: str) -> None:
    energy, factor = Scaled(), [1.0]
    replay, x = filled((lambda y: factor[0] * y.square().sum(1)) if change == "function" else energy)
    if "step" in change:
        energy(x[-1]).sum().backward()
        torch.optim.Adam(energy.parameters(), lr=0.5, fused=change == "fused step").step()  # no version counter moves
    elif change == "swap":
        replay.mdp.set_energy(nn.Sequential(Scaled(), nn.Tanh()))
    elif change == "kernel":
        replay.mdp.kernel = Brownian(torch.tensor([0.3, 0.2, 0.1]))
    else:
        factor[0] = 2.0
    replay.add(x[:, :3], replay.action[:, :3].clone())
    assert replay.stale == (change != "kernel")
    batch = replay.draw(50, torch.Generator().manual_seed(1))
    torch.testing.assert_close(batch.reward, wanted_rewards(replay, batch))
    if change != "function":  # one that nobody can watch
        replay.add(x[:, 3:], replay.action[:, 3:].clone())
        assert not replay.stale, "all episodes of the earlier energy are gone"


@pytest.mark.parametrize("name", OFF_POLICY)
@pytest.mark.parametrize("moves", [False, True])
def test_energy_evaluations_are_counted(name: str, moves: bool) -> None:
    skip_without_extra(name)
    energy = Scaled()
    task = make_task("8gaussians")
    task.mdp.set_energy(energy)
    agent = small(name, task)

    def train(final: Tensor) -> None:
        if moves:
            with torch.no_grad():
                energy.scale.mul_(1.1)

    energy.rows = 0
    with counting(agent.costs):
        for _ in range(3):
            agent.iterate(train)
    # Two gradient steps on 8 last steps each, where older episodes are there.
    assert agent.costs.energy_evals == energy.rows == 3 * 32 + 2 * 2 * 8 * moves
    assert agent.costs.denoiser_calls == agent.costs.timesteps == 3 * 5 * 32, "rollouts call the base sampler only"


# What they have in common ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ON_POLICY, *OFF_POLICY])
def test_the_energys_step_gets_a_batch(name: str) -> None:
    skip_without_extra(name)
    agent, seen = small(name), list[Tensor]()
    with counting(agent.costs):
        agent.iterate(seen.append)
    (final,) = seen
    assert final.shape == (32, 2) and not final.requires_grad
    rollouts = 2 if name in ON_POLICY else 1  # off-policy the episodes are drawn by the agent itself
    assert agent.costs.denoiser_calls == rollouts * agent.num_timesteps


@pytest.mark.parametrize("name", [*ON_POLICY, *OFF_POLICY])
@pytest.mark.parametrize("settings", [{"tau": 0.0}, {"base": None, "schedule": "geometric"}])
def test_other_temperatures_and_bases(name: str, settings: dict[str, Any]) -> None:
    skip_without_extra(name)
    agent = small(name, make_task("8gaussians", **settings))
    agent.learn(2 * agent.timesteps_per_iteration)
    assert all(math.isfinite(value) for value in agent.log.values())


@pytest.mark.parametrize("name", [name for name in ON_POLICY if name.startswith("sb3")])
def test_a_saved_model_is_the_librarys_own(name: str, tmp_path: Path) -> None:
    """Stable-Baselines3 loads it and trains it on."""
    skip_without_extra(name)
    agent: Any = small(name)
    agent.iterate()
    agent.model.save(tmp_path / "model")
    loaded = type(agent.model).load(tmp_path / "model", env=agent.env)
    before = [parameter.clone() for parameter in loaded.policy.parameters()]
    loaded.learn(agent.timesteps_per_iteration)
    assert not all(map(torch.equal, before, loaded.policy.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("name", OFF_POLICY)
def test_a_full_replay_goes_on_where_it_was(name: str, tmp_path: Any) -> None:
    skip_without_extra(name)
    agent = small(name, buffer_size=400)  # two iterations of 160 transitions
    step = agent.timesteps_per_iteration

    def save(trained: Agent) -> None:
        if trained.num_timesteps == 5 * step:
            trained.save(tmp_path / "agent")

    agent.learn(8 * step, callback=save)
    resumed = type(agent).load(tmp_path / "agent")
    resumed.learn(3 * step, reset_num_timesteps=False)
    assert same(state(agent), state(resumed))


@pytest.mark.slow
@pytest.mark.parametrize("name", OFF_POLICY)
def test_it_goes_on_inside_dxmi(name: str, tmp_path: Any) -> None:
    """Checkpoints of the loop hold the inner agent's replay and generators."""
    skip_without_extra(name)
    task = make_task("8gaussians-data", pretraining={"iterations": 50, "batch_size": 64, "width": 16})
    inner = {"n_trajectories": 32, "width": 16, "gradient_steps": 2, "batch_size": 40}
    dxmi = make_agent("dxmi", task, agent=name, agent_settings=inner, energy={"width": 16})
    step = dxmi.timesteps_per_iteration

    def save(trained: Agent) -> None:
        if trained.num_timesteps == 2 * step:
            trained.save(tmp_path / "agent")

    dxmi.learn(4 * step, callback=save)
    resumed = type(dxmi).load(tmp_path / "agent")
    resumed.learn(2 * step, reset_num_timesteps=False)
    assert same(state(dxmi), state(resumed))
    assert resumed.costs.energy_evals == dxmi.costs.energy_evals


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("sb3-a2c", {"learning_rate": -1.0}, "learning_rate must be finite"),
        ("sb3-a2c", {"gae_lambda": 1.5}, "gae_lambda must lie in"),
        ("sb3-sac", {"action_bound": 1.0}, "action_bound must be finite and >= 2"),
        ("sb3-sac", {"target_rate": 1.5}, r"target_rate must lie in \(0, 1\], got 1.5"),
        ("torchrl-sac", {"target_rate": 0}, r"target_rate must lie in \(0, 1\], got 0"),
        ("sb3-td3", {"policy_delay": 0}, "policy_delay must be >= 1"),
        ("sb3-td3", {"exploration_noise": -1.0}, "exploration_noise must be finite"),
        ("torchrl-ppo", {"n_epochs": 0}, "n_epochs must be >= 1"),
        ("torchrl-ppo", {"clip_range": 0.0}, "clip_range must be finite and > 0"),
        ("torchrl-sac", {"gradient_steps": 0}, "gradient_steps must be >= 1"),
        ("torchrl-sac", {"buffer_size": 0}, "buffer_size must be >= 1"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], text: str) -> None:
    skip_without_extra(name)
    with pytest.raises(ValueError, match=text):
        make_agent(name, "8gaussians", **settings)


@pytest.mark.parametrize(("name", "package"), [("sb3-sac", "stable_baselines3"), ("torchrl-ppo", "torchrl")])
def test_a_missing_library_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'dxmi_rl[{name.split('-')[0]}]'")):
        make_agent(name, "8gaussians")


@pytest.mark.slow
def test_no_library_is_imported_before_it_is_used() -> None:
    code = "import sys, dxmi_rl.agents; print([m for m in ('stable_baselines3', 'torchrl') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_building_one_leaves_every_global_generator_alone() -> None:
    for name in (*ON_POLICY, *OFF_POLICY):
        skip_without_extra(name)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        small(name)
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()), name


# TD3 and TorchRL's PPO ------------------------------------------------------------------------------------------------


def test_td3_samples_its_deterministic_policy_and_explores_with_the_base_samplers_noise() -> None:
    skip_without_extra("sb3-td3")
    agent = small("sb3-td3")
    assert not agent.has_density
    flat = np.zeros((300, 3), dtype=np.float32)
    flat[:, 2] = 1.0
    assert np.array_equal(agent.predict(flat)[0], np.zeros((300, 2))), "the base sampler's mean at first"
    agent.iterate()
    actions = agent.data.replay.action[:, :32]  # type: ignore[attr-defined]
    assert float(actions.std()) == pytest.approx(1.0, abs=0.15) and float(actions.abs().max()) <= 5.0


def test_torchrls_advantages_are_soft_ones_without_the_present_entropy() -> None:
    """At lambda = 1: sum of rewards - tau log pi from here on, less V, plus tau log pi of this step."""
    skip_without_extra("torchrl-ppo")
    agent: Any = small("torchrl-ppo", make_task("8gaussians", tau=0.7), gae_lambda=1.0)
    data = agent.rollout(3)
    reward, log_prob = data["next", "reward"].clone(), data["action_log_prob"].unsqueeze(-1)
    agent.advantages(data)
    soft = reward - 0.7 * log_prob
    returns = soft.flip(1).cumsum(1).flip(1)
    with torch.no_grad():
        value = agent.value.module(data["observation"])
    torch.testing.assert_close(data["value_target"], returns, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(data["advantage"], returns - value + 0.7 * log_prob, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-sac"])
def test_sb3_says_that_it_needs_float32(name: str) -> None:
    skip_without_extra(name)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(TypeError, match="works in float32"):
            make_agent(name, "8gaussians")
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-sac", "torchrl-ppo", "torchrl-sac"])
def test_the_kernel_is_fitted_as_often_as_the_settings_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_extra(name)
    agent = small(name, kernel_steps=3)
    fits: list[int] = []
    fit = agent.mdp.kernel.fit
    monkeypatch.setattr(
        agent.mdp.kernel, "fit", lambda *transitions: (fits.append(len(transitions[0])), fit(*transitions))
    )
    agent.learn(2 * agent.timesteps_per_iteration)
    assert fits == [agent.timesteps_per_iteration] * 6
