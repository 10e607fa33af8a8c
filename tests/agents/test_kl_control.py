"""StopAtKL and AdaptiveBeta: samplers that stay as near their base sampler as they are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_cases import small

from dxmi_rl import AdaptiveBeta, DxDP, StopAtKL, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.kl_control import RATE, kl_to_base
from dxmi_rl.targets import RewardEnergy
from dxmi_rl.tasks import Task

LARGEST = ["diffusion-nft", "draft", "rwr", "sft-pg"]
"""Agents that aim at the largest reward."""


def tilted(beta: float = 0.5, **changes: Any) -> Task:
    return make_task("8gaussians", reward=lambda x: x[:, 0], beta=beta, backward="base", horizon=3, **changes)


def beta_of(task: Task) -> float:
    energy = task.mdp.energy.function
    assert isinstance(energy, RewardEnergy)
    return energy.beta


@pytest.mark.parametrize("name", ["dpok", "ppo", "diffusion-nft", "draft"])
def test_training_stops_at_the_divergence(name: str) -> None:
    agent = small(name, tilted(0.02))
    control = StopAtKL(0.3)
    agent.learn(200_000, callback=control)
    assert agent.num_timesteps < 200_000
    assert control.kl is not None and control.kl >= 0.3
    measured = kl_to_base(agent.mdp, agent.sample_trajectory(20_000, seed=5))
    assert measured == pytest.approx(control.kl, rel=0.3)


def test_it_looks_every_so_many_iterations() -> None:
    agent, control, looks = small("ppo", tilted()), StopAtKL(100.0, every=3), list[float | None]()

    def callback(trained: Any) -> bool:
        going = control(trained)
        looks.append(control.kl)
        return going

    agent.learn(7 * agent.timesteps_per_iteration, callback=callback)
    assert [kl is None for kl in looks] == [True, True, False, False, False, False, False]
    assert looks[2] == looks[4] and looks[5] != looks[2]


@pytest.mark.parametrize("control", [StopAtKL(1e6), None])
def test_looking_changes_no_random_number(control: StopAtKL | None) -> None:
    agent = small("dxdp", tilted()).learn(2000, callback=control)
    other = small("dxdp", tilted()).learn(2000)
    assert torch.equal(agent.sample(20, seed=0), other.sample(20, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpok", "ppo", "adjoint-matching", "dxdp"])
def test_beta_is_steered_to_the_divergence(name: str) -> None:
    task = make_task("8gaussians", reward=lambda x: x[:, 0], beta=1.0, backward="base", horizon=10)
    control = AdaptiveBeta(2.0)
    agent = AGENTS[name](task, seed=0).learn(60_000, callback=control)
    assert kl_to_base(agent.mdp, agent.sample_trajectory(10_000, seed=5)) == pytest.approx(2.0, rel=0.15)
    assert control.beta == beta_of(agent.task) != 1.0


def test_beta_moves_by_the_rule() -> None:
    agent, control = small("ppo", tilted()), AdaptiveBeta(1e6)
    agent.learn(agent.timesteps_per_iteration, callback=control)  # far below: down by the whole rate
    assert control.beta == pytest.approx(0.5 * torch.tensor(-RATE).exp().item())
    assert beta_of(agent.task) == control.beta
    above = AdaptiveBeta(1e-9)
    above.kl = None
    agent.learn(20 * agent.timesteps_per_iteration)
    before = beta_of(agent.task)
    above(agent)
    assert above.beta == pytest.approx(before * torch.tensor(RATE).exp().item())


def test_training_goes_on_with_the_beta_it_is_given() -> None:
    control = AdaptiveBeta(0.5)
    agent = small("dpok", tilted()).learn(3000, callback=control)
    assert control.beta is not None
    other = small("dpok", tilted())
    again = AdaptiveBeta(0.5, beta=control.beta)
    again(other)
    assert again.beta is not None and abs(again.beta / control.beta - 1) <= RATE * 1.1
    assert beta_of(agent.task) == control.beta


def test_kept_energies_are_those_of_the_new_beta() -> None:
    agent = DxDP(tilted(), seed=0, n_trajectories=16).learn(1000)
    AdaptiveBeta(1e6)(agent)
    assert beta_of(agent.task) < 0.5
    kept, model = agent.memory.trajectories, agent.energy_model
    assert kept is not None and kept.energy is not None and model is not None and len(model.gradient)
    assert torch.allclose(kept.energy, agent.mdp.energy(kept.final), rtol=1e-4)
    assert torch.allclose(model.energy, agent.mdp.energy(model.x), rtol=1e-4)
    assert torch.allclose(model.gradient, agent.mdp.energy.gradient(model.x), rtol=1e-4)


@pytest.mark.parametrize("name", LARGEST)
def test_no_beta_holds_those_that_aim_at_the_largest_reward(name: str) -> None:
    assert not AGENTS[name].held_by_beta
    with pytest.raises(ValueError, match=f"agent {name!r} aims at the largest reward"):
        AdaptiveBeta(1.0)(small(name, tilted()))


def test_nor_the_terminal_objective() -> None:
    with pytest.raises(ValueError, match="aims at the largest reward"):
        AdaptiveBeta(1.0)(small("ppo", tilted(), objective="terminal"))


def test_bad_input() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_kl"):
            StopAtKL(wrong)
        with pytest.raises(ValueError, match="target_kl"):
            AdaptiveBeta(wrong)
        with pytest.raises(ValueError, match="beta"):
            AdaptiveBeta(1.0, beta=wrong)
    with pytest.raises(ValueError, match="every"):
        StopAtKL(1.0, every=0)
    with pytest.raises(ValueError, match="AdaptiveBeta needs a task with a reward and backward='base'"):
        AdaptiveBeta(1.0)(small("ppo"))
    scratch = small("ppo", make_task("8gaussians", track="sample"))
    with pytest.raises(ValueError, match="has no divergence from a base sampler"):
        StopAtKL(1.0)(scratch)
