"""DxMI: the energy's loss and its equilibrium, the averages, any agent inside, pretrained and from scratch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from agent_cases import same, small, state
from torch import Tensor

from dxmi_rl import load_agent, make_agent, make_task
from dxmi_rl.agents import AGENTS, DxDPConfig
from dxmi_rl.costs import counting
from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.irl import ENERGY_LOSSES, DxMI, DxMIConfig, fixed, recipe
from dxmi_rl.networks import EnergyMLP
from dxmi_rl.targets import Target
from dxmi_rl.tasks import TASKS, Task
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import setting_names

INNER = [name for name in AGENTS if name not in ("dxmi", "any-step", "any-class") and AGENTS[name].trains]
FAST = {
    "n_trajectories": 64, "policy.width": 16, "policy.depth": 2, "value.width": 16, "value.depth": 2, "width": 16,
    "warmup_iterations": 0,
}  # fmt: skip


def data_task(**changes: Any) -> Task:
    torch.manual_seed(0)
    return make_task("8gaussians-data", pretraining={"iterations": 50, "batch_size": 64, "width": 16}, **changes)


def dxmi(task: Task, agent: str = "dxdp", **settings: Any) -> DxMI:
    if agent.startswith("sb3"):
        pytest.importorskip("stable_baselines3")
    known = setting_names(AGENTS[agent].Config())
    inner = {key: value for key, value in FAST.items() if key in known}
    built = make_agent("dxmi", task, agent=agent, agent_settings=inner, **{"energy.width": 32, **settings})
    assert isinstance(built, DxMI)
    return built


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENERGY_LOSSES.names())
def test_every_loss_lowers_data_and_raises_samples(name: str) -> None:
    data, policy = torch.zeros(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    ENERGY_LOSSES[name](data, policy, 0.5).backward()
    assert data.grad is not None and policy.grad is not None
    assert bool((data.grad > 0).all() and (policy.grad < 0).all())


def test_the_contrastive_loss_by_hand() -> None:
    data, policy = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0, 1.0])
    wanted = -0.5 - 1.5 + 0.25 * (2.5 + 10.25 / 3)
    assert float(ENERGY_LOSSES["contrastive"](data, policy, 0.25)) == pytest.approx(wanted)


def test_the_noise_contrastive_losses_by_hand() -> None:
    data, policy = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0, 1.0])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    nce = (softplus(1.0) + softplus(-2.0)) / 2 + (softplus(-0.5) + softplus(-3.0) + softplus(-1.0)) / 3
    assert float(ENERGY_LOSSES["nce"](data, policy)) == pytest.approx(nce)
    squares = 2.5 + 10.25 / 3
    assert float(ENERGY_LOSSES["nce"](data, policy, 0.3)) == pytest.approx(nce + 0.3 * squares)
    shift = math.log(7.0)
    n2ce = (softplus(1 + shift) + softplus(shift - 2)) / 2
    n2ce += 7 * (softplus(-0.5 - shift) + softplus(-3 - shift) + softplus(-1 - shift)) / 3
    assert float(ENERGY_LOSSES["n2ce"](data, policy, noise_ratio=7.0)) == pytest.approx(n2ce)
    defaults = [ENERGY_LOSSES[name](data, policy) for name in ("contrastive", "n2ce")]
    assert defaults[0] == ENERGY_LOSSES["contrastive"](data, policy, 1.0)
    assert defaults[1] == ENERGY_LOSSES["n2ce"](data, policy, 0.0, 100.0)


@pytest.mark.parametrize(("loss", "ratio"), [("nce", None), ("n2ce", 2.0), ("n2ce", 100.0)])
def test_the_noise_contrastive_optimum_is_the_log_ratio(loss: str, ratio: float | None) -> None:
    """On two points with p_data = (3, 1) / 4 and p_pi = (1, 4) / 5 the gradient vanishes at E = log(p_pi / p_data)."""
    energy = torch.tensor([4 / 15, 16 / 5]).log().double().requires_grad_()
    data, policy = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1, 1])
    ENERGY_LOSSES[loss](energy[data], energy[policy], noise_ratio=ratio).backward()
    assert energy.grad is not None and float(energy.grad.abs().max()) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_the_contrastive_energy_approaches_its_equilibrium(gamma: float) -> None:
    """E* = (p_pi - p_data) / (2 gamma (p_pi + p_data)) for two fixed Gaussians, |E*| <= 1 / (2 gamma)."""
    torch.manual_seed(0)
    energy = EnergyMLP(1, 1.0, width=32, depth=2)
    optimizer = torch.optim.Adam(energy.parameters(), lr=5e-3)
    generator, steps = torch.Generator().manual_seed(0), 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        noise = torch.randn(2, 2048, 1, generator=generator)
        data, policy = noise[0] - 0.7, 1.3 * noise[1] + 0.5
        loss = ENERGY_LOSSES["contrastive"](energy(data), energy(policy), gamma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.linspace(-3, 3, 61)[:, None]
    p_data = torch.distributions.Normal(-0.7, 1.0).log_prob(x).exp()
    p_policy = torch.distributions.Normal(0.5, 1.3).log_prob(x).exp()
    wanted = ((p_policy - p_data) / (2 * gamma * (p_policy + p_data))).squeeze(1)
    error = (energy(x) - wanted).detach().abs()
    assert float(wanted.abs().max()) < 1 / (2 * gamma)
    assert float(error.max()) < 0.08 / (2 * gamma), error


# The loop -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("agent", INNER)
def test_any_agent_inside(agent: str) -> None:
    model = dxmi(data_task(), agent)
    policy = [p.clone() for p in model.agent.policy.parameters()]
    energy = [p.clone() for p in model.energy.parameters()]
    model.learn(3 * model.timesteps_per_iteration)
    assert model.num_timesteps == 3 * 5 * 64 == model.agent.num_timesteps
    assert not all(torch.equal(a, b) for a, b in zip(policy, model.agent.policy.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(energy, model.energy.parameters(), strict=True))
    assert {"energy_loss", "energy_gap"} < model.log.keys(), "and a loss of the agent's own"
    assert model.sample(5).shape == (5, 2)


@pytest.mark.slow
def test_base_inside_trains_only_the_energy() -> None:
    model = dxmi(data_task(), "base")
    before = model.sample(16, seed=0)
    model.learn(20 * model.timesteps_per_iteration)
    assert torch.equal(before, model.sample(16, seed=0))
    assert model.log["energy_gap"] != 0


def test_the_energy_is_the_live_reward() -> None:
    model = dxmi(data_task())
    x = torch.randn(4, 2)
    assert torch.equal(model.mdp.energy(x), model.energy(x))
    model.learn(2 * model.timesteps_per_iteration)
    assert torch.equal(model.mdp.energy(x), model.energy(x))
    assert model.mdp is model.agent.mdp is model.task.mdp


@pytest.mark.slow
@pytest.mark.parametrize("base", ["ddpm", None])
def test_the_energy_falls_on_data_relative_to_noise(base: str | None) -> None:
    task = data_task(base=base)
    model = dxmi(task, ema=0.9)

    def gap() -> float:
        data = task.target.sample(2000, torch.Generator().manual_seed(0))
        noise = 8 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(1)) - 4
        return float(model.score(noise).mean() - model.score(data).mean())

    before = gap()
    model.learn(100 * model.timesteps_per_iteration)
    assert gap() > before + 0.02
    assert gap() > 0
    assert bool(torch.isfinite(model.sample(100)).all())


def test_from_scratch_needs_no_denoiser() -> None:
    model = dxmi(data_task(base=None))
    model.learn(2 * model.timesteps_per_iteration)
    assert model.costs.denoiser_calls == 0


def test_the_averages_are_exponential() -> None:
    model = dxmi(data_task(), ema=0.8)
    pairs = [(model.policy, model.agent.policy), (model.average_energy, model.energy)]
    average = [[p.clone() for p in a.parameters()] for a, _ in pairs]
    for _ in range(3):
        model.iterate()
        for rows, (_, current) in zip(average, pairs, strict=True):
            for row, p in zip(rows, current.parameters(), strict=True):
                row.mul_(0.8).add_(p.detach(), alpha=0.2)
    for rows, (a, _) in zip(average, pairs, strict=True):
        assert all(torch.allclose(row, p, atol=1e-5) for row, p in zip(rows, a.parameters(), strict=True))


def test_a_recipes_gamma_is_of_its_loss() -> None:
    """What was found for the contrastive loss says nothing of the others, which have their own."""
    assert dxmi(data_task()).config.gamma == recipe("plane").gamma == 0.5
    assert dxmi(data_task(), loss="nce").config.gamma is None
    assert dxmi(data_task(), loss="nce", gamma=0.1).config.gamma == 0.1


def test_with_an_anchor_gamma_does_not_pull_towards_zero() -> None:
    """At the start the energy is its anchor, and a step with gamma = 1 is one of the plain difference."""
    anchored, plain = dxmi(data_task(), anchor=0.9, gamma=1.0), dxmi(data_task(), gamma=0.0)
    for model in (anchored, plain):
        model.update_energy(torch.ones(64, 2))
    for a, b in zip(anchored.energy.parameters(), plain.energy.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_anchor_is_an_average_of_the_energy() -> None:
    model = dxmi(data_task(), anchor=0.8)
    assert model.anchor is not None
    average = [p.clone() for p in model.anchor.parameters()]
    for _ in range(3):
        model.iterate()
        for row, p in zip(average, model.energy.parameters(), strict=True):
            row.mul_(0.8).add_(p.detach(), alpha=0.2)
    assert all(torch.allclose(row, p, atol=1e-5) for row, p in zip(average, model.anchor.parameters(), strict=True))


@pytest.mark.slow
def test_a_gradient_penalty_flattens_the_energy() -> None:
    slopes = {}
    for weight in (0.0, 10.0):
        model = dxmi(data_task(), gradient_penalty=weight, energy_learning_rate=1e-2)
        with counting(model.costs):
            for _ in range(30):
                model.update_energy(torch.ones(64, 2))
        x = model.task.target.data(256, torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(model.energy(x).sum(), x)
        slopes[weight] = float(gradient.norm(dim=1).mean())
        assert (model.costs.energy_grad_evals > 0) == (weight > 0)
    assert slopes[10.0] < 0.3 * slopes[0.0]


@pytest.mark.slow
def test_spectral_norm_bounds_every_layer_and_the_averages() -> None:
    model = dxmi(data_task(), anchor=0.9, ema=0.995, energy={"spectral_norm": True, "fourier": 2})
    for _ in range(300):
        model.update_energy(torch.ones(64, 2))
        model._average()
    assert not model.energy.training
    for network in (model.energy, model.average_energy, model.anchor):
        layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
        norms = [float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in layers]
        assert len(norms) == 4
        assert min(norms) > 0.9
        assert max(norms) < 1.2
    x = torch.ones(3, 2)
    assert torch.equal(model.energy(x), model.energy(x)), "evaluation changes nothing"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"anchor": 0.9}, {"energy.spectral_norm": True}, {"gradient_penalty": 0.1}])
def test_the_energys_options_are_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    model = dxmi(data_task(), replay=2, **settings)
    for _ in range(2):
        model.iterate()
    model.save(tmp_path / "game")
    again = load_agent(tmp_path / "game")
    for played in (model, again):
        played.iterate()
    assert same(state(model), state(again))


def test_without_averaging_it_is_the_last_iterate() -> None:
    model = dxmi(data_task(), ema=0.0)
    model.learn(3 * model.timesteps_per_iteration)
    assert torch.allclose(model.sample(8, seed=0), model.sample_trajectory(8, seed=0, policy=model.agent.policy).final)
    assert torch.allclose(model.score(torch.ones(2, 2)), model.energy(torch.ones(2, 2)).detach())


@pytest.mark.slow
def test_last_iterate_and_average_differ() -> None:
    model = dxmi(data_task(), ema=0.99)
    model.learn(5 * model.timesteps_per_iteration)
    last = model.sample_trajectory(8, seed=0, policy=model.agent.policy).final
    assert not torch.equal(model.sample(8, seed=0), last)


def test_score_is_an_energy_of_arrays_too() -> None:
    model = dxmi(data_task())
    x = torch.randn(4, 2)
    assert torch.equal(model.score(x), model.score(x.numpy()))
    assert model.score(x).shape == (4,) and not model.score(x).requires_grad
    with pytest.raises(ValueError, match=r"x must have shape \[batch, 2\]"):
        model.score(torch.zeros(4, 3))


def test_data_and_policy_noise_are_not_the_same_stream() -> None:
    """Equal streams would couple the data of an iteration to the policy's own noise."""
    model = dxmi(data_task())
    assert not torch.equal(model.generator.get_state(), model.agent.generator.get_state())


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"loss": "contrastiv"}, UnknownNameError, "Did you mean 'contrastive'"),
        ({"gamma": -1.0}, ValueError, "gamma must be finite"),
        ({"ema": 1.0}, ValueError, r"ema must lie in \[0, 1\)"),
        ({"anchor": 1.0}, ValueError, r"anchor must lie in \[0, 1\)"),
        ({"gradient_penalty": -0.1}, ValueError, "gradient_penalty"),
        ({"loss": "n2ce", "noise_ratio": 0.0}, ValueError, "noise_ratio"),
        ({"loss": "nce", "noise_ratio": 2.0}, ValueError, "noise_ratio belongs to loss 'n2ce'"),
        ({"energy": {"spectral_norm": True, "residual": True}}, ValueError, "spectral_norm must be False"),
        ({"energy.width": 0}, ValueError, r"energy\.width must be >= 1"),
        ({"energy.levels": (0.1,)}, ValueError, r"energy\.levels belongs to energy\.denoiser=True"),
        ({"energy.level_power": 2.0}, ValueError, r"energy\.level_power belongs to energy\.denoiser=True"),
        ({"energy_learning_rate": float("inf")}, ValueError, "energy_learning_rate"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        dxmi(data_task(), **settings)


@pytest.mark.parametrize(
    ("agent", "inner", "error", "text"),
    [
        ("dxpd", {}, UnknownNameError, "Did you mean 'dxdp'"),
        ("dxmi", {}, ValueError, "cannot be nested"),
        ("ppo", {"epoch": 3}, UnknownNameError, "Did you mean 'agent_settings.n_epochs'"),
        ("ppo", {"value_width": 3}, UnknownNameError, "Did you mean 'agent_settings.value.width'"),
        ("ppo", DxDPConfig(), TypeError, "agent_settings must be a PPOConfig or a mapping"),
    ],
)
def test_bad_inner_agents(agent: str, inner: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_agent("dxmi", data_task(), agent=agent, agent_settings=inner)
    if not isinstance(inner, dict):
        with pytest.raises(TypeError, match="config of 'ppo' must be a PPOConfig"):
            make_agent("dxmi", data_task(), config=DxMIConfig(agent=agent, agent_settings=inner))


class EnergyOnly(Target):
    has_energy = True

    def __init__(self) -> None:
        super().__init__((2,), scale=1.0, plot_range=(-3.0, 3.0), smallest_scale=0.5)

    def _energy(self, x: Tensor) -> Tensor:
        return x.square().sum(1)


def test_a_target_without_data_cannot_be_imitated() -> None:
    with pytest.raises(ValueError, match="neither data nor a sampler"):
        make_agent("dxmi", make_task(EnergyOnly(), base=None))


@pytest.mark.slow
def test_the_fixed_energy_is_trained_once_and_is_everyones_reward(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    """``energy="fixed"``: the first caller trains it, the next one reads it, whatever horizon it asks for."""
    name = "8gaussians-data"
    short = dataclasses.replace(TASKS[name], pretraining=PretrainingConfig(iterations=20))
    monkeypatch.setitem(TASKS._entries, name, short)
    monkeypatch.setattr(fixed, "FIXED_TIMESTEPS", 5_000)
    first = gym.make("DxMIDenoise-v0", target=name, energy="fixed").unwrapped.mdp
    monkeypatch.setattr(fixed, "DxMI", None)  # a second training would fail
    second = gym.make("DxMIDenoise-v0", target=name, energy="fixed", horizon=3).unwrapped.mdp
    x = torch.randn(100, 2)
    assert torch.equal(first.energy(x), second.energy(x))
    assert float(first.energy(x).std()) > 0
    assert float(first.energy(1e4 * torch.ones(1, 2))) > 1e6, "confined"
    with pytest.raises(UnknownNameError, match="'fixed'"):
        make_task(name, energy="fixd")


@pytest.mark.slow
def test_a_fixed_energy_has_a_normaliser() -> None:
    """Also one that falls without end outside of the data, as networks do; where it was trained it stays as it is."""

    class Falling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -0.3 * x.abs().sum(1)

    confined = fixed.ConfinedEnergy(Falling(), plot_range=(-4.0, 4.0), scale=2.0, tau=0.05)
    inside = 10 * torch.rand(500, 2) - 5
    assert torch.equal(confined(inside), Falling()(inside))
    assert float(confined(torch.tensor([[6.0, 0.0]]))) == pytest.approx(-1.5 + 0.05 * 0.5 * (1 / 0.2) ** 2)
    log_z = []
    for reach in (8.0, 64.0):
        axis = torch.arange(-reach, reach, 0.05)
        energies = confined(torch.cartesian_prod(axis, axis))
        log_z.append(float(torch.logsumexp(-energies / 0.05, 0)))
    assert log_z[0] == pytest.approx(log_z[1], abs=1e-3)


@pytest.mark.slow
def test_replayed_samples_double_what_the_energy_sees() -> None:
    plain, replayed = dxmi(data_task(), replay=0), dxmi(data_task(), replay=2)
    for built in (plain, replayed):
        with counting(built.costs):
            for _ in range(4):
                built.iterate()
    batch = plain.agent.config.n_trajectories
    steps = 4 * plain.config.energy_steps
    assert replayed.costs.energy_evals - plain.costs.energy_evals == 2 * batch * steps
    finals: list[Tensor] = []
    replayed.iterate(finals.append)
    assert len(replayed.past["past"]) == 2 * batch, "rollouts, whatever energy_steps is"
    assert torch.equal(replayed.past["past"][batch:], finals[0])
    assert len(plain.past["past"]) == batch


def test_an_energy_against_a_sampler_without_weights() -> None:
    """The base sampler of an exact denoiser has none to average; its energy is learned all the same."""
    dxmi = small("dxmi", make_task("8gaussians"), agent="base")
    before = {key: value.clone() for key, value in dxmi.energy.state_dict().items()}
    dxmi.learn(3 * dxmi.timesteps_per_iteration)
    assert not all(torch.equal(value, before[key]) for key, value in dxmi.energy.state_dict().items())
    assert dxmi.costs.denoiser_calls == dxmi.num_timesteps == dxmi.costs.policy_draws
