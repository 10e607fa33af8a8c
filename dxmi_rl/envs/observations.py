"""Observations of the environments as states, and states as observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.mdp import DenoisingMDP


def observe(mdp: DenoisingMDP, x: Tensor, t: Tensor | int) -> Tensor:
    """The flat observations [x, 1 - t / T] of states: ``[batch, d + 1]``; t may be T, too."""
    steps = t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
    return torch.cat([x.flatten(1), (1 - steps.to(x.dtype) / mdp.horizon)[:, None]], dim=1)


def parse_observation(mdp: DenoisingMDP, observation: Any) -> tuple[Tensor, Tensor, bool]:
    """States ``[batch, *event_shape]``, steps ``[batch]``, and whether it was a single observation.

    Takes the flat ``[x, 1 - t / T]`` or ``{"x", "t"}``, single or batched, as arrays or tensors. Raises ValueError for
    flat observations of another shape.
    """
    horizon, device, dim = mdp.horizon, mdp.device, mdp.dim
    if isinstance(observation, dict):
        x = torch.as_tensor(_plain(observation["x"]), dtype=mdp.dtype, device=device)
        t = torch.as_tensor(_plain(observation["t"]), device=device).long().reshape(-1)
        return x.reshape(-1, *mdp.event_shape), t, x.dim() == len(mdp.event_shape)
    flat = torch.as_tensor(_plain(observation), dtype=mdp.dtype, device=device)
    if flat.shape[-1] != dim + 1 or flat.dim() > 2:
        raise ValueError(f"observation must have shape [{dim + 1}] or [batch, {dim + 1}], got {list(flat.shape)}.")
    rows = flat.reshape(-1, dim + 1)
    t = ((1 - rows[:, -1]) * horizon).round().long().clamp(0, horizon - 1)
    return rows[:, :-1].reshape(-1, *mdp.event_shape), t, flat.dim() == 1


def _plain(value: Any) -> Tensor | np.ndarray[Any, Any]:
    """A tensor as it is, on its device; anything else as an array."""
    return value if isinstance(value, Tensor) else np.asarray(value)
