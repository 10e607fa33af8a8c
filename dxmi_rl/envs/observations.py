"""Observations of the environments as states, and states as observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.mdp import DenoisingMDP


def time_left(mdp: DenoisingMDP, t: int) -> tuple[float, ...]:
    """What a flat observation tells of the step: 1 - t / T; on a task with several horizons also what is left after
    the step, 1 - (t + 1) / T, or 0 at t = T.
    """
    now, after = 1 - t / mdp.horizon, max(0.0, 1 - (t + 1) / mdp.horizon)
    return (now,) if mdp.base.schedule.codes is None else (now, after)


def observe(mdp: DenoisingMDP, x: Tensor, t: Tensor | int) -> Tensor:
    """The flat observations of states, x and ``time_left``: ``[batch, d + 1 or 2]``; t may be T, too."""
    steps = t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
    now = 1 - steps.to(x.dtype) / mdp.horizon
    told = [now] if mdp.base.schedule.codes is None else [now, (now - 1 / mdp.horizon).clamp_min(0)]
    return torch.cat([x.flatten(1), torch.stack(told, dim=1)], dim=1)


def observed_horizon(mdp: DenoisingMDP, observation: Any) -> int:
    """T of the episodes that observations belong to; ``mdp`` is any of the task's MDPs. Flat observations at t = T do
    not tell; where there are no others it is that of ``mdp``.

    Raises ValueError for observations of another shape, or from episodes of different horizons.
    """
    if mdp.base.schedule.codes is None:
        return mdp.horizon
    if isinstance(observation, dict):
        if "horizon" not in observation:
            raise ValueError(f"observation must have 'horizon' on a task with several, got {list(observation)}.")
        horizons = torch.as_tensor(_plain(observation["horizon"])).reshape(-1)
    else:
        now, after = _rows(mdp, observation)[:, mdp.dim :].unbind(1)
        horizons = (1 / (now - after)[now > 0]).round()
    found = sorted({int(horizon) for horizon in horizons.tolist()}) or [mdp.horizon]
    if len(found) > 1:
        raise ValueError(f"observations must be of one horizon, got {found}.")
    return found[0]


def parse_observation(mdp: DenoisingMDP, observation: Any) -> tuple[Tensor, Tensor, bool]:
    """States ``[batch, *event_shape]``, steps ``[batch]``, and whether it was a single observation.

    Takes flat observations or ``{"x", "t"}``, single or batched, as arrays or tensors. Raises ValueError for flat
    observations of another shape, and for those of another horizon.
    """
    horizon, device, dim = mdp.horizon, mdp.device, mdp.dim
    if (observed := observed_horizon(mdp, observation)) != horizon:
        raise ValueError(f"observation must be of an episode of {horizon} steps, got one of {observed}.")
    if isinstance(observation, dict):
        x = torch.as_tensor(_plain(observation["x"]), dtype=mdp.dtype, device=device)
        t = torch.as_tensor(_plain(observation["t"]), device=device).long().reshape(-1)
        return x.reshape(-1, *mdp.event_shape), t, x.dim() == len(mdp.event_shape)
    rows = _rows(mdp, observation)
    t = ((1 - rows[:, dim]) * horizon).round().long().clamp(0, horizon - 1)
    return rows[:, :dim].reshape(-1, *mdp.event_shape), t, _plain(observation).ndim == 1


def _rows(mdp: DenoisingMDP, observation: Any) -> Tensor:
    """Flat observations as rows of a tensor."""
    flat = torch.as_tensor(_plain(observation), dtype=mdp.dtype, device=mdp.device)
    width = mdp.dim + len(time_left(mdp, 0))
    if flat.shape[-1] != width or flat.dim() > 2:
        raise ValueError(f"observation must have shape [{width}] or [batch, {width}], got {list(flat.shape)}.")
    return flat.reshape(-1, width)


def _plain(value: Any) -> Tensor | np.ndarray[Any, Any]:
    """A tensor as it is, on its device; anything else as an array."""
    return value if isinstance(value, Tensor) else np.asarray(value)
