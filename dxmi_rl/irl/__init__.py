"""Inverse RL: an energy-based model as the reward, trained together with any agent."""

from dxmi_rl.agents import AGENTS, list_agents, load_agent, make_agent
from dxmi_rl.irl.config import DxMIConfig
from dxmi_rl.irl.dxmi import DxMI
from dxmi_rl.irl.losses import ENERGY_LOSSES
from dxmi_rl.irl.recipes import recipe

__all__ = ["AGENTS", "ENERGY_LOSSES", "DxMI", "DxMIConfig", "list_agents", "load_agent", "make_agent", "recipe"]

if DxMI.name not in AGENTS:
    AGENTS.add(DxMI.name, DxMI)
