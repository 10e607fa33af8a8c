"""Settings of DxMI per task, found on the tasks themselves; ``DxMI(task)`` starts from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dxmi_rl.irl.config import DxMIConfig

# Both players come to rest: constant rates leave the game circling. Replayed samples keep the energy high where the
# sampler was and no longer is: without them it forgets, and is an opponent of the present sampler rather than a model.
_PLANE = DxMIConfig(energy_steps=2, energy_fourier=3, gamma=0.5, replay=4, anneal=True, ema=0.995)
_PLANE_AGENT: dict[str, Any] = {
    "batch_size": 256,
    "width": 128,
    "fourier": 2,
    "policy_learning_rate": 6e-4,
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


def recipe(task: str, agent: str = "dxdp", loss: str = DxMIConfig.loss) -> DxMIConfig:
    """The settings for a task, an inner agent and a loss; tasks without a recipe get the plane's, other agents no
    settings, and other losses than the contrastive one their own gamma.
    """
    images = task in IMAGE_TASKS
    config = replace(_IMAGES if images else _PLANE, agent=agent, loss=loss)
    if loss != DxMIConfig.loss:
        config = replace(config, gamma=None)
    if agent not in _BY_AGENT:
        return config
    settings = {**(_IMAGES_AGENT if images else _PLANE_AGENT), **_BY_AGENT[agent]}
    if images and agent == "dxdp":
        settings["policy_steps"] = 1
    return replace(config, agent_settings=settings)
