"""Few-step denoising as a reinforcement-learning benchmark: environments, agents, maximum-entropy inverse RL.

``import dxmi_rl`` registers ``DxMIDenoise-v0`` with Gymnasium. The mathematics is Yoon et al. 2024 (arXiv 2407.00626).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from dxmi_rl.envs import register_envs

if TYPE_CHECKING:
    from dxmi_rl.agents import (
        A2C,
        AWM,
        DDIM,
        DDPM,
        DPOK,
        GRPO,
        PPO,
        REINFORCE,
        RWR,
        SB3A2C,
        SB3PPO,
        SB3SAC,
        SB3TD3,
        SFTPG,
        VGS,
        AdjointMatching,
        AdjointSampling,
        Agent,
        Base,
        BestOfN,
        DetailedBalance,
        DiffusionNFT,
        DPMSolver,
        DRaFT,
        DxDP,
        DxDPPaper,
        EDMHeun,
        PathWise,
        PathWiseVarGrad,
        TorchRLPPO,
        TorchRLSAC,
        TrajectoryBalance,
        VarGrad,
        list_agents,
        load_agent,
        make_agent,
    )
    from dxmi_rl.agents.any_class import AnyClass
    from dxmi_rl.agents.any_step import AnyStep
    from dxmi_rl.agents.kl_control import AdaptiveBeta, StopAtKL
    from dxmi_rl.evaluation import evaluate
    from dxmi_rl.irl import DxMI
    from dxmi_rl.mdp import DenoisingMDP
    from dxmi_rl.targets import list_targets, make_target
    from dxmi_rl.tasks import Task, list_tasks, make_task
    from dxmi_rl.zoo import from_hub, list_pretrained, load_pretrained, push_to_hub

__version__ = "0.1.0"

# Loaded on first use: `import dxmi_rl` and `gym.make` should not pay for the agents.
_HOMES = {
    "dxmi_rl.agents": (
        "A2C", "AWM", "AdjointMatching", "AdjointSampling", "Agent", "Base", "BestOfN", "DDIM", "DDPM", "DPMSolver",
        "DPOK", "DRaFT", "DetailedBalance", "DiffusionNFT", "DxDP", "DxDPPaper", "EDMHeun", "GRPO", "PPO", "PathWise",
        "PathWiseVarGrad", "REINFORCE", "RWR", "SB3A2C", "SB3PPO", "SB3SAC", "SB3TD3", "SFTPG", "TorchRLPPO",
        "TorchRLSAC", "TrajectoryBalance", "VGS", "VarGrad", "list_agents", "load_agent", "make_agent",
    ),
    "dxmi_rl.agents.any_class": ("AnyClass",),
    "dxmi_rl.agents.any_step": ("AnyStep",),
    "dxmi_rl.agents.kl_control": ("AdaptiveBeta", "StopAtKL"),
    "dxmi_rl.evaluation": ("evaluate",),
    "dxmi_rl.irl": ("DxMI",),
    "dxmi_rl.mdp": ("DenoisingMDP",),
    "dxmi_rl.targets": ("list_targets", "make_target"),
    "dxmi_rl.tasks": ("Task", "list_tasks", "make_task"),
    "dxmi_rl.zoo": ("from_hub", "list_pretrained", "load_pretrained", "push_to_hub"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "A2C", "AWM", "DDIM", "DDPM", "DPOK", "GRPO", "PPO", "REINFORCE", "RWR", "SB3A2C", "SB3PPO", "SB3SAC", "SB3TD3",
    "SFTPG", "VGS", "AdaptiveBeta", "AdjointMatching", "AdjointSampling", "Agent", "AnyClass", "AnyStep", "Base",
    "BestOfN", "DPMSolver", "DRaFT", "DenoisingMDP", "DetailedBalance", "DiffusionNFT", "DxDP", "DxDPPaper", "DxMI",
    "EDMHeun", "PathWise", "PathWiseVarGrad", "StopAtKL", "Task", "TorchRLPPO", "TorchRLSAC", "TrajectoryBalance",
    "VarGrad", "__version__", "evaluate", "from_hub", "list_agents", "list_pretrained", "list_targets", "list_tasks",
    "load_agent", "load_pretrained", "make_agent", "make_target", "make_task", "push_to_hub", "register_envs",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dxmi_rl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_envs()
