"""StopAtKL and AdaptiveBeta: samplers that stay as near their base sampler as they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import small

from dxmi_rl import AdaptiveBeta, AnyStep, DxDP, StopAtKL, load_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.aims import kl_to_base
from dxmi_rl.agents.any_step import AnyStepConfig
from dxmi_rl.agents.kl_control import RATE
from dxmi_rl.targets import RewardEnergy
from dxmi_rl.tasks import Task

LARGEST = ["diffusion-nft", "draft", "rwr", "sft-pg"]
"""Agents that aim at the largest reward."""


def tilted(beta: float = 0.5, **changes: Any) -> Task:
    return make_task("8gaussians", reward=lambda x: x[:, 0], beta=beta, backward="base", horizon=3, **changes)


def named() -> Task:
    """A task that a checkpoint can build again."""
    return make_task("digits-stroke", pretraining={"iterations": 50, "batch_size": 64, "width": 16})


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


@pytest.mark.parametrize("control", [StopAtKL(1e6), None])
def test_looking_changes_no_random_number(control: StopAtKL | None) -> None:
    agent = small("dxdp", tilted()).learn(2000, callback=control)
    other = small("dxdp", tilted()).learn(2000)
    assert torch.equal(agent.sample(20, seed=0), other.sample(20, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpok", "adjoint-matching"])
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpok", "dxdp"])
def test_a_checkpoint_holds_beta(name: str, tmp_path: Path) -> None:
    agent = small(name, named()).learn(3000, callback=AdaptiveBeta(0.5), checkpoint=tmp_path / "agent.safetensors")
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert beta_of(loaded.task) == beta_of(agent.task) != 0.5
    budget = agent.num_timesteps
    for one in (agent, loaded):
        one.learn(budget, reset_num_timesteps=False, callback=AdaptiveBeta(0.5))
    assert torch.equal(loaded.sample(20, seed=1), agent.sample(20, seed=1))


@pytest.mark.parametrize("control", [StopAtKL(1e6), AdaptiveBeta(1e6)])
def test_divergence_is_left_to_learn(control: Any) -> None:
    agent, iterations = small("ppo", tilted()), list[int]()

    def callback(trained: Any) -> bool | None:
        iterations.append(1)
        if len(iterations) == 3:
            with torch.no_grad():
                next(iter(trained.policy.parameters())).fill_(float("nan"))
        found: bool | None = control(trained)
        return found

    agent.learn(6 * agent.timesteps_per_iteration, callback=callback)
    assert agent.costs.setbacks == 1 and bool(agent.sample(10).isfinite().all())


@pytest.mark.slow
def test_kept_energies_are_those_of_the_new_beta() -> None:
    agent = DxDP(tilted(), seed=0, n_trajectories=16).learn(300)
    AdaptiveBeta(1e6)(agent)
    assert beta_of(agent.task) < 0.5
    kept, model = agent.memory.trajectories, agent.energy_model
    assert kept is not None and kept.energy is not None and model is not None and len(model.gradient)
    assert torch.allclose(kept.energy, agent.mdp.energy(kept.final), rtol=1e-4)
    assert torch.allclose(model.energy, agent.mdp.energy(model.x), rtol=1e-4)
    assert torch.allclose(model.gradient, agent.mdp.energy.gradient(model.x), rtol=1e-4)


@pytest.mark.slow
def test_agents_inside_others_keep_theirs_too() -> None:
    config = AnyStepConfig(agent="dxdp", agent_settings=AGENTS["dxdp"].Config(n_trajectories=16))
    task = make_task("8gaussians", reward=lambda x: x[:, 0], beta=0.5, backward="base", horizon=(2, 3))
    agent = AnyStep(task, seed=0, config=config).learn(400)
    AdaptiveBeta(1e6)(agent)
    for part in agent.agents.values():
        kept = part.memory.trajectories  # type: ignore[attr-defined]
        assert torch.allclose(kept.energy, part.mdp.energy(kept.final), rtol=1e-4)
    drafts = AnyStep(task, agent="draft")
    with pytest.raises(ValueError, match="agent 'any-step' aims at the largest reward"):
        AdaptiveBeta(1.0)(drafts)


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
    with pytest.raises(ValueError, match="AdaptiveBeta needs a task with a reward and backward='base'"):
        AdaptiveBeta(1.0)(small("ppo"))
    scratch = small("ppo", make_task("8gaussians", track="sample"))
    with pytest.raises(ValueError, match="has no divergence from a base sampler"):
        StopAtKL(1.0)(scratch)
