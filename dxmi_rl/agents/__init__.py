"""Agents: one file and one registry line each."""

from __future__ import annotations

import os
from typing import Any

import torch

from dxmi_rl.agents.a2c import A2C, A2CConfig
from dxmi_rl.agents.adjoint_matching import AdjointMatching, AdjointMatchingConfig
from dxmi_rl.agents.adjoint_sampling import AdjointSampling, AdjointSamplingConfig
from dxmi_rl.agents.awm import AWM, AWMConfig
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.detailed_balance import DetailedBalance, DetailedBalanceConfig
from dxmi_rl.agents.diffusion_nft import DiffusionNFT, DiffusionNFTConfig
from dxmi_rl.agents.dpok import DPOK, DPOKConfig
from dxmi_rl.agents.draft import DRaFT, DRaFTConfig
from dxmi_rl.agents.dxdp import DxDP, DxDPConfig
from dxmi_rl.agents.dxdp_paper import DxDPPaper, DxDPPaperConfig
from dxmi_rl.agents.grpo import GRPO, GRPOConfig
from dxmi_rl.agents.path_wise import PathConfig, PathWise, PathWiseConfig
from dxmi_rl.agents.path_wise_vargrad import PathWiseVarGrad, PathWiseVarGradConfig
from dxmi_rl.agents.plain import plain_settings
from dxmi_rl.agents.ppo import PPO, PPOConfig
from dxmi_rl.agents.reinforce import REINFORCE, REINFORCEConfig
from dxmi_rl.agents.rwr import RWR, RWRConfig
from dxmi_rl.agents.settings import MeanConfig, PolicyConfig, ValueConfig, configured
from dxmi_rl.agents.sft_pg import SFTPG, SFTPGConfig
from dxmi_rl.agents.trajectory_balance import TrajectoryBalance, TrajectoryBalanceConfig
from dxmi_rl.agents.untrained import DDIM, DDPM, Base, BestOfN, DPMSolver, EDMHeun
from dxmi_rl.agents.vargrad import VarGrad, VarGradConfig
from dxmi_rl.agents.vgs import VGS, VGSConfig
from dxmi_rl.agents.wrapped.sb3_a2c import SB3A2C, SB3A2CConfig
from dxmi_rl.agents.wrapped.sb3_ppo import SB3PPO, SB3PPOConfig
from dxmi_rl.agents.wrapped.sb3_sac import SB3SAC, SB3SACConfig
from dxmi_rl.agents.wrapped.sb3_td3 import SB3TD3, SB3TD3Config
from dxmi_rl.agents.wrapped.torchrl_ppo import TorchRLPPO, TorchRLPPOConfig
from dxmi_rl.agents.wrapped.torchrl_sac import TorchRLSAC, TorchRLSACConfig
from dxmi_rl.costs import Costs
from dxmi_rl.targets import Target
from dxmi_rl.tasks import TASKS, Task, make_task
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import Registry
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.storage import load_tensors

__all__ = [
    "A2C",
    "AGENTS",
    "AWM",
    "DDIM",
    "DDPM",
    "DPOK",
    "GRPO",
    "PPO",
    "REINFORCE",
    "RWR",
    "SB3A2C",
    "SB3PPO",
    "SB3SAC",
    "SB3TD3",
    "SFTPG",
    "VGS",
    "A2CConfig",
    "AWMConfig",
    "AdjointMatching",
    "AdjointMatchingConfig",
    "AdjointSampling",
    "AdjointSamplingConfig",
    "Agent",
    "Base",
    "BestOfN",
    "Costs",
    "DPMSolver",
    "DPOKConfig",
    "DRaFT",
    "DRaFTConfig",
    "DetailedBalance",
    "DetailedBalanceConfig",
    "DiffusionNFT",
    "DiffusionNFTConfig",
    "DxDP",
    "DxDPConfig",
    "DxDPPaper",
    "DxDPPaperConfig",
    "EDMHeun",
    "GRPOConfig",
    "MeanConfig",
    "PPOConfig",
    "PathConfig",
    "PathWise",
    "PathWiseConfig",
    "PathWiseVarGrad",
    "PathWiseVarGradConfig",
    "PolicyConfig",
    "REINFORCEConfig",
    "RWRConfig",
    "SB3A2CConfig",
    "SB3PPOConfig",
    "SB3SACConfig",
    "SB3TD3Config",
    "SFTPGConfig",
    "TorchRLPPO",
    "TorchRLPPOConfig",
    "TorchRLSAC",
    "TorchRLSACConfig",
    "TrajectoryBalance",
    "TrajectoryBalanceConfig",
    "VGSConfig",
    "ValueConfig",
    "VarGrad",
    "VarGradConfig",
    "list_agents",
    "load_agent",
    "make_agent",
]

