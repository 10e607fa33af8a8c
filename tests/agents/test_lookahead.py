"""DxDP's look-ahead value: the energy of what the denoiser expects, and a network for what that leaves."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from agent_cases import BATCH, PRETRAINING, task_for
from dxdp_cases import T, dxdp, play

from dxmi_rl import make_task
from dxmi_rl.agents.execution import set_execution
from dxmi_rl.agents.policies import FineTunedPolicy
from dxmi_rl.diffusion import ReverseSampler


def states(task: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """States of every step: x ``[40, 2]`` and t ``[40]``."""
    t = torch.arange(40) % T
    return task.mdp.state_scale[t, None] * torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), t


def test_it_starts_as_the_energy_of_the_denoised_state() -> None:
    task = task_for("dxdp")
    agent = dxdp(task, lookahead_value=True)
    x, t = states(task)
    base = task.mdp.base
    wanted = torch.stack([
        task.target.energy(base.denoiser(row[None], base.schedule.alpha[step], base.schedule.s[step])).squeeze()
        for row, step in zip(x, t, strict=True)
    ])  # fmt: skip
    assert torch.allclose(agent.values(x, t), wanted, rtol=1e-4, atol=1e-4)
    for step in range(T):
        assert torch.allclose(agent.values(x[t == step], step), wanted[t == step], rtol=1e-4, atol=1e-4)


def test_before_the_last_step_it_is_the_energy_of_where_that_step_leads() -> None:
    agent = dxdp(lookahead_value=True)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    wanted = agent.mdp.energy(agent.mdp.base.mean(x, T - 1))
    assert torch.allclose(agent.values(x, T - 1), wanted, rtol=1e-4, atol=1e-4)


def test_its_gradient_goes_through_the_denoiser_and_leaves_the_weights_alone() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = dxdp(task, policy={"kind": "fine-tuned"}, lookahead_value=True)
    assert isinstance(agent.policy, FineTunedPolicy)
    x, t = states(task)
    x.requires_grad_(True)
    agent.values(x, t).sum().backward()
    own = list(agent.policy.base.denoiser.parameters())
    assert all(weight.grad is None and weight.requires_grad for weight in own)
    y = x.detach().double().requires_grad_(True)
    double = agent.policy.base.denoiser.double()
    alpha, s = (table.double()[t] for table in (task.mdp.base.schedule.alpha, task.mdp.base.schedule.s))
    (wanted,) = torch.autograd.grad(task.target.energy(double(y, alpha, s)).sum(), y)
    assert x.grad is not None and torch.allclose(x.grad.double(), wanted, rtol=1e-2, atol=1e-2 * float(wanted.std()))


def test_it_looks_through_the_policys_own_denoiser() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = dxdp(task, policy={"kind": "fine-tuned"}, lookahead_value=True)
    x, t = states(task)
    before = agent.values(x, t)
    with torch.no_grad():
        for weight in agent.policy.base.denoiser.parameters():
            weight.mul_(1.1)
    assert not torch.allclose(agent.values(x, t), before)


def test_the_network_learns_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(lookahead_value=True, value_steps=1, policy_steps=1, replay=1)
    seen: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(agent.value, "fit", lambda *row: seen.append(row) or torch.zeros(()))
    made = agent.value_targets
    monkeypatch.setattr(agent, "value_targets", lambda trajectory: noted(made(trajectory)))
    targets: list[torch.Tensor] = []

    def noted(found: torch.Tensor) -> torch.Tensor:
        targets.append(found)
        return found

    agent.iterate()
    ((x, t, wanted),) = seen
    assert x.shape == (T * BATCH, 2)
    assert torch.allclose(wanted, targets[-1].flatten() - agent.lookahead(x, t), rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_what_it_misses_is_the_adjoint_less_its_slope() -> None:
    """The loss's gradient with ``path_correction`` less that without: <dx_{t+1} / d theta, g_{t+1} - grad V_{t+1}>."""
    settings = {"value_steps": 0, "correction": False, "replay": 1, "path_correction": True, "gradient_lambda": 1.0}
    agent = dxdp(lookahead_value=True, **settings)
    trajectory = play(agent)
    returns, state = agent.value_targets(trajectory), agent.generator.get_state()
    weights: list[Any] = [*agent.policy.parameters()]
    both = []
    for on in (True, False):
        agent.config = dataclasses.replace(agent.config, path_correction=on)
        agent.generator.set_state(state)
        both.append(torch.autograd.grad(agent.policy_loss(trajectory, returns), weights, allow_unused=True))
    total = torch.zeros(())
    assert trajectory.value_gradient is not None
    means, log_stds = (part.view(T, trajectory.n, -1) for part in agent.policy.moments_along(trajectory))
    for t in range(T - 1):
        x_next, mean, log_std = trajectory.x[t + 1].clone().requires_grad_(), means[t], log_stds[t]
        moving = mean + log_std.exp() * ((x_next - mean) / log_std.exp()).detach()
        (slope,) = torch.autograd.grad(agent.values(x_next, t + 1).sum(), x_next)
        total = total + (moving * (trajectory.value_gradient[t + 1] - slope)).sum() / (T * trajectory.n)
    wanted = torch.autograd.grad(total, weights, allow_unused=True)
    found = 0
    for added, before, part in zip(*both, wanted, strict=True):
        if part is not None and added is not None:
            start = torch.zeros_like(added) if before is None else before
            assert torch.allclose(added - start, part, rtol=1e-8, atol=1e-10)
            found += int(bool(part.abs().sum() > 0))
    assert found > 2


