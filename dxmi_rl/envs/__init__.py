"""Environments over the DenoisingMDP: Gymnasium, vector, Stable-Baselines3, TorchRL; pictures. Imported lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dxmi_rl.envs.denoise import DenoiseEnv
    from dxmi_rl.envs.rendering import draw_samples, render_samples
    from dxmi_rl.envs.sb3 import SB3VecEnv, make_sb3_env
    from dxmi_rl.envs.torchrl import TorchRLEnv
    from dxmi_rl.envs.vector import DenoiseVectorEnv

__all__ = [
    "ENV_ID",
    "DenoiseEnv",
    "DenoiseVectorEnv",
    "SB3VecEnv",
    "TorchRLEnv",
    "draw_samples",
    "make_sb3_env",
    "register_envs",
    "render_samples",
]

ENV_ID = "DxMIDenoise-v0"

_HOMES = {
    "DenoiseEnv": "denoise",
    "DenoiseVectorEnv": "vector",
    "SB3VecEnv": "sb3",
    "TorchRLEnv": "torchrl",
    "make_sb3_env": "sb3",
    "draw_samples": "rendering",
    "render_samples": "rendering",
}


def register_envs() -> None:
    """Register ``DxMIDenoise-v0`` with Gymnasium; calling it again does nothing."""
    import gymnasium as gym

    if ENV_ID not in gym.registry:
        gym.register(
            ENV_ID,
            entry_point="dxmi_rl.envs.denoise:DenoiseEnv",
            vector_entry_point="dxmi_rl.envs.vector:DenoiseVectorEnv",
        )


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
