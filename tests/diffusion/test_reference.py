"""The base sampler in the kernel's place: what tilts it, against the closed form of a Gaussian base sampler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dxmi_rl import evaluate, make_agent, make_task
from dxmi_rl.agents.aims import kl_to_base
from dxmi_rl.targets import GaussianMixture, RewardEnergy

SLOPE, BETA, T = torch.tensor([0.8, -0.4]), 1.5, 4


def linear(x: Tensor) -> Tensor:
    return x @ SLOPE.to(x.dtype)


def gaussian_task(**changes: Any) -> Any:
    target = GaussianMixture(torch.tensor([[0.3, -0.2]]), 0.9, plot_range=(-4.0, 4.0))
    return make_task(target, horizon=T, reward=linear, beta=BETA, backward="base", **changes)


class Best:
    """The optimum: the base sampler's steps, each moved by its variance times the slope of the rest of the chain.

    The base sampler of one Gaussian is linear, x' = a_t x + b_t + sigma_t eps, so r(x_T) / beta given x_{t+1} has the
    slope SLOPE a_{t+1} .. a_{T-1} / beta.
    """

    def __init__(self, mdp: Any) -> None:
        self.mdp = mdp
        zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        self.gains = [float((mdp.base.mean(one, t) - mdp.base.mean(zero, t))[0, 0]) for t in range(T)]

    def slope(self, t: int) -> Tensor:
        return SLOPE / BETA * math.prod(self.gains[t + 1 :])

    def moments(self, x: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        steps = t if isinstance(t, Tensor) else torch.full((len(x),), t)
        sigma = self.mdp.base.sigma[steps][:, None]
        slopes = torch.stack([self.slope(int(step)) for step in steps])
        return self.mdp.base.mean(x, t) + sigma**2 * slopes, sigma.log().expand_as(x)


def test_the_optimum_leaves_no_variance() -> None:
    """Its log weight is log E_base[exp(r / beta) | x_0], on every chain."""
    mdp = gaussian_task().mdp
    best = Best(mdp)
    chains = mdp.rollout(best, 500, torch.Generator().manual_seed(0))
    mean, variance = chains.x[0], 0.0
    for t in range(T):
        mean = mdp.base.mean(mean, t)
        variance = best.gains[t] ** 2 * variance + float(mdp.base.sigma[t]) ** 2
    known = mean @ SLOPE / BETA + variance * float(SLOPE.square().sum()) / (2 * BETA**2)
    assert torch.allclose(mdp.log_weights(chains), known, atol=2e-4)
    assert torch.allclose(mdp.soft_return(chains), known, atol=2e-4)


def test_the_base_sampler_weighs_its_chains_by_the_reward() -> None:
    task = gaussian_task()
    base = make_agent("base", task)
    chains = base.sample_trajectory(300, seed=0)
    assert torch.allclose(task.mdp.log_weights(chains), linear(chains.final) / BETA, atol=2e-4)
    assert kl_to_base(task.mdp, chains) == pytest.approx(0.0, abs=1e-3)


def test_steps_as_numbers_and_as_tensors_agree() -> None:
    mdp = gaussian_task().mdp
    x, x_next = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
    for t in range(T):
        steps = torch.full((7,), t)
        assert torch.allclose(mdp.kernel.log_prob(x, x_next, t), mdp.kernel.log_prob(x, x_next, steps), atol=1e-6)


def test_it_draws_no_chains_backwards_and_has_no_weights() -> None:
    task = gaussian_task()
    kernel = task.mdp.kernel
    assert not kernel.draws_backwards and not kernel.adapts and not list(kernel.parameters())
    with pytest.raises(ValueError, match="draws no chains backwards"):
        task.mdp.backward_rollout(make_agent("base", task).density(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="buffer_size must be 0"):
        make_agent("trajectory-balance", task, seed=0, buffer_size=100)


def test_starts_are_no_reward() -> None:
    """log p_0(x_0), which no action changes, is in log weights and not in rewards."""
    mdp = gaussian_task().mdp
    chains = mdp.rollout(Best(mdp), 20, torch.Generator().manual_seed(0))
    x, x_next = chains.x[0], chains.x[1]
    assert torch.allclose(mdp.kernel.log_prob(x, x_next, 0) - mdp.running_reward(x, x_next, 0), mdp.start_log_prob(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_many_dimensions_do_not_harm(name: str) -> None:
    """In 64 dimensions these end above the base sampler, whose objective is 0."""
    target = GaussianMixture(torch.zeros(1, 64), 1.0, plot_range=(-4.0, 4.0))
    task = make_task(target, horizon=4, reward=lambda x: x[:, :4].sum(1), backward="base")
    agent = make_agent(name, task, seed=0).learn(energy_evals=2500)
    assert float(task.mdp.log_weights(agent.sample_trajectory(2000, seed=1)).mean()) > 0.1


@pytest.mark.parametrize("name", ["vgs", "adjoint-sampling", "dxmi"])
def test_agents_with_another_aim_refuse(name: str) -> None:
    with pytest.raises(ValueError, match=r"backward must not be 'base'|task must have no reward"):
        make_agent(name, gaussian_task())


def test_a_last_step_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a base sampler with noise"):
        make_task("8gaussians", reward=linear, backward="base", sigma_last=0.0)


def test_another_reward_takes_the_place_of_a_named_tasks_own() -> None:
    task = make_task("digits-class", reward="stroke-width", pretraining={"iterations": 1, "width": 8, "batch_size": 8})
    energy = task.mdp.energy.function
    assert isinstance(energy, RewardEnergy) and energy.beta == 1.0 and task.config.reward_options == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dxdp", "ppo", "grpo", "a2c", "vargrad", "path-wise-vargrad", "dpok"])
def test_agents_move_toward_the_tilted_base_sampler(name: str) -> None:
    task = make_task("8gaussians", reward=linear, beta=1.0, backward="base")
    assert task.mdp.tau == 1.0 and isinstance(task.mdp.energy.function, RewardEnergy)
    sizes: dict[str, Any] = {"samples": 2000, "trajectories": 2000, "draws": 1}
    start = evaluate(make_agent("base", task), **sizes)
    scores = evaluate(make_agent(name, task, seed=0).learn(6000), **sizes)
    assert scores["elbo"] > start["elbo"] + 0.1 and scores["reward"] > start["reward"] + 0.3
    assert scores["kl_base"] > 0.02
    assert scores["elbo"] == pytest.approx(scores["reward"] - scores["kl_base"], abs=0.1)
    assert not {"kl_bound", "kl_bound_fit", "eubo", "sliced_w2", "kl_untilted"} & set(scores)


def test_images_keep_their_distances() -> None:
    small = {"iterations": 5, "width": 16, "batch_size": 16}
    task = make_task("digits-class", pretraining=small)
    scores = evaluate(make_agent("base", task), samples=50, draws=1, trajectories=50, floors=False)
    assert {"reward", "fd", "elbo", "ess", "kl_base"} <= set(scores)
    assert scores["kl_base"] == pytest.approx(0.0, abs=1e-2)
    agent = make_agent("ppo", task, seed=0, n_trajectories=8).learn(64)
    assert bool(agent.sample(3, seed=0).isfinite().all())
