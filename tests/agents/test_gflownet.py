"""Trajectory balance, VarGrad, detailed balance: closed forms, algebra by hand, exploration."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import BATCH, plain_agent, small, state, task_for
from lqg_cases import (
    SMALL,
    SMALL_VALUE,
    LinearPolicy,
    Posterior,
    Steps,
    errors,
    flat_gradient,
    lqg_agent,
    lqg_task,
    solve,
)
from torch import Tensor

from dxmi_rl.agents import DetailedBalance, PathWise, TrajectoryBalance, VarGrad, ops
from dxmi_rl.agents.gflownet import ExploringPolicy, GFlowNet
from dxmi_rl.agents.policies import collect
from dxmi_rl.mdp import EnergyError
from dxmi_rl.rollout import Trajectory

NAMES = ["trajectory-balance", "vargrad", "detailed-balance", "path-wise-vargrad"]
RATES = {"policy.learning_rate": 3e-3, "policy.sigma_learning_rate": 3e-3, "value.learning_rate": 1e-2}


@pytest.fixture(name="name", params=NAMES)
def every_agent(request: pytest.FixtureRequest) -> str:
    return request.param


def agent_of(name: str, task: Any = None, **settings: Any) -> GFlowNet:
    agent = small(name, task, **settings)
    assert isinstance(agent, GFlowNet)
    return agent


def paths_from(agent: GFlowNet) -> Trajectory:
    """What an iteration rolls out."""
    config = agent.config
    return collect(agent, agent.behaviour(), config.n_trajectories, kernel_steps=config.kernel_steps)


def batch_of(agent: GFlowNet, seed: int = 0) -> tuple[Trajectory, Tensor]:
    """Paths of a policy that has moved away from its start, and their targets."""
    torch.manual_seed(seed)
    moved = [agent.policy.net] if agent.value is None else [agent.policy.net, agent.value]
    with torch.no_grad():
        for parameter in (p for module in moved for p in module.parameters()):  # type: ignore[union-attr,operator]
            parameter.add_(0.2 * torch.randn_like(parameter))
    paths = paths_from(agent)
    return paths, agent.log_targets(paths)[0]


def loss_of(agent: GFlowNet[Any], paths: Trajectory, log_targets: Tensor) -> Tensor:
    """The loss at the first step on these paths."""
    return agent.loss(paths, log_targets, agent.log_forward(paths).detach())


@pytest.fixture
def plain_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published losses: without tempering and clipping."""
    monkeypatch.setattr(ops, "tempering", lambda log_weights: torch.ones(1))
    monkeypatch.setattr(ops, "compress_outliers", lambda values: values)
    monkeypatch.setattr(ops, "compressed", lambda energy: energy)


# Closed forms ---------------------------------------------------------------------------------------------------------


FLOWS = {"gradient_steps": 4, "value.learning_rate": 2e-2, "n_trajectories": 32}
"""Detailed balance learns from step to step, so it needs more and smaller batches on the LQG."""


