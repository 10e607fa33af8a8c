"""DxMI's recipes: who gets which, and that every one of them can be played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dxmi_rl import make_task
from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.irl import DxMI, recipe
from dxmi_rl.irl.config import DxMIConfig
from dxmi_rl.irl.recipe_files import FINE_TASKS, fixed_recipe
from dxmi_rl.networks import EnergyConv, EnergyDenoiser, EnergyMLP
from dxmi_rl.targets import load_images
from dxmi_rl.tasks import Task
from dxmi_rl.tasks.table import LAST_NOISE

PRETRAINING = PretrainingConfig(iterations=2, batch_size=8, width=8, depth=1)


@pytest.fixture
def pictures(tmp_path: Path) -> Task:
    """A task of an image set without a recipe of its own, with a denoiser that is no U-Net."""
    file = tmp_path / "pictures.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8))
    return make_task(load_images(file), horizon=2, pretraining=PRETRAINING)


def test_other_images_start_from_their_denoiser(pictures: Task) -> None:
    game = DxMI(pictures, seed=0, agent_settings=recipe(pictures.name, images=True).agent_settings | {"batch_size": 8})
    assert isinstance(game.energy, EnergyDenoiser)
    x = pictures.target.data(6)
    ahead = game.agent.mdp.energy(game.agent.policy.base.denoiser(x, *pictures.mdp.base.schedule.at(1)))
    before = game.agent.values(x, 1)
    assert torch.allclose(before, ahead, atol=1e-5)
    game.learn(3 * game.timesteps_per_iteration)
    assert all(bool((part == 0).all()) for part in (game.agent.value.last.weight, game.agent.value.last.bias))
    assert not torch.allclose(game.agent.values(x, 1), before), "the energy and the denoiser have moved"
    assert float(game.agent.policy.log_sigma.detach().exp()[-1]) == pytest.approx(LAST_NOISE)


def test_the_levels_of_an_energy_that_starts_as_the_denoiser(pictures: Task) -> None:
    game = DxMI(pictures, seed=0, energy_levels=(0.1, 0.5), energy_level_power=1.0)
    assert isinstance(game.energy, EnergyDenoiser)
    assert game.energy.levels.tolist() == pytest.approx([0.1 * pictures.target.scale, 0.5 * pictures.target.scale])
    assert game.energy.log_gain.exp().tolist() == pytest.approx([10.0, 2.0])
    for key, value in (("energy_levels", ()), ("energy_levels", (0.0,)), ("energy_level_power", -1.0)):
        with pytest.raises(ValueError, match=key):
            DxMI(pictures, seed=0, **{key: value})
    with pytest.raises(TypeError, match="energy_levels must be a tuple"):
        DxMI(pictures, seed=0, energy_levels=0.5)


@pytest.mark.parametrize(
    "settings", [{}, {"energy_denoiser": False, "energy_width": 8}, {"energy_convolutional": True, "energy_width": 8}]
)
def test_an_energy_can_see_clipped_images(pictures: Task, settings: dict[str, Any]) -> None:
    energy = DxMI(pictures, seed=0, energy_clip=True, **settings).energy
    open_energy = DxMI(pictures, seed=0, energy_clip=False, **settings).energy
    open_energy.load_state_dict(energy.state_dict())
    x = (2 * pictures.target.data(6)).requires_grad_()
    outside = x.detach().abs() > 1
    assert bool(outside.any())
    (slopes,) = torch.autograd.grad(energy(x).sum(), x)
    assert torch.equal(energy(x), open_energy(x.clamp(-1, 1))) and not torch.equal(energy(x), open_energy(x))
    assert bool((slopes[outside] == 0).all())


def test_only_images_are_clipped() -> None:
    with pytest.raises(ValueError, match="energy_clip must be False for target '8gaussians'"):
        DxMI("8gaussians-data", energy_clip=True)


def test_the_digits_have_a_recipe_of_their_own() -> None:
    config = recipe("digits")
    assert not config.energy_denoiser and "lookahead_value" not in config.agent_settings
    game = DxMI(make_task("digits", pretraining=PRETRAINING), seed=0)
    assert isinstance(game.energy, EnergyMLP) and float(game.mdp.base.sigma[-1]) == pytest.approx(0.05)


@pytest.mark.parametrize("agent", ["ppo", "grpo", "sft-pg", "path-wise"])
def test_other_agents_get_the_same_game_and_keep_their_critics(agent: str) -> None:
    config = recipe("pictures", agent, images=True)
    ours = recipe("pictures", images=True)
    of_the_game = ("energy_denoiser", "energy_learning_rate", "gradient_penalty", "data_noise", "ema", "loss")
    assert all(getattr(config, key) == getattr(ours, key) for key in of_the_game)
    assert isinstance(config, DxMIConfig) and "lookahead_value" not in config.agent_settings
    rates = {"ppo": 3e-6, "sft-pg": 1e-6}  # at the game's own these fell apart or gained nothing
    assert config.agent_settings["policy_learning_rate"] == rates.get(agent, 3e-5)
    assert config.agent_settings.get("value_learning_rate", 1e-3) == 1e-3


def test_an_energy_of_ones_own_or_no_denoiser_means_the_digits_recipe(pictures: Task) -> None:
    small = {"batch_size": 8, "width": 8, "depth": 1}
    for settings, kind in (({"energy_convolutional": True}, EnergyConv), ({"energy_width": 16}, EnergyMLP)):
        game = DxMI(pictures, seed=0, **settings)
        assert isinstance(game.energy, kind) and not game.agent.config.lookahead_value
    scratch = make_task(pictures.target, horizon=2, base=None)
    game = DxMI(scratch, seed=0, agent_settings=small | {"policy": "correction"})
    assert isinstance(game.energy, EnergyMLP)
    game.learn(game.timesteps_per_iteration)


def test_data_get_as_much_noise_as_samples(pictures: Task) -> None:
    assert DxMI(pictures, seed=0).config.data_noise == LAST_NOISE
    rough = make_task(pictures.target, horizon=2, pretraining=PRETRAINING, sigma_last=0.2)
    assert DxMI(rough, seed=0).config.data_noise == pytest.approx(0.2)
    assert DxMI(make_task("digits", pretraining=PRETRAINING), seed=0).config.data_noise == 0.05


@pytest.mark.parametrize("task", FINE_TASKS)
def test_finer_targets_have_more_frequencies_but_their_fixed_energies_stay(task: str) -> None:
    for config, frequencies in ((recipe(task), (5, 4)), (fixed_recipe(task), (3, 2))):
        assert (config.energy_fourier, config.agent_settings["fourier"]) == frequencies
