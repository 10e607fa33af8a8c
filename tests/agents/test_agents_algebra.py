"""PPO and DxDP against algebra by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agent_cases import BATCH, small, state, task_for
from dxdp_cases import play

from dxmi_rl.agents import PPO, DxDP
from dxmi_rl.agents.policies import collect
from dxmi_rl.rollout import Trajectory


def collected(agent: Any, seed: int = 0) -> Trajectory:
    """A rollout of a policy that has moved away from its start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in (*agent.policy.net.parameters(), *agent.value.parameters()):
            parameter.add_(0.2 * torch.randn_like(parameter))
    return collect(agent, agent.policy, agent.config.n_trajectories)


def test_ppos_ratio_is_one_before_the_first_update() -> None:
    agent = small("ppo")
    assert isinstance(agent, PPO)
    trajectory = collected(agent)
    mean, log_std = agent.policy.moments_along(trajectory)
    again = torch.distributions.Normal(mean, log_std.exp()).log_prob(trajectory.transitions()[1]).sum(1).detach()
    ratio = (again - trajectory.log_prob.flatten()).exp()
    assert float((ratio - 1).abs().max()) < 1e-4
    assert float((ratio - 1).abs().mean()) < 1e-5


def test_ppos_advantages_by_hand() -> None:
    agent = small("ppo", task_for("ppo", tau=0.6), gae_lambda=0.8)
    assert isinstance(agent, PPO)
    trajectory = collected(agent)
    advantages, returns = agent.advantages(trajectory)
    rewards = agent.mdp.rewards(trajectory).detach()
    for i in range(0, BATCH, 7):
        values = [float(agent.value(trajectory.x[t][i : i + 1], t).detach()) for t in range(5)] + [0.0]
        soft = [float(rewards[t, i]) - 0.6 * float(trajectory.log_prob[t, i]) for t in range(5)]
        errors = [soft[t] + values[t + 1] - values[t] for t in range(5)]
        for t in range(5):
            wanted = sum(0.8 ** (k - t) * errors[k] for k in range(t, 5))
            assert float(advantages[t, i]) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
            assert float(returns[t, i]) == pytest.approx(wanted + values[t], rel=1e-3, abs=1e-3)


def test_ppos_loss_by_hand() -> None:
    """-E[min(rho A, clip(rho, 1 - e, 1 + e) A)] + tau KL(pi || pi_old), row by row."""
    agent = small("ppo", task_for("ppo", tau=0.6), clip_range=0.1)
    assert isinstance(agent, PPO)
    trajectory = collected(agent)
    _, x_next, _ = trajectory.transitions()
    advantages = torch.randn(len(x_next), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old_mean, old_log_std = agent.policy.moments_along(trajectory)
        for parameter in agent.policy.net.parameters():  # type: ignore[union-attr]
            parameter.add_(0.5 * torch.randn_like(parameter))
        new_mean, new_log_std = agent.policy.moments_along(trajectory)
    rows = torch.arange(3, 40, 2)
    loss = agent.policy_loss(trajectory, advantages, (old_mean, old_log_std), rows)
    total, divergence, clipped = 0.0, 0.0, 0
    for i in rows.tolist():
        new, old = (
            torch.distributions.Normal(mean[i], log_std[i].exp())
            for mean, log_std in ((new_mean, new_log_std), (old_mean, old_log_std))
        )
        ratio = math.exp(float(new.log_prob(x_next[i]).sum() - old.log_prob(x_next[i]).sum()))
        advantage = float(advantages[i])
        bounded = min(max(ratio, 0.9), 1.1)
        clipped += bounded != ratio
        total += -min(ratio * advantage, bounded * advantage)
        divergence += 0.6 * float(torch.distributions.kl_divergence(new, old).sum())
    assert clipped > 3, "the test must see both branches"
    assert divergence > 0.01 * abs(total)
    assert float(loss.detach()) == pytest.approx((total + divergence) / len(rows), rel=1e-3)


# DxDP against reference algebra ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", [0.0, 0.7, 1.0])
def test_dxdps_targets_by_hand(mix: float) -> None:
    """G_t = c_t + (1 - lambda) V_{t+1}(x_{t+1}) + lambda G_{t+1}, V_T = G_T = E."""
    agent = small("dxdp", task_for("dxdp", tau=0.6), td_lambda=mix)
    assert isinstance(agent, DxDP)
    trajectory = play(agent)
    targets = agent.value_targets(trajectory)
    x, log_prob = trajectory.x, trajectory.log_prob
    for i in range(0, BATCH, 7):
        states = x[:, i : i + 1]
        following = future = float(agent.mdp.energy(states[5]))
        for t in reversed(range(5)):
            backward = float(agent.mdp.kernel.log_prob(states[t], states[t + 1], t).detach())
            cost = 0.6 * float(log_prob[t, i]) - 0.6 * backward
            future = cost + (1 - mix) * following + mix * future
            assert float(targets[t, i]) == pytest.approx(future, rel=1e-3, abs=1e-3)
            following = float(agent.values(states[t], t).detach())


def test_dxdps_policy_step_touches_only_the_policy() -> None:
    agent = small("dxdp")
    assert isinstance(agent, DxDP)
    trajectory = play(agent)
    before = state(agent)
    for module in (agent.value, agent.mdp.kernel):
        module.zero_grad(set_to_none=True)
    agent.update_policy(trajectory, agent.value_targets(trajectory))
    changed = {key.split(".")[0] for key, value in state(agent).items() if not torch.equal(value, before[key])}
    assert changed == {"policy"}
    assert all(p.grad is None for module in (agent.value, agent.mdp.kernel) for p in module.parameters())
    assert all(p.requires_grad for module in (agent.value, agent.mdp.kernel) for p in module.parameters())


def test_dxdps_warm_up_leaves_most_of_a_small_budget() -> None:
    agent = small("dxdp", warmup_iterations=100)
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(5 * agent.timesteps_per_iteration)
    assert not all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))


def test_dxdps_warm_up_trains_only_the_value() -> None:
    agent = small("dxdp", warmup_iterations=3)
    before = [p.clone() for p in agent.policy.parameters()]
    for _ in range(3):
        agent.iterate()
    assert all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    agent.learn(agent.timesteps_per_iteration, reset_num_timesteps=False)
    assert not all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