SOURCES: dict[str, dict[str, Any]] = {
    "on-policy": {"exploration": 0.0},
    "off-policy": {"exploration": 1.0, "exploration_fraction": 1.0},
    "replay": {"buffer_size": 5000, "replay_fraction": 0.25, "local_search_steps": 10},
}
REPLAYING = ("trajectory-balance", "path-wise-vargrad")
"""Replay is one piece of code; its paths go into a loss with log Z and into one without."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source"), [(name, key) for key in SOURCES for name in (REPLAYING if key == "replay" else NAMES)]
)
def test_they_find_the_optimal_policy_of_the_lqg(name: str, source: str) -> None:
    """On-policy, off-policy to the last batch, and with replayed paths: the optimum is one and the same."""
    balanced = name == "detailed-balance"
    own: dict[str, Any] = {**FLOWS, "detach_next": False} if balanced else {"n_trajectories": 128}
    agent = plain_agent(name, lqg_task(), seed=0, **{**SMALL, **SMALL_VALUE, **RATES, **own, **SOURCES[source]})
    steps = 90_000 if balanced else 160_000
    error = errors(agent.learn(steps), values=balanced)
    assert error["mean"] < (0.03 if balanced else 0.02), error
    assert error["sigma"] < (0.02 if balanced else 0.01), error
    assert error.get("value", 0) < 0.08, error


@pytest.mark.slow
def test_detailed_balance_with_the_next_flow_held_finds_it_too() -> None:
    """One-step targets are slower where exact balance can be had."""
    settings = {**SMALL, **SMALL_VALUE, **RATES, **FLOWS, "exploration": 0.0}
    agent = plain_agent("detailed-balance", lqg_task(), seed=0, **settings).learn(70_000)
    error = errors(agent, values=True)
    assert error["mean"] < 0.05 and error["sigma"] < 0.03 and error["value"] < 0.12, error


@pytest.mark.slow
def test_one_number_for_log_z_is_wrong_off_policy() -> None:
    """What ``conditional`` is for: in the LQG log w depends on x_0 at the optimum."""
    off = {"exploration": 1.0, "exploration_fraction": 1.0}
    settings = {**SMALL, **SMALL_VALUE, **RATES, **off}
    plain = plain_agent("trajectory-balance", lqg_task(), seed=0, conditional=False, **settings).learn(100_000)
    assert errors(plain)["sigma"] > 0.1


def set_flows(
    agent: GFlowNet, monkeypatch: pytest.MonkeyPatch, flows: Callable[[Tensor, Tensor | int], Tensor]
) -> None:
    """tau log F_t, or tau f for an agent with a loss on whole paths."""
    monkeypatch.setattr(agent, "predict_values" if isinstance(agent, DetailedBalance) else "value", flows)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("conditional", [True, False])
def test_the_losses_vanish_where_the_kernel_is_the_policys_posterior(
    conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """log w = log Z on every path, the policy's own and those drawn backwards: f = 0, one number is enough."""
    task, policy = lqg_task(), LinearPolicy()
    task.mdp.kernel = Posterior(policy)
    balance = plain_agent("trajectory-balance", task, conditional=conditional)
    vargrad = plain_agent("vargrad", task, conditional=conditional)
    monkeypatch.setattr(ops, "compressed", lambda energy: energy)  # chains drawn backwards begin anywhere
    generator = torch.Generator().manual_seed(0)
    forwards = task.mdp.rollout(policy, 500, generator)
    backwards = task.mdp.backward_rollout(policy, 2 * torch.randn(500, 2, generator=generator), generator)
    for agent in (balance, vargrad):
        assert isinstance(agent, GFlowNet)
        agent.policy = policy  # type: ignore[assignment]
        monkeypatch.setattr(policy, "moments", with_base_mean(policy.moments))
        if conditional:
            set_flows(agent, monkeypatch, lambda x, t: torch.zeros(len(x)))
        if isinstance(agent, TrajectoryBalance):
            agent.log_z.value.data.fill_(task.target.log_z)
        for paths in (forwards, backwards):
            assert float(loss_of(agent, paths, agent.log_targets(paths)[0]).detach()) < 1e-10


def with_base_mean(moments: Any) -> Any:
    """A policy's moments with the argument that agents pass."""
    return lambda x, t, base_mean=None: moments(x, t)


