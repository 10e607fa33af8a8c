"""DxDP's correction, V-trace and value targets, each by an oracle."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from agent_cases import BATCH, task_for
from dxdp_cases import Normal, T, at_the_optimum, behave, dxdp, exact_gradient, sigmoid
from lqg_cases import (
    SMALL,
    VARIANCE,
    errors,
    flat_gradient,
    lqg_agent,
    lqg_task,
)
from torch import Tensor

from dxmi_rl.agents import DxDP
from dxmi_rl.agents.dxdp import as_rollout
from dxmi_rl.agents.policies import WiderPolicy

# The correction -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("correction", [True, False])
def test_the_corrected_gradient_is_exact_with_a_wrong_value(correction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In closed form, from 600,000 trajectories; the averaged value that targets bootstrap from is wrong otherwise."""
    agent, policy, exact = lqg_agent(monkeypatch, "dxdp", batch_size=2000, td_lambda=1.0, correction=correction)
    assert isinstance(agent, DxDP)

    def wrong(x: Tensor, t: Tensor | int, network: Any = None, **_: bool) -> Tensor:
        phase = x[..., 0] - 0.7 * x[..., 1]
        return exact(x, t) + (0.5 * torch.sin(phase + t) if network is None else torch.cos(2 * phase))

    monkeypatch.setattr(agent, "values", wrong)
    gradients = []
    for _ in range(300):
        rollout = agent.collect(None)
        loss = agent.policy_loss(rollout, agent.value_targets(rollout)) * T  # a mean over T n transitions
        gradients.append(flat_gradient(loss, policy))
    found, wanted = torch.stack(gradients), exact_gradient(policy)
    z = (found.mean(0) - wanted) / (found.std(0) / math.sqrt(300))
    bias = float((found.mean(0) - wanted).norm() / wanted.norm())
    if correction:  # 30 coordinates: 3 standard errors for nearly all, and as a whole no more than chance
        assert int((z.abs() > 3).sum()) <= 1, z
        assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
        assert bias < 0.02
    else:
        assert float(z.square().sum()) > 1000 and bias > 0.05


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("correction", [True, False])
def test_at_the_optimum_gradients_vanish_on_every_path(correction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = at_the_optimum(monkeypatch, batch_size=50, correction=correction)
    rollout = agent.collect(None)
    loss = agent.policy_loss(rollout, agent.value_targets(rollout))
    assert float(flat_gradient(loss, agent.policy).abs().max()) < 1e-12


@pytest.mark.usefixtures("float64")
def test_the_correction_by_hand() -> None:
    """max(rho m, clip(rho) m), m = G - V less the others' mean per step, over steps 0..T-2; nothing else is added."""
    settings: dict[str, Any] = {"batch_size": 16, "exploration": 0.5}
    plain, agent = (
        dxdp(lqg_task(), moved=True, correction=on, correction_clip=0.1, **settings) for on in (False, True)
    )
    rollout = behave(agent)
    returns = agent.value_targets(rollout)
    plain.generator.set_state(agent.generator.get_state())
    added = agent.policy_loss(rollout, returns) - plain.policy_loss(rollout, returns)
    mean, log_std = agent.policy.moments(rollout.x, rollout.t, rollout.reference)
    log_ratio = Normal(mean, log_std.exp()).log_prob(rollout.x_next).sum(1) - rollout.log_prob
    ratio, total, clipped = log_ratio.exp().view(T, 16), 0.0, 0
    for t in range(T - 1):
        x = rollout.trajectory.x[t + 1]
        missed = returns.view(T, 16)[t + 1] - agent.values(x, t + 1)
        for i in range(16):
            m, rho = float((missed[i] - missed.mean()).detach()) * 16 / 15, float(ratio[t, i].detach())
            total += max(rho * m, min(max(rho, 0.9), 1.1) * m)
            clipped += rho * m < min(max(rho, 0.9), 1.1) * m
    assert clipped > 3
    assert float(added.detach()) == pytest.approx(total / (16 * T), rel=1e-9)


# V-trace --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mix", [0.0, 0.8, 1.0])
def test_v_trace_targets_by_hand(mix: float) -> None:
    """v_s = V_s + sum_{t >= s} (prod_{s <= i < t} c_i) rho_t delta_t, rho = min(1, pi / mu), c = lambda rho."""
    agent = dxdp(lqg_task(), moved=True, batch_size=16, exploration=1.0, td_lambda=mix)
    rollout = behave(agent)
    targets = agent.value_targets(rollout).view(T, 16)
    x = rollout.trajectory.x
    truncated = 0
    for i in range(16):
        values, rho, delta = [], [], []
        for t in range(T):
            row = t * 16 + i
            reference = None if rollout.reference is None else rollout.reference[row : row + 1]
            with torch.no_grad():
                values.append(float(agent.values(x[t, i : i + 1], t)))
                mean, log_std = agent.policy.moments(x[t, i : i + 1], t, reference)
            sigma = log_std.exp()
            wide = (sigma**2 + agent.mdp.base.sigma[t] ** 2).sqrt()
            log_pi, log_mu = (float(Normal(mean, s).log_prob(x[t + 1, i]).sum()) for s in (sigma, wide))
            rho.append(min(1.0, math.exp(log_pi - log_mu)))
            truncated += rho[-1] == 1
            backward = float(Normal(x[t + 1, i], math.sqrt(VARIANCE[t])).log_prob(x[t, i]).sum())
            delta.append(log_pi - backward)
        values.append(float(agent.mdp.energy(x[T, i : i + 1])))
        delta = [cost + values[t + 1] - values[t] for t, cost in enumerate(delta)]
        for s in range(T):
            wanted = values[s] + sum(math.prod(mix * r for r in rho[s:t]) * rho[t] * delta[t] for t in range(s, T))
            assert float(targets[s, i]) == pytest.approx(wanted, rel=1e-9)
    assert 10 < truncated < 70, "the test must see both kinds of weights"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("settings", [{"replay": 3}, {"exploration": 1.0}])
def test_on_policy_v_trace_is_td_lambda(settings: dict[str, Any]) -> None:
    plain, agent = dxdp(lqg_task(), moved=True, replay=1), dxdp(lqg_task(), moved=True, **{"replay": 1, **settings})
    rollout = plain.collect(None)
    assert agent.off_policy and not plain.off_policy
    assert torch.allclose(agent.value_targets(rollout), plain.value_targets(rollout), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_at_the_optimum_targets_are_the_values_on_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the behaviour: V_t = c_t + V_{t+1} holds path by path, so no weight matters."""
    agent = at_the_optimum(monkeypatch, batch_size=50, exploration=2.0)
    rollout = agent.collect(None, WiderPolicy(agent.policy, 2 * agent.mdp.base.sigma))
    assert torch.allclose(agent.value_targets(rollout), agent.values(rollout.x, rollout.t), atol=1e-9)


@pytest.mark.parametrize("settings", [{"exploration": 1.0}, {"replay": 3}])
def test_off_policy_it_finds_the_optimum_too(settings: dict[str, Any]) -> None:
    agent = dxdp(
        lqg_task(), **SMALL, **settings, td_lambda=0.95, value_steps=8, policy_steps=2,
        policy_learning_rate=3e-3, sigma_learning_rate=3e-3, value_learning_rate=1e-2,
        warmup_iterations=20, warmup_value_steps=10,
    )  # fmt: skip
    error = errors(agent.learn(400_000), value_sign=1.0)
    assert error["value"] < 0.08, error
    assert error["mean"] < 0.035, error
    assert error["sigma"] < 0.025, error


# What belongs to the value target -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sampled", [True, False])
def test_resampled_targets_are_right_on_average(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exact V_{t+1}, their mean over 20,000 draws at each of 40 states is the exact V_t."""
    settings: dict[str, Any] = {"batch_size": 8, "value_resampling": True, "sampled_entropy": sampled}
    agent, _, value = lqg_agent(monkeypatch, "dxdp", **settings)
    assert isinstance(agent, DxDP)
    monkeypatch.setattr(agent, "values", lambda x, t, network=None, **_: value(x, t))
    states = agent.collect(None).trajectory
    before = dataclasses.replace(agent.costs)
    n = 8 * 20_000
    targets = agent.resampled_targets(as_rollout(states.x.repeat(1, 20_000, 1), states.log_prob.repeat(1, 20_000)))
    assert agent.costs.policy_draws - before.policy_draws == T * n
    assert agent.costs.energy_evals - before.energy_evals == n
    draws = targets.view(T, 20_000, 8)
    exact = torch.stack([value(states.x[t], t) for t in range(T)])
    z = (draws.mean(1) - exact) / (draws.std(1) / math.sqrt(20_000))
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 40 + 4 * math.sqrt(80)


def test_resampling_feeds_the_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(value_resampling=True, value_steps=3, policy_steps=1)
    given: list[Tensor] = []
    monkeypatch.setattr(agent, "update_value", lambda x, t, targets: given.append(targets) or targets.mean())
    agent.iterate()
    assert len(given) == 3 and not torch.allclose(given[0], given[1]), "fresh ones at each regression"
    assert agent.costs.policy_draws == (1 + 3 + 1) * T * BATCH


def test_closed_form_entropy_by_hand() -> None:
    agent = dxdp(task_for("dxdp", tau=0.6), moved=True, sampled_entropy=False, tau1=0.5)
    rollout = agent.collect(None)
    mean, log_std = agent.policy.moments(rollout.x, rollout.t, rollout.reference)
    entropy = Normal(mean, log_std.exp().expand_as(mean)).entropy().sum(1)
    assert torch.allclose(agent.entropy_cost(rollout.log_prob, log_std), -0.25 * entropy, atol=1e-5)


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("switch", ["entropy_in_value", "cost_in_value"])
def test_terms_may_leave_the_value_target(switch: str, sampled: bool) -> None:
    """One-step targets lose just that term; the policy step keeps it."""
    task = task_for("dxdp", tau=0.6)
    full, less = (
        dxdp(task, moved=True, td_lambda=0.0, sampled_entropy=sampled, **{switch: on}) for on in (True, False)
    )
    rollout = full.collect(None)
    if switch == "cost_in_value":
        term = -0.6 * task.mdp.kernel.log_prob(rollout.x, rollout.x_next, rollout.t)
    elif sampled:
        term = 0.6 * rollout.log_prob
    else:
        mean, log_std = full.policy.moments(rollout.x, rollout.t, rollout.reference)
        term = -0.6 * Normal(mean, log_std.exp().expand_as(mean)).entropy().sum(1)
    assert torch.allclose(full.value_targets(rollout) - less.value_targets(rollout), term, atol=1e-4)
    less.generator.set_state(full.generator.get_state())
    assert torch.equal(full.policy_loss(rollout), less.policy_loss(rollout))


@pytest.mark.parametrize("horizon", [1, 4, 5])
def test_the_time_cost_is_the_releases(horizon: int) -> None:
    task = task_for("dxdp", horizon=horizon)
    plain, agent = (dxdp(task, td_lambda=0.0, time_cost=c) for c in (0.0, 3.0))
    rollout = plain.collect(None)
    added = (agent.value_targets(rollout) - plain.value_targets(rollout)).view(horizon, BATCH)
    half = horizon // 2
    for t in range(horizon):
        wanted = 3 * (sigmoid(half - t) - sigmoid(half - t - 1))
        assert float((added[t] - wanted).abs().max()) < 1e-4
    assert float(agent.time_costs.sum()) == pytest.approx(3 * (sigmoid(half) - sigmoid(half - horizon)), rel=1e-5)
    assert bool((agent.time_costs > 0).all())
