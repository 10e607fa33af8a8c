"""Behaviour cloning: a denoiser trained on a target's data by the DDPM loss, cached on disk."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dxmi_rl.diffusion.denoisers import DenoiserMLP
from dxmi_rl.diffusion.unet import DenoiserUNet
from dxmi_rl.targets import ImageSet, Target
from dxmi_rl.utils.checks import CheckpointError, DivergenceError, all_finite, check_integer, check_real, check_seed
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import (
    JSON,
    cache_is_a_help,
    cache_path,
    cached_tensors,
    flatten_optimizer,
    load_tensors,
    restore_optimizer,
    save_tensors,
)
from dxmi_rl.utils.torch_tools import PRECISIONS, average_towards, in_precision, keep_freed_memory

Denoiser = DenoiserMLP | DenoiserUNet
NETWORKS = ["mlp", "unet"]
UNET_ONLY = ("channels", "layers", "attention", "patch", "preconditioning")
MLP_ONLY = ("width", "depth", "residual", "fourier")
EARLY = 0.8
"""After this part of the iterations the averaged weights are kept, too."""
SAVE_SECONDS = 300.0
"""A training that takes longer is saved so often."""


@dataclass(frozen=True, repr=False)
class PretrainingConfig:
    """Settings of behaviour cloning; those that its network uses are part of the cache key."""

    iterations: int = 4000
    """Adam steps."""
    batch_size: int = 256
    """Training rows per step."""
    learning_rate: float = 1e-3
    """Peak rate; cosine to zero, with a short linear warm-up."""
    level_min: float = 0.01
    """Smallest noise level s / alpha over the data's standard deviation."""
    level_max: float = 30.0
    """Largest noise level, likewise."""
    network: str = "mlp"
    """"mlp" (DenoiserMLP) or, for images, "unet" (DenoiserUNet, extra ``images``)."""
    width: int = 128
    """Units per layer of an MLP."""
    depth: int = 3
    """Residual blocks, or hidden layers, of an MLP."""
    residual: bool = True
    """Residual blocks in an MLP; plain layers stay long at the linear denoiser."""
    fourier: int = 0
    """Fourier frequencies of an MLP's input (0: none); sharp shapes in the plane need them."""
    channels: tuple[int, ...] = (32, 64, 64)
    """Channels of every stage of a U-Net; each but the last halves height and width."""
    layers: int = 1
    """Residual blocks per stage of a U-Net."""
    attention: bool = True
    """The last stage of a U-Net attends."""
    patch: int = 1
    """Side of the squares of pixels that a U-Net sees as one, which leaves 1 / patch^2 of the places to compute."""
    preconditioning: str = "edm"
    """What a U-Net predicts: "edm" (Karras et al.), "edm-log" (it is told log levels), "epsilon" (DDPM's noise)."""
    precision: str = "float32"
    """How the network is trained: "float32", or "bfloat16" (autocast): about twice as fast on processors that multiply
    such matrices (AMX, GPUs) where a U-Net does not attend, and slower elsewhere."""
    conditional: bool = False
    """The network is told the class of every image."""
    ema: float = 0.999
    """Decay of the averaged weights that are returned."""
    seed: int = 0
    """Seed of initialisation, data order and noise."""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "width", "depth"):
            check_integer(name, getattr(self, name))
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_real("learning_rate", self.learning_rate, strict=True)
        if check_real("ema", self.ema) >= 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}.")
        if check_real("level_min", self.level_min, strict=True) >= check_real("level_max", self.level_max):
            raise ValueError(f"level_min must be below level_max, got {self.level_min} and {self.level_max}.")
        if not isinstance(self.channels, (list, tuple)):
            raise TypeError(f"channels must be a tuple of integers, one per stage, got {self.channels!r}.")
        object.__setattr__(self, "channels", tuple(self.channels))

    def used(self) -> JSON:
        """The settings that matter to this network: what caches and checkpoints go by."""
        left_out = {"network", *UNET_ONLY} if self.network == "mlp" else {*MLP_ONLY}
        if self.network == "mlp":  # whose caches are older than these two
            left_out |= {key for key in ("conditional", "precision") if getattr(self, key) == getattr(type(self), key)}
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    def __repr__(self) -> str:
        return f"PretrainingConfig({', '.join(f'{key}={value!r}' for key, value in self.used().items())})"


