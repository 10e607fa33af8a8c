"""DxDP's options: the correction, V-trace, replay, exploration, ensembles, the paper's settings, each by an oracle."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import BATCH, PRETRAINING, same, small, state, task_for
from hypothesis import given
from hypothesis import strategies as st
from lqg_cases import (
    SMALL,
    START_STD,
    VARIANCE,
    OfPolicy,
    Tabular,
    errors,
    flat_gradient,
    lqg_agent,
    lqg_task,
    solve,
)
from torch import Tensor

from dxmi_rl import make_task
from dxmi_rl.agents import DxDP
from dxmi_rl.agents.base import seeded
from dxmi_rl.agents.dxdp import ValueEnsemble, as_rollout, due
from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.policy import FineTunedPolicy, WiderPolicy
from dxmi_rl.registry import UnknownNameError

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


def behave(agent: DxDP) -> Rollout:
    """A rollout of the policy that explores."""
    return agent.collect(None, agent.behaviour())


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
    monkeypatch.setattr(agent, "values", lambda x, t, network=None: value(x, t))
    return agent


# The correction -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("correction", [True, False])
def test_the_corrected_gradient_is_exact_with_a_wrong_value(correction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In closed form, from 600,000 trajectories; the averaged value that targets bootstrap from is wrong otherwise."""
    agent, policy, exact = lqg_agent(monkeypatch, "dxdp", batch_size=2000, td_lambda=1.0, correction=correction)
    assert isinstance(agent, DxDP)

    def wrong(x: Tensor, t: Tensor | int, network: Any = None) -> Tensor:
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
    plain, agent = dxdp(lqg_task(), moved=True), dxdp(lqg_task(), moved=True, **settings)
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
    monkeypatch.setattr(agent, "values", lambda x, t, network=None: value(x, t))
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


# Replay ---------------------------------------------------------------------------------------------------------------


def test_the_last_rollouts_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(replay=3)
    seen: list[Rollout] = []
    collect = agent.collect

    def noted(*arguments: Any) -> Rollout:
        seen.append(collect(*arguments))
        return seen[-1]

    monkeypatch.setattr(agent, "collect", noted)
    for i in range(5):
        agent.iterate()
        last = seen[-3:]
        assert torch.equal(agent.memory["x"], torch.cat([r.trajectory.x for r in last], dim=1))
        assert torch.equal(agent.memory["log_prob"], torch.cat([r.trajectory.log_prob for r in last], dim=1))
        references = [r.reference.view(T, BATCH, 2) for r in last if r.reference is not None]
        assert torch.equal(agent.memory["reference"], torch.cat(references, dim=1))
        assert len(references) == min(i + 1, 3)
    everything = as_rollout(**agent.memory)
    assert everything.x.shape == (T * 3 * BATCH, 2) and everything.reference is not None
    assert torch.equal(everything.reference.view(T, 3, BATCH, 2)[:, 2], seen[-1].reference.view(T, BATCH, 2))
    # All kept final states are evaluated anew: the energy may have changed.
    per_policy_step = BATCH * agent.config.policy_steps
    assert agent.costs.energy_evals == BATCH * (1 + 2 + 3 + 3 + 3) + 5 * per_policy_step


@pytest.mark.parametrize("base", [None, "ddpm"])
def test_picked_rows_stay_together(base: str | None) -> None:
    agent = dxdp(make_task("8gaussians", base=base), replay=2)
    for _ in range(2):
        rollout = agent.remember(agent.collect(None))
    rows = torch.arange(2.0 * T * BATCH)
    part, picked = agent.pick(rollout, rows, 20)
    chosen = picked.long()
    assert len(chosen.unique()) == T * 20, "without replacement"
    assert torch.equal(chosen.view(T, 20) - chosen[:20], 2 * BATCH * torch.arange(T)[:, None].expand(T, 20))
    for name in ("x", "x_next", "t", "log_prob", "reference"):
        assert torch.equal(getattr(part, name), getattr(rollout, name)[chosen]), name
    assert torch.equal(part.trajectory.x[1:].flatten(0, 1), part.x_next)
    assert torch.allclose(agent.policy.reference(part.x, part.t), part.reference, atol=1e-4)
    before = agent.generator.get_state()
    assert agent.pick(rollout, rows, 2 * BATCH) == (rollout, rows), "all of them need no draw"
    assert torch.equal(agent.generator.get_state(), before)


