"""Building a task: target + horizon + base sampler + backward kernel -> a DenoisingMDP."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.mdp import Energy
from dxmi_rl.targets import (
    DataTarget,
    EnergyTarget,
    ParticleTarget,
    RewardEnergy,
    Target,
    TargetError,
    Tilted,
    check_options,
    target_class,
)
from dxmi_rl.tasks.config import FROM_SCRATCH, OTHER_WORDS, TRACKS, TaskConfig
from dxmi_rl.tasks.parts import reference_target
from dxmi_rl.tasks.table import TASKS, default_config
from dxmi_rl.tasks.task import Task, base_energy, build_mdp, check_horizon, check_label
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.registry import Registry, UnknownNameError
from dxmi_rl.utils.storage import JSON

TargetLike = str | Target | Energy | Tensor | np.ndarray
"""A name, a Target, an energy ``[batch, *event_shape] -> [batch]``, or data ``[rows, *event_shape]``."""


ENERGIES: Registry[str] = Registry("energy")
"""Named reward models of data-only tasks as "module:function" of a Task, looked up on first use."""
ENERGIES.add("fixed", "dxmi_rl.irl.fixed:fixed_energy")


def list_tasks(*, optional: bool = False) -> list[str]:
    """Names of the tasks that ``make_task`` builds, with ``optional`` also of those that need an extra or files."""
    return TASKS.names(optional=optional)


def make_task(
    name: TargetLike | Task = "8gaussians",
    *,
    dim: int | tuple[int, ...] | None = None,
    energy: Energy | str | None = None,
    device: str | torch.device | None = None,
    **changes: Any,
) -> Task:
    """Build a task.

    Args:
        name: a task's or target's name; a Target of your own; an energy of your own, a function or module
            ``[batch, dim] -> [batch]`` (sampled from scratch; ``target_options={"scale": ...}`` says how wide it is);
            a data tensor ``[rows, *event_shape]``, best of mean 0 and standard deviation 1; or a built Task (returned
            as it is; no other arguments).
        dim: dimension (or event shape) of an energy of your own.
        energy: reward model of a data-only task: a module or function ``[batch, *event_shape] -> [batch]``, or the
            name of a registered one; it also replaces the energy of a target that has one.
        device: torch device, "cpu" by default (a built Task keeps its own).
        changes: fields of TaskConfig that differ from the task's defaults, such as horizon, tau, backward, base.
            ``track="sample"`` or ``"energy"`` alone also sets ``base=None``.

    Raises UnknownNameError for unknown names and fields (with the near names), ValueError and TypeError for values
    that are not allowed, MissingExtraError or MissingDataError when the data of the target cannot be had here.
    """
    if isinstance(name, Task):
        given = energy is not None or dim is not None or changes
        if given or (device is not None and resolve_device(device).type != name.device.type):
            raise ValueError("a built task takes no further arguments; pass its name to change them.")
        return name
    unknown = [key for key in changes if key not in TaskConfig.__dataclass_fields__]
    if unknown:
        of_target = unknown[0] in inspect.signature(EnergyTarget).parameters
        near = ["target_options"] if of_target else OTHER_WORDS.get(unknown[0], ())
        raise UnknownNameError("task argument", unknown[0], list(TaskConfig.__dataclass_fields__), near=near)
    changes = _plain(changes)
    for key, value in changes.items():
        if key.endswith("_options") and not isinstance(value, Mapping):
            raise TypeError(f"{key} must be a dict, got {value!r}.")
    config, label = _starting_point(name, dim, changes.get("target_options", {}))
    if not isinstance(changes.get("pretraining", {}), (dict, PretrainingConfig)):
        raise TypeError(f"pretraining must be a dict or a PretrainingConfig, got {changes['pretraining']!r}.")
    if isinstance(changes.get("pretraining"), dict):
        known = list(PretrainingConfig.__dataclass_fields__)
        for key in changes["pretraining"]:
            if key not in known:
                raise UnknownNameError("pretraining setting", key, known)
        changes["pretraining"] = replace(config.pretraining, **changes["pretraining"])
    if changes.get("label") is not None:
        changes["label"] = check_label(changes["label"])
        if changes.get("denoiser", config.denoiser) == "learned":
            changes["pretraining"] = replace(changes.get("pretraining", config.pretraining), conditional=True)
    if "horizon" in changes:
        changes["horizon"] = check_horizon(changes["horizon"])
    named = config.target if isinstance(config.target, str) and "reward" not in changes else None
    if "beta" in changes and named is not None and issubclass(target_class(named), Tilted):
        changes["target_options"] = changes.get("target_options", {}) | {"beta": changes.pop("beta")}
    spec = _spec(name, energy, changes)
    if "reward" in changes:  # what belongs to a named task's own goes with it
        changes = {"reward_options": {}, "beta": 1.0, "differentiable": None} | changes
        if changes["reward"] not in ("target", None):
            changes.setdefault("tau", 1.0)  # beta says how strong the pull is
    if changes.get("track") in FROM_SCRATCH:
        changes.setdefault("base", None)
    scratch = changes.get("base", config.base) is None
    if scratch and {"schedule", "schedule_options"} & changes.keys():
        ladder = changes.setdefault("schedule", "geometric")
        if ladder != "geometric":
            raise ValueError(f"schedule must be 'geometric' without a denoiser (base None), got {ladder!r}.")
    config = replace(config, **changes)
    if isinstance(config.label, tuple) and "label" in config.reward_options:
        raise ValueError(f"reward_options must have no 'label' with several classes, got {config.reward_options}.")
    if config.track not in TRACKS:
        raise UnknownNameError("track", config.track, TRACKS)
    if energy is not None and config.rewarded:
        raise ValueError("energy and reward are two ways to say what is wanted: pass one of them.")
    if config.backward == "base" and config.base is not None and energy is None and not config.rewarded:
        raise ValueError("backward 'base' aims at the base sampler, tilted: pass a reward or an energy of your own.")
    entry_point = ENERGIES[energy] if isinstance(energy, str) else None
    resolved = resolve_device(device)
    target = reference_target(config, resolved)
    if config.track in FROM_SCRATCH:
        target = _hidden(target, gradient=config.track == "sample")
    if config.backward == "base" and config.reward is not None and config.rewarded:
        energy = base_energy(config, target)
    # A learned kernel is initialised here, on the CPU, and the caller's stream stays as it was.
    with torch.random.fork_rng(devices=[]):
        mdp = build_mdp(config, target, resolved)
    black_box = isinstance(energy, RewardEnergy) and not energy.differentiable
    black_box |= isinstance(target, Tilted) and not target.differentiable
    mdp.energy.values_only = config.track == "energy" or black_box
    task = Task(label, config, target, mdp, energy is not None, spec)
    if entry_point is not None:
        module, function = entry_point.split(":")
        task.mdp.set_energy(getattr(importlib.import_module(module), function)(task).to(resolved))
    elif energy is not None and not isinstance(energy, str):
        task.mdp.set_energy(energy.to(resolved) if isinstance(energy, nn.Module) else energy)
        task.own_energy = None if config.rewarded else task.mdp.energy.function
    elif config.reward is not None:
        task.mdp.set_energy(target.energy)
    if len(task.labels) > 1:
        task.mdp = task.of_class(task.labels[0]).mdp
    return task


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's; dicts and lists are copied, so that later changes of them do not arrive."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    return value.item() if isinstance(value, np.generic) else value


def _starting_point(name: object, dim: int | tuple[int, ...] | None, options: dict[str, Any]) -> tuple[TaskConfig, str]:
    """The default configuration for whatever ``make_task`` was given, and the task's name."""
    own_energy = callable(name) and not isinstance(name, (Target, Tensor))
    named = TASKS[name] if isinstance(name, str) else None
    if dim is not None and not own_energy:
        raise ValueError(f"dim belongs to an energy of your own; this target's shape is known, got dim={dim!r}.")
    if named is not None:
        return named, str(name)
    if isinstance(name, (Tensor, np.ndarray)):
        check_options("a target of data", DataTarget, options)
        name = DataTarget(name, **options)
    elif own_energy:
        if dim is None:
            raise ValueError("dim must say the dimension of an energy of your own, for example dim=2.")
        shape = dim if isinstance(dim, tuple) else (check_integer("dim", dim),)
        check_options("a target of an energy", EnergyTarget, options)
        name = EnergyTarget(cast(Energy, name), shape, **options)
    if not isinstance(name, Target):
        hint = " Use env.unwrapped.task, the environment's own." if hasattr(name, "unwrapped") else ""
        raise TypeError(
            "task must be a name, a Target, an energy, data as a tensor or numpy array, or a Task, got "
            f"{type(name).__name__}.{hint}"
        )
    return default_config(name), name.name