AGENTS: Registry[type[Agent[Any]]] = Registry("agent")
for _agent in (
    Base, BestOfN, DDPM, DDIM, EDMHeun, DPMSolver,
    DxDP, DxDPPaper, PPO, REINFORCE, A2C, GRPO, DPOK, AWM, RWR, DiffusionNFT, SFTPG,
    SB3PPO, SB3A2C, SB3SAC, SB3TD3, TorchRLPPO, TorchRLSAC,
    PathWise, DRaFT, AdjointMatching, AdjointSampling, VGS,
    TrajectoryBalance, VarGrad, DetailedBalance, PathWiseVarGrad,
):  # fmt: skip
    AGENTS.add(_agent.name, _agent)
AGENTS.add_entry_point("any-step", "dxmi_rl.agents.any_step:AnyStep")
AGENTS.add_entry_point("any-class", "dxmi_rl.agents.any_class:AnyClass")
AGENTS.add_entry_point("dxmi", "dxmi_rl.irl.dxmi:DxMI")  # which needs the others


def list_agents() -> list[str]:
    """Names of all agents that ``make_agent`` builds."""
    return AGENTS.names()


def make_agent(
    name: str, task: str | Task | Target = "8gaussians", *, seed: int = 0, config: Any = None, **settings: Any
) -> Agent[Any]:
    """Build the agent ``name``; on a task with several classes AnyClass around it, on one with several horizons AnyStep
    (an agent that does not train takes the largest number of steps instead).

    ``config`` is a Config of the agent, or "plain" for the settings from before the search (docs/tuning.md); None: the
    defaults. Raises UnknownNameError (with the near names) for an unknown agent, config or setting.
    """
    kind = AGENTS[name]
    if isinstance(config, str):
        config = changed(kind.Config(), plain_settings(config, name), f"plain setting of {name!r}")
    if isinstance(task, str) and isinstance(TASKS[task].label, tuple):
        task = make_task(task)
    if isinstance(task, Task) and not kind.trains:
        task = task.at(task.horizons[-1])
    wrapper = None
    if isinstance(task, Task) and len(task.horizons) > 1 and not kind.takes_horizons:
        wrapper = AGENTS["any-step"]
    elif isinstance(task, Task) and len(task.labels) > 1 and not kind.takes_labels:
        wrapper = AGENTS["any-class"]
    if wrapper is None:
        return kind(task, seed=seed, config=config, **settings)
    inside = configured(kind, task, kind.Config() if config is None else config, settings)
    return wrapper(task, seed=seed, config=wrapper.Config(agent=name, agent_settings=inside))


def load_agent(
    path: str | os.PathLike[str], *, task: str | Task | None = None, device: str | torch.device | None = None
) -> Agent[Any]:
    """Rebuild whatever agent ``Agent.save`` wrote to ``path``; arguments and errors as ``Agent.load``.

    Raises CheckpointError for a file of no agent, or of one that is not registered.
    """
    return saved_class(path).load(path, task=task, device=device)


def saved_class(path: str | os.PathLike[str]) -> type[Agent[Any]]:
    """The class of the agent that wrote a checkpoint. Raises CheckpointError as ``load_agent``."""
    name = load_tensors(path)[1].get("agent")
    if name is None:
        raise CheckpointError(f"{str(path)!r} must be written by Agent.save: it names no agent.")
    if name not in AGENTS:
        raise CheckpointError(
            f"{str(path)!r} is of agent {name!r}, which is not registered: if it is your own, YourClass.load(file) "
            "loads it, and load_agent does after AGENTS.add."
        )
    return AGENTS[name]
