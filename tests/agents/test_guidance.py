"""Value guidance: the moves by hand, and that they lead to where values are low."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_cases import small
from torch import Tensor

from dxmi_rl import make_task
from dxmi_rl.agents import DxDP
from dxmi_rl.agents.guidance import GuidedPolicy
from dxmi_rl.irl import DxMI


def dxdp() -> DxDP:
    agent = small("dxdp", make_task("8gaussians", horizon=3))
    assert isinstance(agent, DxDP)
    for _ in range(2):
        agent.iterate()
    return agent


def test_every_state_moves_down_its_value() -> None:
    agent, weight = dxdp(), 0.3
    generator = torch.Generator().manual_seed(5)
    x = agent.mdp.reset(16, generator)
    for t in range(3):
        noise = torch.randn(16, 2, generator=generator)
        mean, log_std = agent.policy.moments(x, t)
        point = (mean + log_std.exp() * noise).detach().requires_grad_()
        value = agent.values(point, t + 1) if t < 2 else agent.task.target.energy(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
        x = (point - weight * log_std.exp() * slope).detach()
    torch.testing.assert_close(agent.sample(16, seed=5, guidance=weight), x)


def test_without_guidance_nothing_changes() -> None:
    agent = dxdp()
    assert torch.equal(agent.sample(16, seed=5), agent.sample(16, seed=5, guidance=0.0))
    assert torch.equal(agent.sample(16, seed=5), agent.mdp.sample(agent.policy, 16, torch.Generator().manual_seed(5)))
    assert not torch.equal(agent.sample(16, seed=5), agent.sample(16, seed=5, guidance=0.1))


def test_guidance_lowers_the_energy() -> None:
    agent = dxdp()

    def height(x: Tensor, t: int) -> Tensor:
        return agent.task.target.energy(x)

    means = []
    for weight in (0.0, 0.1, 0.3):
        x = agent.mdp.sample(GuidedPolicy(agent.policy, height, weight), 2000, torch.Generator().manual_seed(0))
        means.append(float(agent.task.target.energy(x).mean()))
    assert means[0] > means[1] > means[2]


def test_guidance_leaves_no_gradients_and_the_agents_own_stream_is_one() -> None:
    agent = dxdp()
    for parameter in [*agent.value.parameters(), *agent.policy.parameters()]:
        parameter.grad = None
    x = agent.sample(4, guidance=0.2)
    assert all(p.grad is None for p in [*agent.value.parameters(), *agent.policy.parameters()])
    assert not torch.equal(x, agent.sample(4, guidance=0.2))


def test_what_is_guided_has_no_density() -> None:
    agent = dxdp()
    policy = agent.guided(0.1)
    x, log_prob = policy.transport(torch.zeros(4, 2), 0, torch.ones(4, 2))
    assert log_prob.shape == (4,)
    with pytest.raises(TypeError, match="no density"):
        policy.log_prob(torch.zeros(4, 2), x, 0)


@pytest.mark.parametrize("name", ["dxdp", "dxdp-paper"])
def test_dxmi_guides_its_averaged_policy(name: str) -> None:
    model = small("dxmi", make_task("8gaussians"), agent=name)
    assert isinstance(model, DxMI)
    model.iterate()
    inner: Any = model.agent

    def value(x: Tensor, t: int) -> Tensor:
        return model.average_energy(x) if t == 5 else inner.value(x, t)

    wanted = model.mdp.sample(GuidedPolicy(model.policy, value, 0.5), 8, torch.Generator().manual_seed(1))
    assert torch.equal(model.sample(8, seed=1, guidance=0.5), wanted)


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_weights_that_cannot_be(weight: float) -> None:
    with pytest.raises(ValueError, match="guidance must be finite and >= 0"):
        dxdp().sample(4, guidance=weight)


def test_an_inner_agent_without_soft_values_cannot_guide() -> None:
    model = small("dxmi", make_task("8gaussians"), agent="ppo")
    assert isinstance(model, DxMI)
    with pytest.raises(ValueError, match="only 'dxdp' and 'dxdp-paper' learn soft values"):
        model.sample(4, guidance=0.1)
