"""Settings of DxMI per task, found on the tasks themselves; ``DxMI(task)`` starts from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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


def recipe(
    task: str, agent: str = "dxdp", loss: str = DxMIConfig.loss, *, images: bool | None = None
) -> DxMIConfig:  # fmt: skip
    """The settings for a task, an inner agent and a loss.

    Tasks without a recipe get the plane's, or with ``images`` that of the digits (None: known by the task's name);
    agents without one their own defaults; other losses than the contrastive one their own gamma.
    """
    images = task in IMAGE_TASKS if images is None else images
    config = replace(_IMAGES if images else _PLANE, agent=agent, loss=loss)
    settings = {**(_IMAGES_AGENT if images else _PLANE_AGENT), **_BY_AGENT.get(agent, {})}
    if agent == "dxdp" and images:
        settings["policy_steps"] = 1
    elif agent == "dxdp":
        config = replace(config, **_PLANE_DXDP)
        settings |= _PLANE_DXDP_AGENT
    if loss != DxMIConfig.loss:
        config = replace(config, gamma=None)
    return replace(config, agent_settings=settings if agent in _BY_AGENT else {})