def test_resuming_with_every_option_equals_not_having_stopped(tmp_path: Path) -> None:
    agent = dxdp(
        task_for("dxdp"), replay=3, exploration=0.5, target_average=0.9, ensemble=2, correction=True,
        policy_trajectories=20, value_resampling=True, warmup_iterations=1, fixed_last_sigma=True,
    )  # fmt: skip
    step, paths = agent.timesteps_per_iteration, {k: tmp_path / str(k) for k in (1, 4, 9)}

    def save(trained: Any) -> None:
        path = paths.get(trained.num_timesteps // step)
        if path is not None:
            trained.save(path)

    agent.learn(12 * step, callback=save)
    for done, path in paths.items():
        resumed = DxDP.load(path)
        assert resumed.memory["x"].shape == (T + 1, min(done, 3) * BATCH, 2)
        resumed.learn((12 - done) * step, reset_num_timesteps=False)
        assert same(state(agent), state(resumed))
        assert agent.memory.keys() == resumed.memory.keys()
        assert all(torch.equal(value, resumed.memory[key]) for key, value in agent.memory.items())
        assert dataclasses.replace(agent.costs, seconds=0) == dataclasses.replace(resumed.costs, seconds=0)


# Value networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_an_ensemble_by_hand(kind: str) -> None:
    agent = dxdp(task_for("dxdp", tau=0.6), ensemble=3, ensemble_value=kind)
    assert isinstance(agent.value, ValueEnsemble)
    x, t = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % T
    each = torch.stack([1.2 * member(x, t).squeeze(1) for member in agent.value.members]).detach()
    assert float((each[0] - each[1]).abs().min()) > 0 and float((each[1] - each[2]).abs().min()) > 0
    wanted = each.mean(0) if kind == "mean" else torch.maximum(torch.maximum(each[0], each[1]), each[2])
    assert torch.allclose(agent.values(x, t), wanted)
    targets = torch.randn(40, generator=torch.Generator().manual_seed(1))
    loss = float(agent.update_value(x, t, targets))
    assert loss == pytest.approx(float(((each - targets) / 1.2).square().mean()), rel=1e-5)
    after = torch.stack([1.2 * member(x, t).squeeze(1) for member in agent.value.members])
    errors = [(part - targets).square().mean(1).detach() for part in (each, after)]
    assert bool((errors[1] < errors[0]).all()), "each member is trained"


@pytest.mark.parametrize("ensemble", [1, 2])
def test_one_value_for_all_steps(ensemble: int) -> None:
    agent = dxdp(time_dependent_value=False, ensemble=ensemble)
    agent.learn(3 * agent.timesteps_per_iteration)
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    values = [agent.values(x, t) for t in range(T)]
    assert all(torch.equal(values[0], value) for value in values)
    assert torch.equal(agent.values(x, torch.arange(10) % T), values[0])
    usual = dxdp()
    assert not torch.allclose(usual.values(x, 0), usual.values(x, 1))


def test_the_average_by_hand() -> None:
    agent = dxdp(target_average=0.9, value_steps=1, policy_steps=1, td_lambda=0.0, moved=True)
    weights = [[p.detach().clone() for p in agent.target_value.parameters()]]
    for _ in range(2):
        agent.iterate()
        weights.append([p.detach().clone() for p in agent.value.parameters()])
    for average, start, first, second in zip(agent.target_value.parameters(), *weights, strict=True):
        assert not average.requires_grad
        assert torch.allclose(average, 0.81 * start + 0.09 * first + 0.1 * second, atol=1e-6)
    # Targets bootstrap from it, the policy step does not.
    rollout = agent.collect(None)
    cost = agent.step_cost(rollout.x, rollout.x_next, rollout.t, rollout.log_prob)
    future = agent.target_value(rollout.x[BATCH:], rollout.t[BATCH:]).squeeze(1) * agent.value_unit
    wanted = cost[:-BATCH] + future
    assert torch.allclose(agent.value_targets(rollout)[:-BATCH], wanted.detach(), rtol=1e-4, atol=1e-4)
    agent.generator.manual_seed(0)
    resampled = agent.resampled_targets(rollout)
    agent.generator.manual_seed(0)
    loss = agent.policy_loss(rollout)
    with torch.no_grad():
        for parameter in agent.target_value.parameters():
            parameter.zero_()
    agent.generator.manual_seed(0)
    assert not torch.allclose(agent.resampled_targets(rollout), resampled)
    agent.generator.manual_seed(0)
    assert torch.equal(agent.policy_loss(rollout), loss)


def test_without_an_average_targets_use_the_value_itself() -> None:
    agent = dxdp()
    assert agent.target_value is agent.value and "target_value" not in agent.modules()
    assert "target_value" in dxdp(target_average=0.5).modules()


# Sigma, the kernel, exploration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state_dependent", [True, False])
def test_the_last_sigma_can_be_held(state_dependent: bool) -> None:
    agent, free = (
        dxdp(state_dependent_sigma=state_dependent, fixed_last_sigma=held, sigma_learning_rate=1e-2)
        for held in (True, False)
    )
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    for trained in (agent, free):
        trained.learn(20 * trained.timesteps_per_iteration)
        for t in range(T):
            log_sigma = trained.policy.moments(x, t)[1]
            start = agent.mdp.base.sigma[t].log()
            if trained is agent and t == T - 1:
                assert torch.equal(log_sigma, start.expand_as(log_sigma))
            else:
                assert float((log_sigma - start).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
def test_the_kernel_is_fitted_so_often(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(make_task("8gaussians", backward="learned"), kernel_steps=steps)
    fits: list[int] = []
    monkeypatch.setattr(agent.mdp.kernel, "fit", lambda x, x_next, t: fits.append(len(x)))
    agent.learn(4 * agent.timesteps_per_iteration)
    assert fits == [T * BATCH] * 4 * steps


def test_exploration_widens_rollouts_in_the_first_half_of_the_budget() -> None:
    agent = dxdp(moved=True, exploration=0.5)
    sigma = agent.mdp.base.sigma
    x, t = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % T
    mean, log_std = agent.policy.moments(x, t)
    for progress, extra in ((0.0, 0.5), (0.25, 0.25), (0.4, 0.1)):
        agent.progress = progress
        wide_mean, wide = agent.behaviour().moments(x, t)
        assert torch.equal(wide_mean, mean), "the noise alone is wider"
        wanted = ((2 * log_std).exp() + (extra * sigma[t, None]) ** 2).sqrt()
        assert torch.allclose(wide.exp(), wanted, rtol=1e-5)
        rollout = behave(agent)  # its log-probs are those of what was drawn from
        mu, s = agent.behaviour().moments(rollout.x, rollout.t, rollout.reference)
        assert torch.allclose(rollout.log_prob, Normal(mu, s.exp()).log_prob(rollout.x_next).sum(1), atol=1e-3)
    for progress in (0.5, 0.75, 1.0):
        agent.progress = progress
        assert agent.behaviour() is agent.policy
    agent.progress = 0.0
    seen: list[bool] = []
    agent.learn(8 * agent.timesteps_per_iteration, callback=lambda a: seen.append(a.behaviour() is a.policy))
    assert seen == [False] * 4 + [True] * 4
    assert dxdp().behaviour().__class__ is not WiderPolicy


@pytest.mark.parametrize("settings", [{"replay": 2}, {"value_resampling": True}, {"sampled_entropy": False}])
def test_every_call_of_an_owned_denoiser_is_counted(settings: dict[str, Any]) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = dxdp(task, policy="fine-tuned", correction=True, **settings)
    assert isinstance(agent.policy, FineTunedPolicy)
    calls: list[int] = []
    agent.policy.base.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    agent.learn(3 * agent.timesteps_per_iteration)
    assert sum(calls) == agent.costs.denoiser_calls


# The paper's settings -------------------------------------------------------------------------------------------------


def test_the_papers_iteration_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """One regression on TD(0) targets with closed-form entropies on 256 trajectories, one policy step on 52 of them."""
    agent = DxDP(make_task("8gaussians", backward="brownian", tau=0.6), config=DxDP.paper())
    steps: list[tuple[str, int]] = []
    given: list[tuple[Rollout, Tensor, Tensor]] = []
    collected: list[Rollout] = []
    collect, update_value, update_policy = agent.collect, agent.update_value, agent.update_policy

    def note_collect(*arguments: Any) -> Rollout:
        collected.append(collect(*arguments))
        return collected[-1]

    def note_value(x: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        rollout = collected[-1]
        steps.append(("value", len(x)))
        x_next = rollout.x_next
        with torch.no_grad():
            future = 1.2 * agent.value(x_next, (t + 1).clamp_max(T - 1)).squeeze(1)
        future[t == T - 1] = agent.mdp.energy(x_next[t == T - 1])
        log_s, variance = agent.policy.log_sigma.detach()[t], agent.mdp.kernel.variance[t]
        entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + log_s)
        running = (x_next - x).square().sum(1) / (2 * variance) + (2 * math.pi * variance).log()
        given.append((rollout, targets, future + 0.6 * running - 0.6 * entropy))
        return update_value(x, t, targets)

    def note_policy(part: Rollout, returns: Tensor) -> Tensor:
        steps.append(("policy", len(part.x)))
        return update_policy(part, returns)

    monkeypatch.setattr(agent, "collect", note_collect)
    monkeypatch.setattr(agent, "update_value", note_value)
    monkeypatch.setattr(agent, "update_policy", note_policy)
    before = state(agent)
    agent.learn(3 * agent.timesteps_per_iteration)
    assert steps == [("value", 256 * T), ("policy", 52 * T)] * 3
    for rollout, targets, wanted in given:
        assert torch.equal(rollout.x, rollout.trajectory.x[:-1].flatten(0, 1))
        assert torch.allclose(targets, wanted, rtol=1e-4, atol=1e-3)
    costs = agent.costs
    assert (costs.timesteps, costs.policy_draws) == (3 * 256 * T, 3 * (256 + 52) * T)
    assert (costs.energy_evals, costs.energy_grad_evals) == (3 * (256 + 52), 3 * 52)
    changed = {key.split(".")[0] for key, value in state(agent).items() if not torch.equal(value, before[key])}
    assert changed == {"policy", "value", "kernel"}


def test_the_papers_fields_can_be_changed_and_no_others() -> None:
    config = DxDP.paper(tau1=0.1, time_cost=1.0, batch_size=64)
    assert (config.tau1, config.time_cost, config.batch_size, config.td_lambda) == (0.1, 1.0, 64, 0.0)
    assert DxDP.default() == DxDP("8gaussians").config
    with pytest.raises(TypeError, match="unknown"):
        DxDP.paper(unknown=1)


# The order of the steps, bad settings ---------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_events_are_evenly_spread(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, steps))
    when = [step for step in range(steps) if due(step, count, steps)]
    assert len(when) == count
    if count:
        assert when[0] == 0
        gaps = [b - a for a, b in zip(when, [*when[1:], steps], strict=True)]
        assert max(gaps) - min(gaps) <= 1


def test_regressions_come_before_policy_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, order = dxdp(value_steps=2, policy_steps=4), []
    monkeypatch.setattr(agent, "update_value", lambda *a: order.append("V") or torch.zeros(()))
    monkeypatch.setattr(agent, "update_policy", lambda *a: order.append("p") or torch.zeros(()))
    agent.iterate()
    assert "".join(order) == "VppVpp"


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("policy_steps", 0, ValueError),
        ("policy_trajectories", 0, ValueError),
        ("policy_trajectories", 2.5, TypeError),
        ("replay", 0, ValueError),
        ("replay", 1.5, TypeError),
        ("ensemble", 0, ValueError),
        ("ensemble", "two", TypeError),
        ("ensemble_value", "min", UnknownNameError),
        ("exploration", -0.1, ValueError),
        ("exploration", math.inf, ValueError),
        ("time_cost", -1.0, ValueError),
        ("time_cost", "much", TypeError),
        ("target_average", 1.1, ValueError),
        ("target_average", math.nan, ValueError),
        ("td_lambda", -0.1, ValueError),
        ("correction_clip", 0.0, ValueError),
        ("warmup_iterations", -1, ValueError),
        ("warmup_value_steps", -1, ValueError),
        ("kernel_steps", 0, ValueError),
        ("tau2", -1.0, ValueError),
    ],
)
def test_bad_settings_are_named(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=setting):
        dxdp(**{setting: value})
