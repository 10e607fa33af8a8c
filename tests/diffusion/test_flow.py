"""Rectified flow: its schedule, its stochastic sampler, and networks that predict a velocity or are told sigma."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dxmi_rl import make_agent, make_task
from dxmi_rl.diffusion import EDMDenoiser, FlowSDE, MixtureDenoiser, ReverseSampler, VelocityDenoiser, make_schedule
from dxmi_rl.targets import GaussianMixture, make_target


def mixture() -> GaussianMixture:
    target = make_target("8gaussians")
    assert isinstance(target, GaussianMixture)
    return target


class Velocity(nn.Module):
    """The exact E[eps - x_clean | x_u] of a mixture, told ``scale`` u."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.denoiser, self.scale = MixtureDenoiser(mixture()), scale

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        u = u / self.scale
        clean = self.denoiser(x, 1 - u, u)
        return (x - clean) / u[:, None]


class Preconditioned(nn.Module):
    """A network of EDM with three classes; class k shifts the answer by k."""

    def __init__(self, label_dim: int = 0) -> None:
        super().__init__()
        self.denoiser, self.label_dim = MixtureDenoiser(mixture()), label_dim

    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor | None = None) -> Tensor:
        found: Tensor = self.denoiser(x, torch.ones_like(sigma), sigma)
        return found if classes is None else found + classes @ torch.arange(3.0)[:, None]


def states() -> Tensor:
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def test_levels() -> None:
    schedule = make_schedule("flow", 4, s_max=0.8)
    torch.testing.assert_close(schedule.s, torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0]))
    torch.testing.assert_close(schedule.alpha + schedule.s, torch.ones(5))
    assert schedule.start_std == pytest.approx((0.8**2 + 0.2**2) ** 0.5)
    shifted = make_schedule("flow", 4, s_max=0.8, shift=3.0)
    torch.testing.assert_close(shifted.s, 3 * schedule.s / (1 + 2 * schedule.s))
    for s_max in (1.0, 1.5):
        with pytest.raises(ValueError, match="s_max must lie"):
            make_schedule("flow", 4, s_max=s_max)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("t", range(4))
def test_steps_are_eulers_of_the_published_equation(t: int) -> None:
    """x - d [v + g^2 / (2 s) (x + (1 - s) v)] and g sqrt(d), from the velocity."""
    schedule, x, eta = make_schedule("flow", 5), states(), 0.7
    sampler = FlowSDE(schedule, MixtureDenoiser(mixture()), eta=eta, sigma_last=0.1)
    s, step = schedule.s[t], schedule.s[t] - schedule.s[t + 1]
    velocity, squared = Velocity()(x, s.expand(len(x))), eta**2 * s / (1 - s)
    wanted = x - step * (velocity + squared / (2 * s) * (x + (1 - s) * velocity))
    torch.testing.assert_close(sampler.mean(x, t), wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(sampler.mean(x, torch.full((50,), t)), wanted, atol=1e-9, rtol=0)
    assert float(sampler.sigma[t]) == pytest.approx(float((squared * step).sqrt()))
    assert float(sampler.sigma[-1]) == 0.1


@pytest.mark.usefixtures("float64")
def test_without_noise_it_is_ddim() -> None:
    schedule, denoiser = make_schedule("flow", 5), MixtureDenoiser(mixture())
    ours, ddim = (kind(schedule, denoiser, eta=0.0, sigma_last=0.0) for kind in (FlowSDE, ReverseSampler))
    for t in range(5):
        torch.testing.assert_close(ours.mean(states(), t), ddim.mean(states(), t))
    assert ours.deterministic


def test_many_steps_reach_the_target() -> None:
    task = make_task("8gaussians", schedule="flow", base="flow-sde", eta=0.7, horizon=200, schedule_options={})
    x, exact = make_agent("base", task).sample(4000, seed=0), task.target.sample(4000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(x.norm(dim=1).mean(), exact.norm(dim=1).mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(x.square().mean(0), exact.square().mean(0), atol=0.05, rtol=0)


@pytest.mark.parametrize("time_scale", [1.0, 1000.0])
@pytest.mark.parametrize("level", [(0.3, 0.7), (0.9, 2.0), (torch.full((50,), 0.5), torch.full((50,), 1.5))])
def test_a_velocity_is_a_denoiser_at_any_level(level: tuple[Any, Any], time_scale: float) -> None:
    alpha, s = level
    denoiser = VelocityDenoiser(Velocity(time_scale), time_scale=time_scale)
    torch.testing.assert_close(
        denoiser(states(), alpha, s), MixtureDenoiser(mixture())(states(), alpha, s), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("level", [(0.3, 0.7), (torch.full((50,), 0.5), torch.full((50,), 1.5))])
def test_a_network_of_edm_is_a_denoiser(level: tuple[Any, Any]) -> None:
    alpha, s = level
    exact = MixtureDenoiser(mixture())(states(), alpha, s)
    torch.testing.assert_close(EDMDenoiser(Preconditioned())(states(), alpha, s), exact, atol=1e-4, rtol=0)
    told = EDMDenoiser(Preconditioned(3), label=2)(states(), alpha, s)
    torch.testing.assert_close(told, exact + 2, atol=1e-4, rtol=0)


def test_agents_fine_tune_a_velocity() -> None:
    task = make_task("8gaussians", denoiser=VelocityDenoiser(Velocity()), schedule="flow", base="flow-sde", eta=0.7)
    agent = make_agent("ppo", task, n_trajectories=16).learn(160)
    assert agent.sample(5, seed=0).shape == (5, 2)
    several = make_task("8gaussians", schedule="flow", horizon=(1, 2, 4))
    assert several.at(3).mdp.start_std == several.mdp.start_std


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="schedule must be 'flow'"):
        make_task("8gaussians", base="flow-sde", eta=0.7)
    for number, label in ((0, 0), (3, 3), (3, None)):
        with pytest.raises(ValueError, match="label must be a class of the network"):
            EDMDenoiser(Preconditioned(number), label=label)
    with pytest.raises(ValueError, match="time_scale must"):
        VelocityDenoiser(Velocity(), time_scale=0.0)
