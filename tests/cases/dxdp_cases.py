"""Small DxDP agents for tests, on the LQG and elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agent_cases import small
from lqg_cases import (
    START_STD,
    OfPolicy,
    Tabular,
    flat_gradient,
    lqg_agent,
    solve,
)
from torch import Tensor

from dxmi_rl.agents import DxDP
from dxmi_rl.agents.gflownet import ExploringPolicy
from dxmi_rl.agents.policies import collect
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import seeded

T = 5
Normal = torch.distributions.Normal


def dxdp(task: Any = None, *, moved: bool = False, **settings: Any) -> DxDP:
    """A small DxDP without warm-up; ``moved`` away from its start."""
    agent = small("dxdp", task, **{"warmup_iterations": 0, **settings})
    assert isinstance(agent, DxDP)
    if moved:
        with seeded(1), torch.no_grad():
            for parameter in (*agent.policy.parameters(), *agent.value.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def play(agent: DxDP) -> Trajectory:
    """A rollout of the policy."""
    trajectory = collect(agent, agent.policy, agent.config.n_trajectories)
    agent.ask(trajectory)
    return trajectory


def behave(agent: DxDP, extra: float) -> Trajectory:
    """A rollout with extra noise, ``extra`` of the base sampler's sigmas added in quadrature: off-policy data."""
    wide = ExploringPolicy(agent.policy, extra * agent.mdp.base.sigma)
    trajectory = collect(agent, wide, agent.config.n_trajectories)
    agent.ask(trajectory)
    return trajectory


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def exact_gradient(policy: Tabular) -> Tensor:
    """d/d theta of E[V_0(x_0)] of a linear policy, x_0 ~ N(0, START_STD^2 I): what path-wise gradients estimate."""
    value = OfPolicy(policy.gain, policy.shift, policy.log_sigma.exp())
    return flat_gradient((0.5 * value.p[0] * START_STD**2 + value.c[0]).sum(), policy)


def at_the_optimum(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> DxDP:
    """An agent with the soft-optimal policy of the LQG and its exact values."""
    agent, policy, _ = lqg_agent(monkeypatch, "dxdp", **settings)
    assert isinstance(agent, DxDP)
    solution = solve()
    with torch.no_grad():
        policy.gain.copy_(torch.stack(solution.gain))
        policy.shift.copy_(torch.stack(solution.shift))
        policy.log_sigma.copy_(torch.stack(solution.std).log())
    value = OfPolicy(policy.gain.detach(), policy.shift.detach(), policy.log_sigma.detach().exp())
    monkeypatch.setattr(agent, "value", value)
    return agent


def policy_gradients(agent: DxDP, policy: Tabular, rollouts: int) -> Tensor:
    """d/d theta of the agent's policy loss, times T, as it is a mean over transitions: a row for every rollout."""
    found = []
    for _ in range(rollouts):
        trajectory = play(agent)
        loss = agent.policy_loss(trajectory, agent.value_targets(trajectory)) * T
        found.append(flat_gradient(loss, policy))
    return torch.stack(found)
