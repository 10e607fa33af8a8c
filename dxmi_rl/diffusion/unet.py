"""Convolutional denoisers for images: diffusers' UNet2DModel, trained here, or a published DDPM or EDM network."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dxmi_rl.diffusion.consistency_models import read_network
from dxmi_rl.diffusion.denoisers import Level, column, row_classes
from dxmi_rl.utils.checks import CheckpointError, check_integer, check_real, require
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import JSON, load_tensors, save_tensors

PRECONDITIONINGS = ["edm", "edm-log", "epsilon"]
GROUPS = 8
"""Groups of a norm, and channels of an attention head."""
TIMES = 1000.0
"""Noise levels are told to the network as numbers from 0 to this, as DDPM's steps are."""
LOG_TIMES = 250.0
"""What EDM networks of consistency_models are told is so many times the log of the level."""
LEAST = 1e-44
"""Their code adds this to a level, so that 0 has a logarithm."""


class DenoiserUNet(nn.Module):
    """D(x, alpha, s) from diffusers' UNet2DModel F, in one of three ways.

    With z = x / alpha, level l = s / alpha, the data's standard deviation c and time 1000 (2 / pi) atan(l / c):

        edm         D = c^2 / (l^2 + c^2) z + l c / sqrt(l^2 + c^2) F(z / sqrt(l^2 + c^2))
                    (Karras et al. 2022, arXiv 2206.00364, table 1)
        edm-log     the same, with time 250 log l, as in github.com/openai/consistency_models
        epsilon     D = z - l F(z / sqrt(1 + l^2)), the noise as in DDPM (Ho et al. 2020, arXiv 2006.11239)

    A network that was trained on the steps of a DDPM is told the step, interpolated, whose alpha-bar is 1 / (1 + l^2).
    With ``classes`` F is also told what an image shows: the ``label`` of a call or, without one, the attribute
    ``label``, one class for all rows, which is None at first and no part of what ``save`` writes.

    With ``patch`` p > 1 F sees every square of p x p pixels as one pixel with p^2 times the channels, and answers so.
    That leaves 1 / p^2 of the places to compute.

    Args:
        event_shape: ``(channels, height, width)``; height and width must be multiples of 2^(stages - 1).
        scale: c.
        channels: channels of every stage; each but the last halves height and width.
        layers: residual blocks per stage.
        attention: the last stage and the middle attend.
        patch: p; divides height and width, whose quotients are those that stages halve.
        preconditioning: "edm", "edm-log" or "epsilon".
        config: settings of UNet2DModel in place of those that follow from the other arguments.
        alphas_cumprod: alpha-bar of every step of the DDPM that F was trained on, falling, in (0, 1); only with
            "epsilon".
        classes: number of classes, or None for a network that is told none; with a ``config`` its "num_class_embeds".

    Raises MissingExtraError without diffusers (extra ``images``), ValueError or TypeError for what does not fit.
    """

    alphas_cumprod: Tensor | None

    def __init__(
        self, event_shape: Sequence[int], scale: float, *, channels: Sequence[int] = (32, 64, 64), layers: int = 1,
        attention: bool = True, patch: int = 1, preconditioning: str = "edm", config: JSON | None = None,
        alphas_cumprod: Tensor | None = None, classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if preconditioning not in PRECONDITIONINGS:
            raise UnknownNameError("preconditioning", preconditioning, PRECONDITIONINGS)
        if alphas_cumprod is not None and preconditioning != "epsilon":
            raise ValueError(f"preconditioning must be 'epsilon' with alphas_cumprod, got {preconditioning!r}.")
        if alphas_cumprod is not None and not _falls(alphas_cumprod):
            raise ValueError("alphas_cumprod must be two or more numbers in (0, 1), each below the one before.")
        self.scale = check_real("scale", scale, strict=True)
        self.preconditioning = preconditioning
        self.patch = check_integer("patch", patch)
        if config is None:
            made = _unet_config(event_shape, channels, layers, attention, self.patch)
            made["num_class_embeds"] = None if classes is None else check_integer("classes", classes)
        elif classes is not None:
            raise ValueError(f"classes must be None with a config, which says how many there are, got {classes!r}.")
        else:
            made = config
        self.label: int | None = None
        self.net = require("diffusers", "images").UNet2DModel.from_config(made)
        if config is None:  # it starts at the best linear denoiser, or at no noise
            nn.init.zeros_(self.net.conv_out.weight)
            nn.init.zeros_(self.net.conv_out.bias)
        self.register_buffer("alphas_cumprod", None if alphas_cumprod is None else alphas_cumprod.float())

    @property
    def classes(self) -> int | None:
        """How many classes F knows; None: it is told none."""
        count: int | None = self.net.config.num_class_embeds
        return count

    @property
    def event_shape(self) -> tuple[int, ...]:
        """``(channels, height, width)`` of its images."""
        size: int | Sequence[int] = self.net.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.net.config.in_channels // self.patch**2, height * self.patch, width * self.patch

    def forward(self, x: Tensor, alpha: Level, s: Level, label: Tensor | int | None = None) -> Tensor:
        """``[batch, channels, height, width]``, and numbers or ``[batch]`` -> the shape of x.

        ``label`` as ``row_classes``, which says what is raised.
        """
        ratio = s / alpha
        level = ratio if isinstance(ratio, Tensor) else x.new_full((1,), ratio)
        z = x / column(alpha, x)
        spread = level.view(-1, 1, 1, 1)
        shown = row_classes(x, self.label if label is None else label, self.classes)
        told = (self.times(level).to(x.dtype).expand(len(x)), shown)
        if self.preconditioning == "epsilon":
            return z - spread * self._answer(z / (1 + spread**2).sqrt(), *told)
        total = (spread**2 + self.scale**2).sqrt()
        out = self._answer(z / total, *told)
        return (self.scale / total) ** 2 * z + spread * self.scale / total * out

    def _answer(self, z: Tensor, times: Tensor, shown: Tensor | None) -> Tensor:
        """F, with patches for pixels."""
        out: Tensor = self.net(F.pixel_unshuffle(z, self.patch), times, shown).sample
        return F.pixel_shuffle(out, self.patch)

    def times(self, level: Tensor) -> Tensor:
        """What the network is told of noise levels s / alpha: ``[batch] -> [batch]``."""
        if self.preconditioning == "edm-log":
            return LOG_TIMES * torch.log(level + LEAST)
        if self.alphas_cumprod is None:
            return TIMES * 2 / math.pi * torch.atan(level / self.scale)
        known = 0.5 * (1 / self.alphas_cumprod.float() - 1).log()  # log level of every step, rising
        log_level = level.float().log()
        right = torch.searchsorted(known, log_level.clamp(known[0], known[-1])).clamp(1, len(known) - 1)
        low, high = known[right - 1], known[right]
        return right - 1 + ((log_level - low) / (high - low)).clamp(0, 1)

    @classmethod
    def from_pipeline(cls, folder: str | os.PathLike[str]) -> DenoiserUNet:
        """The network of a diffusers DDPMPipeline that lies in ``folder``, such as a copy of google/ddpm-cifar10-32.

        Raises MissingExtraError without diffusers, CheckpointError for a folder that holds no such pipeline, and for
        one that does not predict the noise.
        """
        diffusers = require("diffusers", "images")
        place = {"pretrained_model_name_or_path": os.fspath(folder), "local_files_only": True}
        try:
            net = diffusers.UNet2DModel.from_pretrained(**place, subfolder="unet")
            scheduler = diffusers.DDPMScheduler.from_pretrained(**place, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"folder {str(folder)!r} holds no DDPMPipeline with a UNet2DModel: {error}"
            ) from error
        config = _plain(net.config)
        wanted = {"class_embed_type": None, "time_embedding_type": "positional"}
        wanted |= {"out_channels": config["in_channels"]}
        found = {key: config.get(key) for key in wanted} | {"prediction_type": scheduler.config.prediction_type}
        wanted["prediction_type"] = "epsilon"
        if found != wanted or config["sample_size"] is None:
            raise CheckpointError(
                f"the pipeline in {str(folder)!r} must have a sample_size and {wanted}, and has "
                f"{config['sample_size']} and {found}."
            )
        try:
            denoiser = cls((), 1.0, preconditioning="epsilon", config=config, alphas_cumprod=scheduler.alphas_cumprod)
        except ValueError as error:
            raise CheckpointError(f"the scheduler in {str(folder)!r} cannot be used: {error}") from error
        denoiser.net.load_state_dict(net.state_dict())
        return denoiser

    @classmethod
    def from_consistency_models(
        cls, path: str | os.PathLike[str], *, size: int | None = None, head_channels: int = 64
    ) -> DenoiserUNet:
        """An EDM network in the file format of github.com/openai/consistency_models, such as edm_imagenet64_ema.pt.

        The file is read without running code that it may hold. Its tensors say what the network is, but for two
        things, for which the defaults are those of the published networks. Nor do they say how it was trained: files of
        consistency models (cd_, ct_) look the same, and are no denoisers of this kind.

        Args:
            path: a file of torch.save with the state dict of that repository's UNetModel, in 16 or 32 bits.
            size: height and width of the images. None: where attention begins, it sees 32 x 32.
            head_channels: channels of an attention head.

        Raises MissingExtraError without diffusers (extra ``images``), FileNotFoundError without the file,
        CheckpointError for a file that is damaged or holds anything else, ValueError for a ``size`` or
        ``head_channels`` that the network cannot have.
        """
        config, weights = read_network(path, size=size, head_channels=head_channels)
        denoiser = cls((), 0.5, preconditioning="edm-log", config=config)
        denoiser.net.load_state_dict(weights)
        return denoiser

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write weights and settings as one safetensors file, atomically."""
        settings = {"scale": self.scale, "preconditioning": self.preconditioning, "patch": self.patch}
        settings["config"] = _plain(self.net.config)
        return save_tensors(path, self.state_dict(), {"denoiser": "unet", **settings})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DenoiserUNet:
        """What ``save`` wrote. Raises FileNotFoundError, and CheckpointError for a damaged or foreign file."""
        tensors, settings = load_tensors(path)
        if settings.pop("denoiser", None) != "unet":
            raise CheckpointError(f"{str(path)!r} does not hold a denoiser that DenoiserUNet.save wrote.")
        try:
            denoiser = cls((), **settings, alphas_cumprod=tensors.get("alphas_cumprod"))
            denoiser.load_state_dict(tensors)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{str(path)!r} is a damaged denoiser: {error}") from error
        return denoiser


def _unet_config(
    event_shape: Sequence[int], channels: Sequence[int], layers: int, attention: bool, patch: int
) -> JSON:  # fmt: skip
    """Settings of UNet2DModel; small ones by the standards of diffusers."""
    if len(event_shape) != 3:
        raise ValueError(f"event_shape must be (channels, height, width) for a U-Net, got {tuple(event_shape)}.")
    if not channels:
        raise ValueError("channels must have one number per stage, got none.")
    widths = [check_integer("every entry of channels", width) for width in channels]
    if any(width % GROUPS for width in widths):
        raise ValueError(f"channels must be multiples of {GROUPS}, got {widths}.")
    colours, *sides = event_shape
    if any(side % patch for side in sides):
        raise ValueError(f"patch must divide height and width {sides}, got {patch}.")
    size = [side // patch for side in sides]
    if any(side % 2 ** (len(widths) - 1) for side in size):
        raise ValueError(
            f"channels must be so few that height and width {size} can be halved {len(widths) - 1} times, got {widths}."
        )
    last = "Attn" if attention else ""
    plain = len(widths) - 1
    return {
        "sample_size": size,
        "in_channels": colours * patch**2,
        "out_channels": colours * patch**2,
        "layers_per_block": check_integer("layers", layers),
        "block_out_channels": widths,
        "norm_num_groups": GROUPS,
        "attention_head_dim": GROUPS,
        "down_block_types": ["DownBlock2D"] * plain + [f"{last}DownBlock2D"],
        "up_block_types": [f"{last}UpBlock2D"] + ["UpBlock2D"] * plain,
        "add_attention": attention,
    }


def _plain(config: Mapping[str, object]) -> JSON:
    """The settings of a diffusers model, as JSON has them."""
    found: JSON = json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))
    return found


def _falls(alphas_cumprod: Tensor) -> bool:
    inside = bool(((alphas_cumprod > 0) & (alphas_cumprod < 1)).all())
    return alphas_cumprod.dim() == 1 and len(alphas_cumprod) > 1 and inside and bool((alphas_cumprod.diff() < 0).all())
