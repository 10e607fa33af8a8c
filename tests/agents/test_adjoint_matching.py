"""Adjoint matching: the lean adjoint by hand, its fixed point in closed form, and the tilt that it tends to.

In the closed form base sampler and energy are Gaussian: mu_t(x) = A_t x + C_t and E / beta = p x^2 / 2 + b x in each
coordinate. u_t minimises u^2 / 2 + E[V_{t+1}(mu_t + sigma_t (u + noise))] with V_{t+1} = p_{t+1} x^2 / 2 + b_{t+1} x:
the next mean is then (mu_t - sigma_t^2 b_{t+1}) / (1 + sigma_t^2 p_{t+1}).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, plain_agent, small, state
from lqg_cases import SMALL, B, P, flat_gradient, lqg_task
from torch import Tensor

from dxmi_rl import DxMI, make_agent, make_task
from dxmi_rl.agents import AdjointMatching, AdjointMatchingConfig
from dxmi_rl.agents.policies import GaussianPolicy, collect
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.diffusion.samplers import BaseSampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.tasks import Task
from dxmi_rl.utils.torch_tools import adam

BETA = 0.8


def quadratic(x: Tensor) -> Tensor:
    return (0.5 * torch.tensor(P).to(x) * x**2 + torch.tensor(B).to(x) * x).sum(1)


def gaussian_task(horizon: int) -> Task:
    """DDPM with the exact denoiser of one Gaussian, from noise level 10, and the energy of the LQG."""
    base = GaussianMixture(torch.tensor([[0.5, -0.5]]), 0.7, plot_range=(-3, 3))
    return make_task(base, energy=quadratic, horizon=horizon, schedule_options={"level_max": 10.0})


Linear = tuple[Tensor, Tensor]
"""Means gain_t x + shift_t of all steps, each ``[T, 2]``, float64."""


def moments_of(policy: Any, horizon: int) -> Linear:
    """Gain and shift of a policy or base sampler whose means are linear."""
    mean = policy.mean if isinstance(policy, BaseSampler) else lambda x, t: policy.moments(x, t)[0]
    dtype = torch.get_default_dtype()
    with torch.no_grad():
        shift = torch.stack([mean(torch.zeros(1, 2, dtype=dtype), t)[0] for t in range(horizon)])
        gain = torch.stack([mean(torch.ones(1, 2, dtype=dtype), t)[0] for t in range(horizon)]) - shift
    return gain.double(), shift.double()


def fixed_point(base: BaseSampler, beta: float) -> Linear:
    """Gain and shift of the optimal control's means, backwards in t."""
    horizon = len(base.sigma)
    (a, c), v = moments_of(base, horizon), base.sigma.double() ** 2
    p, b = torch.tensor(P).double() / beta, torch.tensor(B).double() / beta
    gain, shift = torch.empty_like(a), torch.empty_like(a)
    for t in reversed(range(horizon)):
        gain[t], shift[t] = a[t] / (1 + v[t] * p), (c[t] - v[t] * b) / (1 + v[t] * p)
        p, b = p / (1 + v[t] * p), b / (1 + v[t] * p)  # of the least cost as a function of mu_t
        p, b = a[t] ** 2 * p, a[t] * (p * c[t] + b)
    return gain, shift


def law(base: BaseSampler, policy: Linear) -> Linear:
    """Mean and variance of x_T."""
    mean, variance = torch.zeros(2).double(), torch.full((2,), float(base.schedule.start_std) ** 2).double()
    for gain, shift, sigma in zip(*policy, base.sigma.double(), strict=True):
        mean, variance = gain * mean + shift, gain**2 * variance + sigma**2
    return mean, variance


def tilt(base: BaseSampler, beta: float) -> Linear:
    """Mean and variance of p_base(x_T) exp(-E / beta) / Z."""
    mean, variance = law(base, moments_of(base, len(base.sigma)))
    tilted = 1 / (1 / variance + torch.tensor(P) / beta)
    return tilted * (mean / variance - torch.tensor(B) / beta), tilted


def divergence(a: Linear, b: Linear) -> float:
    """KL(N(a) || N(b))."""
    ratio = a[1] / b[1]
    return 0.5 * float((ratio - 1 - ratio.log() + (a[0] - b[0]) ** 2 / b[1]).sum())


