"""The published DxDP against the paper's equations, by hand and on the linear-quadratic Gaussian task."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import BATCH, PRETRAINING, same, small, state, task_for
from dxdp_cases import Normal, T, sigmoid
from lqg_cases import RATES, SMALL, SMALL_VALUE, OfPolicy, Tabular, errors, flat_gradient, lqg_task, solve
from torch import Tensor

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import DxDPPaper, DxDPPaperConfig
from dxmi_rl.agents import dxdp_paper as module
from dxmi_rl.agents.policies import FineTunedPolicy, collect
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.torch_tools import seeded


def paper(task: Any = None, *, moved: bool = False, **settings: Any) -> DxDPPaper:
    """A small one; ``moved`` away from its start."""
    agent = small("dxdp-paper", task, **settings)
    assert isinstance(agent, DxDPPaper)
    if moved:
        with seeded(1), torch.no_grad():
            for parameter in (*agent.policy.parameters(), *agent.value.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return agent


def play(agent: DxDPPaper, *others: DxDPPaper) -> Trajectory:
    """A rollout, to which the agent's kernel is fitted; the others get that kernel."""
    trajectory = collect(agent, agent.policy, agent.config.n_trajectories)
    for other in others:
        other.mdp.kernel.load_state_dict(agent.mdp.kernel.state_dict())
    return trajectory


def entropy_of(agent: DxDPPaper, trajectory: Trajectory) -> Tensor:
    """H(pi(. | x_t)) at all transitions, by torch's Normal: ``[T n]``."""
    mean, log_std = agent.policy.moments_along(trajectory)
    return Normal(mean, log_std.exp()).entropy().sum(1)


# One iteration --------------------------------------------------------------------------------------------------------


def test_an_iteration_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One regression on TD(0) targets with closed-form entropies on 256 trajectories, one policy step on 52 of them."""
    agent = DxDPPaper(make_task("8gaussians", backward="brownian", tau=0.6))
    assert agent.config == DxDPPaperConfig()
    steps: list[tuple[str, int]] = []
    given: list[tuple[Tensor, Tensor]] = []
    played: list[Trajectory] = []
    fit, policy_loss = agent.value.fit, agent.policy_loss

    def note_collect(*arguments: Any, **options: Any) -> Trajectory:
        played.append(collect(*arguments, **options))
        return played[-1]

    def note_fit(x: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        steps.append(("value", len(x)))
        rows, x_next, _ = played[-1].transitions()
        assert torch.equal(x, rows)
        with torch.no_grad():
            future = 1.2 * agent.value.network(x_next, (t + 1).clamp_max(T - 1)).squeeze(1)
        future[t == T - 1] = agent.task.target.energy(x_next[t == T - 1])  # which nobody counts
        log_s, variance = agent.policy.log_sigma.detach()[t], agent.mdp.kernel.variance[t]
        entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + log_s)
        running = (x_next - x).square().sum(1) / (2 * variance) + (2 * math.pi * variance).log()
        given.append((targets, future + 0.6 * running - 0.6 * entropy))
        return fit(x, t, targets)

    def note_policy(part: Trajectory) -> Tensor:
        steps.append(("policy", part.n * part.horizon))
        columns = [(played[-1].x[0] == row).all(1).nonzero().item() for row in part.x[0]]
        assert len(set(columns)) == part.n and torch.equal(part.x, played[-1].x[:, columns]), "whole episodes of it"
        return policy_loss(part)

    monkeypatch.setattr(module, "collect", note_collect)
    monkeypatch.setattr(agent.value, "fit", note_fit)
    monkeypatch.setattr(agent, "policy_loss", note_policy)
    before = state(agent)
    agent.learn(3 * agent.timesteps_per_iteration)
    assert steps == [("value", 256 * T), ("policy", 52 * T)] * 3
    for targets, wanted in given:
        assert torch.allclose(targets, wanted, rtol=1e-4, atol=1e-3)
    costs = agent.costs
    assert (costs.timesteps, costs.policy_draws) == (3 * 256 * T, 3 * (256 + 52) * T)
    assert (costs.energy_evals, costs.energy_grad_evals) == (3 * (256 + 52), 3 * 52)
    changed = {key.split(".")[0] for key, value in state(agent).items() if not torch.equal(value, before[key])}
    assert changed == {"policy", "value", "kernel"}
    assert agent.policy_optimizer.param_groups[0]["lr"] == 1e-3, "rates are constant"


@pytest.mark.usefixtures("float64")
def test_the_policy_loss_by_hand() -> None:
    """V_{t+1}(x') - tau2 / d log qb(x_t | x') - tau1 / d H(pi(. | x_t)) at x' = mu + sigma noise."""
    agent = paper(lqg_task(), moved=True, tau1=0.4, tau2=0.8, n_trajectories=6)
    trajectory = play(agent)
    before = agent.generator.get_state()
    loss = float(agent.policy_loss(trajectory).detach())
    agent.generator.set_state(before)
    noise = torch.randn(6 * T, 2, generator=agent.generator)
    x, _, t = trajectory.transitions()
    mean, log_std = agent.policy.moments(x, t)
    x_next, entropy, total = mean + log_std.exp() * noise, entropy_of(agent, trajectory), 0.0
    for row in range(6 * T):
        step, point = int(t[row]), x_next[row : row + 1]
        future = agent.mdp.energy(point) if step == T - 1 else agent.value(point, step + 1)
        backward = agent.mdp.kernel.log_prob(x[row : row + 1], point, step)
        total += float(future.detach()) - 0.4 * float(backward.detach()) - 0.2 * float(entropy[row].detach())
    assert loss == pytest.approx(total / (6 * T), rel=1e-9)


