"""Agents: one file and one registry line each."""

from __future__ import annotations

import os
from typing import Any

from dxmi_rl.agents.base import Agent, Costs
from dxmi_rl.agents.base_sampler import Base
from dxmi_rl.agents.dxdp import DxDP, DxDPConfig
from dxmi_rl.agents.ppo import PPO, PPOConfig
from dxmi_rl.agents.sb3 import SB3PPO, SB3PPOConfig
from dxmi_rl.checks import CheckpointError
from dxmi_rl.registry import Registry
from dxmi_rl.storage import load_tensors

__all__ = [
    "AGENTS", "PPO", "SB3PPO", "Agent", "Base", "Costs", "DxDP", "DxDPConfig", "PPOConfig", "SB3PPOConfig",
    "list_agents", "load_agent", "make_agent",
]  # fmt: skip

AGENTS: Registry[type[Agent]] = Registry("agent")
for _agent in (Base, DxDP, PPO, SB3PPO):
    AGENTS.add(_agent.name, _agent)


def list_agents() -> list[str]:
    """Names of all agents that ``make_agent`` builds."""
    return AGENTS.names()


def make_agent(name: str, task: Any = "8gaussians", *, seed: int = 0, **settings: Any) -> Agent:
    """Build the agent ``name``; raises UnknownNameError (with the near names) for an unknown agent or setting."""
    return AGENTS[name](task, seed=seed, **settings)


def load_agent(path: str | os.PathLike[str], *, task: Any = None, device: Any = None) -> Agent:
    """Rebuild whatever agent ``Agent.save`` wrote to ``path``; arguments and errors as ``Agent.load``.

    Raises CheckpointError for a file of no agent, UnknownNameError for one of an agent that is not registered.
    """
    name = load_tensors(path)[1].get("agent")
    if name is None:
        raise CheckpointError(f"{str(path)!r} must be written by Agent.save: it names no agent.")
    return AGENTS[name].load(path, task=task, device=device)
