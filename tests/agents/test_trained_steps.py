"""Agents that train the last steps only."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, same, small, state
from dxdp_cases import T

from dxmi_rl import make_task
from dxmi_rl.agents import AGENTS, DPOK, Agent, DetailedBalance
from dxmi_rl.agents.dxdp import DxDP
from dxmi_rl.agents.gflownet import ExploringPolicy, GFlowNet
from dxmi_rl.agents.policies import FineTunedPolicy, base_moments, collect
from dxmi_rl.tasks import Task
from dxmi_rl.utils.settings import setting_names
from dxmi_rl.utils.torch_tools import seeded

NAMES = [name for name in AGENTS if "policy.trained_steps" in setting_names(AGENTS[name].Config())]
POLICIES = ["correction", "fine-tuned"]


def task_of() -> Task:
    with seeded(0):  # the kernel's network
        return make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")


def agent_of(name: str, policy: str, **settings: Any) -> Agent[Any]:
    """A small one that trains its last two steps of five, or as many as ``settings`` say."""
    return small(name, task_of(), **{"policy.kind": policy, "policy.trained_steps": 2, **settings})


def moments(policy: Any, t: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(len(t) if isinstance(t, torch.Tensor) else 7, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_std = policy.moments(x, t)
    return mean, log_std.expand_as(mean)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_first_steps_stay_and_last_steps_move(name: str, policy: str) -> None:
    agent = agent_of(name, policy)
    before = [moments(agent.policy, t) for t in range(T)]
    agent.learn(3 * agent.timesteps_per_iteration)
    for t in range(T):
        x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
        mean, log_std = moments(agent.policy, t)
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
    mixed = moments(agent.policy, t)
    x = torch.randn(len(t), 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given = agent.policy.moments(x, t, agent.policy.base_mean(x, t))
        for row, step in enumerate(t.tolist()):
            alone = agent.policy.moments(x[row : row + 1], step)
            for found in (mixed, given):
                assert torch.allclose(found[0][row], alone[0][0], atol=1e-5)
                assert torch.allclose(found[1].expand_as(x)[row], alone[1].expand(1, 2)[0], atol=1e-5)


@pytest.mark.parametrize("steps", [T, T + 3])
def test_all_steps_are_as_none_given(steps: int) -> None:
    agents = [agent_of("dxdp", "fine-tuned", **{"policy.trained_steps": chosen}) for chosen in (steps, None)]
    for agent in agents:
        agent.learn(2 * agent.timesteps_per_iteration)
    assert same(*(state(agent) for agent in agents))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_it_can_be_one_step_and_goes_on_after_loading(policy: str, tmp_path: Path) -> None:
    agent = agent_of("dxdp", policy, lookahead_value=True, **{"policy.trained_steps": 1})
    agent.learn(2 * agent.timesteps_per_iteration)
    agent.save(tmp_path / "agent")
    again = DxDP.load(tmp_path / "agent", task=task_of())  # which has a kernel of its own
    assert again.policy.frozen_steps == T - 1
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
    frozen, after = t < T - 2, agent.values(x, t)
    assert torch.equal(after[frozen], before[frozen]) and not bool((after[~frozen] == before[~frozen]).any())
    for step in range(T):
        point = x[t == step].requires_grad_()
        assert torch.allclose(agent.values(point, step), after[t == step], rtol=1e-4, atol=1e-4)


def counted(agent: Agent[Any]) -> dict[str, int]:
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
        ("dxdp", LOOK | {"replay": 3}),
        ("dxdp-paper", {"policy_steps": 2}),
        ("path-wise", {}),
        ("path-wise", {"path.score_free": False}),
        ("path-wise", {"path.last_steps": 1}),
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
def test_a_copy_keeps_frozen_what_was_frozen(policy: str) -> None:
    rate = "policy.sigma_learning_rate" if policy == "correction" else "policy.sigma_fine_tuning_rate"
    agent = copy.deepcopy(agent_of("ppo", policy, **{"policy.fixed_last_sigma": True, rate: 1e-2}))
    before = agent.policy.log_sigma.detach().clone()
    agent.learn(3 * agent.timesteps_per_iteration)
    moved = (agent.policy.log_sigma.detach() != before).tolist()
    assert moved == [False] * (T - 2) + [True, False]


def test_exploration_is_of_the_trained_steps() -> None:
    agent = agent_of("vargrad", "correction", exploration=0.5)
    assert isinstance(agent, GFlowNet) and isinstance(agent.behaviour(), ExploringPolicy)
    for t in range(T):
        own, wider = (moments(policy, t)[1] for policy in (agent.policy, agent.behaviour()))
        assert torch.equal(own, wider) if t < T - 2 else bool((wider > own).all())


@pytest.mark.parametrize("name", ["trajectory-balance", "vargrad"])
def test_log_weights_are_of_the_trained_steps(name: str) -> None:
    """Those before have their mean only, and f is of the state where training starts."""
    agent = agent_of(name, "correction")
    assert isinstance(agent, GFlowNet) and agent.value is not None
    agent.learn(3 * agent.timesteps_per_iteration)
    paths = collect(agent, agent.behaviour(), agent.config.n_trajectories)
    with torch.no_grad():
        targets, _ = agent.log_targets(paths)
        steps = targets - agent.log_forward(paths)
        log_weights = agent.log_weights(paths, steps)
        rest = log_weights - steps[T - 2 :].sum(0)
        whole = steps.sum(0) - agent.mdp.start_log_prob(paths.x[0])
        assert torch.equal(agent.flow(paths), agent.value(paths.x[T - 2], T - 2) / agent.mdp.tau)
    assert float(rest.std()) < 1e-3
    assert torch.allclose(log_weights.mean(), whole.mean(), rtol=1e-3)


def test_published_detailed_balance_does_not_bend_flows_towards_frozen_steps() -> None:
    agent = agent_of("detailed-balance", "correction", detach_next=False, warmup_iterations=0)
    assert isinstance(agent, DetailedBalance) and agent.value is not None
    paths = collect(agent, agent.policy, agent.config.n_trajectories)
    targets, _ = agent.log_targets(paths)
    targets[: T - 2] += 100.0  # what frozen steps do
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
        agent.loss(paths, targets, agent.log_forward(paths).detach()).backward()
        agent.log_flows = found  # type: ignore[attr-defined]
        assert flows[0].grad is not None
        slopes.append(flows[0].grad[T - 2 :])
    assert torch.allclose(*slopes)


@pytest.mark.parametrize("policy", POLICIES)
def test_moments_of_the_base_sampler_are_those_of_all_steps(policy: str) -> None:
    agent = agent_of("dpok", policy)
    assert isinstance(agent, DPOK)
    agent.learn(2 * agent.timesteps_per_iteration)
    trajectory = collect(agent, agent.policy, agent.config.n_trajectories)
    x, _, t = trajectory.transitions()
    mean, log_std = base_moments(agent.mdp, agent.policy, trajectory)
    with torch.no_grad():
        assert torch.allclose(mean, agent.mdp.base.mean(x, t), rtol=1e-5, atol=1e-5)
    assert torch.allclose(log_std[:, 0], agent.mdp.base.sigma.log()[t])


def test_no_step_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"policy\.trained_steps must be >= 1"):
        agent_of("dxdp", "correction", **{"policy.trained_steps": 0})
