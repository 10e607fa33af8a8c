"""Settings of DxMI per task, found on the tasks themselves; ``DxMI(task)`` starts from them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from dxmi_rl.agents import AGENTS
from dxmi_rl.irl.config import DxMIConfig

# Both players come to rest: constant rates leave the game circling.
_PLANE = DxMIConfig(energy_steps=3, energy_fourier=3, anneal=True, ema=0.995)
_PLANE_AGENT: dict[str, Any] = {
    "batch_size": 512,
    "width": 128,
    "fourier": 2,
    "policy_learning_rate": 3e-4,
    "sigma_learning_rate": 2e-3,
}
# Found for DxDP alone, which is fast enough to follow: replayed samples keep the energy high where the sampler was and
# no longer is. Without them it forgets, and is an opponent of the present sampler rather than a model of the data.
_PLANE_DXDP: dict[str, Any] = {"energy_steps": 2, "gamma": 0.5, "replay": 4}
_PLANE_DXDP_AGENT: dict[str, Any] = {"batch_size": 256, "policy_learning_rate": 6e-4}
# Other targets of the plane have finer structure than 8 Gaussians: without these frequencies the modes of gmm25, a
# fortieth of the plane wide, are not found.
_FINE: dict[str, Any] = {"energy_fourier": 5}
_FINE_AGENT: dict[str, Any] = {"fourier": 4}
FINE_TASKS = ("checkerboard", "2spirals", "rings", "moons", "gmm25")
# Constant rates and a long average: the players circle, and what lies between is better than where they come to rest.
# After some thousand iterations the energy knows its training images by heart, so games of small sets are short.
_IMAGES = DxMIConfig(
    loss="n2ce",
    energy_learning_rate=3e-4,
    energy_width=256,
    energy_depth=2,
    energy_residual=True,
    data_noise=0.05,
    anneal=False,
    ema=0.998,
)
_IMAGES_AGENT: dict[str, Any] = {
    "batch_size": 128,
    "width": 256,
    "depth": 2,
    "residual": True,
    "value_fourier": 0,
    "policy_learning_rate": 2e-5,
    "sigma_learning_rate": 3e-5,
    "value_learning_rate": 1e-3,
    "anneal": False,
}
# For other images, where data have fine structure that a sampler lacks at first: an energy from nothing drives it into
# patterns that no image has, whatever its rates. One that starts as the denoiser, with a gradient penalty, does not.
# Its low level sees the faint noise that few steps leave, in units of that level; clipped, black has none.
# Values look ahead through the denoiser, and are nothing else: a network follows such an energy too late. What the
# denoiser sees at first steps is blurred, and misleads them and, through shared weights, the others: they stay.
_DENOISER: dict[str, Any] = {
    "energy_denoiser": True, "energy_levels": (0.05, 0.5), "energy_level_power": 2.0, "energy_clip": True,
    "energy_learning_rate": 2e-4, "gradient_penalty": 1.0, "data_noise": 0.01, "ema": 0.99,
}  # fmt: skip
_DENOISER_AGENT: dict[str, Any] = {"fixed_last_sigma": True, "policy_learning_rate": 3e-5}
# PPO and SFT-PG, whose likelihood ratios do not see the slope of E(D_t(x)), have the best of three rates on MNIST 5k at
# 14 x 14, where SFT-PG falls apart at the game's own; for others nothing was tried.
_DENOISER_BY_AGENT: dict[str, dict[str, Any]] = {
    "dxdp": {"lookahead_value": True, "value_steps": 0, "trained_steps": 4},
    "ppo": {"policy_learning_rate": 3e-6},
    "sft-pg": {"policy_learning_rate": 1e-6},
}
# For backbones that are U-Nets. At five times these rates the sampler of Fashion-MNIST ends in noise; two hundred
# iterations at these bring it nearer to the data, and how far they lead is not known yet.
_CONVOLUTIONAL: dict[str, Any] = {
    "energy_convolutional": True, "energy_width": 32, "energy_depth": 1, "energy_residual": False, "ema": 0.99,
    "energy_learning_rate": 1e-4, "data_noise": 0.01,
}  # fmt: skip
_CONVOLUTIONAL_AGENT: dict[str, Any] = {
    "convolutional_value": True, "batch_size": 64, "width": 32, "depth": 1, "residual": False,
    "policy_learning_rate": 1e-5, "value_learning_rate": 3e-4,
}  # fmt: skip
_BY_AGENT: dict[str, dict[str, Any]] = {
    # The value follows a moving energy, so there is nothing to warm up. The more a rollout teaches the policy, the
    # fewer energy steps there are, in which the energy can drift where neither player has samples. All recipes were
    # found without DxDP's correction and replay.
    "dxdp": {"warmup_iterations": 0, "policy_steps": 4, "value_steps": 4, "correction": False, "replay": 1},
    "ppo": {},
}
IMAGE_TASKS = ("digits",)


def recipe(
    task: str, agent: str = "dxdp", loss: str | None = None, *, images: bool | None = None,
    convolutional: bool = False, denoiser: bool = True,
) -> DxMIConfig:  # fmt: skip
    """The settings for a task, an inner agent and a loss (None: the recipe's).

    Tasks without a recipe get the plane's, or with ``images`` (None: known by the task's name) that of U-Nets when the
    networks are ``convolutional``, else that of an energy which starts as the denoiser, or without a ``denoiser`` that
    of the digits; agents without one their own defaults, and for images the same networks and rates (but for PPO and
    SFT-PG where the energy starts as the denoiser); other losses than the contrastive one their own gamma.
    """
    images = task in IMAGE_TASKS if images is None else images
    config = replace(_IMAGES if images else _PLANE, agent=agent)
    loss = config.loss if loss is None else loss
    config = replace(config, loss=loss)
    settings = {**(_IMAGES_AGENT if images else _PLANE_AGENT), **_BY_AGENT.get(agent, {})}
    if images:
        if agent == "dxdp":
            settings["policy_steps"] = 1
        if convolutional:
            config, settings = replace(config, **_CONVOLUTIONAL), settings | _CONVOLUTIONAL_AGENT
        elif denoiser and task not in IMAGE_TASKS:
            config = replace(config, **_DENOISER)
            settings |= _DENOISER_AGENT | _DENOISER_BY_AGENT.get(agent, {})
        known = {field.name for field in fields(AGENTS[agent].Config)}
        settings = {key: value for key, value in settings.items() if key in known}
    elif agent == "dxdp":
        config = replace(config, **_PLANE_DXDP)
        settings |= _PLANE_DXDP_AGENT
        if task in FINE_TASKS:
            config = replace(config, **_FINE)
            settings |= _FINE_AGENT
    elif agent not in _BY_AGENT:
        settings = {}
    if loss != DxMIConfig.loss:
        config = replace(config, gamma=None)
    return replace(config, agent_settings=settings)


def fixed_recipe(task: str) -> DxMIConfig:
    """What the energies of ``energy="fixed"`` are made with; a change of it changes all results on them."""
    if task not in IMAGE_TASKS:
        return recipe("8gaussians-data")
    config = recipe(task)
    rates = {"policy_learning_rate": 3e-5, "sigma_learning_rate": 3e-4}
    agent = {key: value for key, value in (config.agent_settings | rates).items() if key != "anneal"}
    return replace(config, loss="contrastive", anneal=True, ema=0.995, agent_settings=agent)