class LinearPolicy(GaussianPolicy):
    """mu_base + sigma_t (k_t x + h_t): what the fixed point is on a linear base."""

    def __init__(self, mdp: DenoisingMDP) -> None:
        super().__init__()
        self.base = mdp.base
        self.k = torch.nn.Parameter(torch.zeros(mdp.horizon, 2))
        self.h = torch.nn.Parameter(torch.zeros(mdp.horizon, 2))

    def base_mean(self, x: Tensor, t: Tensor | int) -> Tensor:
        return self.base.mean(x, t)

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean = self.base_mean(x, t) if base_mean is None else base_mean
        sigma = per_step(self.base.sigma, t, x)
        return mean + sigma * (self.k[t] * x + self.h[t]), sigma.log()

    def set(self, gain: Tensor, shift: Tensor) -> None:
        """Take these means."""
        own_gain, own_shift = moments_of(self.base, len(gain))
        sigma = self.base.sigma.double()[:, None]
        with torch.no_grad():
            self.k.copy_((gain - own_gain) / sigma)
            self.h.copy_((shift - own_shift) / sigma)


def linear_agent(horizon: int, n_trajectories: int = 256) -> tuple[AdjointMatching, LinearPolicy]:
    settings = {"n_trajectories": n_trajectories, "beta": BETA, "max_grad_norm": 1e3}
    agent = small("adjoint-matching", gaussian_task(horizon), **settings)
    assert isinstance(agent, AdjointMatching)
    policy = LinearPolicy(agent.mdp)
    agent.policy = policy
    agent.policy_optimizer = adam([([policy.k, policy.h], 0.1)])
    return agent, policy


def play(agent: AdjointMatching) -> Trajectory:
    return collect(agent, agent.policy, agent.config.n_trajectories)


def loss_of(agent: AdjointMatching) -> Tensor:
    trajectory = play(agent)
    return agent.policy_loss(trajectory, *agent.lean_adjoint(trajectory))


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_the_lean_adjoint_by_hand() -> None:
    """Row by row from whole Jacobians of the (nonlinear) base mean, along the episodes of a policy that has moved."""
    agent = small("adjoint-matching", make_task("8gaussians"), n_trajectories=6, beta=BETA)
    assert isinstance(agent, AdjointMatching)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in agent.policy.net.parameters():  # type: ignore[union-attr]
            parameter.add_(0.1 * torch.randn_like(parameter))
    trajectory = play(agent)
    base_mean, adjoint = (part.view(5, 6, 2) for part in agent.lean_adjoint(trajectory))
    x, base = trajectory.x, agent.mdp.base
    total = 0.0
    for i in range(6):
        final = x[5, i].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(agent.mdp.energy(final[None])[0] / BETA, final)
        for t in reversed(range(5)):
            assert torch.allclose(adjoint[t, i], wanted, rtol=1e-9, atol=1e-9)
            assert torch.allclose(base_mean[t, i], base.mean(x[t, i][None], t)[0])
            mean, _ = agent.policy.moments(x[t, i][None], t)
            control = (mean[0] - base_mean[t, i]) / base.sigma[t]
            total += float((control + base.sigma[t] * wanted).detach().square().sum())
            jacobian = torch.autograd.functional.jacobian(lambda y, t=t: base.mean(y[None], t)[0], x[t, i])
            wanted = jacobian.T @ wanted
    loss = agent.policy_loss(trajectory, base_mean.flatten(0, 1), adjoint.flatten(0, 1))
    assert float(loss.detach()) == pytest.approx(total / 30, rel=1e-9)
    assert not adjoint.requires_grad


def test_on_a_random_walk_it_is_the_energys_gradient() -> None:
    """The LQG: mu_t(x) = x, so a_{t+1} = grad E(x_T) / beta at every step."""
    agent = small("adjoint-matching", lqg_task(), beta=BETA)
    assert isinstance(agent, AdjointMatching)
    trajectory = play(agent)
    _, adjoint = agent.lean_adjoint(trajectory)
    wanted = (torch.tensor(P) * trajectory.final + torch.tensor(B)) / BETA
    assert torch.allclose(adjoint, wanted.repeat(5, 1))


