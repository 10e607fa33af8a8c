"""Building a task: target + horizon + base sampler + backward kernel -> a DenoisingMDP."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.diffusion import (
    SCHEDULES,
    BackwardKernel,
    BaseSampler,
    IdentitySampler,
    PretrainingConfig,
    ReverseSampler,
    make_kernel,
    make_schedule,
    mixture_sigma_last,
)
from dxmi_rl.diffusion.schedules import variance_exploding
from dxmi_rl.live_energy import LiveEnergy
from dxmi_rl.mdp import DenoisingMDP, Energy
from dxmi_rl.targets import DataTarget, EnergyTarget, ParticleTarget, Target, TargetError
from dxmi_rl.tasks.config import BASES, FROM_SCRATCH, TRACKS, TaskConfig
from dxmi_rl.tasks.parts import reference_target, task_denoiser
from dxmi_rl.tasks.table import TASKS, default_config
from dxmi_rl.utils.checks import check_integer, check_real, resolve_device
from dxmi_rl.utils.registry import Registry, UnknownNameError
from dxmi_rl.utils.storage import JSON

TargetLike = str | Target | Energy | Tensor | np.ndarray
"""A name, a Target, an energy ``[batch, *event_shape] -> [batch]``, or data ``[rows, *event_shape]``."""


ENERGIES: Registry[str] = Registry("energy")
"""Named reward models of data-only tasks as "module:function" of a Task, looked up on first use."""
ENERGIES.add("fixed", "dxmi_rl.irl.fixed:fixed_energy")


@dataclass
class Task:
    """A built task: the target, the DenoisingMDP over it and the configuration that made both."""

    name: str
    config: TaskConfig
    target: Target
    mdp: DenoisingMDP
    energy_replaced: bool
    """The reward is not the target's own energy but one that was given."""
    spec: JSON | None
    """JSON-able arguments that ``make_task`` rebuilds it from, or None when it holds objects of the user."""

    def fingerprint(self) -> dict[str, str]:
        """The configuration as plain text, field by field: what a checkpoint must agree with."""
        fields = {key: repr(getattr(self.config, key)) for key in TaskConfig.__dataclass_fields__}
        return fields | {"target": f"{self.target.name} {self.target.digest()}".strip()}

    def with_own_kernel(self) -> Task:
        """The task for one agent, with a kernel that no other fits: a network is a fresh one, initialised from torch's
        present stream, and another kernel that adapts a copy.

        Everything else is shared, the energy too, so that ``mdp.set_energy`` still reaches the agent.
        """
        kernel = self.mdp.kernel
        if not kernel.adapts:
            return self
        own = (
            copy.deepcopy(kernel)
            if kernel.optimizer is None
            else _kernel(self.config, self.target, self.mdp.base).to(self.device)
        )
        return self._with(kernel=own)

    def with_own_energy(self) -> Task:
        """The task for an agent that learns the energy: others on the same task do not see it."""
        return self._with(energy=LiveEnergy(self.mdp.energy.function, self.mdp.energy.values_only))

    def _with(self, **parts: Any) -> Task:
        """The task on a copy of its MDP that has other parts and shares the rest."""
        mdp = copy.copy(self.mdp)
        vars(mdp).update(parts)
        return replace(self, mdp=mdp)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.mdp.event_shape

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self.mdp.device


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
        raise UnknownNameError("task argument", unknown[0], list(TaskConfig.__dataclass_fields__))
    changes = {key: value.item() if isinstance(value, np.generic) else value for key, value in changes.items()}
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
        changes["label"] = check_integer("label", changes["label"], minimum=0)
        if changes.get("denoiser", config.denoiser) == "learned":
            changes["pretraining"] = replace(changes.get("pretraining", config.pretraining), conditional=True)
    spec = _spec(name, energy, changes)
    if changes.get("track") in FROM_SCRATCH:
        changes.setdefault("base", None)
    config = replace(config, **changes)
    if config.track not in TRACKS:
        raise UnknownNameError("track", config.track, TRACKS)
    entry_point = ENERGIES[energy] if isinstance(energy, str) else None
    resolved = resolve_device(device)
    target = reference_target(config).to(resolved)
    if config.track in FROM_SCRATCH:
        target = _hidden(target, gradient=config.track == "sample")
    # A learned kernel is initialised here, on the CPU, and the caller's stream stays as it was.
    with torch.random.fork_rng(devices=[]):
        mdp = _build_mdp(config, target, resolved)
    mdp.energy.values_only = config.track == "energy"
    task = Task(label, config, target, mdp, energy is not None, spec)
    if entry_point is not None:
        module, function = entry_point.split(":")
        task.mdp.set_energy(getattr(importlib.import_module(module), function)(task).to(resolved))
    elif energy is not None and not isinstance(energy, str):
        task.mdp.set_energy(energy.to(resolved) if isinstance(energy, nn.Module) else energy)
    elif config.reward == "target":
        task.mdp.set_energy(target.energy)
    return task


