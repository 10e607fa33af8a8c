"""The linear-quadratic Gaussian task: its closed form, DxDP's and PPO's way to it, and their gradients on it."""

from __future__ import annotations

import math

import pytest
import torch
from agent_cases import plain_agent
from dxdp_cases import play
from lqg_cases import (
    RATES,
    SMALL,
    SMALL_VALUE,
    VARIANCE,
    B,
    LinearPolicy,
    P,
    Posterior,
    Quadratic,
    Steps,
    errors,
    flat_gradient,
    lqg_agent,
    lqg_task,
    solve,
)
from torch import Tensor

from dxmi_rl.agents import PPO, DxDP
from dxmi_rl.agents.policies import collect
from dxmi_rl.diffusion import Brownian

# (b) the closed form itself -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_closed_form_meets_the_definition() -> None:
    """V_t = E_pi[V_{t+1}(x') - log qb(x | x')] - H(pi), by Gauss-Hermite quadrature (exact for quadratics)."""
    solution, kernel = solve(), Brownian(torch.tensor(VARIANCE))
    nodes = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)])
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6])
    noise, weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(1)
    x = 2 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for t in range(5):

        def cost(row: Tensor, t: int = t, stretch: float = 1.0, move: float = 0.0) -> Tensor:
            mean, log_std = solution.moments(row, t)
            std = stretch * log_std.exp()
            x_next = mean + move + std * noise
            expected = solution.value(x_next, t + 1) - kernel.log_prob(row.expand_as(x_next), x_next, t)
            entropy = (0.5 * math.log(2 * math.pi * math.e) + std.log()).sum()
            return (weight * expected).sum() - entropy

        for row in x:
            optimum = cost(row)
            assert float(optimum) == pytest.approx(float(solution.value(row, t)), abs=1e-9)
            for change in ({"stretch": 0.9}, {"stretch": 1.1}, {"move": 0.05}, {"move": -0.05}):
                assert float(cost(row, **change)) > float(optimum), "no other Gaussian is better"
    assert torch.equal(solution.value(x, 5), Quadratic().energy(x))


@pytest.mark.usefixtures("float64")
def test_the_first_value_is_the_log_marginal() -> None:
    """exp(-V_0) is q blurred by all five kernels: Z N(x; -b / P, 1 / P + sum s^2)."""
    x = 3 * torch.randn(20, 2)
    p, b = torch.tensor(P), torch.tensor(B)
    blurred = torch.distributions.Normal(-b / p, (1 / p + sum(VARIANCE)).sqrt()).log_prob(x).sum(1)
    log_z = Quadratic().log_z
    assert log_z is not None
    assert torch.allclose(solve().value(x, 0), -log_z - blurred)


@pytest.mark.usefixtures("float64")
def test_log_z_by_quadrature() -> None:
    axis = torch.linspace(-8, 8, 801)
    total = (-Quadratic().energy(torch.cartesian_prod(axis, axis))).exp().sum() * 0.02**2
    assert math.log(float(total)) == pytest.approx(Quadratic().log_z, abs=1e-9)


