"""Networks for particles: what turns along, what stays, and the agents that have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dxmi_rl import make_agent, make_target, make_task
from dxmi_rl.agents.policies import CorrectionPolicy
from dxmi_rl.networks import ParticleMLP, StepMLP
from dxmi_rl.targets import TARGETS, ParticleTarget
from dxmi_rl.tasks import Task

Move = Callable[[Tensor], Tensor]
"""Positions ``[n, N, d]`` to positions."""


def particle_targets() -> list[str]:
    return [name for name in TARGETS.names() if isinstance(make_target(name), ParticleTarget)]


def moves(target: ParticleTarget) -> dict[str, Move]:
    """A rotation, a reflection and a permutation."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(target.space, target.space, generator=generator))
    turn[0] *= torch.det(turn).sign()
    mirror = torch.ones(target.space)
    mirror[0] = -1
    order = torch.randperm(target.particles, generator=generator)
    return {"turn": lambda x: x @ turn, "mirror": lambda x: x * mirror, "permute": lambda x: x[:, order]}


def shaken(module: torch.nn.Module) -> None:
    """Away from the zero start."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def drawn(target: ParticleTarget, n: int) -> Tensor:
    """Coordinates about as wide as the target's."""
    return target.scale * torch.randn(n, *target.event_shape, generator=torch.Generator().manual_seed(2))


def moved(target: ParticleTarget, move: Move, y: Tensor) -> Tensor:
    return target.coordinates(move(target.positions(y)))


def particle_task(name: str) -> tuple[Task, ParticleTarget]:
    task = make_task(name, horizon=3, backward="learned")
    assert isinstance(task.target, ParticleTarget)
    return task, task.target


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", particle_targets())
@pytest.mark.parametrize(("inputs", "outputs", "depth"), [(1, 1, 1), (1, 2, 2), (3, 3, 3)])
def test_vectors_turn_along_and_numbers_stay(name: str, inputs: int, outputs: int, depth: int) -> None:
    target = make_target(name)
    assert isinstance(target, ParticleTarget)
    size = target.event_shape[0]
    network = ParticleMLP(
        (target.particles, target.space), inputs, outputs, target.scale * torch.tensor([2.0, 1.0]), width=8, depth=depth
    )
    shaken(network)
    y = drawn(target, 5 * inputs).view(5, inputs, size)
    found = network(y.flatten(1), 1)
    torch.testing.assert_close(network(y.flatten(1), torch.ones(5, dtype=torch.long)), found)
    assert not torch.allclose(network(y.flatten(1), 0), found)
    for move in moves(target).values():
        there = network(torch.stack([moved(target, move, part) for part in y.unbind(1)], 1).flatten(1), 1)
        torch.testing.assert_close(there[:, :size], moved(target, move, found[:, :size]))
        torch.testing.assert_close(there[:, size:], found[:, size:])
    numbers = found[:, size:].view(5, outputs - 1, size)
    assert (numbers == numbers[:, :, :1]).all(), "the same for every coordinate"
    assert float(found[:, :size].detach().std()) > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", particle_targets())
