"""Agents that train the last steps only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, same, small, state
from dxdp_cases import T

from dxmi_rl import make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import seeded
from dxmi_rl.agents.dxdp import DxDP
from dxmi_rl.agents.gaussian import GaussianAgent
from dxmi_rl.agents.policy import FineTunedPolicy
from dxmi_rl.agents.policy_gradient import PolicyGradientAgent
from dxmi_rl.tasks import Task

NAMES = [name for name in AGENTS if "trained_steps" in {f.name for f in dataclasses.fields(AGENTS[name].Config)}]
POLICIES = ["correction", "fine-tuned"]


def task_of() -> Task:
    with seeded(0):  # the kernel's network
        return make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")


def agent_of(name: str, policy: str, **settings: Any) -> GaussianAgent:
    """A small one that trains its last two steps of five, or as many as ``settings`` say."""
    agent = small(name, task_of(), **{"policy": policy, "trained_steps": 2, **settings})
    assert isinstance(agent, GaussianAgent)
    return agent


def moments(agent: GaussianAgent, policy: Any, t: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(len(t) if isinstance(t, torch.Tensor) else 7, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_std = policy.moments(x, t)
    return mean, log_std.expand_as(mean)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_first_steps_stay_and_last_steps_move(name: str, policy: str) -> None:
    agent = agent_of(name, policy)
    before = [moments(agent, agent.policy, t) for t in range(T)]
    agent.learn(3 * agent.timesteps_per_iteration)
    for t in range(T):
        x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
        mean, log_std = moments(agent, agent.policy, t)
        if t < T - 2:
            assert torch.equal(mean, before[t][0]) and torch.equal(log_std, before[t][1])
            with torch.no_grad():
                assert torch.allclose(mean, agent.mdp.base.mean(x, t), rtol=1e-6, atol=1e-6)
            assert torch.allclose(log_std, agent.mdp.base.sigma[t].log())
        else:
            assert not torch.equal(mean, before[t][0])


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_of_a_batch_are_those_one_by_one(policy: str) -> None:
    agent = agent_of("dxdp", policy)
    agent.learn(3 * agent.timesteps_per_iteration)
    t = torch.arange(3 * T) % T
    mixed = moments(agent, agent.policy, t)
    x = torch.randn(len(t), 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        references = agent.policy.reference(x, t)
        given = agent.policy.moments(x, t, references)
        for row, step in enumerate(t.tolist()):
            alone = agent.policy.moments(x[row : row + 1], step)
            for found in (mixed, given):
                assert torch.allclose(found[0][row], alone[0][0], atol=1e-5)
                assert torch.allclose(found[1].expand_as(x)[row], alone[1].expand(1, 2)[0], atol=1e-5)


@pytest.mark.parametrize("steps", [T, T + 3])
def test_all_steps_are_as_none_given(steps: int) -> None:
    agents = [agent_of("dxdp", "fine-tuned", trained_steps=chosen) for chosen in (steps, None)]
    for agent in agents:
        agent.learn(2 * agent.timesteps_per_iteration)
    assert same(*(state(agent) for agent in agents))


@pytest.mark.parametrize("policy", POLICIES)
def test_it_can_be_one_step_and_goes_on_after_loading(policy: str, tmp_path: Path) -> None:
    agent = agent_of("dxdp", policy, trained_steps=1, lookahead_value=True)
    agent.learn(2 * agent.timesteps_per_iteration)
    agent.save(tmp_path / "agent")
    again = DxDP.load(tmp_path / "agent", task=task_of())  # which has a kernel of its own
    assert again.policy.held_steps == T - 1
    for own in (agent, again):
        own.learn(2 * agent.timesteps_per_iteration, reset_num_timesteps=False)
    assert same(state(agent), state(again))


def test_looking_ahead_goes_through_the_denoiser_of_the_step() -> None:
    agent = agent_of("dxdp", "fine-tuned", lookahead_value=True)
    assert isinstance(agent, DxDP) and isinstance(agent.policy, FineTunedPolicy)
    x, t = torch.randn(3 * T, 2, generator=torch.Generator().manual_seed(0)), torch.arange(3 * T) % T
    before = agent.values(x, t)
    with torch.no_grad():
        for weight in agent.policy.base.denoiser.parameters():
            weight.mul_(1.1)
    held, after = t < T - 2, agent.values(x, t)
    assert torch.equal(after[held], before[held]) and not bool((after[~held] == before[~held]).any())
    for step in range(T):
        point = x[t == step].requires_grad_()
        assert torch.allclose(agent.values(point, step), after[t == step], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"value_steps": 0, "correction": False, "lookahead_value": True}])
def test_a_policy_step_calls_the_trained_steps_only(settings: dict[str, Any]) -> None:
    """Counted calls are those made, but for references of trained steps, which nobody computes."""
    agent = agent_of("dxdp", "fine-tuned", policy_steps=1, replay=1, warmup_iterations=0, **settings)
    assert isinstance(agent.policy, FineTunedPolicy) and agent.policy.start is not None
    calls: dict[str, int] = {}
    for name, network in (("own", agent.policy.base.denoiser), ("start", agent.policy.start.denoiser)):
        network.register_forward_hook(
            lambda module, inputs, output, name=name: calls.update({name: calls.get(name, 0) + len(inputs[0])})
        )
    agent.learn(agent.timesteps_per_iteration)
    batch = agent.timesteps_per_iteration // T
    assert calls["start"] == (T - 2) * batch if not settings else calls["start"] >= (T - 2) * batch
    if settings:  # rollout, policy step, and one look-ahead from the state between the two
        assert calls["own"] == (2 + 2 + 1) * batch
        assert agent.costs.denoiser_calls == sum(calls.values())
    else:
        assert calls["own"] == (2 + 2) * batch


@pytest.mark.parametrize("policy", POLICIES)
def test_moments_of_the_base_sampler_are_those_of_all_steps(policy: str) -> None:
    agent = agent_of("dpok", policy)
    assert isinstance(agent, PolicyGradientAgent)
    agent.learn(2 * agent.timesteps_per_iteration)
    rollout = agent.collect(None)
    mean, log_std = agent.base_moments(rollout)
    with torch.no_grad():
        assert torch.allclose(mean, agent.mdp.base.mean(rollout.x, rollout.t), rtol=1e-5, atol=1e-5)
    assert torch.allclose(log_std[:, 0], agent.mdp.base.sigma.log()[rollout.t])


def test_no_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="trained_steps must be >= 1"):
        agent_of("dxdp", "correction", trained_steps=0)
