"""Adjoint sampling: its reference in closed form, its target by Stein's identity, its replay and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AdjointSampling
from dxmi_rl.agents import adjoint_sampling as module
from dxmi_rl.agents.adjoint_sampling import GaussianReference
from dxmi_rl.targets import ManyWell
from dxmi_rl.tasks import Task

SMALL = {"n_trajectories": 16, "policy_steps": 4, "batch_size": 32, "width": 16, "depth": 2}


def adjoint_sampling(task: Task | str, **settings: object) -> AdjointSampling:
    agent = make_agent("adjoint-sampling", task, seed=0, **{**SMALL, **settings})
    assert isinstance(agent, AdjointSampling)
    return agent


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("base", ["ddpm", None])
def test_the_reference_reverses_the_noising_kernel(base: str | None) -> None:
    """r(x_t) r(x_{t+1} | x_t) = r(x_{t+1}) q(x_t | x_{t+1}) as joint Gaussians, and the slope of E[x_T | x_t]."""
    task = make_task("8gaussians", base=base, horizon=4)
    schedule, scale = task.mdp.base.schedule, 1.7
    reference, (a, v) = GaussianReference(schedule, scale), schedule.forward_kernel()
    variance = [scale**2]  # of x_T
    covariance = [scale**2]  # of x_t with x_T
    for t in reversed(range(4)):
        variance.insert(0, float(a[t] ** 2) * variance[0] + float(v[t]))
        covariance.insert(0, float(a[t]) * covariance[0])
        shared = float(a[t]) * variance[1]  # of x_t with x_{t+1}
        assert float(reference.shrink[t]) == pytest.approx(shared / variance[0])
        assert float(reference.sigma[t] ** 2) == pytest.approx(variance[1] - shared**2 / variance[0])
    for t in range(5):
        assert float(reference.expected[t]) == pytest.approx(covariance[t] / variance[t])
        assert float(reference.gain[t]) == pytest.approx(covariance[t] / scale**2)
        assert float(reference.std[t] ** 2) == pytest.approx(variance[t] - covariance[t] ** 2 / scale**2, abs=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_on_exact_samples_the_mean_target_is_the_mean_of_the_next_state(
    tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With E = tau x' P x / 2 + tau b' x, x_T ~ N(-b / P, 1 / P): the regression on x_t of the target and of x_{t+1},
    drawn from the noised chain, has the same intercept and slope.
    """
    monkeypatch.setattr(module, "LARGEST_SHIFT", math.inf)
    p, b = torch.tensor([2.0, 5.0]), torch.tensor([1.0, -2.0])
    energy = lambda x: tau * (0.5 * p * x**2 + b * x).sum(1)
    task = make_task("8gaussians", energy=energy, tau=tau, horizon=3)
    agent = adjoint_sampling(task)
    generator, n = torch.Generator().manual_seed(0), 400_000
    x = -b / p + torch.randn(n, 2, generator=generator) / p.sqrt()
    final, gradient = x, task.mdp.energy.gradient(x)
    a, v = task.mdp.base.schedule.forward_kernel()
    for t in reversed(range(3)):
        x_next = x
        x = a[t] * x_next + v[t].sqrt() * torch.randn(n, 2, generator=generator)
        target = agent.target(x, torch.full((n,), t), final, gradient)
        difference = target - x_next  # has no linear part in x_t
        for i in range(2):
            inputs = torch.stack([torch.ones(n), (x[:, i] - x[:, i].mean()) / x[:, i].std()], 1)
            parts = inputs * difference[:, i : i + 1]
            z = parts.mean(0) / (parts.std(0) / math.sqrt(n))
            assert float(z.abs().max()) < 4, (t, i, z)


def test_final_states_and_gradients_are_kept_and_asked_for_once() -> None:
    agent = adjoint_sampling("manywell32", replay=40)
    agent.learn(16 * 5 * 2)
    assert agent.costs.energy_evals == agent.costs.energy_grad_evals == 32 == len(agent.final)
    agent.learn(16 * 5, reset_num_timesteps=False)
    assert len(agent.final) == 40
    assert torch.allclose(agent.mdp.energy.gradient(agent.final), agent.gradient)


def test_when_the_energy_moves_old_gradients_go() -> None:
    agent = adjoint_sampling("8gaussians")
    agent.iterate()
    agent.iterate()
    assert len(agent.final) == 32
    agent.iterate(on_final=lambda x: None)
    assert len(agent.final) == 16


@pytest.mark.slow
def test_it_finds_the_wells() -> None:
    """On 2 pairs of wells it ends within 2 nats of log Z; its reference starts farther away."""
    task = make_task(ManyWell(pairs=2), horizon=20, backward="learned")
    agent = make_agent("adjoint-sampling", task, seed=0)

    def bound() -> float:
        x: Tensor = task.mdp.log_weights(agent.sample_trajectory(10_000, seed=1))
        assert task.target.log_z is not None
        return task.target.log_z - float(x.detach().mean())

    before = bound()
    agent.learn(100_000)
    assert bound() < 2.0 < before


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="needs the energy's gradient"):
        adjoint_sampling(make_task("8gaussians", energy=lambda x: torch.zeros(len(x))))
    with pytest.raises(ValueError, match="tau > 0"):
        adjoint_sampling(make_task("8gaussians", tau=0.0))
    for settings in ({"replay": 0}, {"width": 0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            adjoint_sampling("8gaussians", **settings)
