"""Settings of DxMI per task, found on the tasks themselves; ``DxMI(task)`` starts from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dxmi_rl.irl.config import DxMIConfig

# The sampler moves slower than the energy, and both come to rest: constant rates leave the game circling.
_PLANE = DxMIConfig(energy_steps=3, energy_fourier=3, anneal=True, ema=0.995)
_PLANE_AGENT: dict[str, Any] = {
    "batch_size": 512,
    "width": 128,
    "fourier": 2,
    "policy_learning_rate": 3e-4,
    "sigma_learning_rate": 2e-3,
}
_IMAGES = DxMIConfig(
    energy_learning_rate=3e-4,
    energy_width=256,
    energy_depth=2,
    energy_residual=True,
    data_noise=0.05,
    anneal=True,
    ema=0.995,
)
_IMAGES_AGENT: dict[str, Any] = {
    "batch_size": 128,
    "width": 256,
    "depth": 2,
    "residual": True,
    "value_fourier": 0,
    "policy_learning_rate": 3e-5,
    "sigma_learning_rate": 3e-4,
    "value_learning_rate": 1e-3,
}
_BY_AGENT: dict[str, dict[str, Any]] = {
    # The value follows a moving energy, so there is nothing to warm up. The more a rollout teaches the policy, the
    # fewer energy steps there are, in which the energy can drift where neither player has samples. All recipes were
    # found without DxDP's correction and replay.
    "dxdp": {"warmup_iterations": 0, "policy_steps": 4, "value_steps": 4, "correction": False, "replay": 1},
    "ppo": {},
}
IMAGE_TASKS = ("digits",)


def recipe(task: str, agent: str = "dxdp") -> DxMIConfig:
    """The settings for a task and an inner agent; tasks without a recipe get the plane's, other agents no settings."""
    images = task in IMAGE_TASKS
    config = replace(_IMAGES if images else _PLANE, agent=agent)
    if agent not in _BY_AGENT:
        return config
    settings = {**(_IMAGES_AGENT if images else _PLANE_AGENT), **_BY_AGENT[agent]}
    if images and agent == "dxdp":
        settings["policy_steps"] = 1
    return replace(config, agent_settings=settings)
