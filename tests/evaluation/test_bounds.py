"""ELBO <= log Z <= EUBO for every agent with a density on every target with a known log Z.

Both are means of log w over draws, so what is asserted holds up to three standard errors of these means, which the
weights say themselves. EUBO's log w is heavy-tailed where a policy is narrow and then its standard error large, up to
many nats: the assertion stays true and says little there; on 8 Gaussians the errors are bounded, too. A policy that
squashes its actions cannot reach every state: its EUBO is infinite, and ``evaluate`` gives none.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from agent_cases import skip_without_extra, small

from dxmi_rl import evaluate, list_agents, make_agent, make_task
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.evaluation import fit_kernel
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.evaluation.metrics import eubo, log_weight_errors, log_weight_statistics
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import TASKS, Task, reference_target
from dxmi_rl.utils.torch_tools import seeded

TARGETS = ["8gaussians", "gmm9", "gmm25", "gmm40", "funnel10", "manywell32", "mos10"]
TRAJECTORIES = 4_000
ITERATIONS = 3


@functools.cache
def shared(target: str) -> Task:
    """One task per target; every test works on a copy."""
    with seeded(0):
        return make_task(target, backward="learned")


def trained(name: str, target: str) -> Agent:
    """A small agent after three iterations, or a skip with the reason why there is none."""
    skip_without_extra(name)
    task = copy.deepcopy(shared(target))
    if name == "dxmi" and not task.target.has_sampler:
        pytest.skip("imitates data, which the sample track does not give")
    agent = small(name, task)
    if agent.trains:
        agent.learn(ITERATIONS * agent.timesteps_per_iteration)
    if not agent.has_density:
        pytest.skip("has no density")
    return agent


def scored(agent: Agent) -> DenoisingMDP:
    """The MDP with the target's own energy, which DxMI has replaced by the one that it learns."""
    mdp = copy.deepcopy(agent.mdp)
    mdp.set_energy(agent.task.target.energy)
    return mdp


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in list_agents() if not AGENTS[name].needs_denoiser])
@torch.no_grad()
def test_elbo_and_eubo_enclose_log_z(name: str, target: str) -> None:
    with torch.enable_grad():
        agent = trained(name, target)
    mdp, exact = scored(agent), reference_target(TASKS[target])
    log_z = exact.log_z
    assert log_z is not None
    log_w = mdp.log_weights(agent.sample_trajectory(TRAJECTORIES, seed=1))
    found, errors = log_weight_statistics(log_w), log_weight_errors(log_w)
    assert found["elbo"] <= log_z + 3 * errors["elbo_se"], (found, errors, log_z)
    assert found["elbo"] <= found["log_z"]
    if not exact.has_sampler:
        return
    generator = torch.Generator().manual_seed(2)
    samples = exact.sample(TRAJECTORIES, generator)
    density = agent.density()
    if getattr(density, "squashed", None) is not None:
        return
    log_w = mdp.log_weights(mdp.backward_rollout(density, samples, generator))
    upper, error = eubo(log_w), log_weight_errors(log_w)["elbo_se"]
    assert upper >= log_z - 3 * error, (upper, error, log_z)


def test_an_infinite_eubo_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the backward kernel throws single chains so far that the policy never starts there."""
    agent = make_agent("base", "8gaussians", seed=0)
    kind = type(agent.mdp.kernel)
    sample = kind.sample

    def far(self: Any, x_next: torch.Tensor, t: int, generator: torch.Generator | None = None) -> torch.Tensor:
        x = sample(self, x_next, t, generator)
        x[:3] *= 1e30
        return x

    monkeypatch.setattr(kind, "sample", far)
    with pytest.warns(UnreliableScoresWarning, match="eubo is infinite or no number: 3 of 100 chains"):
        scores = evaluate(agent, fit=False, samples=100, trajectories=100, draws=1)
    assert "eubo" not in scores and "kl_bound" in scores


@pytest.mark.slow
def test_the_bounds_are_sharp_enough_to_fail() -> None:
    """On 8 Gaussians, an energy that is wrong by one nat would be seen in either bound of a policy that is good."""
    agent = small(
        "ppo", make_task("8gaussians", horizon=8), policy={"width": 32}, value={"width": 32}, n_trajectories=256
    ).learn(150_000)
    mdp = copy.copy(agent.mdp)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        mdp.kernel = fit_kernel(mdp, agent.policy, steps=300)
        below = mdp.log_weights(agent.sample_trajectory(20_000, seed=1))
        chains = mdp.backward_rollout(agent.policy, agent.task.target.sample(20_000, generator), generator)
        above = mdp.log_weights(chains)
    bounds = [(float(log_w.mean()), log_weight_errors(log_w)["elbo_se"]) for log_w in (below, above)]
    (elbo, low_error), (upper, high_error) = bounds
    assert -1 + 3 * low_error < elbo <= 3 * low_error, bounds
    assert -3 * high_error <= upper < 1 - 3 * high_error, bounds


@pytest.mark.parametrize("name", [name for name in list_agents() if name.endswith("sac")])
def test_squashed_policies_have_no_eubo(name: str) -> None:
    agent = trained(name, "8gaussians")
    scores = evaluate(agent, fit=False, floors=False, samples=200, draws=1, trajectories=200)
    assert "elbo" in scores and "eubo" not in scores
    assert isinstance(scores["elbo"], float) and math.isfinite(scores["elbo"])
