"""Agents that train the last steps only."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, same, small, state
from dxdp_cases import T
from dxmi_rl.agents.gaussian import GaussianAgent
from dxmi_rl.agents.policy_gradient import PolicyGradientAgent

from dxmi_rl import make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.dxdp import DxDP
from dxmi_rl.agents.gflownet import GFlowNet
from dxmi_rl.agents.policies import FineTunedPolicy
from dxmi_rl.tasks import Task
from dxmi_rl.utils.torch_tools import seeded

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


def counted(agent: GaussianAgent) -> dict[str, int]:
    """Rows that its two denoisers see, as they see them."""
    assert isinstance(agent.policy, FineTunedPolicy) and agent.policy.start is not None
    calls = {"own": 0, "start": 0}
    for name, network in (("own", agent.policy.base.denoiser), ("start", agent.policy.start.denoiser)):
        network.register_forward_hook(
            lambda module, inputs, output, name=name: calls.update({name: calls[name] + len(inputs[0])})
        )
    return calls


LOOK = {"lookahead_value": True, "warmup_iterations": 0}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dxdp", LOOK | {"correction": False, "value_steps": 0, "replay": 1}),
        ("dxdp", LOOK | {"replay": 1}),
        ("dxdp", LOOK | {"value_resampling": True, "replay": 1}),
        ("dxdp", LOOK | {"exploration": 0.5, "replay": 3}),
        ("path-wise", {}),
        ("path-wise", {"sticking": False}),
        ("path-wise", {"last_steps": 1}),
    ],
)
def test_counted_calls_are_those_made(name: str, settings: dict[str, Any]) -> None:
    agent = agent_of(name, "fine-tuned", **settings)
    calls = counted(agent)
    agent.learn(2 * agent.timesteps_per_iteration)
    assert agent.costs.denoiser_calls == sum(calls.values())


def test_a_policy_step_calls_the_trained_steps_only() -> None:
    agent = agent_of(
        "dxdp", "fine-tuned", correction=False, value_steps=0, lookahead_value=True, policy_steps=1, replay=1
    )
    calls, batch = counted(agent), agent.timesteps_per_iteration // T
    agent.learn(agent.timesteps_per_iteration)
    # Rollout; rollout, policy step, and one look-ahead from the state between the two.
    assert calls == {"start": (T - 2) * batch, "own": (2 + 2 + 1) * batch}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_holds_what_was_held(policy: str) -> None:
    agent = copy.deepcopy(agent_of("ppo", policy, fixed_last_sigma=True, sigma_learning_rate=1e-2))
    before = agent.policy.log_sigma.detach().clone()
    agent.learn(3 * agent.timesteps_per_iteration)
    moved = (agent.policy.log_sigma.detach() != before).tolist()
    assert moved == [False] * (T - 2) + [True, False]


def test_exploration_is_of_the_trained_steps() -> None:
    agent = agent_of("dxdp", "correction", exploration=0.5)
    assert isinstance(agent, DxDP)
    for t in range(T):
        own, wider = (moments(agent, policy, t)[1] for policy in (agent.policy, agent.behaviour()))
        assert torch.equal(own, wider) if t < T - 2 else bool((wider > own).all())


@pytest.mark.parametrize("name", ["trajectory-balance", "vargrad"])
def test_log_weights_are_of_the_trained_steps(name: str) -> None:
    """Those before have their mean only, and f is of the state where training starts."""
    agent = agent_of(name, "correction")
    assert isinstance(agent, GFlowNet)
    agent.learn(3 * agent.timesteps_per_iteration)
    paths = agent.collect(None, agent.behaviour())
    with torch.no_grad():
        targets, _ = agent.log_targets(paths)
        steps = targets - agent.log_forward(paths)
        flow = agent.values(paths.trajectory.x[T - 2], T - 2) / agent.mdp.tau
        rest = agent.log_weights(paths, targets, True) - steps[T - 2 :].sum(0) + flow
        whole = steps.sum(0) - agent.mdp.start_log_prob(paths.trajectory.x[0])
    assert float(rest.std()) < 1e-3
    assert torch.allclose(agent.log_weights(paths, targets, False).mean(), whole.mean(), rtol=1e-3)


def test_published_detailed_balance_does_not_bend_flows_towards_held_steps() -> None:
    agent = agent_of("detailed-balance", "correction", detach_next=False, warmup_iterations=0)
    assert isinstance(agent, GFlowNet)
    paths = agent.collect(None)
    targets, _ = agent.log_targets(paths)
    targets[: T - 2] += 100.0  # what held steps do
    slopes = []
    for shift in (0.0, 50.0):
        targets[: T - 2] += shift
        agent.value.zero_grad()
        flows: list[torch.Tensor] = []
        found = agent.log_flows

        def noted(paths: Any, found: Any = found, flows: list[torch.Tensor] = flows) -> torch.Tensor:
            flows.append(found(paths))
            flows[-1].retain_grad()
            return flows[-1]

        agent.log_flows = noted  # type: ignore[attr-defined]
        agent.loss(paths, targets).backward()
        agent.log_flows = found  # type: ignore[attr-defined]
        assert flows[0].grad is not None
        slopes.append(flows[0].grad[T - 2 :])
    assert torch.allclose(*slopes)


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
