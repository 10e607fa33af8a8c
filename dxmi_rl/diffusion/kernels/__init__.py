"""Backward kernels qb(x_t | x_{t+1}): one file and one registry line each."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from dxmi_rl.diffusion.kernels.base import BackwardKernel
from dxmi_rl.diffusion.kernels.brownian import Brownian
from dxmi_rl.diffusion.kernels.fitted import FittedKernel
from dxmi_rl.diffusion.kernels.forward import Forward
from dxmi_rl.diffusion.kernels.learned import Learned
from dxmi_rl.diffusion.kernels.mixture import Mixture
from dxmi_rl.diffusion.kernels.reference import BaseReference
from dxmi_rl.diffusion.schedules import Schedule
from dxmi_rl.utils.registry import Registry, UnknownNameError

__all__ = [
    "KERNELS", "BackwardKernel", "BaseReference", "Brownian", "FittedKernel", "Forward", "Learned", "Mixture",
    "make_kernel",
]  # fmt: skip

KERNELS: Registry[type[BackwardKernel]] = Registry("backward kernel")
KERNELS.add("brownian", Brownian)
KERNELS.add("forward", Forward)
KERNELS.add("learned", Learned)
KERNELS.add("mixture", Mixture)
KERNELS.add("base", BaseReference, optional=True)  # of a base sampler with noise, and no density of x_t


def make_kernel(
    name: str, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
) -> BackwardKernel:
    """Build a backward kernel for a schedule; ``sigma`` is the base sampler's ``[T]``.

    Raises UnknownNameError for an unknown name or option.
    """
    kernel = KERNELS[name]
    known = [one.name for one in inspect.signature(kernel).parameters.values() if one.kind is one.KEYWORD_ONLY]
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of kernel {name!r}", key, known)
    return kernel.build(schedule, event_shape, scale, sigma, **options)