# The fixed point and its limit ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("horizon", [5, 20])
def test_the_closed_form_is_its_fixed_point(horizon: int) -> None:
    """There the mean gradient is 0 for every step's gain and shift, within its standard errors; nearby it is not."""
    agent, policy = linear_agent(horizon, n_trajectories=2000)
    gain, shift = fixed_point(agent.mdp.base, BETA)

    def scores() -> Tensor:
        gradients = torch.stack([flat_gradient(loss_of(agent), policy) for _ in range(30)])
        return gradients.mean(0) / (gradients.std(0) / math.sqrt(30))

    policy.set(gain, shift)
    z = scores()
    # The steps of an episode hang together (few of the coordinates are independent), so the mean square varies.
    assert float(z.abs().max()) < 4.5 and float(z.square().mean()) < 3, z
    policy.set(0.99 * gain, shift + 0.01)
    assert float(scores().square().mean()) > 30


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_with_more_steps_it_tends_to_the_tilted_base() -> None:
    """KL(x_T's law at the fixed point || p_base exp(-E / beta) / Z), in nats; a random walk keeps its bias."""
    ddpm: list[float] = []
    walk: list[float] = []
    for horizon in (5, 20, 80, 320):
        options = {"level_max": 2.0, "level_min": 0.05}
        ladder = make_task(quadratic, dim=2, base=None, horizon=horizon, schedule="geometric", schedule_options=options)
        for distances, task, beta in ((ddpm, gaussian_task(horizon), BETA), (walk, ladder, 10.0)):
            base = task.mdp.base
            distances.append(divergence(law(base, fixed_point(base, beta)), tilt(base, beta)))
    assert 0.01 < ddpm[0] < 0.05 and ddpm[-1] < 3e-4
    assert all(after < 0.4 * before for before, after in itertools.pairwise(ddpm)), ddpm
    assert walk[-1] > 0.008 and walk[-1] > 0.8 * walk[-2], walk


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "iterations"), [(5, 150), (20, 150)])
def test_it_learns_the_tilted_base(horizon: int, iterations: int) -> None:
    agent, policy = linear_agent(horizon)
    agent.learn(iterations * agent.timesteps_per_iteration)
    base = agent.mdp.base
    wanted = fixed_point(base, BETA)
    learned = moments_of(policy, horizon)
    assert divergence(law(base, learned), law(base, wanted)) < 2e-4
    error = ((learned[0] - wanted[0]) / base.sigma[:, None]).abs().max()
    assert float(error) < 0.05, "the means' gains, in units of sigma"
    start = divergence(law(base, moments_of(base, horizon)), tilt(base, BETA))
    distance = divergence(law(base, learned), tilt(base, BETA))
    best = divergence(law(base, wanted), tilt(base, BETA))
    assert distance == pytest.approx(best, abs=1e-3), (start, distance, best)
    assert distance < 0.02 * start


@pytest.mark.slow
def test_it_finds_the_fixed_point_of_the_lqg() -> None:
    """With its own network, which sees no grad E; the RMS error of the means, in units of sigma_t."""
    agent = plain_agent(
        "adjoint-matching", lqg_task(), seed=0, **SMALL, beta=BETA,
        **{"policy.energy_gradient": False, "policy.learning_rate": 1e-2},
    )  # fmt: skip
    agent.learn(500_000)
    base = agent.mdp.base
    gain, shift = fixed_point(base, BETA)
    trajectory = agent.sample_trajectory(20_000, seed=1)
    with torch.no_grad():
        for t in range(5):
            mean, log_std = agent.density().moments(trajectory.x[t], t)
            error = (mean - gain[t] * trajectory.x[t] - shift[t]) / base.sigma[t]
            assert float(error.square().mean().sqrt()) < 0.05, t
            assert float(log_std) == pytest.approx(math.log(base.sigma[t])), "sigma is the base sampler's"
    mean, variance = law(base, (gain, shift))
    assert trajectory.final.mean(0).tolist() == pytest.approx(mean.tolist(), abs=0.03)
    assert trajectory.final.var(0).tolist() == pytest.approx(variance.tolist(), rel=0.05)


