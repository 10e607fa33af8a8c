"""Costs: every call is counted once, where it is made, by the innermost counter; evaluation and sampling are not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from agent_cases import small, task_for
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dxmi_rl import fast_rollout, make_agent, make_task
from dxmi_rl.agents.policies import CorrectionPolicy
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.costs import Costs, count_denoiser, count_draws, count_energy, counting
from dxmi_rl.live_energy import LiveEnergy
from dxmi_rl.mdp import DenoisingMDP

N = 6


@pytest.fixture(name="mdp")
def default_mdp() -> DenoisingMDP:
    return make_task("8gaussians", horizon=4).mdp


def spent(costs: Costs) -> dict[str, float]:
    """What is not 0."""
    return {key: value for key, value in asdict(costs).items() if value}


# Counters -------------------------------------------------------------------------------------------------------------


def test_outside_of_a_counter_nothing_is_counted() -> None:
    costs = Costs()
    with counting(costs):
        pass
    count_energy(3, differentiated=True)
    count_denoiser(3)
    count_draws(3)
    assert spent(costs) == {}


def test_every_kind_of_call_has_its_own_count() -> None:
    costs = Costs(energy_evals=100)
    with counting(costs):
        count_energy(3)
        count_energy(5, differentiated=True)
        count_denoiser(7)
        count_draws(11)
    assert spent(costs) == {"energy_evals": 108, "energy_grad_evals": 5, "denoiser_calls": 7, "policy_draws": 11}


def test_nested_counters_share_nothing() -> None:
    outer, inner = Costs(), Costs()
    with counting(outer):
        count_draws(1)
        with counting(inner):
            count_draws(10)
        count_draws(2)
    assert (outer.policy_draws, inner.policy_draws) == (3, 10)


def test_an_error_inside_ends_the_counting() -> None:
    outer, inner = Costs(), Costs()
    with counting(outer):
        with pytest.raises(ZeroDivisionError), counting(inner):
            count_draws(1 // 0)
        count_draws(2)
    count_draws(4)
    assert (outer.policy_draws, inner.policy_draws) == (2, 0)


# Calls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("needs_gradient", "grad_mode", "differentiated"), [
    (False, True, 0), (True, False, 0), (True, True, N),
])  # fmt: skip
def test_an_energy_counts_rows_and_says_which_were_differentiated(
    needs_gradient: bool, grad_mode: bool, differentiated: int
) -> None:
    energy, x = LiveEnergy(lambda x: x.square().sum(1)), torch.ones(N, 2, requires_grad=needs_gradient)
    costs = Costs()
    with counting(costs), torch.set_grad_enabled(grad_mode):
        energy(x)
    assert (costs.energy_evals, costs.energy_grad_evals) == (N, differentiated)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_gradient_is_one_differentiated_evaluation(create_graph: bool) -> None:
    energy, costs = LiveEnergy(lambda x: x.square().sum(1)), Costs()
    with counting(costs), torch.no_grad():
        energy.gradient(torch.ones(N, 2, requires_grad=True), create_graph)
    assert spent(costs) == {"energy_evals": N, "energy_grad_evals": N}


def test_a_trial_of_a_new_energy_counts_as_the_calls_that_it_makes(mdp: DenoisingMDP) -> None:
    costs = Costs()
    with counting(costs):
        mdp.set_energy(lambda x: x.square().sum(1))
    assert spent(costs) == {"energy_evals": 2}


@pytest.mark.parametrize("base", ["ddpm", None])
def test_a_base_sampler_counts_its_denoisers_calls(base: str | None) -> None:
    mdp, costs = make_task("8gaussians", horizon=4, base=base).mdp, Costs()
    x = torch.randn(N, 2)
    with counting(costs):
        mdp.base.mean(x, 1)
        mdp.base.mean(x, torch.full((N,), 1))
        mdp.base.step(x, 1, x)
    assert spent(costs) == ({} if base is None else {"denoiser_calls": 3 * N})


@pytest.mark.parametrize("start", [False, True])
def test_a_rollout_counts_its_draws(mdp: DenoisingMDP, start: bool) -> None:
    policy, costs = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=1)), Costs()
    with counting(costs):
        trajectory = mdp.rollout(policy, N, start=torch.zeros(N, 2) if start else None)
    assert spent(costs) == {"policy_draws": 4 * N, "denoiser_calls": 4 * N}
    with counting(costs):
        mdp.rewards(trajectory)
        mdp.log_weights(trajectory, energy=lambda x: x.square().sum(1))
    assert spent(costs) == {"policy_draws": 4 * N, "denoiser_calls": 4 * N, "energy_evals": 2 * N}


def test_chains_drawn_backwards_are_no_draws_of_the_policy(mdp: DenoisingMDP) -> None:
    policy, costs = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=1)), Costs()
    with counting(costs):
        mdp.backward_rollout(policy, torch.zeros(N, 2))
    assert spent(costs) == {"denoiser_calls": 4 * N}, "the policy's density asks for the base mean"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_graphs_count_the_same() -> None:
    mdp = make_task("8gaussians", horizon=4, device="cuda").mdp
    policy = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=1)).cuda()
    found = []
    for graph in (False, True, True):
        costs = Costs()
        with counting(costs):
            mdp.rollout(policy, N, graph=graph)
        found.append(spent(costs))
    fast_rollout._CACHE.clear()
    assert found[1] == found[2] == found[0] == {"policy_draws": 4 * N, "denoiser_calls": 4 * N}


def test_a_checkpointed_step_counts_again_when_it_is_computed_again() -> None:
    energy, costs = LiveEnergy(lambda x: x.square().sum(1)), Costs()
    x = torch.ones(N, 2, requires_grad=True)
    with counting(costs):
        value: Tensor = checkpoint(energy, x, use_reentrant=False)
        assert costs.energy_evals == N
        value.sum().backward()
    assert spent(costs) == {"energy_evals": 2 * N, "energy_grad_evals": 2 * N}


# Agents ---------------------------------------------------------------------------------------------------------------


def test_learning_is_counted_and_what_is_done_between_is_not() -> None:
    """Also what a callback does with the agent, such as scoring it."""
    agent, other = (small("ppo") for _ in range(2))
    step = agent.timesteps_per_iteration

    def look(trained: Any) -> None:
        before = asdict(trained.costs)
        trained.sample(5, seed=0)
        trained.sample_trajectory(5, seed=0)
        trained.mdp.energy(torch.zeros(3, 2))
        assert asdict(trained.costs) == before

    agent.learn(2 * step, callback=look)
    agent.mdp.log_weights(agent.sample_trajectory(5, seed=0))
    other.learn(2 * step)
    rows = [{key: value for key, value in spent(one.costs).items() if key != "seconds"} for one in (agent, other)]
    assert rows[0] == rows[1] and rows[0].pop("gradient_steps") > 0 and rows[1].pop("gradient_steps")
    assert rows[0] == {
        "timesteps": 2 * step, "policy_draws": 2 * step, "energy_evals": 2 * step // 5, "denoiser_calls": 2 * step,
    }  # fmt: skip


def test_iterate_alone_counts_transitions_only() -> None:
    agent = small("ppo")
    agent.iterate()
    assert spent(agent.costs) == {"timesteps": agent.timesteps_per_iteration}


def test_an_agent_that_learns_inside_another_ones_callback_counts_for_itself() -> None:
    outer, inner = small("ppo"), small("reinforce")
    step = inner.timesteps_per_iteration
    outer.learn(outer.timesteps_per_iteration, callback=lambda _: inner.learn(step) is None)
    assert outer.costs.timesteps == outer.costs.policy_draws == outer.timesteps_per_iteration
    assert inner.costs.timesteps == inner.costs.policy_draws == step


def test_a_game_and_its_agent_have_one_account() -> None:
    game = small("dxmi", task_for("dxmi"), gradient_penalty=0.1)
    game.learn(2 * game.timesteps_per_iteration)
    assert game.costs is game.agent.costs
    data_and_samples = 2 * game.config.energy_steps * 2 * 2 * 32  # two iterations; as many replayed as present samples
    assert game.costs.energy_grad_evals >= data_and_samples
    alone = make_agent("dxdp", task_for("dxmi", energy=lambda x: x.square().sum(1)), config=game.config.agent_settings)
    alone.learn(2 * alone.timesteps_per_iteration)
    assert game.costs.energy_evals == alone.costs.energy_evals + data_and_samples
    assert game.costs.denoiser_calls == alone.costs.denoiser_calls


def test_steps_of_optimizers_are_counted_whoever_owns_them() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.Adam([weight]), torch.optim.SGD([weight], lr=0.1)]
    weight.grad = torch.ones(2)
    outer, inner = Costs(), Costs()
    optimizers[0].step()
    with counting(outer):
        optimizers[0].step()
        with counting(inner):
            optimizers[1].step()
            optimizers[1].step()
        optimizers[1].step()
    optimizers[0].step()
    assert (outer.gradient_steps, inner.gradient_steps) == (2, 2)


def test_an_agents_steps_are_those_of_its_settings() -> None:
    agent = make_agent("ppo", "8gaussians", n_trajectories=16, n_epochs=3, n_minibatches=2)
    agent.learn(2 * agent.timesteps_per_iteration)
    assert agent.costs.gradient_steps == 2 * 3 * 2 * 2, "a step of the policy and one of the value"
