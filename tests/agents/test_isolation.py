"""Agents on one built task do not train each other's kernel or energy, and the seed decides what they start with."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import BATCH, small, task_for
from torch import Tensor

from dxmi_rl import DxDP, DxMI, load_agent, make_agent, make_task
from dxmi_rl.agents import PPO
from dxmi_rl.tasks import Task

SMALL = {"n_trajectories": BATCH, "policy": {"width": 16}, "value": {"width": 16}}


def kernel_of(agent: object) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.mdp.kernel.state_dict().values()])  # type: ignore[attr-defined]


@pytest.mark.parametrize("backward", ["learned", "brownian"])
def test_agents_on_one_task_have_a_kernel_each(backward: str) -> None:
    task = make_task("8gaussians", backward=backward)
    first, second = PPO(task, seed=0, **SMALL), PPO(task, seed=1, **SMALL)
    before = kernel_of(second).clone(), task.mdp.kernel.state_dict()
    first.learn(2 * first.timesteps_per_iteration)
    assert torch.equal(kernel_of(second), before[0])
    assert all(torch.equal(value, before[1][key]) for key, value in task.mdp.kernel.state_dict().items())
    alone = PPO(make_task("8gaussians", backward=backward), seed=0, **SMALL)
    alone.learn(2 * alone.timesteps_per_iteration)
    assert torch.equal(kernel_of(first), kernel_of(alone)) and torch.equal(
        first.sample(5, seed=0), alone.sample(5, seed=0)
    )


def test_the_seed_decides_the_kernel_of_a_built_task() -> None:
    built, other = (make_task("8gaussians", backward="learned") for _ in range(2))
    assert torch.equal(kernel_of(PPO(built, seed=3)), kernel_of(PPO(other, seed=3)))
    assert not torch.equal(kernel_of(PPO(built, seed=3)), kernel_of(PPO(built, seed=4)))


def test_a_swapped_energy_still_reaches_the_agents_of_a_task() -> None:
    task = make_task("8gaussians", backward="learned")
    agent = PPO(task, **SMALL)
    task.mdp.set_energy(lambda x: x.square().sum(1))
    x = torch.randn(4, 2)
    assert torch.equal(agent.mdp.energy(x), x.square().sum(1))


@pytest.mark.slow
def test_two_games_on_one_task_have_an_energy_each() -> None:
    task = make_task("8gaussians-data", pretraining={"iterations": 5, "width": 8, "batch_size": 16})
    first, second = (DxMI(task, seed=seed, agent_settings={"n_trajectories": 16}) for seed in (0, 1))
    assert first.mdp.energy.function is first.energy and second.mdp.energy.function is second.energy
    assert first.agent.mdp is first.mdp and not task.mdp.has_energy
    before = [parameter.clone() for parameter in second.energy.parameters()]
    first.learn(2 * first.timesteps_per_iteration)
    assert all(torch.equal(old, new) for old, new in zip(before, second.energy.parameters(), strict=True))


def test_threads_that_build_agents_do_not_mix_their_seeds() -> None:
    wanted = [small("ppo", seed=seed).sample(3, seed=0) for seed in range(4)]
    found: dict[int, torch.Tensor] = {}

    def build(seed: int) -> None:
        found[seed] = small("ppo", seed=seed).sample(3, seed=0)

    threads = [threading.Thread(target=build, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], wanted[seed]) for seed in range(4))


def test_an_agent_of_a_named_task_and_of_a_built_one_start_alike() -> None:
    named, built = DxDP("8gaussians", seed=2), DxDP(make_task("8gaussians"), seed=2)
    assert torch.equal(named.sample(4, seed=0), built.sample(4, seed=0))
    assert make_agent("ppo", task_for("ppo")).task.name == "8gaussians"


def test_seeds_that_would_repeat_others_are_refused() -> None:
    for seed in (2**32, 10**20, -1):
        with pytest.raises(ValueError, match="seed must be"):
            PPO("8gaussians", seed=seed)
    assert torch.equal(
        PPO("8gaussians", seed=np.int64(3)).sample(2, seed=0), PPO("8gaussians", seed=3).sample(2, seed=0)
    )


def test_a_checkpoint_knows_the_energy_that_its_task_was_given(tmp_path: Path) -> None:
    def bowl(x: Tensor) -> Tensor:
        return x.square().sum(1)

    def task(energy: Any) -> Task:
        return make_task("8gaussians", horizon=2, energy=energy)

    file = make_agent("reinforce", task(bowl)).save(tmp_path / "agent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_agent(file, task=task(bowl))
    for other in (task(lambda x: bowl(x - 1)), make_task("8gaussians", horizon=2)):
        with pytest.warns(UserWarning, match="was trained on another energy than the task has"):
            load_agent(file, task=other)
    plain = make_agent("reinforce", make_task("8gaussians", horizon=2)).save(tmp_path / "plain")
    with pytest.warns(UserWarning, match="was trained on another energy"):
        load_agent(plain, task=task(bowl))


def test_an_energy_that_fails_somewhere_stops_no_save(tmp_path: Path) -> None:
    def narrow(x: Tensor) -> Tensor:
        if bool((x.abs() > 0.1).any()):
            raise ValueError("beyond the simulator")
        return x.square().sum(1)

    make_agent("reinforce", make_task("8gaussians", horizon=2, energy=narrow)).save(tmp_path / "agent")
