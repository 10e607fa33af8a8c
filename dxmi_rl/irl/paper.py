"""The paper's games of images (Yoon et al. 2024, section 5 and the released configurations), as settings of DxMI."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dxmi_rl.agents import DxDPPaperConfig, PolicyConfig, ValueConfig
from dxmi_rl.diffusion import DenoiserUNet
from dxmi_rl.irl.config import DxMIConfig, EnergyConfig, make_energy
from dxmi_rl.irl.dxmi import DxMI
from dxmi_rl.targets import ImageSet
from dxmi_rl.tasks import Task, make_task
from dxmi_rl.utils.registry import Registry

TAU1, TAU2 = 0.1, 0.01


@dataclass(frozen=True)
class PaperPreset:
    """One game: a backbone, its ladder, and how long the paper trained it."""

    event_shape: tuple[int, int, int]
    """``(channels, height, width)``."""
    backbone: dict[str, Any]
    """Settings of diffusers' UNet2DModel."""
    preconditioning: str
    """What the backbone predicts, and how it is told noise levels: "epsilon" or "edm-log" (DenoiserUNet)."""
    task: dict[str, Any]
    """Arguments of ``make_task``: horizon, ladder and base sampler."""
    n_trajectories: int
    """Trajectories per iteration, and transitions of its policy step."""
    iterations: int
    """As many as the released configuration has."""
    policy_learning_rate: float
    sigma_learning_rate: float
    value_learning_rate: float = 1e-5
    """Of value and energy."""

    def make_backbone(self, scale: float = 0.5) -> DenoiserUNet:
        """A new backbone, untrained, on torch's default device."""
        return DenoiserUNet(self.event_shape, scale, preconditioning=self.preconditioning, config=self.backbone)

    def config(self, n_trajectories: int | None = None) -> DxMIConfig:
        """The paper's settings, for ``dxdp-paper`` inside DxMI; other trajectories also change the policy step's."""
        rows = n_trajectories or self.n_trajectories
        agent = DxDPPaperConfig(
            n_trajectories=rows, policy_trajectories=math.ceil(rows / self.task["horizon"]), tau1=TAU1, tau2=TAU2,
            time_dependent_value=False, entropy_in_value=False, cost_in_value=False, time_cost=1.0,
            policy=PolicyConfig(
                kind="fine-tuned", state_dependent_sigma=False, fixed_last_sigma=True,
                fine_tuning_rate=self.policy_learning_rate, sigma_fine_tuning_rate=self.sigma_learning_rate,
            ),
            value=ValueConfig(
                width=128, depth=2, fourier=0, convolutional=True, learning_rate=self.value_learning_rate
            ),
        )  # fmt: skip
        return DxMIConfig(
            agent="dxdp-paper", agent_settings=agent, energy=EnergyConfig(convolutional=True, width=128, depth=2),
            gamma=1.0, energy_learning_rate=self.value_learning_rate, ema=0.999, anneal=False,
        )  # fmt: skip

    def make_task(
        self, target: ImageSet, denoiser: str | os.PathLike[str], *, label: int | None = None,
        device: str | torch.device | None = None,
    ) -> Task:  # fmt: skip
        """The images as a task with a trained backbone: the folder of a DDPMPipeline, a file of DenoiserUNet.save, or
        an EDM network of consistency_models (".pt").

        With a class-conditional one ``label`` says of which class. Raises ValueError for images of another shape, and
        as ``make_task`` does.
        """
        if target.event_shape != self.event_shape:
            raise ValueError(f"target must have images {self.event_shape}, got {target.event_shape}.")
        tau = TAU1 / target.dim
        return make_task(target, denoiser=os.fspath(denoiser), label=label, tau=tau, device=device, **self.task)


_CIFAR10 = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256], "attention_head_dim": None, "norm_eps": 1e-6, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
_EDM = {
    "in_channels": 3, "out_channels": 3, "attention_head_dim": 64, "attn_norm_num_groups": 32,
    "downsample_type": "resnet", "upsample_type": "resnet",
}  # fmt: skip
_IMAGENET64 = _EDM | {
    "sample_size": 64, "layers_per_block": 3, "block_out_channels": [192, 384, 576, 768], "num_class_embeds": 1000,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
}  # fmt: skip
_BEDROOM = _EDM | {
    "sample_size": 256, "layers_per_block": 2, "block_out_channels": [256, 256, 512, 512, 1024, 1024],
    "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"] * 3,
}  # fmt: skip
_AVR: dict[str, Any] = {"sigma_last": 0.001, "backward": "brownian", "backward_options": {"rate": 0.99}}
_LADDER = {"level_max": 80.0, "level_min": 0.002, "scale": 0.5}

