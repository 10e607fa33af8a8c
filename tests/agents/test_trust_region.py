"""The trust region of policy updates: what a step may change, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agent_cases import skip_without_extra, small

from dxmi_rl import make_task
from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.policies import CorrectionPolicy, collect
from dxmi_rl.agents.reinforce import RADIUS as REINFORCE_RADIUS
from dxmi_rl.agents.trust_region import GUARD, limited_step, trust_region
from dxmi_rl.agents.trust_region import RADIUS as PATHS_RADIUS
from dxmi_rl.agents.wrapped.library import ROLLOUT_RADIUS

RADIUS = 5e-4


def step_of(agent: Agent[Any], size: float) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The divergence of a random step of that size inside the region, over its radius, and weights: made, wanted."""
    policy = agent.policy
    assert isinstance(policy, CorrectionPolicy)
    torch.manual_seed(0)
    trajectory = collect(agent, policy, 32, None)
    with torch.no_grad():
        old = policy.moments_along(trajectory)
        with trust_region(policy, trajectory, RADIUS):
            for parameter in policy.parameters():
                parameter.add_(size * torch.randn_like(parameter))
            wanted = {name: parameter.clone() for name, parameter in policy.named_parameters()}
        divergence = ops.gaussian_kl(policy.moments_along(trajectory), old).mean()
    return float(divergence) / RADIUS, dict(policy.named_parameters()), wanted


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_a_long_step_is_shortened_to_the_radius(size: float) -> None:
    """The divergence is quadratic up to higher orders of the step."""
    divergence, made, wanted = step_of(small("vargrad", make_task("gmm25", base=None, horizon=5)), size)
    assert 0.5 < divergence < 1.5
    assert not any(torch.equal(made[name], wanted[name]) for name in made)


def test_a_short_step_is_left_as_it_is() -> None:
    divergence, made, wanted = step_of(small("vargrad"), 1e-5)
    assert divergence < 1 and all(torch.equal(made[name], wanted[name]) for name in made)


@torch.no_grad()
def moments_of(agent: Agent[Any], x: torch.Tensor, t: torch.Tensor) -> ops.Moments:
    """Those of the policy of another library."""
    density: Any = agent.density()
    return density.moments(x, t)


@pytest.mark.parametrize("name", ["sb3-a2c", "sb3-ppo", "torchrl-ppo"])
def test_the_actors_of_other_libraries_are_held_back(name: str) -> None:
    """At a large rate, all updates on a rollout together change the policy by about ROLLOUT_RADIUS."""
    skip_without_extra(name)
    agent: Agent[Any] = small(name, make_task("manywell32", horizon=10), learning_rate=0.02)
    x, _, t = agent.mdp.rollout(agent.density(), 32, agent.generator).transitions()
    old = moments_of(agent, x, t)
    agent.iterate()
    assert 0.2 < float(ops.gaussian_kl(moments_of(agent, x, t), old).mean()) / ROLLOUT_RADIUS < 3


def test_a_change_of_log_sigma_alone_counts() -> None:
    """The part of the way that the divergence of its end gives, as a quadratic function; the moment is the parameter
    itself, which changes in place.
    """
    log_sigma = torch.zeros(4, 3)
    with limited_step([log_sigma], lambda: (torch.zeros(4, 3), log_sigma), RADIUS):
        log_sigma.add_(0.5)
    divergence = 3 * ((math.exp(2 * 0.5) - 1) / 2 - 0.5)  # KL(new || old) of three coordinates
    torch.testing.assert_close(log_sigma, torch.full((4, 3), 0.5 * math.sqrt(RADIUS / divergence)))


STEPS = [
    ("a2c", {}, GUARD),
    ("ppo", {"n_epochs": 2, "n_minibatches": 3}, GUARD / 6),
    ("sft-pg", {"n_minibatches": 3}, GUARD / 9),
    ("dxdp", {"policy_steps": 4, "warmup_iterations": 0}, GUARD / 4),
    ("dxdp-paper", {"policy_steps": 4}, GUARD / 4),
    ("vargrad", {"n_trajectories": 16, "buffer_size": 0}, PATHS_RADIUS * 16),
]


@pytest.mark.parametrize(("name", "settings", "radius"), STEPS, ids=[name for name, *_ in STEPS])
def test_several_steps_on_a_rollout_share_the_radius(
    name: str, settings: dict[str, Any], radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def noted(parameters: Any, moments: Any, radius: float) -> Any:
        seen.append(radius)
        return limited_step(parameters, moments, radius)

    monkeypatch.setattr("dxmi_rl.agents.trust_region.limited_step", noted)
    small(name, make_task("gmm25", horizon=5, base=None), **settings).iterate()
    assert seen == pytest.approx([radius] * len(seen)) and len(seen) > 0


def change_in_an_iteration(name: str, base: str | None, settings: dict[str, Any]) -> float:
    """Mean KL(new || old) of the policy over states of its rollouts."""
    task = make_task("gmm25", horizon=5, base=base)
    agent: Agent[Any] = small(name, task, **{"policy.learning_rate": 0.3, **settings})
    trajectory = agent.mdp.rollout(agent.policy, 64, agent.generator)
    policy: Any = agent.policy
    with torch.no_grad():
        old = [moment.clone() for moment in policy.moments_along(trajectory)]
    agent.iterate()
    with torch.no_grad():
        return float(ops.gaussian_kl(policy.moments_along(trajectory), (old[0], old[1])).mean())


POLICY_GRADIENT = [
    ("a2c", GUARD, {}),
    ("reinforce", REINFORCE_RADIUS, {}),
    ("dxdp", GUARD, {"policy_steps": 1, "warmup_iterations": 0}),
    ("dxdp-paper", GUARD, {"policy.learning_rate": 0.5}),
]


@pytest.mark.parametrize(("name", "radius", "settings"), POLICY_GRADIENT, ids=[name for name, *_ in POLICY_GRADIENT])
def test_policy_steps_are_held_back_from_scratch(name: str, radius: float, settings: dict[str, Any]) -> None:
    """At a large rate, the step on a rollout changes the policy by about the radius."""
    assert 0.2 < change_in_an_iteration(name, None, settings) / radius < 3


@pytest.mark.parametrize(("name", "radius", "settings"), POLICY_GRADIENT, ids=[name for name, *_ in POLICY_GRADIENT])
def test_policy_steps_on_a_base_sampler_are_free(name: str, radius: float, settings: dict[str, Any]) -> None:
    """Where the policy corrects a pretrained sampler, the step is the optimizer's."""
    assert change_in_an_iteration(name, "ddpm", settings) / radius > 3


def test_a_step_to_no_numbers_is_not_made_into_a_small_one() -> None:
    """Weights that are NaN stay visible, so that training steps back."""
    agent = small("vargrad")
    trajectory = collect(agent, agent.policy, 32, None)
    with torch.no_grad(), trust_region(agent.policy, trajectory, RADIUS):
        agent.policy.log_sigma.fill_(torch.nan)
    assert bool(agent.policy.log_sigma.isnan().all())
