"""Track "energy": agents that learn from values of the energy alone, and those that say that they cannot."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from agent_cases import skip_without_extra, small, task_for, train
from torch import Tensor

from dxmi_rl import evaluate, make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark.presets import given_energy
from dxmi_rl.evaluation import tempered_log_z
from dxmi_rl.live_energy import EnergyError

NEED_GRADIENTS = {
    "adjoint-matching", "adjoint-sampling", "draft", "dxdp-paper", "path-wise", "path-wise-vargrad", "vgs",
}  # fmt: skip
TRAINED = [name for name in AGENTS if AGENTS[name].trains and not AGENTS[name].needs_denoiser and name != "dxmi"]


def values_only(**changes: Any) -> Any:
    return task_for("ppo", track="energy", horizon=3, **changes)


@pytest.mark.parametrize("name", TRAINED)
def test_agents_learn_from_values_or_say_that_they_cannot(name: str) -> None:
    skip_without_extra(name)
    if name in NEED_GRADIENTS:
        with pytest.raises(
            EnergyError,
            match=f"agent '{name}' needs the energy's gradient, which the task does not give",
        ):
            small(name, values_only())
        return
    inside = "agent_settings.energy_model"
    key = {"dxdp": "energy_model", "any-step": inside, "any-class": inside}.get(name)
    model = {} if key is None else {key: True}
    agent = train(small(name, values_only(), **model), 3)
    assert agent.costs.energy_evals > 0 and agent.costs.energy_grad_evals == 0
    assert bool(agent.sample(20).isfinite().all())


@pytest.mark.parametrize("name", sorted(NEED_GRADIENTS))
def test_an_energy_without_a_gradient_is_refused_wherever_it_comes_from(name: str) -> None:
    def values(x: Tensor) -> Tensor:
        return x.detach().square().sum(1)

    own = make_task(values, dim=2, horizon=3, backward="learned", target_options={"scale": 1.0})
    given = make_task("8gaussians", energy=values, horizon=3, backward="learned")
    for task in (own, given):
        with pytest.raises(EnergyError, match=f"agent '{name}' needs the energy's gradient"):
            small(name, task)
    agent = small(name, make_task("8gaussians", energy=lambda x: x.square().sum(1), horizon=3, backward="learned"))
    train(agent, 1)
    agent.mdp.set_energy(values)
    with pytest.raises(
        EnergyError, match=rf"{name} on '8gaussians' stopped at timestep .* needs the energy's gradient"
    ):
        train(agent, 1)


def test_it_is_a_black_box_whatever_the_energy_has() -> None:
    """The target's own energy, one of the user's, one that replaces it, and the energy of a copied task."""
    x = torch.randn(4, 2, requires_grad=True)
    own = make_task(lambda x: x.square().sum(1), dim=2, track="energy", target_options={"scale": 1.0})
    other = make_task("8gaussians", track="energy", energy=lambda x: x.square().sum(1))
    for task in (values_only(), own, other, values_only().with_own_energy()):
        assert not task.mdp.energy(x).requires_grad
        assert task.mdp.energy.value_and_gradient(x)[1] is None
        with pytest.raises(EnergyError, match="no gradient"):
            task.mdp.energy.gradient(x)
    assert torch.equal(own.mdp.energy(x), x.detach().square().sum(1))
    swapped = values_only()
    swapped.mdp.set_energy(lambda x: x.square().sum(1))
    assert not swapped.mdp.energy(x).requires_grad
    target = values_only().target
    for again in (pickle.loads(pickle.dumps(target)), deepcopy(target)):
        assert torch.equal(again.energy(x), target.energy(x)) and not again.energy(x).requires_grad


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("dxdp", {"energy_model": False}, EnergyError, "with these settings, needs the energy's gradient"),
        ("vargrad", {"buffer_size": 200}, EnergyError, "with these settings, needs the energy's gradient"),
        ("ppo", {"policy": {"energy_gradient": True}}, ValueError, "policy.energy_gradient must be False or None"),
    ],
)
def test_settings_that_need_gradients_are_refused(
    name: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_agent(name, values_only(), **settings)


def test_guidance_and_star_say_what_is_missing() -> None:
    agent = train(small("dxdp", values_only(), energy_model=True), 1)
    with pytest.raises(EnergyError, match="guidance needs the energy's gradient"):
        agent.sample(4, guidance=0.5)  # type: ignore[call-arg]
    assert not NEED_GRADIENTS & set(given_energy("gmm9", {"track": "energy"}))
    assert set(given_energy("gmm9", {"track": "sample"})) >= NEED_GRADIENTS - {"adjoint-matching"}


class Bowl(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / 2


def test_named_energies_keep_their_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Annealing may take the gradient that agents are not given: log Z of exp(-|x|^2 / (2 tau)) is log(2 pi tau)."""
    monkeypatch.setattr("dxmi_rl.irl.fixed.fixed_energy", lambda task: Bowl())
    monkeypatch.setenv("DXMI_RL_CACHE", str(tmp_path))
    task = make_task("8gaussians-data", energy="fixed", track="energy")
    assert not task.mdp.energy(torch.zeros(1, 2, requires_grad=True)).requires_grad
    assert tempered_log_z(task) == pytest.approx(math.log(2 * math.pi * task.mdp.tau), abs=0.1)


def test_replay_without_local_search_needs_no_gradient() -> None:
    agent = train(small("vargrad", values_only(), buffer_size=200, local_search_steps=0), 4)
    assert agent.costs.energy_grad_evals == 0


def test_it_is_scored_with_the_targets_own_samples(tmp_path: Path) -> None:
    agent = train(small("ppo", values_only()), 3)
    scores = evaluate(agent, samples=200, draws=1, trajectories=200, fit=False, floors=False)
    assert {"kl_bound", "sliced_w2", "modes", "eubo"} <= set(scores)
    loaded = type(agent).load(agent.save(tmp_path / "agent.safetensors"))
    assert loaded.task.config.track == "energy" and loaded.mdp.energy.values_only


def test_the_environment_takes_the_track() -> None:
    env = gym.make("DxMIDenoise-v0", target="gmm9", track="energy")
    env.reset(seed=0)
    assert isinstance(env.step(env.action_space.sample())[1], float)
    env.close()


@pytest.mark.slow
def test_values_alone_find_two_modes() -> None:
    """Two wells with weights 1 : 3: DxDP's energy model has the slope that the energy does not give."""

    def energy(x: torch.Tensor) -> torch.Tensor:
        wells = torch.stack([-(x - 2).square().sum(1) / 0.5, -(x + 2).square().sum(1) / 0.5 + 1.0986])
        return -wells.logsumexp(0)

    task = make_task(energy, dim=2, track="energy", horizon=5, backward="learned", target_options={"scale": 2.1})
    agent = make_agent("dxdp", task, seed=0).learn(30_000)
    share = float((agent.sample(4000, seed=1)[:, 0] < 0).double().mean())
    assert share == pytest.approx(0.75, abs=0.08) and agent.costs.energy_grad_evals == 0