@pytest.mark.usefixtures("float64")
def test_the_losses_vanish_at_the_soft_optimum_of_a_fixed_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exact soft values as flows, on paths from anywhere."""
    agent, solution = plain_agent(name, lqg_task()), solve()
    assert isinstance(agent, GFlowNet)
    optimal = Steps(solution)
    monkeypatch.setattr(optimal, "moments", with_base_mean(optimal.moments))
    agent.policy = optimal  # type: ignore[assignment]
    monkeypatch.setattr(ops, "compressed", lambda energy: energy)  # chains drawn backwards begin anywhere
    generator = torch.Generator().manual_seed(0)
    forwards = agent.mdp.rollout(ExploringPolicy(optimal, agent.mdp.base.sigma), 500, generator)  # type: ignore[arg-type]
    backwards = agent.mdp.backward_rollout(optimal, 2 * torch.randn(500, 2, generator=generator), generator)

    def exact(x: Tensor, t: Tensor | int) -> Tensor:
        if isinstance(t, Tensor):
            return torch.cat([exact(x[t == step], step) for step in range(5)])
        value = -solution.value(x, t)
        # For the losses on whole paths f is what is left of -V_0 beside log Z + log p_0, here with log Z = 0.
        return value if name == "detailed-balance" else value - agent.mdp.start_log_prob(x)

    set_flows(agent, monkeypatch, exact)
    for paths in (forwards, backwards):
        log_targets = agent.log_targets(paths)[0]
        assert float(loss_of(agent, paths, log_targets).detach()) < 1e-10
        assert float(loss_of(agent, paths, log_targets + 0.1 * torch.randn(log_targets.shape)).detach()) > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("float64", "plain_losses")
@pytest.mark.parametrize("name", ["trajectory-balance", "vargrad", "path-wise-vargrad"])
def test_on_policy_the_gradient_is_twice_the_reverse_kls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the path-wise gradient of the mean of log pi - log qb + E, with 1.2e5 paths each."""
    agent, policy, _ = lqg_agent(monkeypatch, name, n_trajectories=2000, exploration=0.0)
    assert isinstance(agent, GFlowNet)
    set_flows(agent, monkeypatch, lambda x, t: 0.3 * x[:, 0])  # any baseline will do
    if isinstance(agent, TrajectoryBalance):
        agent.log_z.value.data.fill_(3.0)
    balance, path_wise = [], []
    for _ in range(60):
        paths = paths_from(agent)
        balance.append(flat_gradient(loss_of(agent, paths, agent.log_targets(paths)[0]), policy))
        trajectory = agent.mdp.rollout(policy, 2000, agent.generator, differentiable=True)
        path_wise.append(flat_gradient(-2 * agent.mdp.soft_return(trajectory).mean(), policy))
    a, b = torch.stack(balance), torch.stack(path_wise)
    standard_error = ((a.var(0) + b.var(0)) / 60).sqrt()
    z = (a.mean(0) - b.mean(0)) / standard_error
    # 30 coordinates: 3 standard errors for nearly all, and as a whole no more than chance.
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
    assert float(b.mean(0).abs().max()) > 10 * float(standard_error.max()), "the gradient is not just noise"


# Algebra by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("float64", "plain_losses")
@pytest.mark.parametrize("conditional", [True, False])
def test_the_losses_on_paths_by_hand(conditional: bool) -> None:
    """(log Z + f + log p_0 + sum log pi + E / tau - sum log qb)^2, its mean; its unbiased variance without log Z.

    Once for the policy, and once for log Z and f where these are learned.
    """
    task = task_for("vargrad", tau=0.6)
    for name in ("trajectory-balance", "vargrad"):
        agent = agent_of(name, task, conditional=conditional)
        paths, log_targets = batch_of(agent)
        x, rows = paths.x, []
        start = torch.distributions.Normal(0.0, agent.mdp.start_std)
        for i in range(BATCH):
            states = x[:, i : i + 1]
            total = float(start.log_prob(states[0]).sum()) + float(agent.mdp.energy(states[5])) / 0.6
            for t in range(5):
                mean, log_std = (part.detach() for part in agent.policy.moments(states[t], t))
                total += float(torch.distributions.Normal(mean, log_std.exp()).log_prob(states[t + 1]).sum())
                total -= float(agent.mdp.kernel.log_prob(states[t], states[t + 1], t).detach())
            if conditional:
                total += float(agent.value(states[0], 0).detach()) / 0.6
            rows.append(total)
        loss = float(loss_of(agent, paths, log_targets).detach())
        if isinstance(agent, TrajectoryBalance):
            agent.log_z.value.data.fill_(1.7)
            loss = float(loss_of(agent, paths, log_targets).detach())
            assert loss == pytest.approx(2 * sum((1.7 + row) ** 2 for row in rows) / BATCH, rel=1e-6)
        else:
            mean_row = sum(rows) / BATCH
            parts = 1 + conditional
            assert loss == pytest.approx(parts * sum((row - mean_row) ** 2 for row in rows) / (BATCH - 1), rel=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("float64", "plain_losses")
@pytest.mark.parametrize("detach_next", [True, False])
def test_detailed_balance_by_hand(detach_next: bool) -> None:
    """sum_t (log F_t + log pi - log F_{t+1} - log qb)^2, F_T = exp(-E / tau), averaged over paths."""
    agent = agent_of("detailed-balance", task_for("detailed-balance", tau=0.6), detach_next=detach_next)
    assert isinstance(agent, DetailedBalance)
    paths, log_targets = batch_of(agent)
    agent.log_z.value.data.fill_(0.4)
    x, residuals = paths.x, torch.zeros(5, BATCH)
    for i in range(BATCH):
        states = x[:, i : i + 1]
        flows = [
            0.4
            + float(torch.distributions.Normal(0.0, agent.mdp.state_scale[t]).log_prob(states[t]).sum())
            + float(agent.value(states[t], t).detach()) / 0.6
            for t in range(5)
        ]
        flows.append(-float(agent.mdp.energy(states[5])) / 0.6)
        for t in range(5):
            mean, log_std = (part.detach() for part in agent.policy.moments(states[t], t))
            forward = float(torch.distributions.Normal(mean, log_std.exp()).log_prob(states[t + 1]).sum())
            backward = float(agent.mdp.kernel.log_prob(states[t], states[t + 1], t).detach())
            residuals[t, i] = flows[t] + forward - flows[t + 1] - backward
    wanted = float(residuals.square().sum()) / BATCH
    if detach_next:  # the policy's share, centred
        wanted += float(residuals.var(1, correction=0).sum())
    loss = loss_of(agent, paths, log_targets)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-6)
    # d / d residual of the flows at t = 0 is the same in both; later ones feel F_{t+1}'s side only when published.
    (constant,) = torch.autograd.grad(loss, agent.log_z.value)
    steps = residuals if detach_next else residuals[4:]  # log Z cancels between neighbours
    assert float(constant) == pytest.approx(2 * float(steps.sum()) / BATCH, rel=1e-6)


