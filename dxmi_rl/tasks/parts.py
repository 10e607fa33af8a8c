"""The target and the denoiser that a configuration of a task names."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dxmi_rl.diffusion import DenoiserUNet, MixtureDenoiser, pretrained_denoiser
from dxmi_rl.targets import GaussianMixture, ImageSet, Target, make_target
from dxmi_rl.tasks.config import TaskConfig
from dxmi_rl.utils.registry import UnknownNameError


def reference_target(config: TaskConfig) -> Target:
    """The target of a configuration with all that it has; scoring uses it on both tracks."""
    target = _whole_target(config)
    if config.label is None:
        return target
    if not isinstance(target, ImageSet):
        raise ValueError(f"label must be None for target {target.name!r}, which is no set of images.")
    return target.of_class(config.label)


def _whole_target(config: TaskConfig) -> Target:
    """With the images of all classes."""
    if isinstance(config.target, Target):
        return config.target
    if not isinstance(config.target, str):
        raise TypeError(f"target must be a target's name or a Target, got {config.target!r}.")
    return make_target(config.target, **config.target_options)


def task_denoiser(config: TaskConfig, target: Target, device: torch.device) -> nn.Module:
    """The denoiser that ``config.denoiser`` names, made, trained (once), or read from a file, or is.

    Raises ValueError for a target that it does not fit, UnknownNameError for a file that is not there.
    """
    if config.denoiser == "exact":
        if not isinstance(target, GaussianMixture):
            raise ValueError(f"denoiser 'exact' needs a Gaussian mixture, not target {target.name!r}; use 'learned'.")
        denoiser: nn.Module = MixtureDenoiser(target)
    elif config.denoiser == "learned":
        if not target.has_samples:
            raise ValueError(f"target {target.name!r} has no data to train a denoiser on: pass base=None.")
        if config.pretraining.conditional and config.label is None:
            raise ValueError("label must be a class of the images with a conditional pretraining, got None.")
        whole = target if config.label is None else _whole_target(config)
        denoiser = pretrained_denoiser(whole, config.pretraining, device=device)
    elif isinstance(config.denoiser, nn.Module):
        denoiser = config.denoiser
    else:
        denoiser = _load(config.denoiser)
    if isinstance(denoiser, DenoiserUNet):
        _check_shape(denoiser, target)
    return _told_class(denoiser, config.label)


def _load(path: str) -> nn.Module:
    file = Path(path)
    if not file.exists():
        raise UnknownNameError("denoiser", path, ["exact", "learned", "the path of a folder or file that exists"])
    denoiser = DenoiserUNet.from_pipeline(file) if file.is_dir() else DenoiserUNet.load(file)
    return denoiser.requires_grad_(False).eval()


def _check_shape(denoiser: DenoiserUNet, target: Target) -> None:
    shape = (denoiser.net.config.in_channels, *_pair(denoiser.net.config.sample_size))
    if shape != target.event_shape:
        raise ValueError(f"denoiser is for images {shape}, and target {target.name!r} has {target.event_shape}.")


def _pair(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _told_class(denoiser: nn.Module, label: int | None) -> nn.Module:
    """The denoiser as it is told this class; weights are shared, as other tasks may have other classes."""
    if isinstance(denoiser, DenoiserUNet) and denoiser.classes is not None:
        if label is None or label >= denoiser.classes:
            raise ValueError(f"label must be a class of the denoiser, 0 to {denoiser.classes - 1}, got {label!r}.")
        denoiser = copy.copy(denoiser)
        denoiser.label = label
    elif label is not None:
        raise ValueError(f"label must be None with a denoiser that is told no class, got {label!r}.")
    return denoiser
