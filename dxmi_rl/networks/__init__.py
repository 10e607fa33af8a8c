"""Networks: perceptrons, convolutional networks, energies, and feature networks of images."""

from dxmi_rl.networks.conv import ConvEncoder, StepConv
from dxmi_rl.networks.energy import EnergyConv, EnergyDenoiser, EnergyMLP, EnergyNetwork
from dxmi_rl.networks.mlp import MLP, CoordinateMLP, FourierFeatures, StepMLP

__all__ = [
    "MLP", "ConvEncoder", "CoordinateMLP", "EnergyConv", "EnergyDenoiser", "EnergyMLP", "EnergyNetwork",
    "FourierFeatures", "StepConv", "StepMLP",
]  # fmt: skip