# The agent ------------------------------------------------------------------------------------------------------------


def test_only_the_mean_is_trained() -> None:
    agent = small("adjoint-matching")
    before = state(agent)
    agent.learn(3 * agent.timesteps_per_iteration)
    after = state(agent)
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in changed} == {"policy", "kernel"}
    assert "policy.log_sigma" not in changed
    assert set(agent.modules()) == {"policy", "kernel"} and set(agent.optimizers()) == {"policy"}


def test_a_policy_that_owns_the_denoiser_starts_without_control() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = small("adjoint-matching", task, policy={"kind": "fine-tuned"})
    assert isinstance(agent, AdjointMatching)
    trajectory = play(agent)
    base_mean, adjoint = agent.lean_adjoint(trajectory)
    sigma = agent.mdp.base.sigma[trajectory.t][:, None]
    wanted = (sigma * adjoint).square().sum(1).mean()
    assert float(agent.policy_loss(trajectory, base_mean, adjoint).detach()) == pytest.approx(float(wanted), rel=1e-3)
    fixed = [p.clone() for p in agent.mdp.base.parameters()]
    agent.learn(2 * agent.timesteps_per_iteration)
    assert all(torch.equal(a, b) for a, b in zip(fixed, agent.mdp.base.parameters(), strict=True))


def test_it_trains_inside_dxmi() -> None:
    trainer = small(
        "dxmi", make_task("8gaussians-data", pretraining=PRETRAINING), agent="adjoint-matching",
        agent_settings={"n_trajectories": 32, "policy.width": 16},
    )  # fmt: skip
    assert isinstance(trainer, DxMI)
    trainer.learn(3 * trainer.timesteps_per_iteration)
    assert all(p.requires_grad for p in trainer.energy.parameters())


@pytest.mark.parametrize("settings", [{}, {"policy": {"energy_gradient": True}}, {"policy": {"kind": "fine-tuned"}}])
def test_costs_are_what_was_called(settings: dict[str, Any]) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = small("adjoint-matching", task, **settings)
    rows = {"energy": 0, "denoiser": 0}
    energy = task.target.energy

    def counted(x: Tensor) -> Tensor:
        rows["energy"] += len(x)
        return energy(x)

    agent.mdp.set_energy(counted)
    rows["energy"] = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        rows["denoiser"] += len(inputs[0])

    for base in (agent.mdp.base, agent.policy.base):
        base.denoiser.register_forward_hook(count)  # type: ignore[union-attr]
    agent.learn(2 * agent.timesteps_per_iteration)
    assert agent.costs.energy_evals == agent.costs.energy_grad_evals == rows["energy"]
    assert agent.costs.denoiser_calls == rows["denoiser"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"beta": 0.0}, "beta must be finite and > 0"),
        ({"beta": -1.0}, "beta must be finite and > 0"),
        ({"policy": {"state_dependent_sigma": True}}, "unknown setting .* 'policy.state_dependent_sigma'"),
        ({"policy.sigma_learning_rate": 1e-3}, "unknown setting .* 'policy.sigma_learning_rate'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_agent("adjoint-matching", "8gaussians", **settings)


def test_a_policy_that_learns_its_sigma_is_refused() -> None:
    """It is a PolicyConfig, which has all fields of a MeanConfig and more."""
    with pytest.raises(TypeError, match="policy must be a MeanConfig or a mapping"):
        make_agent("adjoint-matching", "8gaussians", policy=PolicyConfig())
    with pytest.raises(TypeError, match="policy must be a MeanConfig, whose sigma is the base sampler's"):
        AdjointMatchingConfig(policy=PolicyConfig())


def test_beta_is_the_tasks_tau_unless_that_is_zero() -> None:
    agent = small("adjoint-matching", make_task("8gaussians", tau=0.3))
    assert isinstance(agent, AdjointMatching) and agent.beta == 0.3
    cold = make_task("8gaussians", tau=0.0)
    with pytest.raises(ValueError, match=r"the task's tau, which is 0 here: pass beta="):
        small("adjoint-matching", cold)
    agent = small("adjoint-matching", cold, beta=0.5)
    agent.learn(agent.timesteps_per_iteration)