def pretrained_denoiser(
    target: Target, config: PretrainingConfig | None = None, *, device: torch.device | None = None, early: bool = False
) -> Denoiser:
    """A denoiser of ``target``'s data, from the cache when this configuration was trained before.

    DDPM loss E ||eps - eps_theta||^2 (Ho et al. 2020, arXiv 2006.11239, eq. 14) with eps_theta = (x - alpha D) / s,
    weighted by 1 + level^2 (Salimans and Ho 2022, arXiv 2202.00512: the v weighting, for few-step use), over levels
    c tan(pi u / 2), u uniform: the cosine schedule in continuous time. MLPs are always trained on the CPU, U-Nets on
    ``device``. What takes longer than five minutes is kept on the way: interrupted, it goes on where it was, and on the
    CPU ends the same as if it had not been. ``early`` gives the weights after four fifths of the iterations, to see
    whether the last fifth changed anything.

    Raises UnknownNameError for an unknown network or precision, MissingExtraError for a U-Net without diffusers,
    ValueError for ``conditional`` without images with labels, DivergenceError on a non-finite loss.
    """
    config, device = config or PretrainingConfig(), device or torch.device("cpu")
    denoiser, labelled = _build(target, config), _labelled(target, config)
    labels = None if labelled is None else labelled.labels_digest()
    key = {"target": target.name, "data": target.digest(), "labels": labels, "version": 4, **config.used()}
    place = device if config.network == "unet" else torch.device("cpu")

    kind, other = ("denoiser-early", "denoiser") if early else ("denoiser", "denoiser-early")

    def train() -> dict[str, Tensor]:
        partial = cache_path("denoiser-partial", key | {"device": place.type})
        cloning = _Cloning(target, config, place, partial)
        cloning.run()
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        found = {"denoiser": cloning.average.state_dict(), "denoiser-early": cloning.early.state_dict()}
        with cache_is_a_help():
            save_tensors(cache_path(other, key), found[other], key)
        return found[kind]

    denoiser.load_state_dict(cached_tensors(kind, key, train))
    return denoiser.requires_grad_(False).eval().to(device)


def train_denoiser(
    target: Target, config: PretrainingConfig | None = None, *, device: torch.device | None = None
) -> Denoiser:  # fmt: skip
    """As ``pretrained_denoiser``, with nothing kept on disk: every call trains."""
    config, device = config or PretrainingConfig(), device or torch.device("cpu")
    place = device if config.network == "unet" else torch.device("cpu")
    return _Cloning(target, config, place).run().requires_grad_(False).eval().to(device)


def _build(target: Target, config: PretrainingConfig) -> Denoiser:
    if config.network not in NETWORKS:
        raise UnknownNameError("network of pretraining", config.network, NETWORKS)
    if config.precision not in PRECISIONS:
        raise UnknownNameError("precision", config.precision, list(PRECISIONS))
    labelled = _labelled(target, config)
    classes = None if labelled is None else labelled.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.network == "unet":
            return DenoiserUNet(
                target.event_shape, target.scale, channels=config.channels, layers=config.layers,
                attention=config.attention, patch=config.patch, preconditioning=config.preconditioning, classes=classes,
            )  # fmt: skip
        return DenoiserMLP(
            target.event_shape, target.scale, width=config.width, depth=config.depth, residual=config.residual,
            fourier=config.fourier, classes=classes,
        )  # fmt: skip


def _labelled(target: Target, config: PretrainingConfig) -> ImageSet | None:
    """The target as images with classes, where the denoiser is told these; else None. Raises ValueError without."""
    if not config.conditional:
        return None
    if not isinstance(target, ImageSet) or target.train_labels is None:
        raise ValueError(f"pretraining must have conditional=False for {target.name!r}, which has no labels.")
    if int(target.train_labels.min()) < 0:
        raise ValueError(f"labels must be classes from 0 on for a conditional pretraining; {target.name!r} has others.")
    return target


