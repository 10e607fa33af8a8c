"""Schedules, denoisers, base samplers and backward kernels."""

from dxmi_rl.diffusion.denoisers import DenoiserMLP, EDMDenoiser, MixtureDenoiser, VelocityDenoiser
from dxmi_rl.diffusion.kernels import (
    KERNELS,
    BackwardKernel,
    BaseReference,
    Brownian,
    FittedKernel,
    Forward,
    Learned,
    Mixture,
    make_kernel,
)
from dxmi_rl.diffusion.pretraining import PretrainingConfig, pretrained_denoiser, train_denoiser
from dxmi_rl.diffusion.samplers import (
    BaseSampler,
    FlowSDE,
    IdentitySampler,
    ReverseSampler,
    mixture_sigma_last,
    sample_base,
)
from dxmi_rl.diffusion.schedules import SCHEDULES, Schedule, make_schedule
from dxmi_rl.diffusion.unet import DenoiserUNet

__all__ = [
    "KERNELS",
    "SCHEDULES",
    "BackwardKernel",
    "BaseReference",
    "BaseSampler",
    "Brownian",
    "DenoiserMLP",
    "DenoiserUNet",
    "EDMDenoiser",
    "FittedKernel",
    "FlowSDE",
    "Forward",
    "IdentitySampler",
    "Learned",
    "Mixture",
    "MixtureDenoiser",
    "PretrainingConfig",
    "ReverseSampler",
    "Schedule",
    "VelocityDenoiser",
    "make_kernel",
    "make_schedule",
    "mixture_sigma_last",
    "pretrained_denoiser",
    "sample_base",
    "train_denoiser",
]