def test_a_policy_step_touches_only_the_policy() -> None:
    agent = paper(moved=True)
    trajectory, before = play(agent), state(agent)
    for other in (agent.value, agent.mdp.kernel):
        other.zero_grad(set_to_none=True)
    agent.update_policy(trajectory)
    changed = {key.split(".")[0] for key, value in state(agent).items() if not torch.equal(value, before[key])}
    assert changed == {"policy"}
    for other in (agent.value, agent.mdp.kernel):
        assert all(p.grad is None and p.requires_grad for p in other.parameters())


@pytest.mark.parametrize(("value_steps", "policy_steps", "order"), [(1, 1, "Vp"), (2, 4, "VppVpp"), (3, 1, "VpVV")])
def test_regressions_come_before_policy_steps(
    value_steps: int, policy_steps: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, seen = paper(value_steps=value_steps, policy_steps=policy_steps), list[str]()

    def note(letter: str) -> Tensor:
        seen.append(letter)
        return torch.zeros(())

    monkeypatch.setattr(agent.value, "fit", lambda *_: note("V"))
    monkeypatch.setattr(agent, "update_policy", lambda *_: note("p"))
    agent.iterate()
    assert "".join(seen) == order


# The release's options ------------------------------------------------------------------------------------------------


def test_the_entropy_is_in_closed_form() -> None:
    agent = paper(task_for("dxdp-paper", tau=0.6), moved=True, tau1=0.5)
    trajectory = play(agent)
    _, log_std = agent.policy.moments_along(trajectory)
    wanted = -0.25 * entropy_of(agent, trajectory)
    assert torch.allclose(agent.entropy_cost(log_std), wanted, atol=1e-5)
    assert torch.allclose(agent.entropy_cost(log_std[:, :1]), wanted, atol=1e-5), "of what broadcasts, too"


def test_the_two_coefficients_are_per_dimension() -> None:
    """tau1 = tau2 = tau d is the task's own tau; alone, each weighs its own term."""
    task = task_for("dxdp-paper", tau=0.3)
    plain, given = paper(task, moved=True), paper(task, moved=True, tau1=0.6, tau2=0.6)
    entropy, running = paper(task, moved=True, tau1=0.5, tau2=0.0), paper(task, moved=True, tau1=0.0, tau2=0.5)
    trajectory = play(plain, given, entropy, running)
    assert torch.allclose(plain.value_targets(trajectory), given.value_targets(trajectory), rtol=1e-5, atol=1e-5)
    x, x_next, t = trajectory.transitions()
    _, log_std = plain.policy.moments_along(trajectory)
    assert torch.allclose(entropy.entropy_cost(log_std), -0.25 * entropy_of(plain, trajectory), atol=1e-5)
    assert bool((running.entropy_cost(log_std) == 0).all()) and bool((entropy.running_cost(x, x_next, t) == 0).all())
    backward = plain.mdp.kernel.log_prob(x, x_next, t)
    assert torch.allclose(running.running_cost(x, x_next, t), -0.25 * backward)


@pytest.mark.parametrize("switch", ["entropy_in_value", "cost_in_value"])
def test_terms_may_leave_the_value_target(switch: str) -> None:
    """Targets lose just that term; the policy step keeps it."""
    task = task_for("dxdp-paper", tau=0.6)
    full, less = (paper(task, moved=True, **{switch: on}) for on in (True, False))
    trajectory = play(full, less)
    if switch == "cost_in_value":
        term = -0.6 * full.mdp.kernel.log_prob(*trajectory.transitions())
    else:
        term = -0.6 * entropy_of(full, trajectory)
    found = full.value_targets(trajectory) - less.value_targets(trajectory)
    assert torch.allclose(found.flatten(), term, atol=1e-4)
    less.generator.set_state(full.generator.get_state())
    assert torch.equal(full.policy_loss(trajectory), less.policy_loss(trajectory))


@pytest.mark.parametrize("horizon", [1, 4, 5])
def test_the_time_cost_is_the_releases(horizon: int) -> None:
    task = task_for("dxdp-paper", horizon=horizon)
    plain, agent = (paper(task, time_cost=c) for c in (0.0, 3.0))
    trajectory = play(plain, agent)
    added = agent.value_targets(trajectory) - plain.value_targets(trajectory)
    half = horizon // 2
    for t in range(horizon):
        wanted = 3 * (sigmoid(half - t) - sigmoid(half - t - 1))
        assert float((added[t] - wanted).abs().max()) < 1e-4
    assert float(agent.time_costs.sum()) == pytest.approx(3 * (sigmoid(half) - sigmoid(half - horizon)), rel=1e-5)
    assert bool((agent.time_costs > 0).all())


def test_one_value_for_all_steps() -> None:
    agent = paper(time_dependent_value=False)
    agent.learn(3 * agent.timesteps_per_iteration)
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    values = [agent.value(x, t) for t in range(T)]
    assert all(torch.equal(values[0], value) for value in values)
    assert torch.equal(agent.value(x, torch.arange(10) % T), values[0])
    usual = paper()
    assert not torch.allclose(usual.value(x, 0), usual.value(x, 1))


@pytest.mark.parametrize(("given", "seen"), [(None, BATCH), (BATCH, BATCH), (2 * BATCH, BATCH), (5, 5)])
def test_a_policy_step_sees_some_of_the_episodes(given: int | None, seen: int) -> None:
    agent = paper(policy_trajectories=given)
    agent.learn(2 * agent.timesteps_per_iteration)
    assert agent.costs.energy_grad_evals == 2 * seen
    assert agent.costs.policy_draws == 2 * T * (BATCH + seen)


def test_every_call_of_an_owned_denoiser_is_counted() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = paper(task, policy={"kind": "fine-tuned"})
    assert isinstance(agent.policy, FineTunedPolicy)
    calls: list[int] = []
    agent.policy.base.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    agent.learn(3 * agent.timesteps_per_iteration)
    assert sum(calls) == agent.costs.denoiser_calls == 3 * T * 2 * BATCH, "rollouts and policy steps"


def test_one_step_is_enough() -> None:
    agent = paper(task_for("dxdp-paper", horizon=1))
    before = state(agent)
    agent.learn(2 * agent.timesteps_per_iteration)
    assert not same(before, state(agent))


@pytest.mark.parametrize("timed", [True, False])
def test_resuming_equals_not_having_stopped(timed: bool, tmp_path: Path) -> None:
    agent = paper(time_dependent_value=timed)
    step = agent.timesteps_per_iteration
    agent.learn(2 * step, checkpoint=tmp_path / "agent")
    again = DxDPPaper.load(tmp_path / "agent")
    for own in (agent, again):
        own.learn(2 * step, reset_num_timesteps=False)
    assert same(state(agent), state(again))
    assert dataclasses.replace(agent.costs, seconds=0) == dataclasses.replace(again.costs, seconds=0)


def test_guidance_follows_its_values() -> None:
    agent, weight = paper(moved=True), 0.3
    generator = torch.Generator().manual_seed(5)
    x = agent.mdp.reset(16, generator)
    for t in range(T):
        mean, log_std = agent.policy.moments(x, t)
        point = (mean + log_std.exp() * torch.randn(16, 2, generator=generator)).detach().requires_grad_()
        value = agent.value(point, t + 1) if t < T - 1 else agent.task.target.energy(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
        x = (point - weight * log_std.exp() * slope).detach()
    torch.testing.assert_close(agent.sample(16, seed=5, guidance=weight), x)


# The linear-quadratic Gaussian task -----------------------------------------------------------------------------------


class OneSigma(Tabular):
    """A linear policy with one sigma per step, as the paper's."""

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = torch.nn.Parameter(torch.tensor([-0.1, -0.2, -0.5, -0.6, -1.0]))

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.gain[t] * x + self.shift[t], self.log_sigma[t].reshape(-1, 1)


def with_exact_value(monkeypatch: pytest.MonkeyPatch, n: int) -> tuple[DxDPPaper, OneSigma, OfPolicy]:
    """An agent with a linear policy and the exact V of it."""
    agent, policy = make_agent("dxdp-paper", lqg_task(), n_trajectories=n), OneSigma()
    assert isinstance(agent, DxDPPaper)
    agent.policy = policy
    value = OfPolicy(policy.gain.detach(), policy.shift.detach(), policy.log_sigma.detach().exp()[:, None].expand(5, 2))
    monkeypatch.setattr(agent, "value", value)
    return agent, policy, value


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_targets_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exact V_{t+1} the errors of the targets have mean 0 at every step, alone and times x_t and 1 - x_t^2."""
    agent, _, value = with_exact_value(monkeypatch, 200_000)
    trajectory = play(agent)
    targets = agent.value_targets(trajectory)
    for t in range(T):
        x = trajectory.x[t]
        error = (targets[t] - value(x, t))[:, None]
        weighed = torch.cat([error, error * x, error * (1 - x.square())], dim=1)
        z = weighed.mean(0) / (weighed.std(0) / math.sqrt(len(x)))
        assert float(z.abs().max()) < 4, (t, z)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_gradient_with_the_exact_value_is_the_path_wise_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the exact E[V_0(x_0)], whose gradient is in closed form: nothing is lost by one step at a time."""
    agent, policy, _ = with_exact_value(monkeypatch, 2000)
    exact = OfPolicy(policy.gain, policy.shift, policy.log_sigma.exp()[:, None].expand(5, 2))
    wanted = flat_gradient((0.5 * exact.p[0] * agent.mdp.start_std**2 + exact.c[0]).sum(), policy)
    found = torch.stack([flat_gradient(agent.policy_loss(play(agent)) * T, policy) for _ in range(100)])
    z = (found.mean(0) - wanted) / (found.std(0) / math.sqrt(100))
    # 25 coordinates: 3 standard errors for nearly all, and as a whole no more than chance.
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 25 + 4 * math.sqrt(50)
    assert float((found.mean(0) - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.slow
def test_it_finds_the_soft_values_and_the_optimal_policy() -> None:
    """Where one sigma per step is enough: the energy is as steep in both coordinates."""
    both = (3.0, 3.0)
    settings: dict[str, Any] = {**SMALL | SMALL_VALUE | RATES, "policy.state_dependent_sigma": False}
    agent = make_agent(
        "dxdp-paper", lqg_task(both), **settings, value_steps=8, policy_steps=2, policy_trajectories=None,
        max_grad_norm=1.0,
    )  # fmt: skip
    agent.learn(400_000)
    error = errors(agent, values=True, solution=solve(both))
    assert error["value"] < 0.08, error
    assert error["mean"] < 0.035, error
    assert error["sigma"] < 0.06, error


# Settings -------------------------------------------------------------------------------------------------------------


def test_the_papers_fields_can_be_changed_and_no_others() -> None:
    agent = DxDPPaper("8gaussians", tau1=0.1, time_cost=1.0, n_trajectories=64)
    config = agent.config
    assert (config.tau1, config.time_cost, config.n_trajectories, config.policy.width) == (0.1, 1.0, 64, 128)
    for unknown in ("td_lambda", "replay", "correction", "lookahead_value"):
        with pytest.raises(UnknownNameError, match=unknown):
            DxDPPaper("8gaussians", **{unknown: 1})


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("n_trajectories", 0, ValueError),
        ("value_steps", 0, ValueError),
        ("policy_steps", 0, ValueError),
        ("kernel_steps", 0, ValueError),
        ("policy_trajectories", 0, ValueError),
        ("policy_trajectories", 2.5, TypeError),
        ("time_cost", -1.0, ValueError),
        ("time_cost", "much", TypeError),
        ("tau1", math.nan, ValueError),
        ("tau2", -1.0, ValueError),
        ("max_grad_norm", 0.0, ValueError),
        ("policy.state_dependent_sigma", True, ValueError),
    ],
)
def test_bad_settings_are_named(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=setting):
        paper(**{setting: value})