def _hidden(target: Target, *, gradient: bool) -> Target:
    """A copy that gives its energy, with or without ``gradient``, and neither samples nor data: what tracks without a
    denoiser may see.
    """
    # The user's own objects are kept, so that later changes of those that learn arrive.
    owners = [target, getattr(target, "untilted", None)]
    own = [getattr(owner, key, None) for owner in owners for key in ("function", "tilting")]
    hidden = copy.deepcopy(target, {id(one): one for one in own})
    vars(hidden).update(has_sampler=False, has_data=False, _sample=_refuse, _data=_refuse, test_data=_refuse)
    if isinstance(hidden, Tilted):
        hidden.untilted, hidden.true_reward = _hidden(hidden.untilted, gradient=gradient), None
    if isinstance(hidden, ParticleTarget):
        vars(hidden).update(reference=None, reference_states=_refuse)
    if not gradient:
        vars(hidden)["_energy"] = functools.partial(_values_only, hidden)
    return hidden


def _values_only(target: Target, x: Tensor) -> Tensor:
    """The energy, without its gradient."""
    with torch.no_grad():
        return type(target)._energy(target, x)


def _refuse(*_: object) -> Tensor:
    raise TargetError("tracks 'sample' and 'energy' give the energy only: no samples or data of the target.")


def _spec(name: object, energy: Energy | str | None, changes: dict[str, Any]) -> JSON | None:
    if not isinstance(name, str) or not (energy is None or isinstance(energy, str)):
        return None
    plain = {key: vars(value) if isinstance(value, PretrainingConfig) else value for key, value in changes.items()}
    spec = {"name": name, "energy": energy, **plain}
    try:
        json.dumps(spec)
    except TypeError:
        return None
    return spec