@pytest.mark.slow
def test_it_can_be_all_there_is() -> None:
    agents = [
        dxdp(lookahead_value=True, correction=False, replay=1, **settings)
        for settings in ({"value_steps": 0}, {"value_steps": 1, "value.learning_rate": 0.0})
    ]
    for agent in agents:
        agent.learn(4 * agent.timesteps_per_iteration)
        assert bool((agent.value.network.last.weight == 0).all())
    cheap, dear = agents
    assert all(torch.equal(*pair) for pair in zip(cheap.policy.parameters(), dear.policy.parameters(), strict=True))
    assert cheap.costs.energy_evals < dear.costs.energy_evals
    with pytest.raises(ValueError, match="value_steps must be >= 1"):
        dxdp(value_steps=0)


@pytest.mark.slow
def test_without_regressions_there_is_no_warm_up() -> None:
    agent = dxdp(lookahead_value=True, value_steps=0, warmup_iterations=5, correction=False)
    agent.learn(60 * agent.timesteps_per_iteration)
    assert bool((agent.value.network.last.weight == 0).all())


@pytest.mark.slow
def test_it_runs_in_parts() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agents = [dxdp(task, policy={"kind": "fine-tuned"}, lookahead_value=True) for _ in range(2)]
    set_execution(agents[1], rows_at_a_time=7)
    for agent in agents:
        agent.learn(2 * agent.timesteps_per_iteration)
    for one, other in zip(*(agent.policy.parameters() for agent in agents), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert agents[0].costs.denoiser_calls == agents[1].costs.denoiser_calls


def test_guidance_looks_ahead_with_what_it_is_given() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = dxdp(task, policy={"kind": "fine-tuned"}, lookahead_value=True)
    x, _ = states(task)
    other = copy.deepcopy(agent.policy)
    with torch.no_grad():
        for weight in other.base.denoiser.parameters():
            weight.mul_(1.1)
    guided = agent.guided(0.1, policy=other, energy=lambda x: 2 * task.target.energy(x))
    wanted = 2 * task.target.energy(other.base.denoiser(x, *other.base.schedule.at(1)))
    assert torch.allclose(guided.soft_value(x, 1), wanted, rtol=1e-4, atol=1e-4)
    before = dataclasses.replace(agent.costs)
    agent.sample(20, seed=0, guidance=0.1)
    assert agent.costs == before, "sampling is no training"


def test_a_base_sampler_without_a_denoiser_is_refused() -> None:
    task = task_for("dxdp", base=None)
    assert not isinstance(task.mdp.base, ReverseSampler)
    with pytest.raises(ValueError, match="lookahead_value must be False"):
        dxdp(task, lookahead_value=True)
