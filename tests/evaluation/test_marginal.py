"""kl_marginal: closed forms, the bias that it reports, squashed policies, where it is defined."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dxmi_rl import evaluate, make_agent, make_task
from dxmi_rl.agents import Base
from dxmi_rl.evaluation import marginal_scores
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.rollout import draw, log_prob
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.tasks import Task

MEAN, STD = torch.tensor([[0.5, -1.0]]), 0.8


def gaussian_task(horizon: int = 3) -> Any:
    target = GaussianMixture(MEAN, STD, plot_range=(-4, 4))
    options = {"level_max": 30.0, "level_min": 0.3}
    # Too wide a last step, so that the sampler is a Gaussian that is not the target.
    return make_task(target, horizon=horizon, schedule_options=options, sigma_last=0.6)


def law_of_samples(task: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance per coordinate of x_T of the base sampler, whose steps are affine, exactly."""
    base, mean, variance = task.mdp.base, torch.zeros(2), torch.full((2,), task.mdp.start_std**2)
    for t in range(task.mdp.horizon):
        points = torch.stack([mean, mean + 1.0])
        at, beyond = base.mean(points, t)
        slope = beyond - at
        mean, variance = at, slope**2 * variance + base.sigma[t] ** 2
    return mean, variance


def kl(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> float:
    ratio = variance / other_variance
    return float(0.5 * (ratio - 1 - ratio.log() + (mean - other_mean) ** 2 / other_variance).sum())


@pytest.mark.slow
def test_a_gaussian_sampler_of_a_gaussian_has_the_closed_form() -> None:
    task = gaussian_task()
    own, aim = law_of_samples(task), (MEAN[0], torch.full((2,), STD**2))
    wanted = {"kl_marginal": kl(*own, *aim), "kl_marginal_forward": kl(*aim, *own)}
    assert all(value > 0.02 for value in wanted.values()), "the test must see something"
    scores = marginal_scores(task.mdp, Base(task).density(), task.target)
    for key, value in wanted.items():
        assert abs(scores[key] - value) < 4 * scores[f"{key}_se"] + 2 * abs(scores[f"{key}_bias"]) + 1e-4, key
        assert scores[f"{key}_se"] < 0.01 and abs(scores[f"{key}_bias"]) < 0.005


def test_the_bias_is_what_more_states_take_away() -> None:
    task = make_task("gmm25")
    policy = Base(task).density()
    few, many = (marginal_scores(task.mdp, policy, task.target, states=n, points=4000) for n in (1000, 16_000))
    for key, sign in (("kl_marginal", -1), ("kl_marginal_forward", 1)):
        assert sign * few[f"{key}_bias"] > 0.1 > sign * many[f"{key}_bias"] > 0, key
        assert sign * (few[key] - many[key]) > 0, "the reported sign is that of the error"


def test_it_is_below_its_bound_and_in_evaluate() -> None:
    scores = evaluate(Base("8gaussians"), samples=2000, draws=1, trajectories=4000, fit=False, floors=False)
    assert 0 < scores["kl_marginal"] < scores["kl_bound"]
    endings = ("", "_se", "_bias")
    assert {f"{key}{end}" for key in ("kl_marginal", "kl_marginal_forward") for end in endings} <= scores.keys()
    again = evaluate(Base("8gaussians"), samples=2000, draws=1, trajectories=10, fit=False, floors=False)
    keys = [key for key in scores if key.startswith("kl_marginal")]
    assert [scores[key] for key in keys] == [again[key] for key in keys], "few trajectories do not flatter"


@pytest.mark.filterwarnings("ignore:the log-weights rest on few")
@pytest.mark.parametrize("sigma", [0.05, 1e-3, 1e-5])
def test_what_the_states_do_not_resolve_is_no_score(sigma: float) -> None:
    """With hardly any noise in the last step the states' Gaussians do not overlap, and the divergence reads far below
    0: that is no score, and no rank."""
    sizes = dict(samples=2000, draws=1, trajectories=200, fit=False, floors=False)
    with pytest.warns(UnreliableScoresWarning, match="kl_marginal is left out: its bias is about -"):
        scores = evaluate(Base(make_task("gmm25", sigma_last=sigma)), **sizes)
    assert not any(key.startswith("kl_marginal") for key in scores) and "kl_bound" in scores


class Flow(nn.Module):
    """The base sampler's steps as a map from noise, which says nothing of Gaussians."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.base = Base(task).density()

    def transport(self, x: Tensor, t: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        x_next = draw(self.base, x, t, noise)
        return x_next, self.log_prob(x, x_next, t)

    def log_prob(self, x: Tensor, x_next: Tensor, t: int) -> Tensor:
        return log_prob(self.base, x, x_next, t)


def test_a_policy_of_another_density_gets_the_other_scores() -> None:
    agent = Base("8gaussians")
    sizes = dict(samples=200, draws=1, trajectories=200, fit=False, floors=False)
    scores, expected = (evaluate(agent, policy=policy, **sizes) for policy in (Flow(agent.task), None))
    assert scores == pytest.approx(
        {key: expected[key] for key in expected if not key.startswith("kl_marginal")}, rel=1e-4
    )
    with pytest.raises(ValueError, match="steps of the policy Gaussians, got '8gaussians' and Flow"):
        marginal_scores(agent.mdp, Flow(agent.task), agent.task.target)


def test_pairs_of_a_squashed_policy_are_its_log_prob() -> None:
    pytest.importorskip("stable_baselines3")
    agent = make_agent("sb3-sac", "8gaussians", action_bound=3.0)
    density, generator = agent.density(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = agent.mdp.rollout(density, 6, generator).x[3]
        y = x.flip(0) + 0.1 * torch.randn(6, 2, generator=generator)
        pairs = density.squashed_pairs(x, 3)(y)
        one_by_one = torch.stack([density.log_prob(x, row.expand_as(x), 3) for row in y])
    assert bool(pairs.isfinite().any()) and bool(pairs.isinf().any())
    torch.testing.assert_close(pairs, one_by_one)
    wide = make_agent("sb3-sac", "8gaussians")
    scores = marginal_scores(wide.mdp, wide.density(), wide.task.target, states=20_000, points=500)
    assert math.isfinite(scores["kl_marginal"]), "what it samples it can reach"


@pytest.mark.parametrize("name", ["manywell32", "moons", "dw4"])
def test_elsewhere_it_is_refused(name: str) -> None:
    task = make_task(name, base=None)
    with pytest.raises(ValueError, match="in the plane"):
        marginal_scores(task.mdp, Base(task).density(), task.target)
