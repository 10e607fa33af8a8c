"""What the tests of the targets share: lists over the registry, points, quadrature in the plane, a test of order."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxmi_rl import list_targets, make_target
from dxmi_rl.targets import GaussianMixture, StudentMixture, Target


@functools.cache
def built(name: str) -> Target:
    """A target in float32, built once; not to be changed."""
    return make_target(name)


def names(which: Callable[[Target], Any]) -> list[str]:
    """The registered targets for which ``which`` is true."""
    return [name for name in list_targets() if which(built(name))]


ENERGIES = names(lambda target: target.has_energy)
PLANE = names(lambda target: target.has_energy and target.has_sampler and target.event_shape == (2,))
MIXTURES = names(lambda target: isinstance(target, (GaussianMixture, StudentMixture)) and target.dim == 2)
EXACT = names(lambda target: target.has_energy and target.has_sampler)
SAMPLES = names(lambda target: target.has_sampler or target.has_data)
ENERGIES_ONLY = names(lambda target: target.has_energy and not (target.has_sampler or target.has_data))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def typical(target: Target, n: int, seed: int = 0) -> Tensor:
    """Samples, or normal points of the target's width: ``[n, *event_shape]``."""
    if target.has_sampler:
        return target.sample(n, seeded(seed))
    return target.scale * torch.randn(n, *target.event_shape, generator=seeded(seed))


def energy_and_gradient(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    energy = target.energy(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    return energy.detach(), gradient


def plane(target: Target, n: int = 300) -> tuple[Tensor, Tensor]:
    """Points ``[n^2, 2]`` and weights ``[n^2]`` that integrate over the whole plane, heavy tails too.

    Midpoints in u of x = middle + width tan(u), |u| < pi / 2.
    """
    x, weight = line(target, n)
    return torch.cartesian_prod(x, x), torch.outer(weight, weight).flatten()


def line(target: Target, n: int) -> tuple[Tensor, Tensor]:
    """The same for one coordinate: ``[n]`` each."""
    low, high = target.plot_range
    middle, width = (low + high) / 2, (high - low) / 4
    u = math.pi * ((torch.arange(n) + 0.5) / n - 0.5)
    return middle + width * u.tan(), width / u.cos() ** 2 * math.pi / n


def dependence(rows: np.ndarray, lags: int = 64) -> float:
    """Largest z value of the autocorrelations of rows ``[n, k]`` at lags 1..64 and of their trend.

    Ranks take the place of the values, so that heavy tails are allowed. Independent rows give about 4; rows in the
    order of their modes, or one of each mode in turn, tens to hundreds.
    """
    n = len(rows)
    ranks = rows.argsort(0, kind="stable").argsort(0, kind="stable").astype(float)
    ranks = (ranks - ranks.mean(0)) / ranks.std(0)
    steps = np.arange(n) - (n - 1) / 2
    largest = np.abs(steps @ ranks / np.sqrt((steps**2).sum())).max()
    for lag in range(1, lags + 1):
        largest = max(largest, np.abs((ranks[lag:] * ranks[:-lag]).sum(0)).max() / math.sqrt(n - lag))
    return float(largest)
