"""The policy-gradient agents: reference algebra, the ratio, what each has alone, SFT-PG in DxMI."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, plain_agent, plain_config, small, state
from lqg_cases import VARIANCE, B, P, lqg_task
from torch import Tensor

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import A2C, DPOK, GRPO, PPO, REINFORCE, SFTPG, ops
from dxmi_rl.agents.policies import base_moments, collect
from dxmi_rl.costs import counting
from dxmi_rl.evaluation.metrics import sliced_w2
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.torch_tools import seeded

N, T, TAU = 8, 5, 0.6

# Reference algebra on fixed tensors -----------------------------------------------------------------------------------


def agent_and_episodes(name: str, tau: float = TAU, **settings: Any) -> tuple[Any, Trajectory]:
    """An agent on the LQG whose policy has left its start, and fixed episodes that it did not draw."""
    task = lqg_task()
    task.mdp.tau = tau
    agent: Any = plain_agent(name, task, seed=0, policy={"width": 8, "depth": 2}, n_trajectories=N, **settings)
    assert isinstance(agent, (PPO, A2C, REINFORCE, GRPO, DPOK, SFTPG))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        states = torch.randn(T + 1, N, 2, generator=generator)
        x, x_next, t = Trajectory(states, torch.zeros(T, N)).transitions()
        base_mean = agent.policy.base_mean(x, t)
        mean, log_std = agent.policy.moments(x, t, base_mean)
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(x_next).sum(1)
    return agent, Trajectory(states, log_prob.view(T, N), base_mean.unflatten(0, (T, N)))


def advantages_of(agent: Any, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """Advantages and returns of an agent with a critic: ``[T, n]``."""
    if isinstance(agent, DPOK):
        return agent.advantages(trajectory, base_moments(agent.mdp, agent.policy, trajectory))
    found: tuple[Tensor, Tensor] = agent.advantages(trajectory)
    return found


def normal(x: list[float], mean: list[float], variance: list[float]) -> float:
    """log N(x; mean, diag variance)."""
    terms = zip(x, mean, variance, strict=True)
    return sum(-((a - m) ** 2) / (2 * v) - 0.5 * math.log(2 * math.pi * v) for a, m, v in terms)


def energy(x: list[float]) -> float:
    return sum(0.5 * p * a * a + b * a for p, b, a in zip(P, B, x, strict=True))


def soft_rewards(trajectory: Trajectory, tau: float = TAU) -> list[list[float]]:
    """tau log qb - tau log pi_old, the last minus E: ``[T][N]``."""
    x, log_prob = trajectory.x.tolist(), trajectory.log_prob.tolist()
    return [
        [
            tau * normal(x[t][i], x[t + 1][i], [VARIANCE[t]] * 2) - tau * log_prob[t][i]
            - (energy(x[T][i]) if t == T - 1 else 0.0)
            for i in range(N)
        ]
        for t in range(T)
    ]  # fmt: skip


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


@pytest.mark.usefixtures("float64")
def test_log_probs_by_hand() -> None:
    """DDPO's log p(x_{t-1} | x_t): those of the rollout, and those that the losses differentiate."""
    agent, _ = agent_and_episodes("reinforce")
    trajectory = collect(agent, agent.policy, N)
    mean, log_std = agent.policy.moments_along(trajectory)
    wanted = [
        normal(x, m, [math.exp(2 * s) for s in stds])
        for x, m, stds in zip(trajectory.transitions()[1].tolist(), mean.tolist(), log_std.tolist(), strict=True)
    ]
    assert trajectory.log_prob.flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    ones = torch.ones(T * N)
    assert float(agent.policy_loss(trajectory, ones).detach()) == pytest.approx(-sum(wanted) / len(wanted), abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("baseline", [True, False])
def test_reinforces_advantages_and_loss_by_hand(baseline: bool) -> None:
    agent, trajectory = agent_and_episodes("reinforce", baseline=baseline)
    rewards = soft_rewards(trajectory)
    returns = [[sum(rewards[k][i] for k in range(t, T)) for i in range(N)] for t in range(T)]
    wanted = [
        [row[i] - baseline * sum(row[j] for j in range(N) if j != i) / (N - 1) for i in range(N)] for row in returns
    ]
    advantages = agent.advantages(trajectory)
    assert flat(advantages.tolist()) == pytest.approx(flat(wanted), abs=1e-6)
    loss = -sum(a * b for a, b in zip(flat(wanted), trajectory.log_prob.flatten().tolist(), strict=True)) / (T * N)
    assert float(agent.policy_loss(trajectory, advantages.flatten()).detach()) == pytest.approx(loss, abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("normalise", [None, True])
def test_grpos_advantages_by_hand(normalise: bool | None) -> None:
    """Return-to-go minus the group's mean at the same step; the papers divide by the deviation of whole returns."""
    agent, trajectory = agent_and_episodes("grpo", group_size=4, normalise=normalise)
    rewards = soft_rewards(trajectory)
    advantages = agent.advantages(trajectory).tolist()
    for group in (range(4), range(4, 8)):
        whole = [sum(rewards[k][i] for k in range(T)) for i in group]
        centre = sum(whole) / 4
        deviation = math.sqrt(sum((value - centre) ** 2 for value in whole) / 3) if normalise else 1.0
        for t in range(T):
            returns = [sum(rewards[k][i] for k in range(t, T)) for i in group]
            wanted = [(value - sum(returns) / 4) / deviation for value in returns]
            assert [advantages[t][i] for i in group] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["ppo", "a2c", "dpok", "sft-pg"])
def test_generalised_advantages_by_hand(name: str) -> None:
    mix = 1.0 if name == "sft-pg" else 0.8
    agent, trajectory = agent_and_episodes(name, **({} if name == "sft-pg" else {"gae_lambda": mix}))
    x, log_prob = trajectory.x.tolist(), trajectory.log_prob.tolist()
    if name in ("ppo", "a2c"):
        rewards = soft_rewards(trajectory)
    else:  # DPOK: beta log(p_base / pi_old), beta = tau, the base being N(x, sigma_t^2); both end in -E
        variance = agent.mdp.base.sigma.square().tolist()
        beta = TAU if name == "dpok" else 0.0
        rewards = [
            [beta * (normal(x[t + 1][i], x[t][i], [variance[t]] * 2) - log_prob[t][i]) for i in range(N)]
            for t in range(T)
        ]
        for i in range(N):
            rewards[T - 1][i] -= energy(x[T][i])
    values = [agent.value(trajectory.x[t], t).tolist() for t in range(T)] + [[0.0] * N]
    errors = [[rewards[t][i] + values[t + 1][i] - values[t][i] for i in range(N)] for t in range(T)]
    wanted = [[sum(mix ** (k - t) * errors[k][i] for k in range(t, T)) for i in range(N)] for t in range(T)]
    advantages, returns = advantages_of(agent, trajectory)
    assert flat(advantages.tolist()) == pytest.approx(flat(wanted), abs=1e-6)
    assert flat((returns - advantages).tolist()) == pytest.approx(flat(values[:T]), abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "settings", "temperature", "weight"),
    [
        ("ppo", {}, TAU, 0.0),
        ("ppo", {"objective": "terminal"}, 0.0, 0.0),
        ("grpo", {"group_size": 4}, TAU, 0.0),
        ("grpo", {"group_size": 4, "objective": "terminal", "kl_weight": 0.3}, 0.0, 0.3),
        ("dpok", {"beta": 0.7}, 0.7, 0.0),
        ("dpok", {"beta": 0.7, "future_kl": False}, 0.0, 0.7),
    ],
)
def test_the_clipped_loss_by_hand(name: str, settings: dict[str, Any], temperature: float, weight: float) -> None:
    """-min(rho A, clip(rho, 1 - e, 1 + e) A) + tau KL(pi || pi_old) + w KL(pi || base), row by row."""
    agent, trajectory = agent_and_episodes(name, clip_range=0.1, **settings)
    _, x_next, _ = trajectory.transitions()
    generator = torch.Generator().manual_seed(2)
    advantages = torch.randn(T * N, generator=generator)
    rows = torch.arange(1, T * N, 2)
    with torch.no_grad():
        old = agent.policy.moments_along(trajectory)
        for parameter in agent.policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        new = agent.policy.moments_along(trajectory)
    base = base_moments(agent.mdp, agent.policy, trajectory)
    assert torch.equal(base[0], trajectory.transitions()[0])
    assert torch.allclose(base[1][:N].exp(), agent.mdp.base.sigma[0])
    if name == "ppo":
        loss = agent.policy_loss(trajectory, advantages, old, rows)
    elif name == "grpo":
        loss = agent.policy_loss(trajectory, advantages, old, base if weight else None, rows)
    else:
        loss = agent.policy_loss(trajectory, advantages, old, old if agent.config.future_kl else base, rows)
    total, clipped = 0.0, 0
    for i in rows.tolist():
        now, before, start = (
            torch.distributions.Normal(mean[i], log_std[i].exp()) for mean, log_std in (new, old, base)
        )
        ratio = math.exp(float(now.log_prob(x_next[i]).sum() - before.log_prob(x_next[i]).sum()))
        bounded = min(max(ratio, 0.9), 1.1)
        clipped += bounded != ratio
        total -= min(ratio * float(advantages[i]), bounded * float(advantages[i]))
        total += temperature * float(torch.distributions.kl_divergence(now, before).sum())
        total += weight * float(torch.distributions.kl_divergence(now, start).sum())
    assert clipped > 3, "the test must see both branches"
    assert float(loss.detach()) == pytest.approx(total / len(rows), abs=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo", "grpo"])
def test_the_terminal_objective_is_the_energy_alone(name: str) -> None:
    settings = {"group_size": 4} if name == "grpo" else {}
    agent, trajectory = agent_and_episodes(name, objective="terminal", **settings)
    final = [energy(x) for x in trajectory.final.tolist()]
    wanted = [[0.0] * N] * (T - 1) + [[-value for value in final]]
    found = ops.soft_rewards(agent.mdp, trajectory, agent.temperature)
    assert flat(found.tolist()) == pytest.approx(flat(wanted), abs=1e-12)
    cold, trajectory = agent_and_episodes(name, tau=0.0, **settings)
    found = ops.soft_rewards(cold.mdp, trajectory, cold.temperature)
    assert flat(found.tolist()) == pytest.approx(flat(wanted), abs=1e-12), "which tau = 0 is, too"
    if name == "grpo":
        assert agent.normalise and not cold.normalise


# The ratio ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "grpo", "dpok"])
@pytest.mark.parametrize("task", ["8gaussians", "gmm25"])
def test_the_ratio_is_one_before_the_first_update(name: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, inside a real update, for a policy that has moved; the next ratios are not."""
    agent = plain_agent(name, task, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.policy.net.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    ratios, inner = list[Tensor](), ops.importance_ratio

    def record(*arguments: Any) -> Tensor:
        ratios.append(inner(*arguments))
        return ratios[-1]

    monkeypatch.setattr(ops, "importance_ratio", record)
    agent.iterate()
    distances = [float((ratio.detach() - 1).abs().max()) for ratio in ratios]
    assert distances[0] <= 1e-5 < min(distances[1:])


# Each alone -----------------------------------------------------------------------------------------------------------


def test_grpos_groups_share_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small("grpo", group_size=8)
    assert isinstance(agent, GRPO)
    trajectories: list[Trajectory] = []
    monkeypatch.setattr(agent, "update", lambda trajectory, _: trajectories.append(trajectory) or {})
    with counting(agent.costs):
        agent.iterate()
    states = trajectories[0].x.unflatten(1, (4, 8))
    assert torch.equal(states[0], states[0, :, :1].expand(4, 8, 2))
    assert len(states[0, :, 0].unique(dim=0)) == 4, "groups have starts of their own"
    assert len(states[1].flatten(0, 1).unique(dim=0)) == 32, "and trajectories noise of their own"
    assert agent.costs.timesteps == agent.costs.policy_draws == 160 and agent.costs.energy_evals == 32


@pytest.mark.parametrize("name", ["reinforce", "grpo"])
def test_without_a_critic_there_is_no_value_network(name: str) -> None:
    agent = small(name)
    assert set(agent.modules()) == {"policy", "kernel"} and set(agent.optimizers()) == {"policy"}


@pytest.mark.parametrize("name", ["reinforce", "a2c", "grpo", "dpok", "sft-pg"])
def test_the_base_denoiser_is_paid_for_once(name: str) -> None:
    agent = small(name)
    calls: list[int] = []
    for denoiser in (agent.policy.base.denoiser, agent.mdp.base.denoiser):  # type: ignore[union-attr]
        denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    agent.learn(2 * agent.timesteps_per_iteration)
    assert sum(calls) == agent.costs.denoiser_calls == agent.num_timesteps
    assert agent.costs.energy_evals == agent.num_timesteps / T and agent.costs.energy_grad_evals == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reinforce", {}),
        ("a2c", {}),
        ("ppo", {"n_epochs": 2}),
        ("grpo", {"n_epochs": 2, "kl_weight": 0.1}),
        ("dpok", {"n_epochs": 2}),
        ("dpok", {"n_epochs": 2, "future_kl": False}),
        ("sft-pg", {"n_minibatches": 2}),
    ],
)
def test_a_policy_that_owns_the_denoiser_pays_for_all_its_calls(name: str, settings: dict[str, Any]) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = small(name, task, policy={"kind": "fine-tuned"}, **settings)
    before = [p.clone() for p in agent.policy.base.denoiser.parameters()]  # type: ignore[union-attr]
    calls: list[int] = []
    for denoiser in (agent.policy.base.denoiser, agent.mdp.base.denoiser):  # type: ignore[union-attr]
        denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    agent.learn(2 * agent.timesteps_per_iteration)
    assert sum(calls) == agent.costs.denoiser_calls
    assert not all(
        torch.equal(a, b)
        for a, b in zip(before, agent.policy.base.denoiser.parameters(), strict=True)  # type: ignore[union-attr]
    )


def test_dpoks_beta_is_the_tasks_tau_unless_given() -> None:
    assert small("dpok", make_task("8gaussians", tau=0.3)).beta == 0.3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="beta must be given, as the task's tau is 0"):
        small("dpok", make_task("8gaussians", tau=0.0))
    agent = small("dpok", make_task("8gaussians", tau=0.0), beta=0.3)
    agent.learn(2 * agent.timesteps_per_iteration)


@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo", "grpo", "sft-pg"])
def test_without_temperature_they_learn_on(name: str) -> None:
    agent = small(name, make_task("8gaussians", tau=0.0))
    before = state(agent)
    agent.learn(3 * agent.timesteps_per_iteration)
    after = state(agent)
    assert not all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("policy.net"))
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


@pytest.mark.parametrize("name", ["reinforce", "a2c", "ppo", "grpo", "dpok", "sft-pg"])
def test_non_finite_rewards_are_told(name: str) -> None:
    task = make_task("8gaussians")
    agent = small(name, task, **({"objective": "terminal"} if name not in ("dpok", "sft-pg") else {}))
    task.mdp.set_energy(lambda x: x.sum(1) / 0.0)
    with pytest.raises(EnergyError, match="NaN or infinite"):
        agent.learn(agent.timesteps_per_iteration)


@pytest.mark.slow
def test_sft_pg_descends_a_fixed_energy_at_fixed_sigma() -> None:
    agent = plain_agent("sft-pg", "8gaussians", seed=0)
    assert isinstance(agent, SFTPG)

    def mean_energy() -> float:
        return float(agent.mdp.energy(agent.sample(10_000, seed=1)).mean())

    before = mean_energy()
    agent.learn(100_000)
    assert mean_energy() < before - 0.25
    assert torch.equal(agent.policy.log_sigma, agent.mdp.base.sigma.log())


@pytest.mark.slow
def test_sft_pg_improves_dxmi() -> None:
    """From the sampler of a hardly trained denoiser: sliced W2 falls by a fifth at least."""
    with seeded(0):
        task = make_task("8gaussians-data", pretraining=PRETRAINING)
    model = make_agent("dxmi", task, seed=0, agent="sft-pg", agent_settings=plain_config("sft-pg"), ema=0.95)
    data = task.target.sample(4000, torch.Generator().manual_seed(0))
    before = sliced_w2(model.sample(4000, seed=1), data)
    model.learn(150_000)
    assert sliced_w2(model.sample(4000, seed=1), data) < 0.8 * before


@pytest.mark.parametrize(
    ("name", "settings", "error", "text"),
    [
        ("reinforce", {"objective": "sof"}, UnknownNameError, "unknown objective 'sof'. Did you mean 'soft'"),
        ("reinforce", {"n_trajectories": 1}, ValueError, "n_trajectories must be >= 2"),
        ("a2c", {"gae_lambda": 1.5}, ValueError, r"gae_lambda must lie in \[0, 1\]"),
        ("a2c", {"value_steps": 0}, ValueError, "value_steps must be >= 1"),
        ("grpo", {"group_size": 1}, ValueError, "group_size must be >= 2"),
        ("grpo", {"n_trajectories": 20, "group_size": 16}, ValueError, "n_trajectories must be a multiple"),
        ("grpo", {"normalise": "yes"}, TypeError, "normalise must be True, False or None"),
        ("grpo", {"kl_weight": -0.1}, ValueError, "kl_weight must be finite and >= 0"),
        ("grpo", {"clip_range": 0.0}, ValueError, "clip_range must be finite and > 0"),
        ("dpok", {"beta": 0.0}, ValueError, "beta must be finite and > 0"),
        ("dpok", {"n_epochs": 0}, ValueError, "n_epochs must be >= 1"),
        ("dpok", {"objective": "soft"}, UnknownNameError, "unknown setting of 'dpok'"),
        ("sft-pg", {"n_minibatches": 0}, ValueError, "n_minibatches must be >= 1"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_agent(name, "8gaussians", **settings)


def test_one_trajectory_is_enough_without_a_baseline() -> None:
    agent = small("reinforce", n_trajectories=1, baseline=False)
    agent.learn(2 * agent.timesteps_per_iteration)
