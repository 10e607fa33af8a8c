"""Networks: perceptrons, convolutional networks, energies, networks for particles, and feature networks of images."""

from dxmi_rl.networks.conv import ConvEncoder, StepConv
from dxmi_rl.networks.energy import EnergyConv, EnergyDenoiser, EnergyMLP, EnergyNetwork, EnergyPerHorizon
from dxmi_rl.networks.mlp import MLP, CoordinateMLP, FourierFeatures, StepMLP
from dxmi_rl.networks.particles import ParticleMLP, check_without_coordinates, step_network, zero_mean_basis

__all__ = [
    "MLP", "ConvEncoder", "CoordinateMLP", "EnergyConv", "EnergyDenoiser", "EnergyMLP", "EnergyNetwork",
    "EnergyPerHorizon", "FourierFeatures", "ParticleMLP", "StepConv", "StepMLP",
    "check_without_coordinates", "step_network", "zero_mean_basis",
]  # fmt: skip
