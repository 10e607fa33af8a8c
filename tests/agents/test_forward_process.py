"""Agents on the forward process: what they regress on, their losses by hand, and where they end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_cases import small
from torch import Tensor

from dxmi_rl import evaluate, make_agent, make_task
from dxmi_rl.agents import AWM, RWR, DiffusionNFT
from dxmi_rl.agents.forward_process import NoisedSamples, noised_samples
from dxmi_rl.targets import GaussianMixture

SLOPE, BETA = torch.tensor([0.8, -0.4]), 1.5


def linear(x: Tensor) -> Tensor:
    return x @ SLOPE.to(x.dtype)


def gaussian(horizon: int) -> Any:
    target = GaussianMixture(torch.tensor([[0.3, -0.2]]), 0.9, plot_range=(-4.0, 4.0))
    return make_task(target, horizon=horizon, reward=linear, beta=BETA, backward="base")


def moved(name: str, **settings: Any) -> Any:
    """An agent whose policy is no longer the base sampler's."""
    agent = make_agent(name, make_task("8gaussians", horizon=4), seed=0, **settings)
    with torch.no_grad():
        for parameter in agent.policy.mean_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return agent


def noised(agent: Any, n: int = 6, draws: int = 3) -> NoisedSamples:
    final = agent.sample(n, seed=2)
    return noised_samples(agent.mdp, agent.policy, final, draws, torch.Generator().manual_seed(3))


def test_noised_samples_are_those_of_the_forward_process() -> None:
    agent = moved("awm")
    found = noised(agent, 2000, 4)
    schedule = agent.mdp.base.schedule
    assert len(found.x) == 8000 and set(found.t.tolist()) == {0, 1, 2, 3}
    for t in range(4):
        rows = found.t == t
        noise = (found.x[rows] - schedule.alpha[t] * found.final[rows]) / schedule.s[t]
        assert abs(float(noise.mean())) < 0.05 and float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(found.final[:2000], found.final[2000:4000])
    assert torch.allclose(found.base, agent.mdp.base.mean(found.x, found.t))
    assert torch.allclose(found.mean(agent.policy), agent.policy.moments(found.x, found.t)[0])


def test_the_posterior_is_bayes_rule() -> None:
    """Mean of x_{t+1} given x_t and x_T: of N(alpha_{t+1} x_T, s_{t+1}^2) seen through the forward kernel."""
    agent = moved("awm")
    found, schedule = noised(agent), agent.mdp.base.schedule
    gain, variance = schedule.forward_kernel()
    t = found.t[:, None]
    prior, noise = schedule.s[t + 1] ** 2, variance[t]
    posterior = (schedule.alpha[t + 1] * found.final * noise + gain[t] * found.x * prior) / (
        noise + gain[t] ** 2 * prior
    )
    inner = found.t < 3  # the last step's prior is a point, x_T itself
    assert torch.allclose(found.posterior[inner], posterior[inner], atol=1e-4)
    assert torch.allclose(found.posterior[~inner], found.final[~inner], atol=1e-5)


def test_awms_loss_by_hand() -> None:
    agent = moved("awm", clip_range=0.1, beta=0.7)
    assert isinstance(agent, AWM)
    found = noised(agent)
    advantages = torch.randn(6, generator=torch.Generator().manual_seed(4))
    before = found.mean(agent.policy).detach()
    before = before + 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(5))
    rows = torch.tensor([0, 5, 7, 11, 17])
    total = 0.0
    for row in rows.tolist():
        sigma = float(agent.mdp.base.sigma[found.t[row]])
        mean = agent.policy.moments(found.x[row : row + 1], found.t[row : row + 1])[0][0]
        d, old = (float((m - found.posterior[row]).square().sum()) / (2 * sigma**2) for m in (mean, before[row]))
        ratio, a = torch.tensor(old - d).exp(), float(advantages[row % 6])
        total -= min(float(ratio) * a, float(ratio.clamp(0.9, 1.1)) * a)
        total += float((mean - found.base[row]).square().sum()) / (2 * sigma**2)
    loss = agent.policy_loss(found, advantages, before, rows)
    assert float(loss) == pytest.approx(total / len(rows), rel=1e-4)