PAPER_PRESETS: Registry[PaperPreset] = Registry("paper preset")
for _horizon in (10, 4):
    PAPER_PRESETS.add(
        f"cifar10-t{_horizon}",
        PaperPreset(
            (3, 32, 32), _CIFAR10, "epsilon", {"horizon": _horizon, "schedule": "var-quadratic", **_AVR},
            n_trajectories=128, iterations=200 * 50_000 // 128, policy_learning_rate=1e-7, sigma_learning_rate=1e-5,
        ),
    )  # fmt: skip
for _name, _shape, _backbone, _horizon, _rho, _batch, _iterations in (
    ("imagenet64-t10", (3, 64, 64), _IMAGENET64, 10, 7.0, 128, 10_000),
    ("imagenet64-t4", (3, 64, 64), _IMAGENET64, 4, 4.0, 128, 100_000),
    ("lsun-bedroom-t4", (3, 256, 256), _BEDROOM, 4, 4.0, 64, 100_000),
):
    _levels = {"horizon": _horizon, "base": "edm", "schedule": "karras", "schedule_options": {**_LADDER, "rho": _rho}}
    PAPER_PRESETS.add(
        _name,
        PaperPreset(
            _shape, _backbone, "edm-log", {**_levels, **_AVR}, n_trajectories=_batch, iterations=_iterations,
            policy_learning_rate=1e-8, sigma_learning_rate=1e-6,
        ),
    )  # fmt: skip


def make_game(task: Task, preset: PaperPreset, *, seed: int = 0, n_trajectories: int | None = None) -> DxMI:
    """DxMI on a preset's task with the paper's settings."""
    return DxMI(task, seed=seed, config=preset.config(n_trajectories))


@dataclass(frozen=True)
class NetworkCost:
    """What one network takes."""

    parameters: int
    flops: int
    """Of a forward pass with one row."""
    saved_bytes: int
    """What a forward pass with one row keeps for its gradient, in 32 bits."""


@dataclass(frozen=True)
class PresetCost:
    """What a game takes, counted without doing it."""

    networks: dict[str, NetworkCost]
    """denoiser, value and energy."""
    state_bytes: int
    """Weights, their averages, gradients and Adam's moments, in 32 bits."""
    iteration_flops: int
    """Of one iteration; a backward pass costs twice its forward pass."""
    training_flops: int
    """Of all iterations."""

    def hours(self, peak: float, utilisation: float) -> float:
        """Hours on a device that makes ``peak`` FLOP a second, of which the part ``utilisation`` is had."""
        return self.training_flops / (peak * utilisation) / 3600


def preset_cost(preset: PaperPreset) -> PresetCost:
    """Parameters, memory and arithmetic of a preset's networks at full size, counted on torch's meta device.

    Raises MissingExtraError without diffusers (extra ``images``).
    """
    config = preset.config()
    rows, horizon = preset.n_trajectories, preset.task["horizon"]
    with torch.device("meta"):
        energy = make_energy(_Shaped(preset.event_shape), config.energy)  # type: ignore[arg-type]
        denoiser = preset.make_backbone()
        denoiser.label = None if denoiser.classes is None else 0
        x = torch.zeros(1, *preset.event_shape)
        level = torch.ones(1)
        networks = {"denoiser": _cost(denoiser, x, 1.0, level), "energy": _cost(energy, x)}
    networks["value"] = networks["energy"]  # the same network, but for the one step that it is told
    forward = {name: cost.flops for name, cost in networks.items()}
    transitions = config.agent_settings.policy_trajectories * horizon
    iteration = (
        rows * horizon * forward["denoiser"]  # rollout
        + 3 * transitions * forward["denoiser"]  # policy step
        + 3 * transitions * forward["value"]  # its values' gradients
        + (3 * horizon + horizon) * rows * forward["value"]  # regression on targets
        + (3 * 2 + 1) * rows * forward["energy"]  # data and samples; targets
    )
    weights = {name: cost.parameters for name, cost in networks.items()}
    # Trained: weights, gradient and two moments; averages of policy and energy; the task's own denoiser.
    numbers = 4 * sum(weights.values()) + 2 * weights["denoiser"] + weights["energy"]
    return PresetCost(networks, 4 * numbers, iteration, iteration * preset.iterations)


class _Shaped:
    """What ``make_energy`` asks of a target."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event_shape, self.scale, self.dim = event_shape, 0.5, math.prod(event_shape)


def _cost(network: nn.Module, *inputs: Any) -> NetworkCost:
    saved: dict[int, int] = {}
    weights = {id(p) for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights:
            saved[id(tensor)] = tensor.numel() * tensor.element_size()
        held.append(tensor)  # so that no two of them have the same id
        return tensor

    held: list[torch.Tensor] = []
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        network.requires_grad_(True)(*inputs)
    parameters = sum(p.numel() for p in network.parameters())
    return NetworkCost(parameters, counter.get_total_flops(), sum(saved.values()))
