"""Inverse RL: an energy-based model as the reward, trained together with any agent."""

from dxmi_rl.irl.config import DxMIConfig, EnergyConfig
from dxmi_rl.irl.dxmi import DxMI
from dxmi_rl.irl.equilibria import Equilibrium, equilibrium
from dxmi_rl.irl.losses import ENERGY_LOSSES, EnergyLoss
from dxmi_rl.irl.recipe_files import list_recipes, recipe
from dxmi_rl.irl.training import (
    ENERGY_TRAINERS,
    EnergyTrainer,
    EnergyTrainingConfig,
    TrainedEnergy,
    train_energy,
)

__all__ = [
    "ENERGY_LOSSES",
    "ENERGY_TRAINERS",
    "DxMI",
    "DxMIConfig",
    "EnergyConfig",
    "EnergyLoss",
    "EnergyTrainer",
    "EnergyTrainingConfig",
    "Equilibrium",
    "TrainedEnergy",
    "equilibrium",
    "list_recipes",
    "recipe",
    "train_energy",
]