def test_rwrs_loss_by_hand() -> None:
    agent = moved("rwr", beta=0.7)
    assert isinstance(agent, RWR)
    found, rewards = noised(agent), torch.randn(6, generator=torch.Generator().manual_seed(4))
    weights = agent.sample_weights(rewards)
    assert torch.allclose(weights, (rewards / 0.7).exp() / (rewards / 0.7).exp().mean())
    rows, total = torch.tensor([0, 4, 9, 13]), 0.0
    for row in rows.tolist():
        sigma = float(agent.mdp.base.sigma[found.t[row]])
        mean = agent.policy.moments(found.x[row : row + 1], found.t[row : row + 1])[0][0]
        total += float(weights[row % 6]) * float((mean - found.posterior[row]).square().sum()) / (2 * sigma**2)
    loss = agent.policy_loss(found, weights, found.x, rows)
    assert float(loss.detach()) == pytest.approx(total / len(rows), rel=1e-4)


@pytest.mark.slow
def test_rwr_fitted_once_tilts_the_base_sampler() -> None:
    """One iteration, whose samples are fitted well: p_base exp(r / beta), whose mean is known on a Gaussian."""
    task = gaussian(horizon=30)
    settings: dict[str, Any] = {"n_trajectories": 4000, "draws": 30, "n_epochs": 10, "n_minibatches": 60}
    agent = make_agent("rwr", task, seed=0, anneal=False, **settings).learn(1)
    assert agent.costs.energy_evals == 4000
    x, base = agent.sample(20_000, seed=1), make_agent("base", task).sample(20_000, seed=1)
    weights = (linear(base) / BETA).softmax(0)
    pull = float(weights @ linear(base)) - float(linear(base).mean())
    assert float(linear(x).mean()) - float(linear(base).mean()) == pytest.approx(pull, rel=0.15)
    agent.learn(1)  # and once more
    assert float(linear(agent.sample(20_000, seed=1)).mean()) - float(linear(base).mean()) > 1.5 * pull


@pytest.mark.slow
def test_rwr_narrows_in_few_steps_whatever_the_reward() -> None:
    """Without differences of the reward many steps leave the law as it is; five do not."""
    ratios = {}
    for horizon in (5, 60):
        target = GaussianMixture(torch.zeros(1, 2), 1.0, plot_range=(-4.0, 4.0))
        task = make_task(target, horizon=horizon, reward=lambda x: 0.0 * x[:, 0], backward="base")
        settings: dict[str, Any] = {"n_trajectories": 4000, "draws": 30, "n_epochs": 5, "n_minibatches": 60}
        agent = make_agent("rwr", task, seed=0, anneal=False, **settings).learn(1)
        base = make_agent("base", task).sample(20_000, seed=1)
        ratios[horizon] = float(agent.sample(20_000, seed=1).var() / base.var())
    assert ratios[5] < 0.6 and ratios[60] > 0.85


def test_diffusion_nfts_loss_by_hand() -> None:
    agent = moved("diffusion-nft", mixing=0.5, kl_weight=0.3)
    assert isinstance(agent, DiffusionNFT)
    found, base = noised(agent), agent.mdp.base
    good = torch.rand(6, generator=torch.Generator().manual_seed(4))
    before = found.mean(agent.policy) + 0.1 * torch.randn(18, 2, generator=torch.Generator().manual_seed(5))
    rows, total = torch.tensor([1, 4, 8, 13]), 0.0
    for row in rows.tolist():
        t, r = int(found.t[row]), float(good[row % 6])
        x = found.x[row]

        def denoised(mean: Tensor, t: int = t, x: Tensor = x) -> Tensor:
            return (mean - base.mean_x[t] * x) / base.mean_denoised[t]

        new = denoised(agent.policy.moments(x[None], found.t[row : row + 1])[0][0])
        old, start = denoised(before[row]), denoised(found.base[row])
        errors = [old + sign * 0.5 * (new - old) - found.final[row] for sign in (1, -1)]
        parts = [float(error.square().mean() / error.abs().mean()) for error in errors]
        total += (r * parts[0] + (1 - r) * parts[1]) / 0.5 / agent.mdp.scale
        total += 0.3 * float(((new - start) / agent.mdp.scale).square().mean())
    loss = agent.policy_loss(found, good, before, rows)
    assert float(loss.detach()) == pytest.approx(total / len(rows), rel=1e-4)