class _Cloning:
    """The training of a denoiser, which can be stopped and continued."""

    def __init__(
        self, target: Target, config: PretrainingConfig, device: torch.device, partial: Path | None = None
    ) -> None:  # fmt: skip
        self.target, self.config, self.partial = copy.deepcopy(target).to(device), config, partial
        self.labelled = _labelled(self.target, config)
        self.begin()
        if partial is not None:
            self.restore(partial)

    def begin(self) -> None:
        """Start anew."""
        config, device = self.config, self.target.device
        self.denoiser = _build(self.target, config).to(device)
        self.average, self.early = copy.deepcopy(self.denoiser), copy.deepcopy(self.denoiser)
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=config.learning_rate)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.start = 0

    def run(self) -> Denoiser:
        """Train to the end; the averaged network."""
        config, saved = self.config, time.monotonic()
        remaining = range(self.start, config.iterations)
        keep_freed_memory()
        for step in track(remaining, f"pretraining on {self.target.name}"):
            loss = self.step(step)
            if step % 500 == 0 and not bool(torch.isfinite(loss)):
                raise DivergenceError(
                    f"pretraining on {self.target.name!r} diverged at iteration {step}: loss {float(loss)}."
                )
            if step + 1 == math.ceil(EARLY * config.iterations):
                self.early = copy.deepcopy(self.average)
            if self.partial is not None and time.monotonic() - saved > SAVE_SECONDS:
                self.save(self.partial, step + 1)
                saved = time.monotonic()
        if not all_finite(*self.average.parameters()):
            raise DivergenceError(f"pretraining on {self.target.name!r} diverged: its weights are NaN or infinite.")
        return self.average

    def step(self, step: int) -> Tensor:
        """One Adam step; the loss."""
        config = self.config
        low, high = (2 / math.pi * math.atan(level) for level in (config.level_min, config.level_max))
        warm, done = min(1.0, (step + 1) / 100), step / config.iterations
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        label: list[Tensor] = []
        if self.labelled is None:
            clean = self.target.data(config.batch_size, self.generator)
        else:
            clean, *label = self.labelled.labelled_data(config.batch_size, self.generator)
        noise = torch.randn(clean.shape, generator=self.generator, device=clean.device)
        uniform = low + (high - low) * torch.rand(len(clean), generator=self.generator, device=clean.device)
        level = self.target.scale * torch.tan(math.pi / 2 * uniform)
        alpha = (1 + level**2).rsqrt()
        s = level * alpha
        shape = (-1, *[1] * (clean.dim() - 1))
        with in_precision(config.precision, clean.device):
            denoised: Tensor = self.denoiser(alpha.view(shape) * clean + s.view(shape) * noise, alpha, s, *label)
        # eps - eps_theta = alpha (D - x_clean) / s, and its v weight is 1 / alpha^2.
        loss = ((denoised - clean) / s.view(shape)).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        average_towards(self.average, self.denoiser, min(config.ema, (step + 1) / (step + 10)))
        return loss.detach()

    def networks(self) -> dict[str, Denoiser]:
        """The network, its average, and the average after four fifths of the iterations."""
        return {"denoiser": self.denoiser, "average": self.average, "early": self.early}

    def save(self, partial: Path, step: int) -> None:
        """Keep the state before iteration ``step``."""
        tensors = {f"{k}/{key}": value for k, net in self.networks().items() for key, value in net.state_dict().items()}
        tensors |= flatten_optimizer("optimizer", self.optimizer) | {"generator": self.generator.get_state()}
        with cache_is_a_help():
            save_tensors(partial, tensors, {"step": step, "name": partial.name})

    def restore(self, partial: Path) -> None:
        """Go on from what ``save`` kept, if it did; from the start where that is damaged or another one's."""
        try:
            tensors, found = load_tensors(partial)
            if found.get("name", partial.name) != partial.name:
                raise ValueError(f"{str(partial)!r} was {found['name']}.")
            for name, net in self.networks().items():
                start = len(name) + 1
                net.load_state_dict({k[start:]: value for k, value in tensors.items() if k.startswith(f"{name}/")})
            restore_optimizer("optimizer", self.optimizer, tensors)
            self.generator.set_state(tensors["generator"])
            self.start = int(found["step"])
        except FileNotFoundError:
            return
        except (CheckpointError, KeyError, OSError, RuntimeError, ValueError) as error:
            if not isinstance(error.__cause__ or error, OSError):  # damaged, and not only out of reach for now
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            self.begin()
