"""The policy-gradient agents on the LQG task: their gradients, its optimum, DPOK's own optimum."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agent_cases import plain_agent
from lqg_cases import (
    POLICY_RATES,
    RATES,
    SMALL,
    SMALL_VALUE,
    B,
    P,
    Solution,
    errors,
    flat_gradient,
    lqg_agent,
    lqg_task,
)
from torch import Tensor

from dxmi_rl.agents import A2C, DPOK, GRPO, REINFORCE
from dxmi_rl.agents.ops import gaussian_kl
from dxmi_rl.agents.policies import base_moments, collect

T = 5

# Gradients ------------------------------------------------------------------------------------------------------------


def agree(a: list[Tensor], b: list[Tensor], factor: float = 1.0) -> None:
    """Two estimators of one gradient of 30 coordinates: 3 standard errors for nearly all, chance as a whole."""
    first, second = factor * torch.stack(a), torch.stack(b)
    z = (first.mean(0) - second.mean(0)) / (first.var(0) / len(a) + second.var(0) / len(b)).sqrt()
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reinforce", {"baseline": True}),
        ("reinforce", {"baseline": False}),
        ("a2c", {"gae_lambda": 0.9}),
        ("grpo", {"group_size": 8}),
    ],
)
def test_the_gradient_is_the_path_wise_one(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means over 240,000 trajectories; GRPO's group mean holds the own return, which shrinks it by 1 - 1 / 8."""
    agent, policy, value = lqg_agent(monkeypatch, name, n_trajectories=4000, **settings)
    if name == "a2c":
        monkeypatch.setattr(agent, "value", lambda x, t: -value(x, t))
    score, path_wise = [], []
    for _ in range(60):
        if isinstance(agent, GRPO):
            start = agent.mdp.reset(500, agent.generator).repeat_interleave(8, 0)
            played = collect(agent, policy, 4000, start=start)
            mean, log_std = (part.detach() for part in policy.moments_along(played))
            advantages, rows = agent.advantages(played).flatten(), torch.arange(T * 4000)
            loss = agent.policy_loss(played, advantages, (mean, log_std), None, rows)
        elif isinstance(agent, A2C):
            played = collect(agent, policy, 4000)
            loss = agent.policy_loss(played, agent.advantages(played)[0].flatten())
        else:
            assert isinstance(agent, REINFORCE)
            played = collect(agent, policy, 4000)
            loss = agent.policy_loss(played, agent.advantages(played).flatten())
        score.append(flat_gradient(loss * T, policy))  # a mean over T n transitions
        trajectory = agent.mdp.rollout(policy, 2000, agent.generator, differentiable=True)
        path_wise.append(flat_gradient(-agent.mdp.soft_return(trajectory).mean(), policy))
    agree(score, path_wise, factor=8 / 7 if name == "grpo" else 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_dpoks_gradient_is_that_of_its_own_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """Path-wise through E[E(x_T)] + beta sum_t KL(pi || base), the KL in closed form."""
    beta = 0.5
    agent, policy, _ = lqg_agent(monkeypatch, "dpok", n_trajectories=4000, beta=beta, gae_lambda=1.0)
    assert isinstance(agent, DPOK)
    monkeypatch.setattr(agent, "value", lambda x, t: torch.zeros(len(x)))
    score, path_wise = [], []
    for _ in range(60):
        played = collect(agent, policy, 4000)
        mean, log_std = (part.detach() for part in policy.moments_along(played))
        advantages, _ = agent.advantages(played, base_moments(agent.mdp, policy, played))
        old, rows = (mean, log_std), torch.arange(T * 4000)
        loss = agent.policy_loss(played, advantages.flatten(), old, old, rows)
        score.append(flat_gradient(loss * T, policy))
        trajectory = agent.mdp.rollout(policy, 2000, agent.generator, differentiable=True)
        cost = agent.mdp.energy(trajectory.final)
        for t in range(T):
            mean, log_std = policy.moments(trajectory.x[t], t)
            base = trajectory.x[t], agent.mdp.base.sigma[t].log()
            cost = cost + beta * gaussian_kl((mean, log_std.expand_as(mean)), base)
        path_wise.append(flat_gradient(cost.mean(), policy))
    agree(score, path_wise)


# What they learn ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "settings", "mean", "sigma", "value"),
    [
        ("reinforce", 1_500_000, {"n_trajectories": 512}, 0.03, 0.02, None),
        (
            "a2c",
            300_000,
            {"n_trajectories": 128, "value_steps": 4, "gae_lambda": 0.95, **SMALL_VALUE, **RATES},
            0.025,
            0.015,
            0.07,
        ),
        (
            "grpo",
            300_000,
            {"n_trajectories": 128, "group_size": 16, "n_epochs": 4, "n_minibatches": 1, "clip_range": 0.2},
            0.03,
            0.025,
            None,
        ),
    ],
)
def test_they_find_the_soft_optimum(
    name: str, steps: int, settings: dict[str, Any], mean: float, sigma: float, value: float | None
) -> None:
    """Mean, sigma and value within these relative errors of the closed form; ``errors`` says relative to what."""
    agent = plain_agent(name, lqg_task(), seed=0, **{**SMALL, **POLICY_RATES, **settings})
    agent.learn(steps)
    error = errors(agent, values=value is not None)
    assert error["mean"] < mean and error["sigma"] < sigma, error
    assert value is None or error["value"] < value, error


