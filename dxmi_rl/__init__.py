"""Few-step denoising as a reinforcement-learning benchmark: environments, agents, maximum-entropy inverse RL.

``import dxmi_rl`` registers ``DxMIDenoise-v0`` with Gymnasium. The mathematics is Yoon et al. 2024 (arXiv 2407.00626).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dxmi_rl.envs import register_envs

if TYPE_CHECKING:
    from dxmi_rl.agents import Agent, list_agents, load_agent, make_agent
    from dxmi_rl.evaluation import evaluate
    from dxmi_rl.irl import DxMI
    from dxmi_rl.mdp import DenoisingMDP
    from dxmi_rl.targets import list_targets, make_target
    from dxmi_rl.tasks import Task, list_tasks, make_task

__version__ = "0.1.0"

# Loaded on first use: `import dxmi_rl` and `gym.make` should not pay for the agents.
_HOMES = {
    "Agent": "dxmi_rl.agents",
    "DenoisingMDP": "dxmi_rl.mdp",
    "DxMI": "dxmi_rl.irl",
    "Task": "dxmi_rl.tasks",
    "evaluate": "dxmi_rl.evaluation",
    "list_agents": "dxmi_rl.agents",
    "list_targets": "dxmi_rl.targets",
    "list_tasks": "dxmi_rl.tasks",
    "load_agent": "dxmi_rl.agents",
    "make_agent": "dxmi_rl.agents",
    "make_target": "dxmi_rl.targets",
    "make_task": "dxmi_rl.tasks",
}

__all__ = [
    "Agent", "DenoisingMDP", "DxMI", "Task", "__version__", "evaluate", "list_agents", "list_targets", "list_tasks",
    "load_agent", "make_agent", "make_target", "make_task", "register_envs",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dxmi_rl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_envs()
