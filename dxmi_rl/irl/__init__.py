"""Inverse RL: an energy-based model as the reward, trained together with any agent."""

from dxmi_rl.agents import AGENTS, list_agents, load_agent, make_agent
from dxmi_rl.irl.config import DxMIConfig
from dxmi_rl.irl.dxmi import DxMI
from dxmi_rl.irl.equilibria import Equilibrium, equilibrium
from dxmi_rl.irl.losses import ENERGY_LOSSES, EnergyLoss
from dxmi_rl.irl.recipes import recipe
from dxmi_rl.irl.training import (
    ENERGY_TRAINERS,
    EnergyTrainer,
    EnergyTrainingConfig,
    TrainedEnergy,
    train_energy,
)

__all__ = [
    "AGENTS",
    "ENERGY_LOSSES",
    "ENERGY_TRAINERS",
    "DxMI",
    "DxMIConfig",
    "EnergyLoss",
    "EnergyTrainer",
    "EnergyTrainingConfig",
    "Equilibrium",
    "TrainedEnergy",
    "equilibrium",
    "list_agents",
    "load_agent",
    "make_agent",
    "recipe",
    "train_energy",
]
