"""Agents: one file and one registry line each."""

from __future__ import annotations

from typing import Any

from dxmi_rl.agents.base import Agent, Costs
from dxmi_rl.agents.base_sampler import Base
from dxmi_rl.agents.dxdp import DxDP, DxDPConfig
from dxmi_rl.agents.ppo import PPO, PPOConfig
from dxmi_rl.agents.sb3 import SB3PPO, SB3PPOConfig
from dxmi_rl.registry import Registry

__all__ = [
    "AGENTS", "PPO", "SB3PPO", "Agent", "Base", "Costs", "DxDP", "DxDPConfig", "PPOConfig", "SB3PPOConfig",
    "list_agents", "make_agent",
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
