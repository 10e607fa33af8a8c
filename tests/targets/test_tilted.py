"""Rewards as targets: closed forms of tilted mixtures against quadrature, rewards of one's own, and their tasks."""

from __future__ import annotations

import math
import sys
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from dxmi_rl import evaluate, load_agent, make_agent, make_target, make_task
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.mdp import EnergyError
from dxmi_rl.targets import GaussianMixture, QuadraticReward, TargetError, Tilted, TiltedMixture, WithinData, tilt
from dxmi_rl.utils.registry import UnknownNameError

REWARDS = {
    "linear": QuadraticReward((0.7, -0.2), constant=0.3),
    "near a point": QuadraticReward.near((1.0, -2.0), 1.5),
    "measurement": QuadraticReward.measurement([[1.0, 0.5]], [2.0], 0.7),
    "saddle": QuadraticReward((0.1, 0.0), [[0.3, 0.2], [0.2, -0.2]]),
}


def mixture(**changes: Any) -> GaussianMixture:
    means = torch.tensor([[-2.0, 0.0], [1.0, 1.0], [2.0, -1.5]])
    return GaussianMixture(means, 0.6, **{"plot_range": (-5.0, 5.0), "weights": (0.5, 0.2, 0.3), **changes})


def grid(width: float = 12.0, n: int = 1200) -> tuple[Tensor, float]:
    """Midpoints of a square, where the trapezoidal rule is exact to rounding for Gaussians, and the cell."""
    step = 2 * width / n
    axis = -width + step * (torch.arange(n, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis), step**2


def reward_of(x: Tensor) -> Tensor:
    """A reward of one's own."""
    return 0.2 * x[:, 0]


# -- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 2.0])
@pytest.mark.parametrize("name", REWARDS)
def test_tilted_constants_against_quadrature(name: str, beta: float) -> None:
    with torch.random.fork_rng():
        torch.set_default_dtype(torch.float64)
        try:
            target = TiltedMixture(mixture(), REWARDS[name], beta)
        finally:
            torch.set_default_dtype(torch.float32)
    x, cell = grid()
    density = (-target.energy(x)).exp() * cell
    total = float(density.sum())
    assert math.log(total) == pytest.approx(target.log_z, abs=1e-6)
    assert float(density @ target.tilting.rewards(x)) / total == pytest.approx(target.mean_reward, abs=1e-6)
    mean = density @ x / total
    spread = density @ (x - mean).square() / total
    assert target.scale == pytest.approx(float(spread.mean().sqrt()), abs=1e-6)
    # Its own components, weights and covariance are the same density.
    components = torch.distributions.MultivariateNormal(target.means, scale_tril=target.root)
    log_parts = components.log_prob(x[::997, None]) + target.weights.log()
    assert torch.allclose(log_parts.logsumexp(1), -target.energy(x[::997]) - target.log_z, atol=1e-8)


@pytest.mark.parametrize("name", REWARDS)
def test_samples_have_the_exact_mean_reward(name: str) -> None:
    target = TiltedMixture(mixture(), REWARDS[name], 0.7)
    x = target.sample(200_000, torch.Generator().manual_seed(0))
    rewards = target.tilting.rewards(x).double()
    scores = target.own_scores(x)
    assert scores["reward"] == pytest.approx(float(rewards.mean()), rel=1e-6)
    assert abs(scores["over_optimisation"]) < 4 * float(rewards.std()) / math.sqrt(len(x))


def test_the_most_of_reward_less_divergence() -> None:
    """E_q[r] - beta KL(q || p) of the tilted density is beta log Z, and of its neighbours in beta less."""
    p, reward, beta = mixture(), REWARDS["linear"], 1.0
    exact = TiltedMixture(p, reward, beta)
    objectives = []
    for other in (0.7, 1.0, 1.5):
        q = TiltedMixture(p, reward, other)
        divergence = q.mean_reward / other - q.log_z
        objectives.append(q.mean_reward - beta * divergence)
    assert objectives[1] == pytest.approx(beta * exact.log_z, abs=1e-6)
    assert max(objectives) == objectives[1] > max(objectives[0], objectives[2])


def test_a_measurement_is_a_log_likelihood() -> None:
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reward = QuadraticReward.measurement([[1.0, 2.0], [0.0, 1.0]], [0.5, -1.0], 0.3)
    seen = torch.stack([x[:, 0] + 2 * x[:, 1], x[:, 1]], 1)
    expected = -(seen - torch.tensor([0.5, -1.0], dtype=torch.float64)).square().sum(1) / (2 * 0.09)
    assert torch.allclose(reward(x), expected)
    assert torch.allclose(QuadraticReward.near((1.0, 0.0), 2.0)(x), -(x - torch.tensor([1.0, 0.0])).square().sum(1) / 8)


def test_small_components_are_no_modes() -> None:
    target = make_target("gmm25-tilted", beta=0.1)
    kept = target.modes
    assert kept is not None and len(kept.weights) < 25 and float(kept.weights.sum()) == pytest.approx(1.0)
    x = target.sample(5000, torch.Generator().manual_seed(0))
    assert float(torch.cdist(x, kept.centers).min(1).values.max()) < 6 * kept.std


def test_the_true_reward_leaves_its_proxy_beyond_the_data() -> None:
    target = make_target("8gaussians-proxy")
    assert isinstance(target, TiltedMixture)
    true, mode = target.true_reward, target.untilted.means[:1]
    assert isinstance(true, WithinData)
    out = torch.tensor([[1.0, 0.0]]) * target.untilted.std
    for deviations, loss in ((0.0, 0.0), (2.9, 0.0), (5.0, 2.0)):
        x = mode + deviations * out
        assert float(target.tilting.rewards(x) - true(x)) == pytest.approx(loss, abs=1e-4)
    scores = target.own_scores(mode + 5.0 * out)
    assert scores["reward"] - scores["true_reward"] == pytest.approx(2.0, abs=1e-4)


# -- rewards of one's own --------------------------------------------------------------------------------------------


def test_any_reward_tilts_any_density() -> None:
    funnel = make_target("funnel10")
    target = tilt(funnel, lambda x: x[:, 0].sin(), 0.5)
    x = funnel.sample(20, torch.Generator().manual_seed(0))
    assert torch.allclose(target.energy(x), funnel.energy(x) - 2 * x[:, 0].sin(), atol=1e-5)
    assert not target.has_sampler and target.log_z is None and target.differentiable
    assert target.own_scores(x)["reward"] == pytest.approx(float(x[:, 0].sin().mean()), abs=1e-5)


def test_quadratic_rewards_of_mixtures_are_exact() -> None:
    assert isinstance(tilt(mixture(), REWARDS["linear"]), TiltedMixture)
    assert not isinstance(tilt(mixture(), lambda x: x[:, 0]), TiltedMixture)


def test_a_reward_without_a_gradient_is_a_black_box() -> None:
    def counted(x: Tensor) -> Tensor:
        return x.detach()[:, 0] > 0

    for settings in ({}, {"differentiable": False}):
        task = make_task("8gaussians", reward=counted, **settings)
        x = torch.zeros(3, 2, requires_grad=True)
        assert not task.target.energy(x).requires_grad
        values, gradient = task.mdp.energy.value_and_gradient(torch.randn(4, 2))
        assert gradient is None and values.shape == (4,)
        make_agent("ppo", task, seed=0).learn(2000)
        with pytest.raises(EnergyError, match="which the task does not give"):
            make_agent("adjoint-matching", task, seed=0).learn(2000)
    with pytest.raises(TargetError, match="has no gradient in x"):
        make_task("8gaussians", reward=counted, differentiable=True)
    exact = make_task("gmm9", reward=QuadraticReward((1.0, 0.0)), differentiable=False).target
    assert isinstance(exact, TiltedMixture) and not exact.differentiable
    with_gradient = make_task("8gaussians", reward=reward_of, differentiable=False)
    assert not with_gradient.target.energy(torch.zeros(3, 2, requires_grad=True)).requires_grad


def test_a_step_function_has_no_gradient() -> None:
    rounded = make_task("8gaussians", reward=lambda x: x[:, 0].mul(2).floor()).target
    assert isinstance(rounded, Tilted) and not rounded.differentiable
    with pytest.raises(TargetError, match="has no gradient in x"):
        make_task("8gaussians", reward=lambda x: x[:, 0].round(), differentiable=True)
    for reward in (lambda x: x[:, 0].clamp(min=2.0), lambda x: 0 * x[:, 0]):  # flat in most places, or in all
        target = make_task("8gaussians", reward=reward).target
        assert isinstance(target, Tilted) and target.differentiable


def test_no_floors_are_made_that_no_score_has(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[evaluate.__module__]  # the package has a function of its name
    monkeypatch.setattr(module, "floors_of", lambda *_: pytest.fail("floors of no score"))
    task = make_task("8gaussians", reward=reward_of, backward="base", horizon=3)
    scores = evaluate(make_agent("base", task), samples=50, trajectories=50, draws=1, fit=False)
    assert "sliced_w2" not in scores and "reward" in scores


def test_a_network_on_what_has_no_gradient_has_none() -> None:
    """Its parameters have gradients, and x has not."""
    net = torch.nn.Linear(2, 1)
    for reward in (lambda x: net((x > 0).float())[:, 0], lambda x: net(x.detach())[:, 0]):
        target = make_task("8gaussians", reward=reward).target
        assert isinstance(target, Tilted) and not target.differentiable
    target = make_task("8gaussians", reward=lambda x: net(x)[:, 0]).target
    assert isinstance(target, Tilted) and target.differentiable


def test_a_reward_that_works_in_place_changes_nothing() -> None:
    def in_place(x: Tensor) -> Tensor:
        x -= 5.0
        return x[:, 0]

    target = make_task("8gaussians", reward=in_place).target
    assert isinstance(target, Tilted) and target.differentiable
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = make_target("8gaussians").energy(x) - (x[:, 0] - 5.0)
    assert torch.allclose(target.energy(x), expected) and float(x[0, 0]) == 2.0


def test_a_swapped_energy_is_the_one_that_is_scored() -> None:
    task = make_task("8gaussians", reward=reward_of)
    task.mdp.set_energy(lambda x: 100 + x.square().sum(1))
    with pytest.warns(UserWarning, match="was swapped"):
        scores = evaluate(make_agent("base", task), fit=False, floors=False, samples=100, trajectories=100, draws=1)
    assert scores["elbo"] < -90


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (lambda x: x, "must return a tensor of shape"),
        (lambda x: x.sum(0), "must return a tensor of shape"),
        (lambda x: 1.0, "must return a tensor of shape"),
        (lambda x: x[:, 7], "the reward fails for a batch of shape .* IndexError"),
    ],
)
def test_rewards_that_fail(reward: Any, text: str) -> None:
    with pytest.raises(TargetError, match=text):
        make_task("8gaussians", reward=reward)


