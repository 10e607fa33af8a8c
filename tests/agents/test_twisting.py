"""Twisting functions fitted to a policy: they even out the weights of its chains, and ask for no more than they say."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from lqg_cases import Quadratic, Steps, lqg_task, solve
from torch import Tensor

from dxmi_rl import DxMI, evaluate, make_agent, make_task
from dxmi_rl.agents.twisting import ENERGY_EVALS, fit_twist
from dxmi_rl.costs import Costs, counting
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.smc import particle_filter

LOG_Z = float(Quadratic().log_z or 0.0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of a second."""
    monkeypatch.setattr("dxmi_rl.agents.twisting.ENERGY_STEPS", 200)


TINY = {"iterations": 20, "width": 16, "depth": 1}
"""Pretraining of a denoiser."""


def half_square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1) / 2


def other_policy() -> Steps:
    policy = Steps(solve())
    policy.shift, policy.std = policy.shift + torch.tensor([0.3, -0.2]), 1.3 * policy.std
    return policy


@pytest.mark.slow
def test_weights_are_more_even_with_it() -> None:
    """On the linear-quadratic task, for a policy that is not the best: log Z varies less."""
    mdp, policy = lqg_task().mdp, other_policy()
    twist = fit_twist((mdp, policy), steps=600, seed=0)
    plain, twisted = (
        particle_filter(mdp, policy, 300, 100, twist=each, generator=torch.Generator().manual_seed(1))
        for each in (None, twist)
    )
    assert float(twisted.log_z.std()) < 0.9 * float(plain.log_z.std())
    ratio = (twisted.log_z - LOG_Z).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / 300**0.5
    chosen = particle_filter(
        mdp, policy, 300, 100, twist=twist, candidates=10, generator=torch.Generator().manual_seed(2)
    )
    assert float(chosen.log_z.std()) < 0.6 * float(twisted.log_z.std()), "candidates pay"


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_it_costs_the_energies_that_it_says() -> None:
    for name, wanted in {"dxdp": 0, "ppo": ENERGY_EVALS}.items():
        agent = make_agent(name, make_task("8gaussians", backward="learned"), seed=0, n_trajectories=32)
        agent.learn(800)
        with counting(costs := Costs()):
            twist = fit_twist(agent, steps=3)
        assert twist.energy_evals == costs.energy_evals == wanted
        assert agent.sample(5, particles=8, twist=twist, seed=0).shape == (5, 2)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("gmm25", {"track": "energy"}),
        ("dw4", {"track": "sample"}),
        ("digits", {"energy": half_square, "pretraining": TINY}),
    ],
)
def test_all_kinds_of_tasks(task: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dxmi_rl.agents.twisting.ENERGY_EVALS", 64)
    monkeypatch.setattr("dxmi_rl.agents.twisting.AT_ONCE", 1)
    monkeypatch.setattr("dxmi_rl.agents.twisting.ENERGY_STEPS", 2)
    agent = make_agent("ppo", make_task(task, horizon=3, **settings), seed=0)
    twist, again = (fit_twist(agent, steps=2, seed=3) for _ in range(2))
    x = agent.sample(4, particles=4, twist=twist, seed=1)
    assert x.shape == (4, *agent.mdp.event_shape)
    assert all(torch.equal(twist(x, t), again(x, t)) for t in range(4))
    assert not any(parameter.requires_grad for parameter in twist.parameters())


def test_bad_input() -> None:
    agent = make_agent("ppo", make_task("8gaussians", tau=0.0))
    with pytest.raises(ValueError, match="tau must be > 0"):
        fit_twist(agent)
    agent = make_agent("ppo", "8gaussians")
    with pytest.raises(ValueError, match="steps must"):
        fit_twist(agent, steps=0)
    with pytest.raises(ValueError, match="agent 'edm-heun' has none"):
        fit_twist(make_agent("edm-heun", "8gaussians"))
    agent.mdp.start_from(lambda n, generator: torch.zeros(n, 2))
    with counting(costs := Costs()), pytest.raises(TypeError, match="start at noised data"):
        fit_twist(agent)
    assert not costs.energy_evals


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_agents_own_model_is_left_alone() -> None:
    """It goes on learning, the twist does not change, and after a swap of the energy it is no model of that."""
    agent = make_agent("dxdp", make_task("8gaussians", backward="learned"), seed=0, n_trajectories=32).learn(800)
    twist, x = fit_twist(agent, steps=2), torch.randn(5, 2)
    before = twist(x, 5)
    agent.learn(800)
    assert torch.equal(twist(x, 5), before)
    agent.mdp.set_energy(lambda x: x.square().sum(1))
    assert fit_twist(agent, steps=2).energy_evals == ENERGY_EVALS


def test_checkpoints_do_not_hold_the_energy() -> None:
    """Neither a network that is the reward, nor its parameters, become a part of the agent's model of it."""
    energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    agent = make_agent("dxdp", make_task(energy, dim=2, backward="learned"), seed=0, n_trajectories=32).learn(320)
    owned = {id(parameter) for module in agent.modules().values() for parameter in module.parameters()}
    assert not owned & {id(parameter) for parameter in energy.parameters()}


@pytest.mark.usefixtures("short")
def test_the_temperature_is_that_of_the_filter() -> None:
    agent = make_agent("ppo", make_task("8gaussians", tau=0.5), seed=0)
    twist = fit_twist(agent, steps=2, temperature=1.0)
    with pytest.raises(ValueError, match=r"twist must be of temperature 0\.5, got one of 1"):
        agent.sample(3, particles=4, twist=twist)
    particle_filter(agent.mdp, agent.density(), 2, 4, twist=twist, temperature=1.0, generator=agent.generator)


@pytest.mark.usefixtures("short")
def test_games_weight_by_the_averaged_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    game = DxMI(make_task("8gaussians", reward=None, tau=0.1), seed=0)
    asked: list[int] = []
    average = game.average_energy.forward
    monkeypatch.setattr(game.average_energy, "forward", lambda x: asked.append(len(x)) or average(x))
    assert game.sample(3, particles=5, seed=0).shape == (3, 2)
    assert asked == [15]
    fit_twist(game, steps=1)
    assert sum(asked) > 15, "and so do their twisting functions"
    with pytest.raises(ValueError, match="guidance must be 0 with particles"):
        game.sample(3, particles=5, guidance=1.0)


@pytest.mark.usefixtures("short")
def test_any_step_agents_have_particles() -> None:
    agent: Any = make_agent("ppo", make_task("8gaussians", horizon=(1, 2, 4), backward="learned"))
    assert agent.sample(3, particles=5, horizon=3, seed=0).shape == (3, 2)
    twist = fit_twist(agent.at(3), steps=2)
    assert agent.sample(3, particles=5, horizon=3, twist=twist, seed=0).shape == (3, 2)
    with pytest.raises(ValueError, match="twist must be of horizon 4, got one of 3"):
        agent.sample(3, particles=5, twist=twist)


def test_evaluate_scores_samples_chosen_by_weight() -> None:
    """They are closer to the target than the base sampler's own; scores of its chains stay the same."""
    agent = make_agent("base", make_task("gmm9", track="sample", horizon=2, backward="learned"))
    sizes: dict[str, Any] = {"samples": 4000, "draws": 1, "trajectories": 100, "fit": False, "floors": False}
    with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):
        own, chosen = (evaluate(agent, particles=particles, **sizes) for particles in (None, 200))
    assert chosen["sliced_w2"] < 0.3 * own["sliced_w2"] and chosen["mode_tv"] < 0.5 * own["mode_tv"]
    assert chosen["elbo"] == own["elbo"] and chosen["kl_marginal"] == own["kl_marginal"]
    assert chosen["denoiser_calls"] == 200 * own["denoiser_calls"]
    for bad in (1, 2.5, True):
        with pytest.raises((TypeError, ValueError), match="particles must"):
            evaluate(agent, particles=bad, **sizes)
    own_energy = make_task(lambda x: x.square().sum(1), dim=2, backward="learned", target_options={"scale": 1.0})
    with pytest.raises(ValueError, match="particles must be None where no score is of samples"):
        evaluate(make_agent("base", own_energy), particles=2, **sizes)
    with pytest.raises(ValueError, match="particles must be None for a model that learns its energy"):
        evaluate(make_agent("dxmi", "8gaussians-data"), particles=2, **sizes)
    with pytest.raises(ValueError, match="particles must be None for a model without density"):
        evaluate(make_agent("edm-heun", "8gaussians"), particles=2, **sizes)


@pytest.mark.slow
def test_evaluate_reports_log_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its standard error of the truth, 0; its other keys are fractions."""
    monkeypatch.setattr("dxmi_rl.evaluation.log_weights.PARTICLES", 200)
    monkeypatch.setattr("dxmi_rl.evaluation.log_weights.fit_twist", functools.partial(fit_twist, steps=200))
    agent = make_agent("dxdp", make_task("8gaussians", backward="learned"), seed=0, n_trajectories=32).learn(4000)
    sizes: dict[str, Any] = {"samples": 200, "draws": 1, "trajectories": 10_000, "fit": False, "floors": False}
    with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):
        scores, plain = (evaluate(agent, smc=smc, **sizes) for smc in (True, False))
    assert abs(scores["smc_log_z"]) < 4 * scores["smc_log_z_se"] + 0.05
    assert 0 < scores["smc_log_z_std"] < 1 and 0 < scores["smc_ess"] <= 1 and 0 < scores["smc_origins"] <= 1
    assert not any(key.startswith("smc") for key in plain)
    with pytest.raises(ValueError, match="smc must be False for a model without density"):
        evaluate(make_agent("edm-heun", "8gaussians"), smc=True, **sizes)
