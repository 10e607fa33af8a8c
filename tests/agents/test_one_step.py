"""One step from many: the student's law is the teacher's as far as the coupling lets it, and its bounds hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dxmi_rl import DxMI, evaluate, make_agent, make_task
from dxmi_rl.agents import Agent
from dxmi_rl.agents.one_step import COUPLINGS, distil
from dxmi_rl.costs import Costs, counting
from dxmi_rl.utils.registry import UnknownNameError

WIDE = {"policy": {"width": 64}}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dxmi_rl.agents.one_step.KERNEL_STEPS", 300)
    monkeypatch.setattr("dxmi_rl.agents.one_step.MATCHED", 250)


def teacher() -> Agent[Any]:
    """The base sampler of 8 Gaussians in five steps: near the target."""
    return make_agent("base", make_task("8gaussians", backward="learned"), seed=0)


def student(of: Agent[Any], name: str = "path-wise", **settings: Any) -> Agent[Any]:
    return make_agent(name, of.task.with_horizon(1), seed=0, **(WIDE | settings))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_optimal_transport_keeps_the_law() -> None:
    """Its samples are nearer to the target than those of the other couplings; no energy is asked for."""
    given, found = teacher(), {}
    for coupling in COUPLINGS:
        with counting(costs := Costs()):
            one = distil(student(given), given, coupling=coupling, pairs=8000, steps=600)
        assert costs.energy_evals == 0
        found[coupling] = evaluate(one, fit=False, samples=2000, draws=1, trajectories=4000, floors=False)
    distance = {coupling: scores["sliced_w2"] for coupling, scores in found.items()}
    assert distance["transport"] < min(distance["own"], distance["deterministic"])
    for scores in found.values():
        assert scores["elbo"] < 0.05, "log Z is 0, and an ELBO does not exceed it"


@pytest.mark.usefixtures("short")
def test_it_is_reproducible_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dxmi_rl.agents.one_step.KERNEL_STEPS", 20)
    given = teacher()
    first, again = (distil(student(given), given, pairs=500, steps=5, seed=3) for _ in range(2))
    assert torch.equal(first.sample(20, seed=1), again.sample(20, seed=1))
    other = distil(student(given), given, pairs=500, steps=5, seed=4)
    assert not torch.equal(first.sample(20, seed=1), other.sample(20, seed=1))
    before = first.sample(20, seed=1)
    first.learn(2000)
    assert not torch.equal(before, first.sample(20, seed=1))


@pytest.mark.usefixtures("short")
def test_matching_is_an_assignment_of_least_cost() -> None:
    from dxmi_rl.agents.one_step import _matched, _pairs

    x, final = _pairs(teacher(), "own", 200, torch.Generator().manual_seed(0))
    matched = _matched(x, final)
    assert torch.equal(matched.sort(dim=0).values, final.sort(dim=0).values)
    assert float((x - matched).square().sum()) < float((x - final).square().sum())
    for i, j in ((0, 1), (5, 9), (100, 7)):  # no swap is better
        swapped = matched.clone()
        swapped[[i, j]] = matched[[j, i]]
        assert float((x - swapped).square().sum()) >= float((x - matched).square().sum()) - 1e-3


@pytest.mark.usefixtures("short")
def test_a_game_goes_on_with_the_teachers_energy() -> None:
    game = DxMI(make_task("8gaussians", reward=None, tau=0.1, horizon=3), seed=0).learn(500)
    one = DxMI(game.task.with_horizon(1), seed=1)
    before, sigma = game.energy(torch.ones(4, 2)), one.agent.policy.log_sigma.detach().clone()
    distil(one, game, pairs=500, steps=20)
    assert torch.equal(one.agent.policy.log_sigma, sigma), "a game would hardly bring down that of the pairs"
    assert torch.equal(one.energy(torch.ones(4, 2)), before) and torch.equal(
        one.score(torch.ones(4, 2)), game.score(torch.ones(4, 2))
    )
    assert all(torch.equal(a, b) for a, b in zip(one.policy.parameters(), one.agent.policy.parameters(), strict=True))
    one.learn(500)
    assert not torch.equal(one.energy(torch.ones(4, 2)), before)
    assert torch.equal(game.energy(torch.ones(4, 2)), before), "the teacher's own stays"


@pytest.mark.usefixtures("short")
def test_images() -> None:
    tiny = {"iterations": 20, "width": 16, "depth": 1}
    given = make_agent("base", make_task("digits", pretraining=tiny, energy=lambda x: x.flatten(1).square().sum(1)))
    one = make_agent("path-wise", given.task.with_horizon(1))
    before = one.sample(4, seed=0)
    distil(one, given, pairs=300, steps=300)
    residual = (given.sample(300, seed=1) - given.sample(300, seed=1).mean(0)).square().mean().sqrt()
    sigma = float(one.policy.trained_log_sigma().detach().exp())  # type: ignore[operator]
    assert 0.3 * float(residual) < sigma < 1.2 * float(residual), "sigma is that of what the mean leaves"
    assert one.sample(4, seed=0).shape == (4, 1, 8, 8) and not torch.equal(before, one.sample(4, seed=0))


def test_with_horizon_keeps_the_rest() -> None:
    task = make_task("gmm25", track="sample", tau=0.5, backward="learned")
    one = task.with_horizon(1)
    assert one.mdp.horizon == 1 and one.mdp.tau == 0.5 and one.target is task.target
    assert one.mdp.start_std == task.mdp.start_std and one.mdp.energy.function is task.mdp.energy.function
    agent = make_agent("ppo", one, n_trajectories=8)
    assert make_task(**{"name": "gmm25", "horizon": 1}).horizons == one.horizons
    assert agent.task.spec is not None and agent.task.spec["horizon"] == 1
    with pytest.raises(ValueError, match="horizon"):
        task.with_horizon(0)


def test_bad_input() -> None:
    given = teacher()
    with pytest.raises(UnknownNameError, match="transport"):
        distil(student(given), given, coupling="transprot")
    with pytest.raises(ValueError, match="student must have a Gaussian policy on one step"):
        distil(make_agent("path-wise", "8gaussians"), given)
    with pytest.raises(ValueError, match="student must have the teacher's states and starts"):
        distil(make_agent("path-wise", make_task("gmm25", horizon=1)), given)
    with pytest.raises(ValueError, match="teacher must have a Gaussian policy"):
        distil(student(given), make_agent("edm-heun", "8gaussians"))
    scratch = make_agent("base", make_task("8gaussians", track="sample", base=None, backward="learned"))
    for name, settings in {"path-wise": {}, "dxdp": {}, "base": {}}.items():
        with pytest.raises(ValueError, match="given no gradients"):
            distil(make_agent(name, scratch.task.with_horizon(1), **settings), scratch)
    moved = student(given)
    moved.mdp.start_from(lambda n, generator: torch.zeros(n, 2))
    with pytest.raises(ValueError, match="student must have the teacher's states and starts"):
        distil(moved, given)
    for key in ("pairs", "steps"):
        with pytest.raises(ValueError, match=key):
            distil(student(given), given, **{key: 0})
