"""Behaviour cloning: a denoiser trained on a target's data by the DDPM loss, cached on disk."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass

import torch

from dxmi_rl.checks import DivergenceError
from dxmi_rl.diffusion.denoisers import DenoiserMLP
from dxmi_rl.storage import cached_tensors
from dxmi_rl.targets import Target


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of behaviour cloning; all of them are part of the cache key."""

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
    width: int = 128
    """Units per layer."""
    depth: int = 3
    """Residual blocks, or hidden layers."""
    residual: bool = True
    """Residual blocks; plain layers stay long at the linear denoiser."""
    fourier: int = 0
    """Fourier frequencies of the input (0: none); sharp shapes in the plane need them."""
    ema: float = 0.999
    """Decay of the averaged weights that are returned."""
    seed: int = 0
    """Seed of initialisation, data order and noise."""


def pretrained_denoiser(
    target: Target, config: PretrainingConfig | None = None, *, device: torch.device | None = None
) -> DenoiserMLP:
    """A DenoiserMLP of ``target``'s data, from the cache when this configuration was trained before.

    DDPM loss E ||eps - eps_theta||^2 (Ho et al. 2020, arXiv 2006.11239, eq. 14) with eps_theta = (x - alpha D) / s,
    weighted by 1 + level^2 (Salimans and Ho 2022, arXiv 2202.00512: the v weighting, for few-step use), over levels
    c tan(pi u / 2), u uniform: the cosine schedule in continuous time. Raises DivergenceError on a non-finite loss.
    """
    config = config or PretrainingConfig()
    key = {"target": target.name, "data": target.digest(), "version": 3, **asdict(config)}
    denoiser = _build(target, config)
    tensors = cached_tensors("denoiser", key, lambda: _train(target, config).state_dict())
    denoiser.load_state_dict(tensors)
    return denoiser.requires_grad_(False).eval().to(device or torch.device("cpu"))


def _build(target: Target, config: PretrainingConfig) -> DenoiserMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DenoiserMLP(
            target.event_shape,
            target.scale,
            width=config.width,
            depth=config.depth,
            residual=config.residual,
            fourier=config.fourier,
        )


def _train(target: Target, config: PretrainingConfig) -> DenoiserMLP:
    from dxmi_rl.progress import track

    target = copy.deepcopy(target).to("cpu")  # one machine, one result: always trained on the CPU
    denoiser = _build(target, config)
    average = copy.deepcopy(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    low, high = (2 / math.pi * math.atan(level) for level in (config.level_min, config.level_max))
    for step in track(range(config.iterations), f"pretraining on {target.name}"):
        warm, done = min(1.0, (step + 1) / 100), step / config.iterations
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        clean = target.data(config.batch_size, generator)
        noise = torch.randn(clean.shape, generator=generator)
        uniform = low + (high - low) * torch.rand(len(clean), generator=generator)
        level = target.scale * torch.tan(math.pi / 2 * uniform)
        alpha = (1 + level**2).rsqrt()
        s = level * alpha
        shape = (-1, *[1] * (clean.dim() - 1))
        denoised = denoiser(alpha.view(shape) * clean + s.view(shape) * noise, alpha, s)
        # eps - eps_theta = alpha (D - x_clean) / s, and its v weight is 1 / alpha^2.
        loss = ((denoised - clean) / s.view(shape)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 500 == 0 and not bool(torch.isfinite(loss)):
            raise DivergenceError(
                f"pretraining on {target.name!r} diverged at iteration {step}: loss {float(loss.detach())}."
            )
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - decay)
    return average
