"""The replay buffer, local search, and the agents that train on what they give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import BATCH, same, small, state
from torch import Tensor

from dxmi_rl import make_task
from dxmi_rl.agents.gflownet import GFlowNet
from dxmi_rl.agents.policies import collect
from dxmi_rl.agents.replay import LocalSearch, ReplayBuffer
from dxmi_rl.costs import counting
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.targets import Target


@pytest.fixture(name="name", params=["trajectory-balance", "vargrad", "detailed-balance"])
def every_agent(request: pytest.FixtureRequest) -> str:
    return request.param


def agent_of(name: str, **settings: Any) -> GFlowNet:
    agent = small(name, **settings)
    assert isinstance(agent, GFlowNet)
    return agent


# The parts ------------------------------------------------------------------------------------------------------------


class Bell(Target):
    """N((1, -2), diag(0.5^2, 0.25^2))."""

    has_energy = True

    def __init__(self) -> None:
        super().__init__((2,), scale=1.0, plot_range=(-3.0, 3.0), smallest_scale=0.25)

    def _energy(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 0.25])).square().sum(1)


def bell(**changes: Any) -> DenoisingMDP:
    return make_task(Bell(), base=None, **changes).mdp


@pytest.mark.slow
@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_local_search_samples_the_tempered_target(tau: float) -> None:
    """4,000 chains from far away: means and variances of exp(-E / tau) within 4 standard errors."""
    mdp = bell(tau=tau)
    search, generator = LocalSearch(mdp.energy, tau, mdp.base.sigma[-1], 300), torch.Generator().manual_seed(0)
    x, energy = search(3 * torch.randn(4000, 2, generator=generator), generator)
    variance = tau * torch.tensor([0.25, 0.0625])
    z = (x.mean(0) - torch.tensor([1.0, -2.0])) / (variance / 4000).sqrt()
    spread = (x.var(0) / variance - 1) / math.sqrt(2 / 4000)
    assert float(z.abs().max()) < 4 and float(spread.abs().max()) < 4, (z, spread)
    assert torch.allclose(energy, mdp.energy(x))
    assert float(search.acceptance) == pytest.approx(0.574, abs=0.05), "the step size has found its rate"


def test_local_search_refuses_proposals_without_an_energy() -> None:
    mdp = bell()
    mdp.set_energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1), math.nan * x[:, 0]))
    search, generator = LocalSearch(mdp.energy, 1.0, mdp.base.sigma[-1], 50), torch.Generator().manual_seed(0)
    x, energy = search(torch.ones(200, 2), generator)
    assert bool((x[:, 0] > 0).all()) and bool(torch.isfinite(energy).all())
    assert bool(torch.isfinite(search.log_step))


def test_the_buffer_keeps_the_last_states_and_draws_by_rank() -> None:
    buffer, generator = ReplayBuffer(bell(), 100), torch.Generator().manual_seed(0)
    numbers = torch.arange(130.0)
    for rows in numbers.split(26):
        buffer.add(rows[:, None].expand(-1, 2), -rows)
    assert len(buffer) == 100
    assert sorted(buffer.x[:, 0].tolist()) == numbers[30:].tolist()
    drawn = buffer.energy[buffer.draw(200_000, generator)]
    weights = 1 / (0.01 * 100 + torch.arange(100.0))
    wanted = weights / weights.sum()
    found = torch.bincount((129 + drawn).round().long(), minlength=100) / 200_000  # rank 0 is the lowest energy
    error = (found - wanted) / (wanted / 200_000).sqrt()
    assert float(error.abs().max()) < 4.5


# In agents ------------------------------------------------------------------------------------------------------------


def test_replayed_paths_end_in_the_buffer_and_are_counted(name: str) -> None:
    warmup = {"warmup_iterations": 0} if name == "detailed-balance" else {}
    settings = {"buffer_size": 200, "replay_fraction": 0.6, "local_search_steps": 3, "local_search_every": 2, **warmup}
    agent = agent_of(name, **settings)
    assert agent.buffer is not None and agent.replayed == 48
    seen: list[Trajectory] = []
    original = agent.log_targets

    def spy(paths: Trajectory) -> tuple[Tensor, Tensor]:
        seen.append(paths)
        return original(paths)

    agent.log_targets = spy  # type: ignore[method-assign]
    with counting(agent.costs):
        agent.iterate()
        held = agent.buffer.x[:BATCH].clone()
        agent.iterate()
        agent.iterate()
    assert [paths.n for paths in seen] == [BATCH, BATCH + 48, BATCH + 48]
    assert torch.equal(held, seen[0].final)
    finals = seen[2].final[BATCH:]
    assert bool((finals[:, None] == agent.buffer.x).all(2).any(1).all())
    assert torch.allclose(agent.buffer.energy[:BATCH], agent.mdp.energy(held))
    # One local search, in iteration 2: (3 + 1) energies with gradient for each of the 32 chains.
    searched = 4 * BATCH
    assert agent.costs.timesteps == agent.costs.policy_draws == 3 * BATCH * 5
    assert agent.costs.energy_evals == 3 * BATCH + 2 * 48 + searched
    assert agent.costs.energy_grad_evals == searched
    assert agent.costs.denoiser_calls == (3 * BATCH + 2 * 48) * 5


def test_paths_of_both_kinds_are_joined_row_by_row(name: str) -> None:
    agent = agent_of(name)
    paths = collect(agent, agent.behaviour(), BATCH)
    back = agent.backwards(paths.final[:7])
    both = paths.cat(back)
    means, (x, _, t) = both.base_means(), both.transitions()
    assert means is not None
    assert torch.allclose(means, agent.policy.base_mean(x, t), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(agent.log_forward(back), back.log_prob, atol=1e-3)
    wanted = torch.cat([agent.log_forward(paths), agent.log_forward(back)], dim=1)
    assert torch.allclose(agent.log_forward(both), wanted, atol=1e-3)


def test_resuming_with_replay_equals_not_having_stopped(name: str, tmp_path: Path) -> None:
    settings = {"buffer_size": 100, "local_search_steps": 2, "local_search_every": 2}
    agent = agent_of(name, **settings)
    step, path = agent.timesteps_per_iteration, tmp_path / "half"
    agent.learn(7 * step, callback=lambda trained: trained.num_timesteps != 4 * step or trained.save(path) is not None)
    resumed = type(agent).load(path)
    resumed.learn(3 * step, reset_num_timesteps=False)
    assert same(state(agent), state(resumed))
    first, second = agent.extra_tensors(), resumed.extra_tensors()
    assert first.keys() == second.keys() and {"replay/x", "local_search/log_step"} <= first.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
