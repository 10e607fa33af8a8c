"""Checks of arguments: each raises one exception that names the argument, the value and what is allowed."""

from __future__ import annotations

import importlib
import math
import numbers
import operator
from types import ModuleType
from typing import SupportsIndex, cast

import torch


class NonFiniteError(ValueError):
    """An action, state or reward that is NaN or infinite."""


class DivergenceError(RuntimeError):
    """Training produced a non-finite loss and was stopped; the last good checkpoint is kept."""


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, of another format, of another agent or of another task."""


def check_integer(name: str, value: object, minimum: int | None = 1) -> int:
    """Return ``value`` as an int of at least ``minimum``; raises TypeError or ValueError."""
    try:
        number = None if isinstance(value, bool) else operator.index(cast(SupportsIndex, value))
    except TypeError:  # also arrays of several integers
        number = None
    if number is None:
        allowed = "an integer" if minimum is None else f"an integer >= {minimum}"
        raise TypeError(f"{name} must be {allowed}, got {value!r}.")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {number}.")
    return number


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` when it is True or False; raises TypeError for anything else, which would count as one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def check_seed(value: object, name: str = "seed") -> int:
    """Return ``value`` as an int from 0 to 2^32 - 1, as larger ones repeat these. Raises TypeError, ValueError."""
    number = check_integer(name, value, minimum=0)
    if number >= 2**32:
        raise ValueError(f"{name} must be < 2^32, got {number}.")
    return number


def check_real(name: str, value: object, minimum: float = 0.0, *, strict: bool = False) -> float:
    """Return ``value`` as a finite float >= ``minimum`` (> with ``strict``); raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond floats
        number = math.inf
    relation = ">" if strict else ">="
    if not math.isfinite(number) or number < minimum or (strict and number == minimum):
        raise ValueError(f"{name} must be finite and {relation} {minimum:g}, got {number!r}.")
    return number


def check_fraction(name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1]; raises TypeError or ValueError."""
    number = check_real(name, value)
    if number > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {number!r}.")
    return number


def check_open_fraction(name: str, value: object) -> float:
    """Return ``value`` as a float strictly between 0 and 1; raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    number = float(value)
    if not 0 < number < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {number!r}.")
    return number


def check_batch(
    name: str,
    x: object,
    event_shape: tuple[int, ...],
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    batch: int | None = None,
) -> torch.Tensor:
    """Return ``x`` when it is a floating tensor ``[batch, *event_shape]`` of ``dtype`` on ``device``, without waiting.

    Raises TypeError for another type or dtype and ValueError for another shape, device or layout.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}.")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating dtype, got {x.dtype}.")
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {x.dtype}.")
    if x.dim() != 1 + len(event_shape) or tuple(x.shape[1:]) != tuple(event_shape):
        wanted = ", ".join(["batch" if batch is None else str(batch), *map(str, event_shape)])
        raise ValueError(f"{name} must have shape [{wanted}], got {list(x.shape)}.")
    if batch is not None and x.shape[0] != batch:
        raise ValueError(f"{name} must have {batch} rows, got {x.shape[0]}.")
    if device is not None and x.device.type != device.type:
        raise ValueError(f"{name} must be on device {str(device)!r}, got {str(x.device)!r}.")
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {x.layout}.")
    return x


def all_finite(value: torch.Tensor, *more: torch.Tensor) -> bool:
    """True when no number is NaN or infinite; waits for the device once or twice."""
    # A sum is ten times cheaper than isfinite; if it overflows, every number is checked.
    total = value.detach().sum()
    for other in more:
        total = total + other.detach().sum()
    return math.isfinite(total.item()) or all(bool(torch.isfinite(x).all()) for x in (value, *more))


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the torch.device: the CPU for None; raises ValueError for one that is unknown or cannot compute here."""
    try:
        resolved = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must name a torch device such as 'cpu' or 'cuda', got {device!r}.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device; use device='cpu'.")
    try:
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch built without it
        raise ValueError(f"device {str(device)!r} cannot compute here; use device='cpu'.") from error
    return resolved


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` lazily; raises MissingExtraError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module.split('.')[0]} is needed here and is not installed: pip install 'dxmi_rl[{extra}]'."
        ) from error
