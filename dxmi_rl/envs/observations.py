"""Observations of the environments as states, and states as observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.utils.checks import NonFiniteError, all_finite


def told_of(mdp: DenoisingMDP, t: int) -> tuple[float, ...]:
    """What a flat observation tells beside x: 1 - t / T; on a task with several horizons also what is left after the
    step, 1 - (t + 1) / T, or 0 at t = T; on one with several classes also the class, one-hot.
    """
    now, after = 1 - t / mdp.horizon, max(0.0, 1 - (t + 1) / mdp.horizon)
    return (now, after) if mdp.base.schedule.several_horizons else (now, *_class_code(mdp))


def _class_code(mdp: DenoisingMDP) -> list[float]:
    code = mdp.base.schedule.class_code
    return [] if code is None else code.tolist()


def observe(mdp: DenoisingMDP, x: Tensor, t: Tensor | int) -> Tensor:
    """The flat observations of states, x and ``told_of``: ``[batch, d + 1 or more]``; t may be T, too."""
    steps = t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
    now = 1 - steps.to(x.dtype) / mdp.horizon
    told = [now]
    if mdp.base.schedule.several_horizons:
        told.append((now - 1 / mdp.horizon).clamp_min(0))
    told += [torch.full_like(now, number) for number in _class_code(mdp)]
    return torch.cat([x.flatten(1), torch.stack(told, dim=1)], dim=1)


def observed_horizon(mdp: DenoisingMDP, observation: Any) -> int:
    """T of the episodes that observations belong to; ``mdp`` is any of the task's MDPs. Flat observations at t = T do
    not tell; where there are no others it is that of ``mdp``.

    Raises ValueError for observations of another shape, or from episodes of different horizons.
    """
    if not mdp.base.schedule.several_horizons:
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


def observed_label(mdp: DenoisingMDP, labels: tuple[int, ...], observation: Any) -> int:
    """The class of the episodes that observations belong to; ``mdp`` is any of a task with several ``labels``.

    Raises ValueError for observations of another shape, of another class or of several.
    """
    if isinstance(observation, dict):
        if "label" not in observation:
            raise ValueError(f"observation must have 'label' on a task with classes, got {list(observation)}.")
        found = torch.as_tensor(_plain(observation["label"])).reshape(-1).unique().tolist()
    else:
        places = _rows(mdp, observation)[:, mdp.dim + 1 :].argmax(1).unique().tolist()
        found = [labels[place] for place in places]
    if len(found) != 1 or found[0] not in labels:
        raise ValueError(f"observations must be of one class of {list(labels)}, got {found}.")
    return int(found[0])


def parse_observation(mdp: DenoisingMDP, observation: Any) -> tuple[Tensor, Tensor, bool]:
    """States ``[batch, *event_shape]``, steps ``[batch]``, and whether it was a single observation.

    Takes flat observations or ``{"x", "t"}``, single or batched, as arrays or tensors. Raises ValueError for
    observations of another shape, horizon or step, or none, and NonFiniteError for states that are NaN or infinite.
    """
    horizon, device, dim = mdp.horizon, mdp.device, mdp.dim
    if not isinstance(observation, dict):
        array = _plain(observation)
        if not array.ndim or (isinstance(array, np.ndarray) and array.dtype.kind not in "fiu"):
            raise TypeError(f"observation must be an array of numbers or a dict of them, got {observation!r}.")
    if (observed := observed_horizon(mdp, observation)) != horizon:
        raise ValueError(f"observation must be of an episode of {horizon} steps, got one of {observed}.")
    if isinstance(observation, dict):
        if missing := {"x", "t"} - observation.keys():
            raise ValueError(f"observation must have {sorted(missing)}, got {list(observation)}.")
        x = torch.as_tensor(_plain(observation["x"]), dtype=mdp.dtype, device=device)
        steps = torch.as_tensor(_plain(observation["t"]), device=device).reshape(-1)
        single = x.dim() == len(mdp.event_shape)
        x = x[None] if single else x
        if x.shape[1:] != mdp.event_shape or len(steps) != len(x):
            raise ValueError(
                f"observation must have x of shape {list(mdp.event_shape)}, or a batch of them, and as many t, got "
                f"{len(steps)} t and x of shape {list(x.shape)}."
            )
    else:
        rows = _rows(mdp, observation)
        x, single = rows[:, :dim].reshape(-1, *mdp.event_shape), _plain(observation).ndim == 1
        steps = (1 - rows[:, dim]) * horizon
    if not len(x):
        raise ValueError("observation must hold at least one, got an empty batch.")
    if not all_finite(x, steps):
        raise NonFiniteError("observation must be finite, got NaN or infinity.")
    t = steps.round().long()
    if bool(((steps - t).abs() > 1e-3 * horizon).any() or (t < 0).any() or (t > horizon).any()):
        raise ValueError(f"observation must be of one of the steps 0 to {horizon}, got {steps.tolist()[:5]}.")
    return x, t.clamp_max(horizon - 1), single  # an episode that has ended is still in its batch


def _rows(mdp: DenoisingMDP, observation: Any) -> Tensor:
    """Flat observations as rows of a tensor."""
    flat = torch.as_tensor(_plain(observation), dtype=mdp.dtype, device=mdp.device)
    width = mdp.dim + len(told_of(mdp, 0))
    if flat.shape[-1] != width or flat.dim() > 2:
        raise ValueError(f"observation must have shape [{width}] or [batch, {width}], got {list(flat.shape)}.")
    return flat.reshape(-1, width)


def _plain(value: Any) -> Tensor | np.ndarray[Any, Any]:
    """A tensor as it is, on its device; anything else as an array."""
    return value if isinstance(value, Tensor) else np.asarray(value)