def test_a_reward_that_is_nan_stops_training() -> None:
    def late(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 1, math.nan, x[:, 0])

    agent = make_agent("ppo", make_task("8gaussians", reward=late), seed=0)
    with pytest.raises(EnergyError, match="NaN or infinite"):
        agent.learn(2000)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"reward": "digit-clas"}, UnknownNameError, "Did you mean 'digit-class'"),
        ({"reward": 3}, TypeError, "reward must be a name, a function or a module"),
        ({"reward": reward_of, "reward_options": {"label": 3}}, ValueError, "reward_options belong to a named reward"),
        ({"reward": reward_of, "beta": 0.0}, ValueError, "beta must be finite and > 0"),
        ({"reward": reward_of, "energy": reward_of}, ValueError, "energy and reward"),
        ({"beta": 2.0}, ValueError, "beta belongs to a reward"),
        ({"differentiable": True}, ValueError, "differentiable belongs to a reward"),
        ({"reward": QuadraticReward((0.0, 0.0), [[-20.0, 0.0], [0.0, 0.0]])}, ValueError, "beta must be so large"),
        ({"name": "moons", "reward": reward_of}, TargetError, "no density that a reward could tilt"),
        ({"reward_options": {"label": 3}}, ValueError, "reward_options belongs to a reward"),
        ({"reward": "digit-class", "name": "digits", "backward": "base"}, ValueError, "reward_options={'label': ...}"),
        ({"reward": QuadraticReward((1.0, 0.0, 0.0))}, TargetError, r"of states \[3\], got \[2\]"),
        ({"name": "8gaussians-tilted", "reward": reward_of}, TargetError, "has a reward already"),
        ({"backward": "base"}, ValueError, "pass a reward or an energy of your own"),
        ({"backward": "base", "reward": reward_of, "track": "sample"}, ValueError, "needs a base sampler with noise"),
        (
            {"backward": "base", "reward": reward_of, "base": "ddim", "eta": 0.0},
            ValueError,
            "a base sampler with noise",
        ),
        ({"backward": "base", "reward": reward_of, "backward_options": {"width": 3}}, ValueError, "must be empty"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_task(**{"name": "8gaussians", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{"linear": [[1.0]]}, {"linear": [math.nan]}, {"linear": [1.0, 0.0], "curvature": [[0.0, 1.0], [0.0, 0.0]]},
     {"linear": [1.0], "curvature": [[1.0, 0.0], [0.0, 1.0]]}, {"linear": [1.0], "constant": math.inf}],
)  # fmt: skip
def test_quadratic_rewards_check_their_numbers(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        QuadraticReward(**arguments)


# -- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["8gaussians-tilted", "8gaussians-proxy", "gmm25-tilted", "gmm25-posterior"])
def test_the_base_sampler_is_that_of_the_data(name: str) -> None:
    tilted, plain = make_task(name), make_task(name.partition("-")[0])
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    for t in range(plain.mdp.horizon):
        assert torch.equal(tilted.mdp.base.mean(x, t), plain.mdp.base.mean(x, t))
    assert torch.equal(tilted.mdp.base.sigma, plain.mdp.base.sigma) and tilted.mdp.scale == plain.mdp.scale
    assert tilted.target.scale != plain.target.scale


def test_from_scratch_samples_are_hidden() -> None:
    target = make_task("gmm25-tilted", track="sample").target
    assert isinstance(target, Tilted)
    for hidden in (target, target.untilted):
        with pytest.raises(TargetError, match="no exact sampler"):
            hidden.sample(3)
    proxy = make_task("8gaussians-proxy", track="sample", backward="learned")
    assert isinstance(proxy.target, Tilted) and proxy.target.true_reward is None, "it has the data inside"
    sizes: dict[str, Any] = {"samples": 100, "draws": 1, "trajectories": 100, "fit": False, "floors": False}
    assert "true_reward" in evaluate(make_agent("base", proxy), **sizes)
    black_box = make_task("gmm25-tilted", track="energy").target
    assert not black_box.energy(torch.zeros(3, 2, requires_grad=True)).requires_grad


def test_scores_of_the_base_sampler() -> None:
    task = make_task("gmm25-tilted", horizon=8, target_options={"beta": 2.0})
    scores = evaluate(make_agent("base", task), fit=False, floors=False, samples=5000, trajectories=5000, draws=1)
    target = task.target
    assert isinstance(target, TiltedMixture)
    assert scores["kl_base"] == pytest.approx(0.0, abs=1e-4)
    assert scores["over_optimisation"] == pytest.approx(scores["reward"] - target.mean_reward)
    assert scores["kl_untilted"] < scores["kl_marginal"]
    expected = scores["kl_marginal"] + scores["reward"] / 2.0 - target.log_z
    assert scores["kl_untilted"] == pytest.approx(expected)


@pytest.mark.slow
def test_divergence_from_the_data_is_that_without_a_reward() -> None:
    """kl_untilted by its formula, against kl_marginal of the same samples on the data's own task."""
    tilted, plain = make_task("gmm25-tilted", horizon=8), make_task("gmm25", horizon=8)
    sizes: dict[str, Any] = {"fit": False, "floors": False, "samples": 10_000, "trajectories": 20_000, "draws": 1}
    ours, theirs = (evaluate(make_agent("base", task), **sizes) for task in (tilted, plain))
    assert ours["kl_untilted"] == pytest.approx(theirs["kl_marginal"], abs=0.04)


def test_beta_reaches_named_tasks() -> None:
    for task in (make_task("gmm25-tilted", beta=0.5), make_task(make_task("gmm25-tilted", beta=0.5).target)):
        assert isinstance(task.target, TiltedMixture) and task.target.beta == 0.5
    again = make_task("gmm25-tilted", beta=0.5)
    assert again.spec is not None and again.spec["target_options"] == {"beta": 0.5}


def test_agents_that_tilt_the_base_sampler_warn_of_a_density() -> None:
    for name in ("dpok", "awm", "adjoint-matching"):
        with pytest.warns(UserWarning, match="which has the data's density beside the reward"):
            make_agent(name, "8gaussians-tilted")


def test_curves_show_the_reward() -> None:
    for settings in ({}, {"backward": "base"}):
        task = make_task("8gaussians", reward=reward_of, **settings)
        found = quick_scores(make_agent("ppo", task, seed=0).learn(2000), samples=500)
        assert found["kl_base"] > 0 and abs(found["reward"]) < 1


def test_environments_take_a_reward() -> None:
    env: Any = gym.make("DxMIDenoise-v0", target="8gaussians", reward=reward_of, beta=0.5)
    assert env.unwrapped.task.target.beta == 0.5
    env.reset(seed=0)
    done = False
    while not done:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        done = terminated or truncated
        assert math.isfinite(reward)


def test_checkpoints_know_their_reward(tmp_path: Any) -> None:
    file = tmp_path / "agent.safetensors"
    make_agent("ppo", make_task("8gaussians", reward=reward_of), seed=0).learn(500).save(file)
    again = load_agent(file, task=make_task("8gaussians", reward=reward_of))
    assert isinstance(again.task.target, Tilted)
    with pytest.raises(ValueError, match="trained with reward = a function, and the task has reward = 'target'"):
        load_agent(file, task=make_task("8gaussians"))
    based: dict[str, Any] = {"backward": "base", "horizon": 3}
    make_agent("ppo", make_task("8gaussians", reward=reward_of, **based), seed=0).learn(500).save(file)
    assert load_agent(file, task=make_task("8gaussians", reward=lambda x: 0.2 * x[:, 0], **based))  # the same one
    with pytest.raises(ValueError, match="reward"):
        load_agent(file, task=make_task("8gaussians", reward=lambda x: 0.3 * x[:, 0], **based))
    with pytest.raises(ValueError, match="trained with horizon = 3, and the task has horizon = 4"):
        load_agent(file, task=make_task("8gaussians", reward=reward_of, **based | {"horizon": 4}))
    named = tmp_path / "named.safetensors"
    make_agent("ppo", make_task("8gaussians-tilted", target_options={"beta": 3.0}), seed=0).learn(500).save(named)
    target = load_agent(named).task.target
    assert isinstance(target, TiltedMixture) and target.beta == 3.0
