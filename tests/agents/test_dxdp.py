"""DxDP's correction, V-trace and resampled targets, each by an oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dxdp_cases import Normal, T, at_the_optimum, behave, dxdp, exact_gradient, play, policy_gradients
from lqg_cases import (
    RATES,
    SMALL,
    SMALL_VALUE,
    VARIANCE,
    errors,
    flat_gradient,
    lqg_agent,
    lqg_task,
)
from torch import Tensor

from dxmi_rl.agents import DxDP

# The correction -------------------------------------------------------------------------------------------------------


CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {"correction": False},
    "correction": {"correction": True, "td_lambda": 1.0},
    "path_correction": {"correction": False, "path_correction": True, "gradient_lambda": 1.0, "replay": 1},
}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_the_corrected_gradient_is_exact_with_a_wrong_value(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In closed form, from 600,000 trajectories."""
    agent, policy, exact = lqg_agent(monkeypatch, "dxdp", n_trajectories=2000, **CORRECTIONS[kind])
    assert isinstance(agent, DxDP)

    def wrong(x: Tensor, t: Tensor | int) -> Tensor:
        return exact(x, t) + 0.5 * torch.sin(x[..., 0] - 0.7 * x[..., 1] + t)

    monkeypatch.setattr(agent, "value", wrong)
    found, wanted = policy_gradients(agent, policy, 300), exact_gradient(policy)
    z = (found.mean(0) - wanted) / (found.std(0) / math.sqrt(300))
    bias = float((found.mean(0) - wanted).norm() / wanted.norm())
    if kind != "none":  # 30 coordinates: 3 standard errors for nearly all, and as a whole no more than chance
        assert int((z.abs() > 3).sum()) <= 1, z
        assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
        assert bias < 0.02
    else:
        assert float(z.square().sum()) > 1000 and bias > 0.05


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", CORRECTIONS)
def test_at_the_optimum_gradients_vanish_on_every_path(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = at_the_optimum(monkeypatch, n_trajectories=50, **CORRECTIONS[kind])
    trajectory = play(agent)
    loss = agent.policy_loss(trajectory, agent.value_targets(trajectory))
    assert float(flat_gradient(loss, agent.policy).abs().max()) < 1e-12


@pytest.mark.usefixtures("float64")
def test_the_correction_by_hand() -> None:
    """max(rho m, clip(rho) m), m = G - V less the others' mean per step, over steps 0..T-2; nothing else is added."""
    plain, agent = (
        dxdp(lqg_task(), moved=True, correction=on, clip_range=0.1, n_trajectories=16) for on in (False, True)
    )
    trajectory = behave(agent, 0.5)
    x, x_next, t = trajectory.transitions()
    returns = agent.value_targets(trajectory)
    plain.generator.set_state(agent.generator.get_state())
    added = agent.policy_loss(trajectory, returns) - plain.policy_loss(trajectory, returns)
    mean, log_std = agent.policy.moments(x, t)
    log_ratio = Normal(mean, log_std.exp()).log_prob(x_next).sum(1) - trajectory.log_prob.flatten()
    ratio, total, clipped = log_ratio.exp().view(T, 16), 0.0, 0
    for step in range(T - 1):
        error = returns[step + 1] - agent.values(trajectory.x[step + 1], step + 1)
        for i in range(16):
            others = torch.cat([error[:i], error[i + 1 :]])
            m, rho = float((error[i] - others.mean()).detach()), float(ratio[step, i].detach())
            total += max(rho * m, min(max(rho, 0.9), 1.1) * m)
            clipped += rho * m < min(max(rho, 0.9), 1.1) * m
    assert clipped > 3
    assert float(added.detach()) == pytest.approx(total / (16 * T), rel=1e-9)


# V-trace --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mix", [0.0, 0.8, 1.0])
def test_v_trace_targets_by_hand(mix: float) -> None:
    """v_s = V_s + sum_{t >= s} (prod_{s <= i < t} c_i) rho_t delta_t, rho = min(1, pi / mu), c = lambda rho."""
    agent = dxdp(lqg_task(), moved=True, n_trajectories=16, td_lambda=mix)
    trajectory = behave(agent, 1.0)
    targets = agent.value_targets(trajectory)
    x = trajectory.x
    truncated = 0
    for i in range(16):
        values, rho, delta = [], [], []
        for t in range(T):
            with torch.no_grad():
                values.append(float(agent.values(x[t, i : i + 1], t)))
                mean, log_std = agent.policy.moments(x[t, i : i + 1], t)
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
def test_on_policy_v_trace_is_td_lambda() -> None:
    plain, agent = (dxdp(lqg_task(), moved=True, replay=replay) for replay in (1, 3))
    trajectory = play(plain)
    assert torch.allclose(agent.value_targets(trajectory), plain.value_targets(trajectory), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        for kept in (plain, agent):
            kept.policy.log_sigma.add_(0.1)
    assert not torch.allclose(agent.value_targets(trajectory), plain.value_targets(trajectory)), "off-policy it is not"


@pytest.mark.usefixtures("float64")
def test_at_the_optimum_targets_are_the_values_on_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the behaviour: V_t = c_t + V_{t+1} holds path by path, so no weight matters."""
    agent = at_the_optimum(monkeypatch, n_trajectories=50)
    trajectory = behave(agent, 2.0)
    x, _, t = trajectory.transitions()
    assert torch.allclose(agent.value_targets(trajectory).flatten(), agent.values(x, t), atol=1e-9)


@pytest.mark.slow
def test_off_policy_it_finds_the_optimum_too() -> None:
    agent = dxdp(
        lqg_task(), **SMALL | SMALL_VALUE | {"n_trajectories": 64}, replay=3, td_lambda=0.95, value_steps=8,
        policy_steps=2, warmup_iterations=20, warmup_value_steps=10, **RATES,
    )  # fmt: skip
    error = errors(agent.learn(110_000), values=True)
    assert error["value"] < 0.08, error
    assert error["mean"] < 0.035, error
    assert error["sigma"] < 0.025, error
