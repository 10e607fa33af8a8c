"""Named tasks: target + horizon + base sampler + backward kernel -> a DenoisingMDP."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from dxmi_rl.checks import check_integer, check_real, resolve_device
from dxmi_rl.diffusion import (
    SCHEDULES,
    BackwardKernel,
    BaseSampler,
    IdentitySampler,
    MixtureDenoiser,
    PretrainingConfig,
    ReverseSampler,
    make_kernel,
    make_schedule,
    mixture_sigma_last,
    pretrained_denoiser,
)
from dxmi_rl.mdp import DenoisingMDP, Energy
from dxmi_rl.registry import Registry, UnknownNameError
from dxmi_rl.targets import TARGETS, GaussianMixture, Target, make_target

TRACKS = ["fine-tune", "sample"]
BASES = ["ddpm", "ddim"]


@dataclass(frozen=True)
class TaskConfig:
    """Defaults of a task; every field is an argument of ``make_task`` and of ``gym.make``."""

    target: str | Target
    """Name of a target, or a Target of your own."""
    horizon: int = 5
    """Number of denoising steps T."""
    schedule: str = "karras"
    """Name of the noise schedule."""
    schedule_options: dict[str, float] = field(default_factory=dict)
    """Options of the schedule."""
    base: str | None = "ddpm"
    """Base sampler: "ddpm", "ddim" (with eta), or None for training from scratch."""
    eta: float = 1.0
    """Stochasticity of DDIM; 1 is DDPM."""
    sigma_last: float | None = None
    """Standard deviation of the last base step; None: exact for mixtures, 0.05 for data."""
    denoiser: str = "exact"
    """"exact" (Gaussian mixtures) or "learned" (trained on the target's data by the DDPM loss)."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Settings of the learned denoiser."""
    backward: str = "forward"
    """Name of the backward kernel."""
    backward_options: dict[str, Any] = field(default_factory=dict)
    """Options of the backward kernel."""
    tau: float = 1.0
    """Temperature in nats of entropy and running cost."""
    reward: str | None = "target"
    """"target" (the target's own energy) or None (data only: an energy must be given or learned)."""
    track: str = "fine-tune"
    """"fine-tune" (a denoiser is given) or "sample" (only the energy is given)."""


TASKS: Registry[TaskConfig] = Registry("task")
ENERGIES: Registry[str] = Registry("energy")
"""Named reward models of data-only tasks as "module:function" of a Task, looked up on first use."""
ENERGIES.add("fixed", "dxmi_rl.irl.fixed:fixed_energy")

TASKS.add("8gaussians", TaskConfig("8gaussians"))
TASKS.add("gmm25", TaskConfig("gmm25", schedule_options={"level_max": 20.0, "level_min": 0.5, "scale": 7.0}))
TASKS.add(
    "8gaussians-data",
    TaskConfig(
        "8gaussians",
        schedule_options={"level_max": 4.3, "level_min": 0.23, "rho": 7.0},
        denoiser="learned",
        reward=None,
        sigma_last=0.15,
        backward="learned",
        tau=0.05,
    ),
)
TASKS.add(
    "digits",
    TaskConfig(
        "digits",
        horizon=4,
        schedule="cosine",
        denoiser="learned",
        reward=None,
        backward="forward",
        tau=0.1 / 64,
        pretraining=PretrainingConfig(iterations=6000, batch_size=128, width=256),
    ),
)


@dataclass
class Task:
    """A built task: the target, the DenoisingMDP over it and the configuration that made both."""

    name: str
    config: TaskConfig
    target: Target
    mdp: DenoisingMDP
    energy_replaced: bool
    """The reward is not the target's own energy but one that was given."""
    spec: dict[str, Any] | None
    """JSON-able arguments that ``make_task`` rebuilds it from, or None when it holds objects of the user."""

    def fingerprint(self) -> dict[str, str]:
        """The configuration as plain text, field by field: what a checkpoint must agree with."""
        fields = {key: repr(getattr(self.config, key)) for key in TaskConfig.__dataclass_fields__}
        return fields | {"target": f"{self.target.name} {self.target.digest()}".strip()}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        return self.mdp.event_shape

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self.mdp.device


def list_tasks() -> list[str]:
    """Names of all tasks that ``make_task`` builds."""
    return TASKS.names()


def make_task(
    name: str | Target | Task = "8gaussians",
    *,
    energy: Energy | str | None = None,
    device: str | torch.device | None = None,
    **changes: Any,
) -> Task:
    """Build a task.

    Args:
        name: a task's or target's name, a Target of your own, or a built Task (returned as it is; no other arguments).
        energy: reward model of a data-only task: a module or function ``[batch, *event_shape] -> [batch]``, or the
            name of a registered one; it also replaces the energy of a target that has one.
        device: torch device, "cpu" by default (a built Task keeps its own).
        changes: fields of TaskConfig that differ from the task's defaults, such as horizon, tau, backward, base.

    Raises UnknownNameError for unknown names and fields (with the near names), ValueError and TypeError for values
    that are not allowed, MissingExtraError when the data of the target cannot be had here.
    """
    if isinstance(name, Task):
        if energy is not None or changes or (device is not None and resolve_device(device).type != name.device.type):
            raise ValueError("a built task takes no further arguments; pass its name to change them.")
        return name
    if isinstance(name, Target):
        denoiser = "exact" if isinstance(name, GaussianMixture) else "learned"
        config = TaskConfig(name, denoiser=denoiser, reward="target" if name.has_energy else None)
        label = name.name
    elif isinstance(name, str):
        config, label = TASKS[name], name
    else:
        raise TypeError(f"task must be a name, a Target or a Task, got {name!r}.")
    unknown = [key for key in changes if key not in TaskConfig.__dataclass_fields__]
    if unknown:
        raise UnknownNameError("task argument", unknown[0], list(TaskConfig.__dataclass_fields__))
    if isinstance(changes.get("pretraining"), dict):
        known = list(PretrainingConfig.__dataclass_fields__)
        for key in changes["pretraining"]:
            if key not in known:
                raise UnknownNameError("pretraining setting", key, known)
        changes["pretraining"] = replace(config.pretraining, **changes["pretraining"])
    config = replace(config, **changes)
    spec = _spec(name, energy, changes)
    entry_point = ENERGIES[energy] if isinstance(energy, str) else None
    resolved = resolve_device(device)
    target = config.target if isinstance(config.target, Target) else make_target(config.target)
    with torch.random.fork_rng():  # a learned kernel is initialised here, and the caller's stream stays as it was
        mdp = _build_mdp(config, target.to(resolved), resolved)
    task = Task(label, config, target, mdp, energy is not None, spec)
    if entry_point is not None:
        module, function = entry_point.split(":")
        task.mdp.set_energy(getattr(importlib.import_module(module), function)(task).to(resolved))
    elif energy is not None and not isinstance(energy, str):
        task.mdp.set_energy(energy.to(resolved) if isinstance(energy, nn.Module) else energy)
    elif config.reward == "target":
        task.mdp.set_energy(target.energy)
    return task


def _spec(name: str | Target, energy: Energy | str | None, changes: dict[str, Any]) -> dict[str, Any] | None:
    if isinstance(name, Target) or not (energy is None or isinstance(energy, str)):
        return None
    plain = {key: vars(value) if isinstance(value, PretrainingConfig) else value for key, value in changes.items()}
    spec = {"name": name, "energy": energy, **plain}
    try:
        json.dumps(spec)
    except TypeError:
        return None
    return spec


def _build_mdp(config: TaskConfig, target: Target, device: torch.device) -> DenoisingMDP:
    if config.track not in TRACKS:
        raise UnknownNameError("track", config.track, TRACKS)
    if config.reward not in ("target", None):
        raise ValueError(f"reward must be 'target' or None, got {config.reward!r}.")
    check_integer("horizon", config.horizon)
    base = _build_base(config, target, device)
    schedule = base.schedule
    kernel: BackwardKernel = make_kernel(
        config.backward, schedule, target.event_shape, target.scale, base.sigma, **config.backward_options
    )
    return DenoisingMDP(base, kernel, target.event_shape, tau=config.tau, scale=target.scale, device=device)


def _build_base(config: TaskConfig, target: Target, device: torch.device) -> BaseSampler:
    base = "none" if config.base is None else config.base
    SCHEDULES[config.schedule]  # a typo is an error, also where the base has a ladder of its own
    if base not in [*BASES, "none"]:
        raise UnknownNameError("base sampler", base, [*BASES, "None"])
    check_real("eta", config.eta)
    if base == "none" or config.track == "sample":
        if base != "none":
            raise ValueError(f"track 'sample' gives no denoiser: base must be None, got {config.base!r}.")
        named = config.schedule == "geometric"
        options = config.schedule_options if named else _ladder(target)
        return IdentitySampler(make_schedule("geometric", config.horizon, **options).to(device))
    schedule = make_schedule(config.schedule, config.horizon, **config.schedule_options)
    if config.denoiser == "exact":
        if not isinstance(target, GaussianMixture):
            raise ValueError(f"denoiser 'exact' needs a Gaussian mixture, not target {target.name!r}; use 'learned'.")
        denoiser: nn.Module = MixtureDenoiser(target)
    elif config.denoiser == "learned":
        if not (target.has_data or target.has_sampler):
            raise ValueError(f"target {target.name!r} has no data to train a denoiser on: pass base=None.")
        denoiser = pretrained_denoiser(target, config.pretraining)
    else:
        raise UnknownNameError("denoiser", config.denoiser, ["exact", "learned"])
    sigma_last = config.sigma_last
    if sigma_last is None:
        known = config.denoiser == "exact" and target.smallest_scale is not None
        last_level = float(schedule.levels[-2])
        sigma_last = mixture_sigma_last(target.smallest_scale, last_level) if known else 0.05  # type: ignore[arg-type]
    sampler = ReverseSampler(schedule, denoiser, eta=config.eta if base == "ddim" else 1.0, sigma_last=sigma_last)
    return sampler.to(device)


def _ladder(target: Target) -> dict[str, float]:
    """From-scratch levels: from beyond the target's spread to near its narrowest scale."""
    low = target.smallest_scale if target.smallest_scale is not None else 0.05
    return {"level_max": max(1.25 * target.scale, 2 * low), "level_min": low}


for _name in TARGETS:
    if _name not in TASKS:
        TASKS.add(_name, TaskConfig(_name))
