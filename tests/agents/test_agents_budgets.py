"""Budgets of learn in transitions, energy evaluations and seconds; load_agent."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_cases import same, skip_without_extra, small, state
from torch import Tensor

from dxmi_rl import list_agents, load_agent, make_task
from dxmi_rl.agents import base
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.storage import save_tensors


@pytest.fixture(name="name", params=list_agents())
def every_agent(request: pytest.FixtureRequest) -> str:
    skip_without_extra(request.param)
    return request.param


# Every agent ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "exactly one budget"),
        ({"total_timesteps": 10, "seconds": 1.0}, "exactly one budget"),
        ({"energy_evals": 0}, "energy_evals must be >= 1, got 0"),
        ({"seconds": 0.0}, "seconds must be finite and > 0"),
        ({"seconds": float("inf")}, "seconds must be finite and > 0"),
    ],
)
def test_bad_budgets_in_other_units(budget: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        small("ppo").learn(**budget)


def test_whole_numbers_may_be_floats() -> None:
    assert small("ppo").learn(1e1).num_timesteps == small("ppo").learn(10).num_timesteps
    assert small("ppo").learn(energy_evals=1e2).num_timesteps == small("ppo").learn(energy_evals=100).num_timesteps


@pytest.mark.slow
def test_budgets_in_energy_evaluations(name: str) -> None:
    agent = small(name)
    progress: list[float] = []
    agent.learn(energy_evals=200, callback=lambda agent: progress.append(agent.progress))
    if not agent.trains:
        assert agent.costs.energy_evals == 0
        return
    spent = agent.costs.energy_evals
    assert spent >= 200 and (len(progress) == 1 or spent - 200 < spent / len(progress) * 2)
    assert progress == sorted(progress) and progress[-1] == 1, "learning rates follow the budget that was given"
    assert len(progress) == 1 or progress[0] == 0
    again = small(name).learn(energy_evals=200)
    assert same(state(agent), state(again))


@pytest.mark.slow
def test_budgets_in_seconds() -> None:
    agent = small("ppo").learn(seconds=0.2)
    assert 0.2 <= agent.costs.seconds < 2 and agent.costs.timesteps > 0


def test_an_agent_that_does_not_count_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small("ppo")
    monkeypatch.setattr(agent, "iterate", lambda: {})
    with pytest.raises(RuntimeError, match=re.escape("must add to costs.energy_evals")):
        agent.learn(energy_evals=10)


def test_load_agent_finds_the_class(name: str, tmp_path: Path) -> None:
    agent = small(name)
    again = load_agent(agent.save(tmp_path / "agent.safetensors"))
    assert type(again) is type(agent) and same(state(again), state(agent))
    save_tensors(tmp_path / "other.safetensors", {}, {})
    with pytest.raises(CheckpointError, match="names no agent"):
        load_agent(tmp_path / "other.safetensors")


def test_a_slow_reward_is_asked_in_batches_and_shown_in_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, rows = list[str](), list[int]()
    clock, asleep = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + asleep[0])

    @contextlib.contextmanager
    def bar(*_: Any, **__: Any) -> Iterator[Any]:
        yield lambda done, text="": texts.append(text)

    def slow(x: Tensor) -> Tensor:
        rows.append(len(x))
        asleep[0] += len(x)  # seconds of the clock: a real pause may be short beside the rest on a busy machine
        return x[:, 0]

    monkeypatch.setattr(base, "progress", bar)
    task = make_task("8gaussians", reward=slow, backward="base", horizon=2)
    rows.clear()
    agent = small("ppo", task)
    agent.learn(4 * agent.timesteps_per_iteration)
    assert rows == [32] * 4  # one call per rollout
    assert len(texts) == 4 and all(re.fullmatch(r"\d+% of the time in the energy", text) for text in texts)
    texts.clear()
    task.mdp.set_energy(lambda x: x[:, 0])
    small("ppo", task).learn(200)
    assert set(texts) == {""}, "what another agent waited for is not this one's time"