def test_goodness_lies_in_the_unit_interval() -> None:
    agent = moved("diffusion-nft", advantage_clip=2.0)
    rewards = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 100.0])
    found = agent.sample_weights(rewards)
    assert float(found.max()) == 1.0 and 0 < float(found.min()) < 0.5
    assert torch.equal(agent.sample_weights(torch.ones(5)), torch.full((5,), 0.5))


def test_without_differences_of_the_reward_nothing_pulls() -> None:
    """AWM: the gradient is that of the divergence alone, which is zero at the base sampler."""
    task = make_task("8gaussians", reward=lambda x: 0.0 * x[:, 0], backward="base")
    agent = make_agent("awm", task, seed=0).learn(2000)
    base = make_agent("base", task)
    assert torch.allclose(agent.sample(50, seed=0), base.sample(50, seed=0), atol=1e-4)


@pytest.mark.slow
def test_awm_needs_many_steps() -> None:
    """Its bound on log E_base[exp(r / beta)]: with many steps nearly all of that, with few much less than DPOK's."""

    def bound(name: str, task: Any, evals: int) -> float:
        agent = make_agent(name, task, seed=0).learn(energy_evals=evals)
        return float(task.mdp.log_weights(agent.sample_trajectory(20_000, seed=1)).mean())

    few, many = gaussian(4), gaussian(20)
    x = make_agent("base", many).sample(100_000, seed=1)
    assert bound("awm", many, 4000) > 0.95 * float((linear(x) / BETA).exp().mean().log())
    assert bound("awm", few, 4000) < 0.7 * bound("dpok", few, 1600)


def test_diffusion_nft_goes_on_where_its_weight_allows() -> None:
    task = make_task("8gaussians", reward=lambda x: x[:, 0], beta=2.0, backward="base")
    rewards = []
    for weight in (1.0, 0.01):
        agent = make_agent("diffusion-nft", task, seed=0, kl_weight=weight).learn(energy_evals=3000)
        rewards.append(evaluate(agent, samples=2000, trajectories=2000, draws=1)["reward"])
    assert 0.1 < rewards[0] < rewards[1] - 0.5


@pytest.mark.parametrize("name", ["awm", "diffusion-nft", "rwr"])
def test_base_samplers_without_a_denoiser_or_noise_are_refused(name: str) -> None:
    for settings in ({"track": "sample"}, {"base": "ddim", "eta": 0.0}):
        with pytest.raises(
            ValueError, match=r"base must be a sampler with a denoiser and noise|cannot start|no density"
        ):
            small(name, make_task("8gaussians", **settings))


@pytest.mark.parametrize(
    ("name", "settings", "error", "text"),
    [
        ("awm", {"n_trajectories": 1}, ValueError, "n_trajectories must be >= 2"),
        ("awm", {"draws": 0}, ValueError, "draws must be >= 1"),
        ("awm", {"clip_range": 0.0}, ValueError, "clip_range must be finite and > 0"),
        ("awm", {"beta": -1.0}, ValueError, "beta must be finite and > 0"),
        ("rwr", {"beta": 0.0}, ValueError, "beta must be finite and > 0"),
        ("diffusion-nft", {"mixing": 0.0}, ValueError, "mixing must be finite and > 0"),
        ("diffusion-nft", {"kl_weight": -1.0}, ValueError, "kl_weight must be finite and >= 0"),
        ("diffusion-nft", {"advantage_clip": float("nan")}, ValueError, "advantage_clip must be finite"),
    ],
)
def test_settings_are_checked(name: str, settings: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_agent(name, make_task("8gaussians"), **settings)


@pytest.mark.parametrize("name", ["awm", "rwr"])
def test_a_temperature_is_needed(name: str) -> None:
    with pytest.raises(ValueError, match="beta must be given"):
        make_agent(name, make_task("8gaussians", tau=0.0))