@pytest.mark.parametrize("agent_name", ["ppo", "dxdp"])
def test_policies_turn_along_and_values_stay(name: str, agent_name: str) -> None:
    """Also where the gradient of E or V is an input, and is clipped."""
    task, target = particle_task(name)
    agent = make_agent(agent_name, task, seed=0)
    policy = agent.policy
    assert isinstance(policy, CorrectionPolicy) and isinstance(policy.net, ParticleMLP) and policy.sees_gradient
    shaken(policy.net)
    shaken(agent.value)  # type: ignore[attr-defined]
    y = drawn(target, 6)
    mean, log_std = policy.moments(y, 1)
    value = agent.value(y, 1)  # type: ignore[attr-defined]
    assert not torch.allclose(mean, task.mdp.base.mean(y, 1), atol=1e-3)
    for move in moves(target).values():
        there = moved(target, move, y)
        mean_there, log_std_there = policy.moments(there, 1)
        torch.testing.assert_close(mean_there, moved(target, move, mean), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(log_std_there, log_std, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(agent.value(there, 1), value, rtol=1e-6, atol=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", particle_targets())
def test_a_policy_starts_as_the_base_sampler(name: str) -> None:
    task, target = particle_task(name)
    y = drawn(target, 4)
    mean, log_std = make_agent("ppo", task, seed=0).policy.moments(y, 1)
    torch.testing.assert_close(mean, task.mdp.base.mean(y, 1))
    torch.testing.assert_close(log_std.exp().expand_as(y), task.mdp.base.sigma[1].expand_as(y))


@pytest.mark.usefixtures("float64")
def test_the_gradient_of_a_value_is_a_vector_that_turns_along() -> None:
    task, target = particle_task("dw4")
    value = make_agent("dxdp", task, seed=0).value  # type: ignore[attr-defined]
    y = drawn(target, 4)

    def slope(y: Tensor) -> Tensor:
        y = y.clone().requires_grad_()
        (found,) = torch.autograd.grad(value(y, 2).sum(), y)
        return found

    for move in moves(target).values():
        torch.testing.assert_close(slope(moved(target, move, y)), moved(target, move, slope(y)))


def test_particles_in_one_place_have_finite_gradients() -> None:
    network = ParticleMLP((4, 2), 2, 2, torch.ones(3), width=8)
    x = torch.zeros(2, 12, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x, 0).square().sum(), x)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(
    "settings", [{"policy.coordinate_width": 8}, {"value.depth": 2}, {"policy.fourier": 2}, {"value.residual": True}]
)
def test_settings_of_perceptrons_are_refused(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=rf"{name} changes nothing for particles"):
        make_agent("ppo", "dw4", **settings)
    if name.startswith("value"):
        with pytest.raises(ValueError, match=rf"{name} changes nothing for particles"):
            make_agent("vgs", "dw4", **settings)
    if name == "policy.fourier":
        with pytest.raises(ValueError, match="fourier changes nothing for particles"):
            make_agent("adjoint-sampling", "dw4", fourier=2)
    make_agent("ppo", "manywell32", **settings)
    make_agent("ppo", "dw4", **{"policy.width": 8, "value.width": 8})
    with pytest.raises(ValueError, match=r"value\.convolutional changes nothing for particles"):
        make_agent("ppo", "dw4", **{"value.convolutional": True, "value.fourier": 0})


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("depth", [1, 3])
def test_pooled_numbers_stay(depth: int) -> None:
    target = make_target("dw4")
    assert isinstance(target, ParticleTarget)
    network = ParticleMLP((4, 2), 1, 2, torch.ones(1), width=8, depth=depth, pooled=True)
    shaken(network)
    y = drawn(target, 5)
    for move in moves(target).values():
        torch.testing.assert_close(network(moved(target, move, y), 0), network(y, 0))


@pytest.mark.parametrize(("name", "setting"), [("ppo", "policy.depth"), ("adjoint-sampling", "depth")])
def test_the_depth_of_a_policy_is_its_number_of_rounds(name: str, setting: str) -> None:
    for depth in (1, 2):
        policy = make_agent(name, "dw4", **{setting: depth}).policy
        assert isinstance(policy, CorrectionPolicy) and isinstance(policy.net, ParticleMLP)
        assert len(policy.net.rounds) == depth


def test_a_soft_clip_keeps_what_is_small_and_never_passes_its_limit() -> None:
    x = torch.tensor([0.0, 0.01, -3.0, 4.0, 1e30, -1e30])
    wanted = torch.tensor([0.0, 0.01, -3 / 2**0.5, 12 / 5, 3.0, -3.0])
    assert torch.allclose(StepMLP.soft_clip(x, 3.0), wanted, rtol=1e-4)
    target = make_target("dw4")
    assert isinstance(target, ParticleTarget)
    network = ParticleMLP((4, 2), 1, 1, torch.ones(1), width=8, pooled=True)
    small = 1e-3 * drawn(target, 5)
    torch.testing.assert_close(network.soft_clip(small, 3.0), small)
    large = target.positions(network.soft_clip(1e6 * drawn(target, 5), 3.0))
    torch.testing.assert_close(target.positions(network.soft_clip(1e30 * drawn(target, 5), 3.0)), large)
    assert float(large.norm(dim=-1).max()) < 6, "taking the mean away moves each by less than the limit"