def test_updates_touch_the_policy_and_its_flows_only(name: str) -> None:
    agent = agent_of(name)
    paths, log_targets = batch_of(agent)
    agent.mdp.kernel.zero_grad(set_to_none=True)
    before = state(agent)
    agent.descend(loss_of(agent, paths, log_targets), paths)
    changed = {key.split(".")[0] for key, value in state(agent).items() if not torch.equal(value, before[key])}
    assert changed == {"policy", "value"} | ({"log_z"} if agent.log_z is not None else set())
    assert all(parameter.grad is None for parameter in agent.mdp.kernel.parameters())


def test_checkpoints_carry_no_network_that_is_not_used() -> None:
    for name in ("trajectory-balance", "vargrad", "path-wise-vargrad"):
        for conditional in (True, False):
            agent = agent_of(name, conditional=conditional)
            assert ("value" in agent.modules()) is ("value" in agent.optimizers()) is conditional
            agent.learn(2 * agent.timesteps_per_iteration)


def test_log_z_starts_at_the_first_batchs_estimate(tmp_path: Path) -> None:
    agent = agent_of("trajectory-balance", log_z_learning_rate=0.0)
    assert isinstance(agent, TrajectoryBalance)
    again = agent_of("trajectory-balance", log_z_learning_rate=0.0)
    agent.iterate()
    paths = paths_from(again)
    steps = again.log_targets(paths)[0] - paths.log_prob
    wanted = (steps.sum(0) - again.mdp.start_log_prob(paths.x[0])).mean()
    assert float(agent.log_z.value.detach()) == pytest.approx(float(wanted), rel=1e-5)
    before = float(agent.log_z.value.detach())
    agent.iterate()
    loaded = TrajectoryBalance.load(agent.save(tmp_path / "agent"))
    loaded.iterate()
    assert float(loaded.log_z.value.detach()) == float(agent.log_z.value.detach()) == before, "only the first time"


def test_path_wise_vargrad_is_each_of_them_in_its_part_of_the_budget() -> None:
    """The same numbers as the two agents: path-wise alone, then the log-variance loss on the policy it left."""
    agent = agent_of("path-wise-vargrad", lqg_task(), path_wise_fraction=0.25)
    alone = small("path-wise", lqg_task())
    assert isinstance(alone, PathWise)
    alone.policy.load_state_dict(agent.policy.state_dict())  # drawn after a value network
    for part in (agent, alone):
        part.learn(20 * part.timesteps_per_iteration, callback=lambda one: one.progress < 0.2)
    policy = alone.policy.state_dict()
    assert all(torch.equal(policy[key], value) for key, value in agent.policy.state_dict().items())
    after = agent_of("vargrad", lqg_task(), exploration=0.0)
    after.policy.load_state_dict(agent.policy.state_dict())
    after.generator.set_state(agent.generator.get_state())
    after.mdp.kernel.load_state_dict(agent.mdp.kernel.state_dict())
    after.policy_optimizer.load_state_dict(copy.deepcopy(agent.policy_optimizer.state_dict()))
    after.value.load_state_dict(agent.value.state_dict())
    losses = []
    for part in (agent, after):
        part.set_progress(0.25)
        losses.append(float(part.iterate()["policy_loss"]))
    assert losses[0] == losses[1] > 0
    for part in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="path_wise_fraction must lie strictly between 0 and 1"):
            agent_of("path-wise-vargrad", path_wise_fraction=part)