# (a) constant weights -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_weights_are_constant_for_an_exact_policy_and_its_posterior() -> None:
    task, policy = lqg_task(), LinearPolicy()
    task.mdp.kernel = Posterior(policy)
    generator = torch.Generator().manual_seed(0)
    forwards = task.mdp.log_weights(task.mdp.rollout(policy, 2000, generator))
    chains = task.mdp.backward_rollout(policy, Quadratic().sample(2000, generator), generator)
    backwards = task.mdp.log_weights(chains)
    for log_weights in (forwards, backwards):
        assert float(log_weights.std()) < 1e-7
        assert float(log_weights.mean()) == pytest.approx(task.target.log_z, abs=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_optimal_soft_return_is_minus_the_first_value_on_every_path() -> None:
    """At the soft optimum V_t = V_{t+1} - log qb + log pi path by path: no expectation is needed."""
    task, solution = lqg_task(), solve()
    trajectory = task.mdp.rollout(Steps(solution), 500, torch.Generator().manual_seed(0))
    assert torch.allclose(task.mdp.soft_return(trajectory), -solution.value(trajectory.x[0], 0), atol=1e-9)


# (c) what the agents learn --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dxdp_finds_the_soft_values_and_the_optimal_policy() -> None:
    agent = plain_agent(
        "dxdp", lqg_task(), seed=0, **SMALL | SMALL_VALUE | RATES | {"n_trajectories": 64}, td_lambda=0.95,
        value_steps=8, policy_steps=2,
    )  # fmt: skip
    assert isinstance(agent, DxDP)
    agent.learn(300_000)
    error = errors(agent, values=True)
    assert error["value"] < 0.02, error
    assert error["mean"] < 0.02, error
    assert error["sigma"] < 0.05, error
    assert agent.mdp.kernel.variance.tolist() == pytest.approx(VARIANCE), "rate = 1 leaves the kernel alone"


@pytest.mark.slow
def test_ppo_finds_them_too() -> None:
    agent = plain_agent(
        "ppo", lqg_task(), seed=0, **SMALL | SMALL_VALUE | RATES | {"n_trajectories": 128}, n_epochs=4,
        n_minibatches=1, gae_lambda=0.95,
    )  # fmt: skip
    assert isinstance(agent, PPO)
    agent.learn(300_000)
    error = errors(agent, values=True)
    assert error["value"] < 0.06, error
    assert error["mean"] < 0.03, error
    assert error["sigma"] < 0.03, error


# DxDP's one-step gradient ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_value_of_a_policy_is_its_mean_soft_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, policy, value = lqg_agent(monkeypatch, "dxdp")
    trajectory = agent.mdp.rollout(policy, 100_000, torch.Generator().manual_seed(0))
    difference = agent.mdp.soft_return(trajectory) + value(trajectory.x[0], 0)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(100_000)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_dxdps_gradient_with_the_exact_value_is_the_path_wise_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both estimate d/d theta of the mean soft cost: nothing is lost by not differentiating through time."""
    agent, policy, _ = lqg_agent(monkeypatch, "dxdp", n_trajectories=2000, correction=False)
    assert isinstance(agent, DxDP)
    one_step, path_wise = [], []
    for _ in range(60):
        played = play(agent)
        loss = agent.policy_loss(played, torch.zeros_like(played.log_prob))
        one_step.append(flat_gradient(loss * agent.mdp.horizon, policy))  # a mean over T n transitions
        trajectory = agent.mdp.rollout(policy, 2000, agent.generator, differentiable=True)
        path_wise.append(flat_gradient(-agent.mdp.soft_return(trajectory).mean(), policy))
    a, b = torch.stack(one_step), torch.stack(path_wise)
    standard_error = ((a.var(0) + b.var(0)) / 60).sqrt()
    z = (a.mean(0) - b.mean(0)) / standard_error
    # 30 coordinates: 3 standard errors for nearly all, and as a whole no more than chance.
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
    assert float(b.mean(0).abs().max()) > 20 * float(standard_error.max()), "the gradient is not just noise"


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_ppos_first_gradient_with_the_exact_value_is_the_path_wise_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood-ratio gradient of the surrogate at ratio 1, with V^pi as the baseline and any lambda."""
    agent, policy, value = lqg_agent(monkeypatch, "ppo", n_trajectories=4000, gae_lambda=0.9)
    assert isinstance(agent, PPO)
    monkeypatch.setattr(agent, "value", lambda x, t: -value(x, t))
    surrogate, path_wise = [], []
    for _ in range(60):
        played = collect(agent, policy, agent.config.n_trajectories)
        advantages = agent.advantages(played)[0].flatten()
        mean, log_std = (part.detach() for part in policy.moments_along(played))
        loss = agent.policy_loss(played, advantages, (mean, log_std), torch.arange(len(advantages)))
        surrogate.append(flat_gradient(loss * agent.mdp.horizon, policy))
        trajectory = agent.mdp.rollout(policy, 2000, agent.generator, differentiable=True)
        path_wise.append(flat_gradient(-agent.mdp.soft_return(trajectory).mean(), policy))
    a, b = torch.stack(surrogate), torch.stack(path_wise)
    standard_error = ((a.var(0) + b.var(0)) / 60).sqrt()
    z = (a.mean(0) - b.mean(0)) / standard_error
    assert int((z.abs() > 3).sum()) <= 1, z
    assert float(z.square().sum()) < 30 + 4 * math.sqrt(60)
