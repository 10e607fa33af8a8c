"""Behaviour cloning: an epsilon network trained on a target's data by the DDPM loss, cached on disk."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass

import torch

from dxmi_rl.checks import DivergenceError
from dxmi_rl.diffusion.denoisers import EpsilonDenoiser
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
    level_min: float = 0.02
    """Smallest noise level s / alpha, in data units."""
    level_max: float = 120.0
    """Largest noise level."""
    width: int = 128
    """Units per layer."""
    depth: int = 3
    """Hidden layers (residual blocks for images)."""
    residual: bool = False
    """Residual blocks instead of plain layers."""
    ema: float = 0.999
    """Decay of the averaged weights that are returned."""
    seed: int = 0
    """Seed of initialisation, data order and noise."""


def pretrained_denoiser(
    target: Target, config: PretrainingConfig | None = None, *, device: torch.device | None = None
) -> EpsilonDenoiser:
    """An EpsilonDenoiser of ``target``'s data, from the cache when this configuration was trained before.

    Loss: E ||eps - eps_theta(alpha x + s eps, s / alpha)||^2 with log level uniform (Ho et al. 2020, arXiv 2006.11239,
    equation 14, over continuous levels). Raises DivergenceError on a non-finite loss.
    """
    config = config or PretrainingConfig()
    key = {"target": target.name, "version": 1, **asdict(config)}
    denoiser = _build(target, config)
    tensors = cached_tensors("denoiser", key, lambda: _train(target, config).state_dict())
    denoiser.load_state_dict(tensors)
    return denoiser.requires_grad_(False).eval().to(device or torch.device("cpu"))


def _build(target: Target, config: PretrainingConfig) -> EpsilonDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return EpsilonDenoiser(
            target.event_shape, target.scale, width=config.width, depth=config.depth, residual=config.residual
        )


def _train(target: Target, config: PretrainingConfig) -> EpsilonDenoiser:
    from dxmi_rl.progress import track

    target = copy.deepcopy(target).to("cpu")  # one machine, one result: always trained on the CPU
    denoiser = _build(target, config)
    average = copy.deepcopy(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=config.learning_rate)
    generator = torch.Generator().manual_seed(config.seed)
    low, high = math.log(config.level_min), math.log(config.level_max)
    for step in track(range(config.iterations), f"pretraining on {target.name}"):
        warm, done = min(1.0, (step + 1) / 100), step / config.iterations
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        clean = target.data(config.batch_size, generator)
        noise = torch.randn(clean.shape, generator=generator)
        level = torch.exp(low + (high - low) * torch.rand(len(clean), generator=generator))
        alpha = (1 + level**2).rsqrt()
        s = level * alpha
        shape = (-1, *[1] * (clean.dim() - 1))
        predicted = denoiser.epsilon(alpha.view(shape) * clean + s.view(shape) * noise, alpha, s)
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 500 == 0 and not bool(torch.isfinite(loss)):
            raise DivergenceError(f"pretraining on {target.name!r} diverged at iteration {step}: loss {float(loss)}.")
        decay = min(config.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - decay)
    return average
