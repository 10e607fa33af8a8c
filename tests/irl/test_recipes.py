"""DxMI's recipes: who gets which, that each says everything, and that every one of them can be played."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import skip_without_extra

from dxmi_rl import DxMI, load_agent, make_task
from dxmi_rl.agents import AGENTS, DxDPPaperConfig
from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.irl import list_recipes, recipe
from dxmi_rl.irl.config import DxMIConfig, EnergyConfig
from dxmi_rl.irl.fixed import fixed_recipe
from dxmi_rl.irl.recipe_files import FINE_TASKS, FOLDER, recipe_for
from dxmi_rl.networks import EnergyConv, EnergyDenoiser, EnergyMLP
from dxmi_rl.targets import ImageSet, load_images
from dxmi_rl.tasks import Task
from dxmi_rl.tasks.table import LAST_NOISE
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import flat_settings, setting_names
from dxmi_rl.utils.storage import load_tensors

PRETRAINING = PretrainingConfig(iterations=2, batch_size=8, width=8, depth=1)
OF_THE_GAME = [field.name for field in fields(DxMIConfig) if field.name not in ("recipe", "agent", "agent_settings")]


@pytest.fixture
def pictures(tmp_path: Path) -> Task:
    """A task of an image set without a recipe of its own, with a denoiser that is no U-Net."""
    file = tmp_path / "pictures.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    return make_task(load_images(file), horizon=2, pretraining=PRETRAINING)


def content(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their full names, lists as tuples, None where it says "none"."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": inside for inner, inside in flat(value).items()}
        else:
            found[key] = None if value == "none" else tuple(value) if isinstance(value, list) else value
    return found


PAIRS = [(name, agent) for name in list_recipes() for agent in content(name)["agents"]]


# The files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_says_every_setting_of_the_game(name: str) -> None:
    assert content(name).keys() == {*OF_THE_GAME, "agents"}
    assert list(content(name)["energy"]) == [field.name for field in fields(EnergyConfig)]
    assert content(name)["agents"]


@pytest.mark.parametrize(("name", "agent"), PAIRS)
def test_a_recipe_says_every_setting_of_each_of_its_agents(name: str, agent: str) -> None:
    """So that another default, or another option, changes no recipe by itself."""
    table = flat(content(name)["agents"][agent])
    assert sorted(table) == sorted(setting_names(AGENTS[agent].Config()))
    found = recipe(name, agent)
    assert (found.recipe, found.agent, type(found.agent_settings)) == (name, agent, AGENTS[agent].Config)
    assert flat_settings(found.agent_settings) == table
    game = flat({key: value for key, value in content(name).items() if key != "agents"})
    assert {key: value for key, value in flat_settings(found).items() if key in game} == game


def test_unknown_recipes_and_agents() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'plain'\. Did you mean 'plane'"):
        recipe("plain")
    with pytest.raises(UnknownNameError, match="unknown agent 'pppo'"):
        recipe("plane", "pppo")
    with pytest.raises(UnknownNameError, match="Did you mean 'plane'"):
        DxMI(make_task("8gaussians-data", base=None), recipe="plain")


def test_an_agent_without_a_table_keeps_its_own_defaults() -> None:
    found = recipe("plane", "dxdp-paper")
    assert "dxdp-paper" not in content("plane")["agents"] and found.agent_settings == DxDPPaperConfig()
    assert all(getattr(found, key) == getattr(recipe("plane"), key) for key in OF_THE_GAME)


# Who gets which -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "name"), [("dxdp", "plane"), ("dxdp-paper", "plane"), ("ppo", "plane-other-agents"), ("base", None)]
)
def test_a_game_is_what_its_recipe_says_and_names_it(agent: str, name: str | None, tmp_path: Path) -> None:
    name = name or "plane-other-agents"
    task = make_task("8gaussians-data", base=None)
    game = DxMI(task, agent=agent)
    assert recipe_for(task, agent) == name
    assert game.config == recipe(name, agent) and game.agent.config == game.config.agent_settings
    assert f"agent={agent!r}, recipe={name!r}" in repr(game)
    file = game.save(tmp_path / "game")
    assert load_tensors(file)[1]["config"]["recipe"] == name
    loaded = load_agent(file)
    assert loaded.config == game.config and repr(loaded) == repr(game)


def test_a_recipe_may_be_chosen_and_changed() -> None:
    task = make_task("8gaussians-data", base=None)
    game = DxMI(task, recipe="plane-fine", ema=0.5, agent_settings={"policy": {"width": 16}}, **{"energy.width": 32})
    wanted = flat_settings(recipe("plane-fine")) | {
        "ema": 0.5, "agent_settings.policy.width": 16, "energy.width": 32,
    }  # fmt: skip
    assert flat_settings(game.config) == wanted and "recipe='plane-fine'" in repr(game)
    own = DxMI(task, config=DxMIConfig())
    assert own.config == DxMIConfig() and "recipe" not in repr(own)


@pytest.mark.parametrize("task", FINE_TASKS)
def test_finer_targets_have_more_frequencies_but_their_fixed_energies_stay(task: str) -> None:
    assert recipe_for(make_task(task, base=None)) == "plane-fine"
    for config, frequencies in ((recipe("plane-fine"), (5, 4)), (fixed_recipe(task), (3, 2))):
        assert (config.energy.fourier, config.agent_settings.policy.fourier) == frequencies


def test_vectors_of_ones_own_have_an_energy_that_starts_as_the_denoiser() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    task = make_task(rows, pretraining=PRETRAINING)
    game = DxMI(task)
    assert game.config.recipe == "tables" and isinstance(game.energy, EnergyDenoiser)
    assert recipe_for(task, settings={"energy": {"width": 64}}) == recipe_for(make_task(rows, base=None)) == "plane"
    assert recipe_for(task, "ppo") == "plane-other-agents"


def test_the_digits_have_a_recipe_of_their_own() -> None:
    game = DxMI(make_task("digits", pretraining=PRETRAINING), seed=0)
    assert game.config == recipe("digits")
    inner = game.agent.config
    assert game.config.energy.denoiser and inner.lookahead_value and inner.path_correction
    assert isinstance(game.energy, EnergyDenoiser) and float(game.mdp.base.sigma[-1]) == pytest.approx(0.05)


@pytest.mark.slow
def test_the_energy_of_digits_puts_noise_above_data_from_the_start() -> None:
    """Uniform noise, and digits with their pixels shuffled or inverted: as the recipe starts, and as it goes on."""
    task = make_task("digits", pretraining={"iterations": 300, "batch_size": 64, "width": 64})
    game, target, generator = DxMI(task, seed=0, agent_settings={"n_trajectories": 32}), task.target, torch.Generator()
    low, high = target.plot_range
    data = target.test_data(300)
    noise = low + (high - low) * torch.rand(data.shape, generator=generator.manual_seed(0))
    shuffled = data.flatten(1)[:, torch.randperm(64, generator=generator)].view_as(data)
    for _ in range(2):
        for other in (noise, shuffled, low + high - data):
            assert float((game.score(other)[:, None] > game.score(data)).float().mean()) >= 0.99
        game.learn(5 * game.timesteps_per_iteration)


def test_other_images_start_from_their_denoiser(pictures: Task) -> None:
    game = DxMI(pictures, seed=0, agent_settings={"n_trajectories": 8})
    assert game.config.recipe == "images" and isinstance(game.energy, EnergyDenoiser)
    x = pictures.target.data(6)
    ahead = game.agent.mdp.energy(game.agent.policy.base.denoiser(x, *pictures.mdp.base.schedule.at(1)))
    before = game.agent.values(x, 1)
    assert torch.allclose(before, ahead, atol=1e-5)
    game.learn(3 * game.timesteps_per_iteration)
    last = game.agent.value.network.last
    assert all(bool((part == 0).all()) for part in (last.weight, last.bias))
    assert not torch.allclose(game.agent.values(x, 1), before), "the energy and the denoiser have moved"
    assert float(game.agent.policy.log_sigma.detach().exp()[-1]) == pytest.approx(LAST_NOISE)


@pytest.mark.slow
def test_unets_have_the_recipe_of_other_images() -> None:
    pytest.importorskip("diffusers")
    quick = {"iterations": 1, "batch_size": 8, "channels": [8, 8]}
    rows = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    images = make_task(ImageSet(rows[:32], rows[32:], name="random"), horizon=2, pretraining=quick)
    assert recipe_for(images) == "images"
    game = DxMI(images, seed=0, agent_settings={"n_trajectories": 8})
    assert isinstance(game.energy, EnergyDenoiser)
    game.learn(game.timesteps_per_iteration)
    convolutional = {"convolutional": True, "residual": False, "width": 8, "depth": 1}
    assert recipe_for(images, settings={"energy": convolutional}) == "images-small"
    game = DxMI(images, seed=0, energy=convolutional, agent_settings={"n_trajectories": 8, "value.width": 8})
    assert isinstance(game.energy, EnergyConv)
    game.learn(game.timesteps_per_iteration)


@pytest.mark.parametrize(
    ("energy", "name"),
    [
        ({}, "images"),
        ({"clip": True, "levels": (0.1,)}, "images"),
        ({"denoiser": True, "width": 8}, "images"),
        ({"denoiser": False}, "images-small"),
        ({"width": 8}, "images-small"),
        ({"convolutional": True}, "images-small"),
        (EnergyConfig(), "images-small"),
        (EnergyConfig(denoiser=True), "images"),
    ],
)
def test_an_energy_of_ones_own_means_the_recipe_without_the_denoiser(pictures: Task, energy: Any, name: str) -> None:
    assert recipe_for(pictures, settings={"energy": energy}) == name
    if isinstance(energy, dict):
        assert recipe_for(pictures, settings={f"energy.{key}": value for key, value in energy.items()}) == name


def test_an_energy_of_ones_own_or_no_denoiser_means_the_digits_recipe(pictures: Task) -> None:
    convolutional = {"convolutional": True, "residual": False, "width": 8}
    for energy, kind in ((convolutional, EnergyConv), ({"width": 16}, EnergyMLP)):
        game = DxMI(pictures, seed=0, energy=energy)
        assert isinstance(game.energy, kind) and not game.agent.config.lookahead_value
    scratch = make_task(pictures.target, horizon=2, base=None)
    size = {"width": 8, "depth": 1}
    small = {"n_trajectories": 8, "policy": {"kind": "correction", **size}, "value": size}
    game = DxMI(scratch, seed=0, agent_settings=small)
    assert isinstance(game.energy, EnergyMLP)
    game.learn(game.timesteps_per_iteration)


@pytest.mark.parametrize("agent", ["ppo", "grpo", "sft-pg", "path-wise"])
def test_other_agents_get_the_same_game_and_keep_their_critics(agent: str) -> None:
    config, ours = recipe("images", agent), recipe("images")
    assert all(getattr(config, key) == getattr(ours, key) for key in OF_THE_GAME)
    assert ours.agent_settings.lookahead_value and not hasattr(config.agent_settings, "lookahead_value")
    rates = {"ppo": 3e-6, "sft-pg": 1e-6}  # at the game's own these fell apart or gained nothing
    assert config.agent_settings.policy.fine_tuning_rate == rates.get(agent, 3e-5)
    value = getattr(config.agent_settings, "value", None)
    assert value is None or value.learning_rate == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent in content("images")["agents"]])
def test_any_agent_can_play_the_game_of_images(agent: str, pictures: Task) -> None:
    skip_without_extra(agent)
    settings: dict[str, Any] = {"n_trajectories": 16}
    if "value.width" in setting_names(AGENTS[agent].Config()):
        settings |= {"value": {"width": 8, "depth": 1}}
    game = DxMI(pictures, agent=agent, agent_settings=settings)
    assert game.config.recipe == "images"
    game.learn(2 * game.timesteps_per_iteration)
    assert bool(torch.isfinite(game.sample(3)).all())


# The energy's settings ------------------------------------------------------------------------------------------------


def test_the_levels_of_an_energy_that_starts_as_the_denoiser(pictures: Task) -> None:
    game = DxMI(pictures, seed=0, energy={"levels": (0.1, 0.5), "level_power": 1.0})
    assert isinstance(game.energy, EnergyDenoiser)
    assert game.energy.levels.tolist() == pytest.approx([0.1 * pictures.target.scale, 0.5 * pictures.target.scale])
    assert game.energy.log_gain.exp().tolist() == pytest.approx([10.0, 2.0])
    for key, value in (("levels", ()), ("levels", (0.0,)), ("level_power", -1.0)):
        with pytest.raises(ValueError, match=rf"energy\.{key}"):
            DxMI(pictures, seed=0, energy={key: value})
    with pytest.raises(TypeError, match=r"energy\.levels must be a tuple"):
        DxMI(pictures, seed=0, energy={"levels": 0.5})


@pytest.mark.parametrize(
    "settings", [{}, {"denoiser": False, "width": 8}, {"convolutional": True, "residual": False, "width": 8}]
)
def test_an_energy_can_see_clipped_images(pictures: Task, settings: dict[str, Any]) -> None:
    energy = DxMI(pictures, seed=0, energy={"clip": True, **settings}).energy
    open_energy = DxMI(pictures, seed=0, energy={"clip": False, **settings}).energy
    open_energy.load_state_dict(energy.state_dict())
    x = (2 * pictures.target.data(6)).requires_grad_()
    outside = x.detach().abs() > 1
    assert bool(outside.any())
    (slopes,) = torch.autograd.grad(energy(x).sum(), x)
    assert torch.equal(energy(x), open_energy(x.clamp(-1, 1))) and not torch.equal(energy(x), open_energy(x))
    assert bool((slopes[outside] == 0).all())


def test_only_images_are_clipped() -> None:
    with pytest.raises(ValueError, match=r"energy\.clip must be False or None for target '8gaussians'"):
        DxMI(make_task("8gaussians-data", base=None), energy={"clip": True})


def test_data_get_as_much_noise_as_samples(pictures: Task) -> None:
    assert DxMI(pictures, seed=0).data_noise == LAST_NOISE
    rough = make_task(pictures.target, horizon=2, pretraining=PRETRAINING, sigma_last=0.2)
    assert DxMI(rough, seed=0).data_noise == pytest.approx(0.2)
    assert DxMI(make_task("digits", pretraining=PRETRAINING), seed=0).data_noise == 0.05
    assert DxMI(pictures, seed=0, data_noise=0.3).data_noise == 0.3
    assert DxMI(make_task("8gaussians-data", base=None), seed=0).data_noise == 0.0


def test_a_recipe_and_a_config_exclude_each_other() -> None:
    with pytest.raises(TypeError, match="give config or recipe='images', not both"):
        DxMI(make_task("8gaussians-data", pretraining=PRETRAINING), config=DxMIConfig(), recipe="images")