@pytest.mark.slow
def test_detailed_balance_warms_its_flows_up_first() -> None:
    agent = agent_of("detailed-balance", warmup_iterations=20, warmup_value_steps=10)
    before = [p.clone() for p in agent.policy.parameters()]
    logs = [agent.iterate() for _ in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    assert float(logs[-1]["flow_loss"]) < float(logs[0]["flow_loss"])
    agent.iterate()
    assert not all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    short = agent_of("detailed-balance", warmup_iterations=100)
    short.learn(5 * short.timesteps_per_iteration)
    assert "policy_loss" in short.log, "most of a small budget is left"


# Exploration ----------------------------------------------------------------------------------------------------------


def test_exploration_falls_linearly_to_nothing(name: str) -> None:
    agent = agent_of(name, exploration=0.5, exploration_fraction=0.4)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for progress, part in ((0.0, 1.0), (0.1, 0.75), (0.3, 0.25)):
        agent.progress = progress
        for t in range(5):
            mean, log_std = agent.policy.moments(x, t)
            wide_mean, wide = agent.behaviour().moments(x, t)
            wanted = ((2 * log_std).exp() + (0.5 * part * agent.mdp.base.sigma[t]) ** 2).sqrt()
            assert torch.equal(wide_mean, mean)
            assert torch.allclose(wide.exp().expand_as(x), wanted.expand_as(x))
    for progress in (0.4, 0.9):
        agent.progress = progress
        assert agent.behaviour() is agent.policy
    agent.progress = 0.0
    assert agent_of(name, exploration=0.0).behaviour() is not agent.behaviour()


def test_the_loss_is_of_the_policy_and_not_of_the_explorer(name: str) -> None:
    agent = agent_of(name, exploration=2.0)
    paths, _ = batch_of(agent)
    plain = agent.log_forward(paths).detach()
    x, x_next, t = paths.transitions()
    mean, log_std = agent.policy.moments(x, t)
    wanted = torch.distributions.Normal(mean, log_std.exp()).log_prob(x_next).sum(1).detach()
    assert torch.allclose(plain.flatten(), wanted, rtol=1e-4, atol=1e-3)
    assert float((plain - paths.log_prob).abs().mean()) > 0.1
    finals: list[Tensor] = []
    agent.iterate(finals.append)
    assert [len(final) for final in finals] == [BATCH], "the explorer's samples go to DxMI as they are"


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gradient_steps": 0}, "gradient_steps must be >= 1"),
        ({"exploration": -0.1}, "exploration must be finite"),
        ({"exploration_fraction": 0.0}, r"exploration_fraction must lie in \(0, 1\]"),
        ({"buffer_size": 10}, "buffer_size must be 0 or >= n_trajectories = 32, got 10"),
        ({"replay_fraction": 1.0}, "replay_fraction must lie strictly between 0 and 1"),
        ({"local_search_steps": -1}, "local_search_steps must be >= 0"),
        ({"local_search_every": 0}, "local_search_every must be >= 1"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        small(name, **settings)


def test_bad_settings_of_one_agent() -> None:
    with pytest.raises(ValueError, match="log_z_learning_rate must be finite"):
        small("trajectory-balance", log_z_learning_rate=-1.0)
    with pytest.raises(ValueError, match="warmup_iterations must be >= 0"):
        small("detailed-balance", warmup_iterations=-1)
    with pytest.raises(ValueError, match="n_trajectories must be >= 2"):
        small("vargrad", n_trajectories=1)
    assert VarGrad.Config().conditional


def test_without_a_temperature_there_is_nothing_to_balance(name: str) -> None:
    with pytest.raises(ValueError, match="needs tau > 0"):
        small(name, task_for(name, tau=0.0))


def test_an_energy_that_is_not_finite_is_an_error(name: str) -> None:
    agent = agent_of(name)
    agent.mdp.set_energy(lambda x: math.inf * x[:, 0])
    with pytest.raises(EnergyError, match="NaN or infinite"):
        agent.iterate()