def solve_dpok(sigma: Tensor, beta: float) -> Solution:
    """V_t(x) = -beta log integral N(x'; x, sigma_t^2) exp(-V_{t+1}(x') / beta) dx', V_T = E: quadratics once more.

    The optimal policy is N(x'; x, sigma_t^2) exp((V_t(x) - V_{t+1}(x')) / beta); no kernel and no tau come in.
    """
    p, b, c = [torch.tensor(P).double()], [torch.tensor(B).double()], [torch.zeros(2).double()]
    gain, shift, std = [], [], []
    for v in reversed(sigma.double().square().tolist()):
        precision = p[0] / beta + 1 / v
        gain.insert(0, 1 / (v * precision))
        shift.insert(0, -b[0] / (beta * precision))
        std.insert(0, precision.rsqrt())
        c.insert(0, c[0] + 0.5 * beta * torch.log(v * precision) - 0.5 * b[0] ** 2 / (beta * precision))
        b.insert(0, b[0] / (v * precision))
        p.insert(0, beta * (1 / v - 1 / (v**2 * precision)))
    return Solution(p, b, c, gain, shift, std)


@pytest.mark.usefixtures("float64")
def test_dpoks_optimum_is_the_base_chain_tilted() -> None:
    """log pi* - log p_base + E / beta is the same constant -log Z(x_0) on every path; and V_0 is that, by sampling."""
    beta, task = 0.5, lqg_task()
    sigma = task.mdp.base.sigma
    solution = solve_dpok(sigma, beta)
    x = 2 * torch.randn(T + 1, 400, 2, generator=torch.Generator().manual_seed(0))
    log_ratio = -solution.value(x[0], 0) / beta + task.target.energy(x[T]) / beta
    for t in range(T):
        mean, log_std = solution.moments(x[t], t)
        log_ratio += torch.distributions.Normal(mean, log_std.exp()).log_prob(x[t + 1]).sum(1)
        log_ratio -= torch.distributions.Normal(x[t], sigma[t]).log_prob(x[t + 1]).sum(1)
    assert float(log_ratio.abs().max()) < 1e-9
    start = torch.tensor([0.5, 0.0])
    final = start + sigma.square().sum().sqrt() * torch.randn(400_000, 2, generator=torch.Generator().manual_seed(1))
    weights = (-task.target.energy(final) / beta).exp()
    standard_error = float(weights.std() / weights.mean()) / math.sqrt(len(weights))
    assert abs(float(weights.mean().log() + solution.value(start, 0) / beta)) < 4 * standard_error


@pytest.mark.slow
def test_dpok_finds_its_own_optimum() -> None:
    """KL to the base sampler at beta = 0.5, on a task with tau = 1."""
    agent = plain_agent(
        "dpok", lqg_task(), seed=0, **SMALL | SMALL_VALUE | RATES | {"n_trajectories": 128}, beta=0.5, gae_lambda=0.95,
        n_epochs=4, n_minibatches=1, clip_range=0.2,
    )  # fmt: skip
    assert isinstance(agent, DPOK)
    agent.learn(240_000)
    error = errors(agent, True, solve_dpok(agent.mdp.base.sigma, 0.5))
    assert error["mean"] < 0.02 and error["sigma"] < 0.01 and error["value"] < 0.1, error
    assert errors(agent)["mean"] > 0.1, "the soft optimum is another"
