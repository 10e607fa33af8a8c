"""DxDP's replay, value networks, exploration and the paper's settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import BATCH, PRETRAINING, same, state, task_for
from dxdp_cases import Normal, T, behave, dxdp
from dxmi_rl.agents.gaussian import Rollout
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dxmi_rl import make_task
from dxmi_rl.agents import DxDP
from dxmi_rl.agents.dxdp import ValueEnsemble, as_rollout, due
from dxmi_rl.agents.policies import FineTunedPolicy, WiderPolicy
from dxmi_rl.utils.registry import UnknownNameError

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
        policy_trajectories=20, value_resampling=True, warmup_iterations=1, fixed_last_sigma=True, lookahead_value=True,
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


@pytest.mark.parametrize(
    "settings", [{"replay": 2}, {"value_resampling": True}, {"sampled_entropy": False}, {"lookahead_value": True}]
)
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
