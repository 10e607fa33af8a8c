"""Policies of other libraries as densities over the next state: normalised, equal to their own log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dxmi_rl import evaluate
from dxmi_rl.agents.wrapped.action_density import ActionDensity, sb3_density, torchrl_density
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.tasks import make_task

LOW, HIGH = torch.tensor([-3.0, -2.0]), torch.tensor([3.0, 4.0])


@pytest.fixture(name="mdp")
def default_mdp() -> DenoisingMDP:
    return make_task("8gaussians", horizon=3).mdp


def gaussian(observation: Tensor) -> tuple[Tensor, Tensor]:
    """A law that depends on the state and the step."""
    x, told_of = observation[:, :2], observation[:, 2:]
    return 0.2 * x.flip(1) + told_of, -0.5 + 0.1 * x


def density(mdp: DenoisingMDP, coordinates: str, squash: bool) -> ActionDensity:
    return ActionDensity(gaussian, mdp, coordinates, squashed=(LOW, HIGH) if squash else None)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("coordinates", ["noise", "next_state"])
def test_densities_integrate_to_one(coordinates: str, squash: bool) -> None:
    mdp = make_task("8gaussians", horizon=3).mdp
    low, high = LOW.double(), HIGH.double()
    policy = ActionDensity(gaussian, mdp, coordinates, squashed=(low, high) if squash else None)
    x = torch.tensor([[0.4, -0.3]])
    n = 400
    axes = []
    for i in range(2):
        edges = (low[i], high[i]) if squash else (torch.tensor(-7.0), torch.tensor(7.0))
        axes.append(edges[0] + (edges[1] - edges[0]) * (torch.arange(n) + 0.5) / n)
    actions = torch.cartesian_prod(*axes)
    many = x.expand(len(actions), 2)
    for t in range(3):
        x_next = mdp.next_state(many, t, actions, coordinates)
        stretch = float(mdp.base.sigma[t]) ** 2 if coordinates == "noise" else 1.0
        cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])) * stretch
        total = float(policy.log_prob(many, x_next, t).exp().sum()) * cell
        assert total == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("coordinates", ["noise", "next_state"])
def test_transport_and_log_prob_agree(mdp: DenoisingMDP, coordinates: str, squash: bool) -> None:
    policy = density(mdp, coordinates, squash)
    trajectory = mdp.rollout(policy, 200, torch.Generator().manual_seed(0))
    x, x_next, t = trajectory.transitions()
    for steps in (t, None):
        if steps is None:
            values = torch.cat([policy.log_prob(trajectory.x[i], trajectory.x[i + 1], i) for i in range(3)])
        else:
            values = policy.log_prob(x, x_next, steps)
        torch.testing.assert_close(values, trajectory.log_prob.flatten(), rtol=1e-2, atol=2e-2)
    actions = mdp.action(x, t, x_next, coordinates)
    if squash:
        assert bool(((actions >= LOW - 1e-3) & (actions <= HIGH + 1e-3)).all())
        outside = mdp.next_state(x, t, HIGH + 1 + 0 * x, coordinates)
        assert bool((policy.log_prob(x, outside, t) == -math.inf).all())


def test_a_standard_normal_is_the_base_sampler(mdp: DenoisingMDP) -> None:
    from dxmi_rl.agents.untrained.base_sampler import BasePolicy

    policy = ActionDensity(lambda o: (0 * o[:, :2], 0 * o[:, :2]), mdp)
    rng = lambda: torch.Generator().manual_seed(1)
    ours, base = mdp.rollout(policy, 50, rng()), mdp.rollout(BasePolicy(mdp), 50, rng())
    torch.testing.assert_close(ours.x, base.x)
    torch.testing.assert_close(ours.log_prob, base.log_prob)


# -- Stable-Baselines3 -----------------------------------------------------------------------------------------------


def sb3_model(kind: str, **kwargs: Any) -> Any:
    sb3 = pytest.importorskip("stable_baselines3")
    from dxmi_rl.envs import make_sb3_env

    env = make_sb3_env("8gaussians", num_envs=4, horizon=3, action_bound=5.0)
    return getattr(sb3, kind)("MlpPolicy", env, seed=0, device="cpu", **kwargs)


def observations(mdp: DenoisingMDP, n: int = 64) -> tuple[Tensor, Tensor]:
    x = 2 * torch.randn(n, 2, generator=torch.Generator().manual_seed(3))
    return x, torch.cat([x, torch.full((n, 1), 1 - 1 / 3)], dim=1)


@pytest.mark.parametrize("kind", ["PPO", "A2C"])
def test_sb3_on_policy(kind: str) -> None:
    model = sb3_model(kind)
    mdp = model.env.mdp
    x, observation = observations(mdp)
    action = torch.randn(64, 2)
    with torch.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(observation, action)
        x_next = mdp.next_state(x, 1, action)
        ours = sb3_density(model.policy, mdp).log_prob(x, x_next, 1)
    torch.testing.assert_close(ours, log_prob - 2 * mdp.base.sigma[1].log(), rtol=1e-3, atol=1e-3)


def test_sb3_sac() -> None:
    model = sb3_model("SAC")
    mdp = model.env.mdp
    x, observation = observations(mdp)
    policy = sb3_density(model.policy, mdp)
    with torch.no_grad():
        scaled, log_prob = model.actor.action_log_prob(observation)  # in [-1, 1]; the environment gets 5 times that
        x_next = mdp.next_state(x, 1, 5 * scaled)
        ours = policy.log_prob(x, x_next, 1)
    wanted = log_prob - 2 * math.log(5) - 2 * mdp.base.sigma[1].log()
    torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-2)
    assert policy.bounds is policy.squashed
    scores = evaluate(model, samples=500, draws=1, trajectories=1000, fit=False, floors=False)
    assert {"kl_bound", "sliced_w2", "beyond_box"} <= scores.keys() and scores["beyond_box"] == 0
    assert "eubo" not in scores, "a bounded policy cannot reach everything: infinite"


def test_sb3_td3_has_samples_only() -> None:
    model = sb3_model("TD3")
    mdp = model.env.mdp
    x, observation = observations(mdp)
    policy = sb3_density(model.policy, mdp)
    with torch.no_grad():
        x_next, _ = policy.transport(x, 1, torch.randn(64, 2))
        action, _ = model.predict(observation.numpy(), deterministic=True)
    np.testing.assert_allclose(mdp.action(x, 1, x_next).numpy(), action, atol=1e-3)
    scores = evaluate(model, samples=500, draws=1, trajectories=1000, fit=False, floors=False)
    assert "sliced_w2" in scores and not {"kl_bound", "elbo", "log_z"} & scores.keys()


def test_sb3_policies_without_a_plain_gaussian_are_refused(mdp: DenoisingMDP) -> None:
    for kind in ("PPO", "SAC"):
        with pytest.raises(TypeError, match="diagonal Gaussian"):
            sb3_density(sb3_model(kind, use_sde=True).policy, mdp)
    other = make_task(lambda x: x.square().sum(1), dim=6).mdp
    with pytest.raises(TypeError, match=r"flat observations \[7\]"):
        sb3_density(sb3_model("PPO").policy, other)


@pytest.mark.slow
def test_the_fraction_beyond_the_box() -> None:
    model = sb3_model("PPO")
    with torch.no_grad():
        model.policy.log_std.fill_(math.log(5.0))  # box +-5: |N(0, 5^2)| > 5 with probability 0.3173
    scores = evaluate(model, samples=4000, draws=1, trajectories=1000, fit=False, floors=False)
    assert scores["beyond_box"] == pytest.approx(0.3173, abs=0.012)  # 24,000 coordinates: standard error 0.003


# -- TorchRL ---------------------------------------------------------------------------------------------------------


def torchrl_actor(kind: str, key: str = "observation", **kwargs: Any) -> Any:
    pytest.importorskip("torchrl")
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl import modules

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=[key], out_keys=["loc", "scale"])
    distribution = getattr(modules, kind)
    return modules.ProbabilisticActor(
        module,
        in_keys=["loc", "scale"],
        distribution_class=distribution,
        distribution_kwargs=kwargs,
        return_log_prob=True,
    )


@pytest.mark.parametrize(
    ("kind", "kwargs"), [("IndependentNormal", {}), ("TanhNormal", {"low": -5.0, "high": 5.0}), ("TanhNormal", {})]
)
def test_torchrl_actors(mdp: DenoisingMDP, kind: str, kwargs: dict[str, Any]) -> None:
    tensordict = pytest.importorskip("tensordict")
    actor = torchrl_actor(kind, **kwargs)
    x, observation = observations(mdp)
    td = tensordict.TensorDict({"observation": observation}, [64])
    with torch.no_grad():
        dist = actor.get_dist(td)
        action = 0.8 * dist.sample()
        wanted = dist.log_prob(action) - 2 * mdp.base.sigma[1].log()
        ours = torchrl_density(actor, mdp).log_prob(x, mdp.next_state(x, 1, action), 1)
    torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-2)
    scores = evaluate(actor, task="8gaussians", samples=500, draws=1, trajectories=1000, fit=False, floors=False)
    assert {"kl_bound", "sliced_w2"} <= scores.keys()


def test_torchrl_actors_that_are_refused(mdp: DenoisingMDP) -> None:
    with pytest.raises(TypeError, match="must read"):
        torchrl_density(torchrl_actor("IndependentNormal", key="x"), mdp)
    with pytest.raises(TypeError, match="got TruncatedNormal"):
        torchrl_density(torchrl_actor("TruncatedNormal"), mdp)
    with pytest.raises(ValueError, match="task must name the task"):
        evaluate(torchrl_actor("IndependentNormal"))


@pytest.mark.parametrize("coordinates", ["noise", "next_state"])
def test_moments_are_those_of_log_prob(mdp: DenoisingMDP, coordinates: str) -> None:
    policy, x, x_next = density(mdp, coordinates, squash=False), torch.randn(50, 2), torch.randn(50, 2)
    for t in (1, torch.full((50,), 1)):
        mean, log_std = policy.moments(x, t)
        torch.testing.assert_close(gaussian_log_prob(x_next, mean, log_std), policy.log_prob(x, x_next, t))
    with pytest.raises(TypeError, match="squashed"):
        density(mdp, coordinates, squash=True).moments(x, 1)
