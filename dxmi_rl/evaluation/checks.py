"""Checks of the tensors that metrics take: each raises one exception that names the argument and what is wrong."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dxmi_rl.utils.checks import NonFiniteError


def _check_finite(name: str, x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        raise NonFiniteError(f"{name} must be finite: {int((~x.isfinite()).sum())} of {x.numel()} values are not.")
    return x


def _check_floating(name: str, x: object, dims: int, shape: str) -> Tensor:
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating torch.Tensor, got {kind}.")
    if x.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {list(x.shape)}.")
    return x


def _check_samples(name: str, x: object, minimum: int) -> Tensor:
    """A finite floating matrix ``[n, d]`` with n >= minimum and d >= 1."""
    samples = _check_floating(name, x, 2, "[n, d]")
    if samples.shape[0] < minimum or samples.shape[1] < 1:
        raise ValueError(f"{name} must have at least {minimum} row(s) and one column, got {list(samples.shape)}.")
    return _check_finite(name, samples)


def check_pair(name_x: str, x: object, name_y: str, y: object, minimum: int = 1) -> None:
    """Two sample sets of one width on one device."""
    x, y = _check_samples(name_x, x, minimum), _check_samples(name_y, y, minimum)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name_x} and {name_y} must have equal width, got {list(x.shape)} and {list(y.shape)}.")
    if x.device != y.device:
        raise ValueError(f"{name_x} and {name_y} must be on one device, got {x.device} and {y.device}.")


def check_vector(name: str, x: object, *, size: int | None = None, minimum: int = 1) -> Tensor:
    """A finite floating vector ``[size]``, or of at least ``minimum`` values."""
    vector = _check_floating(name, x, 1, f"[{'n' if size is None else size}]")
    if len(vector) < minimum or (size is not None and len(vector) != size):
        wanted = f"at least {minimum}" if size is None else str(size)
        raise ValueError(f"{name} must hold {wanted} values, got {len(vector)}.")
    return _check_finite(name, vector)


def array(x: Tensor) -> NDArray[np.float64]:
    """A numpy copy in float64."""
    return x.detach().to("cpu", torch.float64).numpy()