def _starting_point(name: object, dim: int | tuple[int, ...] | None, options: dict[str, Any]) -> tuple[TaskConfig, str]:
    """The default configuration for whatever ``make_task`` was given, and the task's name."""
    own_energy = callable(name) and not isinstance(name, (Target, Tensor))
    if dim is not None and not own_energy:
        raise ValueError(f"dim belongs to an energy of your own; this target's shape is known, got dim={dim!r}.")
    if isinstance(name, str):
        return TASKS[name], name
    if isinstance(name, (Tensor, np.ndarray)):
        name = DataTarget(name, **options)
    elif own_energy:
        if dim is None:
            raise ValueError("dim must say the dimension of an energy of your own, for example dim=2.")
        shape = dim if isinstance(dim, tuple) else (check_integer("dim", dim),)
        name = EnergyTarget(cast(Energy, name), shape, **options)
    if not isinstance(name, Target):
        raise TypeError(f"task must be a name, a Target, an energy, a data tensor or a Task, got {name!r}.")
    return default_config(name), name.name


def _hidden(target: Target, *, gradient: bool) -> Target:
    """A copy that gives its energy, with or without ``gradient``, and neither samples nor data: what tracks without a
    denoiser may see.
    """
    hidden = copy.deepcopy(target)
    vars(hidden).update(has_sampler=False, has_data=False, _sample=_refuse, _data=_refuse, test_data=_refuse)
    if isinstance(hidden, ParticleTarget):
        vars(hidden).update(reference=None, reference_states=_refuse)
    if not gradient:
        kind = type(hidden)
        hidden.__class__ = type(kind.__name__, (_ValuesOnly, kind), {})
    return hidden


class _ValuesOnly(Target):
    """Put before a target's own class: its energy has no gradient."""

    def _energy(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super()._energy(x)


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


def _build_mdp(config: TaskConfig, target: Target, device: torch.device) -> DenoisingMDP:
    if config.reward not in ("target", None):
        raise ValueError(f"reward must be 'target' or None, got {config.reward!r}.")
    check_integer("horizon", config.horizon)
    base = _build_base(config, target, device)
    kernel = _kernel(config, target, base)
    return DenoisingMDP(
        base,
        kernel,
        target.event_shape,
        tau=config.tau,
        scale=target.scale,
        particles=_particles(target),
        device=device,
    )


def _particles(target: Target) -> tuple[int, int] | None:
    """(N, d) where states are those of N particles in d dimensions."""
    return (target.particles, target.space) if isinstance(target, ParticleTarget) else None


def _kernel(config: TaskConfig, target: Target, base: BaseSampler) -> BackwardKernel:
    return make_kernel(
        config.backward, base.schedule, target.event_shape, target.scale, base.sigma, **config.backward_options
    )


def _build_base(config: TaskConfig, target: Target, device: torch.device) -> BaseSampler:
    base = "none" if config.base is None else config.base
    SCHEDULES[config.schedule]  # a typo is an error, also where the base has a ladder of its own
    if base not in [*BASES, "none"]:
        raise UnknownNameError("base sampler", base, [*BASES, "None"])
    if check_real("eta", config.eta) != TaskConfig.eta and base not in ("ddim", "edm"):
        raise ValueError(f"eta belongs to base 'ddim' and 'edm': it must be {TaskConfig.eta} with {base!r}.")
    if base == "none" or config.track in FROM_SCRATCH:
        if base != "none":
            raise ValueError(
                f"track {config.track!r} gives no denoiser: base must be None, got {config.base!r} (or "
                "track='fine-tune')."
            )
        named = config.schedule == "geometric"
        options = config.schedule_options if named else _ladder(target)
        return IdentitySampler(make_schedule("geometric", config.horizon, **options).to(device))
    schedule = make_schedule(config.schedule, config.horizon, **config.schedule_options)
    if isinstance(target, DataTarget):
        _warn_of_misfit(target, schedule.levels)
    denoiser = task_denoiser(config, target, device)
    sigma_last = config.sigma_last
    if sigma_last is None:
        narrowest = target.smallest_scale if config.denoiser == "exact" else None
        sigma_last = 0.05 if narrowest is None else mixture_sigma_last(narrowest, float(schedule.levels[-2]))
    if base == "edm":
        schedule = variance_exploding(schedule)
    eta = 1.0 if base == "ddpm" else config.eta
    sampler = ReverseSampler(schedule, denoiser, eta=eta, sigma_last=sigma_last)
    return sampler.to(device)


def _warn_of_misfit(target: DataTarget, levels: Tensor) -> None:
    """Warn of data that the highest noise level does not hide, or the lowest one blurs."""
    highest, lowest = float(levels[0]), float(levels[-2])
    size = float(target.train_rows.double().square().mean().sqrt())
    if size > highest or target.scale < 2 * lowest:
        warnings.warn(
            f"data of root mean square {size:.3g} and standard deviation {target.scale:.3g} do not fit noise levels "
            f"from {highest:.3g} to {lowest:.3g}: subtract the mean and divide by the standard deviation, or "
            "change schedule_options.",
            stacklevel=5,  # the caller of make_task
        )


def _ladder(target: Target) -> dict[str, float]:
    """From-scratch levels: from beyond the target's spread to near its narrowest scale."""
    low = target.smallest_scale if target.smallest_scale is not None else 0.05
    return {"level_max": max(1.25 * target.scale, 2 * low), "level_min": low}
