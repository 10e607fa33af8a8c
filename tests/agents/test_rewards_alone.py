"""Agents that follow the reward alone: DRaFT's gradient and its truncation, and the best of N."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import BestOfN, DRaFT
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.utils.registry import UnknownNameError


def pull(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0]


def rewarded(**settings: Any) -> Any:
    return make_task("8gaussians", reward=pull, backward="base", horizon=4, **settings)


def gradients(agent: Any, steps: int) -> list[torch.Tensor]:
    """Of the mean energy of one rollout through the last steps alone, by hand."""
    policy, mdp, generator = agent.policy, agent.mdp, torch.Generator().manual_seed(3)
    x = mdp.reset(32, generator)
    for t in range(4):
        if t == 4 - steps:
            x = x.detach()
        mean, log_std = policy.moments(x, t)
        x = mean + log_std.exp() * torch.randn(x.shape, generator=generator)
    return list(torch.autograd.grad(-pull(x).mean() / 4, policy.mean_parameters(), allow_unused=True))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_drafts_gradient_is_that_of_the_last_steps(steps: int) -> None:
    agent = make_agent("draft", rewarded(), seed=0, last_steps=steps, n_trajectories=32)
    assert isinstance(agent, DRaFT)
    with torch.no_grad():
        for parameter in agent.policy.mean_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    path = agent._path(steps)
    trajectory = agent.mdp.rollout(path, 32, torch.Generator().manual_seed(3), differentiable=True)
    found = torch.autograd.grad(path.loss(trajectory), agent.policy.mean_parameters(), allow_unused=True)
    for ours, wanted in zip(found, gradients(agent, steps), strict=True):
        assert (ours is None) == (wanted is None)
        assert ours is None or torch.allclose(ours, wanted, atol=1e-6)


def test_random_lengths_are_all_drawn_and_go_on_after_a_checkpoint(tmp_path: Any, monkeypatch: Any) -> None:
    drawn = []
    path_of = DRaFT._path
    monkeypatch.setattr(DRaFT, "_path", lambda self, steps: (drawn.append(steps), path_of(self, steps))[1])
    task = make_task("8gaussians-tilted", horizon=4)
    agent = make_agent("draft", task, seed=0, last_steps="random", n_trajectories=8, anneal=False)
    drawn.clear()
    agent.learn(30 * agent.timesteps_per_iteration)
    assert set(drawn) == {1, 2, 3, 4}
    agent.save(tmp_path / "agent.safetensors")
    again = DRaFT.load(tmp_path / "agent.safetensors")
    for one in (agent, again):
        one.learn(5 * one.timesteps_per_iteration, reset_num_timesteps=False)
    assert torch.equal(agent.sample(5, seed=0), again.sample(5, seed=0))


def test_drafts_settings_are_checked() -> None:
    cases: list[tuple[Any, type[Exception], str]] = [
        (0, ValueError, "last_steps must be >= 1"), (5, ValueError, r"last_steps must lie in 1\.\.4"),
        ("all", UnknownNameError, "random"), (1.5, TypeError, "last_steps"),
    ]  # fmt: skip
    for steps, error, text in cases:
        with pytest.raises(error, match=text):
            make_agent("draft", rewarded(), last_steps=steps)
    with pytest.raises(EnergyError, match="gradient"):
        make_agent("draft", rewarded(differentiable=False)).learn(100)


def test_the_best_of_n_is_the_largest_of_n() -> None:
    """The distribution function of the largest of N is the N-th power; 1 / (N + 1) of the base's samples exceed it."""
    task = rewarded()
    best = make_agent("best-of-n", task, seed=0, choices=4)
    assert isinstance(best, BestOfN) and best.denoiser_calls == 16
    ours = pull(best.sample(20_000, seed=1)).contiguous()
    base = pull(make_agent("base", task).sample(20_000, seed=2)).contiguous().sort()[0]
    ranks = torch.searchsorted(base, ours) / len(base)
    assert float(ranks.mean()) == pytest.approx(4 / 5, abs=0.01)
    assert float((ranks < 0.5).float().mean()) == pytest.approx(0.5**4, abs=0.01)


@pytest.mark.parametrize("choices", [2, 8])
def test_the_best_of_ns_divergence_is_what_its_page_says(choices: int) -> None:
    """log N - (N - 1) / N: the mean log-density over the base's, log(N u^(N - 1)) with u its share of smaller ones."""
    task = rewarded()
    best = make_agent("best-of-n", task, seed=0, choices=choices)
    base = pull(make_agent("base", task).sample(200_000, seed=2)).contiguous().sort()[0]
    shares = (torch.searchsorted(base, pull(best.sample(20_000, seed=1)).contiguous()) + 0.5) / (len(base) + 1)
    found = float((math.log(choices) + (choices - 1) * shares.log()).mean())
    assert found == pytest.approx(math.log(choices) - (choices - 1) / choices, abs=0.03)


@pytest.mark.parametrize("steps", [1, "random"])
def test_draft_raises_the_reward(steps: int | str) -> None:
    task = rewarded()
    agent = make_agent("draft", task, seed=0, last_steps=steps).learn(15_000)
    before, after = (float(pull(one.sample(2000, seed=1)).mean()) for one in (make_agent("base", task), agent))
    assert after > before + 0.5


def test_best_of_ns_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="choices must be >= 1"):
        make_agent("best-of-n", rewarded(), choices=0)
    with pytest.raises(TypeError, match="has no density"):
        make_agent("best-of-n", rewarded()).sample_trajectory(4)
