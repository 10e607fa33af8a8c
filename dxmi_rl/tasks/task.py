"""A built task: one DenoisingMDP, or one for each of several horizons or classes."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion.samplers import ReverseSampler
from dxmi_rl.diffusion.schedules import Schedule, level_codes
from dxmi_rl.live_energy import Energy, LiveEnergy
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.targets import ParticleTarget, RewardEnergy, Target
from dxmi_rl.targets.base import digest_of_function
from dxmi_rl.tasks.config import TaskConfig
from dxmi_rl.tasks.parts import (
    build_base,
    build_kernel,
    labels_of,
    of_base,
    reference_target,
    task_reward,
    told_class,
)
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.storage import JSON
from dxmi_rl.utils.torch_tools import share_optimizer, share_parameters

ALIKE = ["cosine", "flow", "geometric", "karras"]
"""Schedules whose levels begin at the same one, whatever their number."""


@dataclass
class Task:
    """A built task: the target, the DenoisingMDP over it and the configuration that made both."""

    name: str
    config: TaskConfig
    target: Target
    mdp: DenoisingMDP
    """With several horizons, that of the largest; with several classes, that of the first."""
    energy_replaced: bool
    """The reward is not the target's own energy but one that was given."""
    spec: JSON | None
    """JSON-able arguments that ``make_task`` rebuilds it from, or None when it holds objects of the user, or is one
    horizon or class of several."""
    among: tuple[int, ...] | None = None
    """The horizons of the task that this one horizon was taken from (``at``)."""
    classes: tuple[int, ...] = ()
    """The classes of the task that this one class was taken from (``of_class``)."""
    own_energy: Energy | None = field(default=None, repr=False, compare=False)
    """The energy of the user that it was made with (``make_task(name, energy=)``), if any."""
    energies: dict[int, LiveEnergy] = field(default_factory=dict, repr=False, compare=False)
    """The energies of several horizons or classes, which ``at`` and ``of_class`` hand out; mostly empty: all have the
    same one."""
    _built: dict[int, Task] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fingerprint(self) -> dict[str, str]:
        """The configuration as plain text, field by field: what a checkpoint must agree with."""
        fields = {key: repr(getattr(self.config, key)) for key in TaskConfig.__dataclass_fields__}
        if callable(self.config.reward):  # its address is another one in every process
            energy = self.mdp.energy.function
            digest = energy.digest(self.target) if isinstance(energy, RewardEnergy) else ""  # or that of the target
            fields["reward"] = f"a function {digest}".strip()
        if self.config.denoiser != "learned":
            del fields["pretraining"]  # it says nothing of this task, and its defaults may change
        if self.among is not None:
            fields["horizon"] += f" of {self.among}"
        if self.classes:
            fields["label"] += f" of {self.classes}"
        if self.own_energy is not None:
            values = LiveEnergy(self.own_energy, values_only=True)
            fields["energy="] = f"a function {digest_of_function(values, self.target)}"
        return fields | {"target": f"{self.target.name} {self.target.digest()}".strip()}

    @property
    def energy_swapped(self) -> bool:
        """Whether ``mdp.set_energy`` has put another energy in place of the one that the task was made with."""
        aims = self.config.reward is not None and not self.energy_replaced  # at the target's own energy
        return aims and self.mdp.energy.function not in (None, self.target.energy)

    @property
    def horizons(self) -> tuple[int, ...]:
        """The numbers of steps, rising; mostly one."""
        horizon = self.config.horizon
        return (horizon,) if isinstance(horizon, int) else horizon

    def at(self, horizon: int, schedule: Schedule | None = None) -> Task:
        """The task with this number of steps alone. Of several horizons it may be any from the smallest to the largest;
        target, energy, denoiser and the weights of a learned kernel are those of this task (in a game every number of
        steps has an energy of its own). ``schedule`` has noise levels that stand for the task's own, for a number of
        steps between its horizons.

        Raises ValueError for another horizon, and for a schedule of other numbers of steps.
        """
        low, high = self.horizons[0], self.horizons[-1]
        if not low <= check_integer("horizon", horizon) <= high:
            allowed = str(low) if low == high else f"in {low}..{high}"
            raise ValueError(f"horizon must be {allowed} on this task, got {horizon}.")
        if schedule is not None and (horizon in self.horizons or schedule.horizon != horizon):
            raise ValueError(
                f"schedule must be None, or have {horizon} steps where these are none of the task's horizons "
                f"{self.horizons}, got one of {schedule.horizon}."
            )
        if low == high:
            return self
        if schedule is None and horizon in self._built:
            return self._built[horizon]
        config = replace(self.config, horizon=horizon)
        mdp = self.mdp if horizon == high else self._mdp_at(config, horizon, schedule)
        built = replace(self, config=config, mdp=mdp, spec=None, among=self.horizons)
        if schedule is None:
            self._built[horizon] = built
        return built

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes, rising; none where the task does not tell them apart."""
        return labels_of(self.config)

    @property
    def cases(self) -> list[Task]:
        """The tasks of all horizons, or of all classes; mostly this one alone."""
        if len(self.labels) > 1:
            return [self.of_class(label) for label in self.labels]
        return [self.at(horizon) for horizon in self.horizons]

    def of_class(self, label: int) -> Task:
        """The task of one of its classes: its images, and the denoiser, which shares its weights, told this class.

        A reward is that of the class alone; another energy is one for all classes. Raises ValueError for another class.
        """
        if check_integer("label", label, minimum=None) not in self.labels:
            raise ValueError(f"label must be one of the task's classes, {list(self.labels)}, got {label}.")
        if len(self.labels) == 1:
            return self
        if label not in self._built:
            config = replace(self.config, label=label)
            target = reference_target(config, self.device)
            denoiser = told_class(cast(nn.Module, self.mdp.base.denoiser), label)
            with torch.random.fork_rng(devices=[]):
                mdp = build_mdp(config, target, self.device, denoiser, self.labels)
            if label not in self.energies:
                energy = base_energy(config, target) if config.rewarded else None
                self.energies[label] = (
                    self.mdp.energy if energy is None else LiveEnergy(energy, not energy.differentiable)
                )
            mdp.energy = self.energies[label]
            parts: dict[str, Any] = {"config": config, "target": target, "mdp": mdp, "spec": None}
            self._built[label] = replace(self, **parts, classes=self.labels)
        return self._built[label]

    def with_horizon(self, horizon: int) -> Task:
        """The same task with another number of steps: its target and its denoiser, and by reference the energy that it
        has now (``set_energy`` on one of them leaves the other).

        Raises ValueError for a horizon < 1 or one that the schedule does not have.
        """
        config = replace(self.config, horizon=check_integer("horizon", horizon))
        with torch.random.fork_rng(devices=[]):
            mdp = build_mdp(config, self.target, self.device, getattr(self.mdp.base, "denoiser", None), self.classes)
        energy = self._energy_at(horizon)
        mdp.energy, mdp._start = LiveEnergy(energy.function, energy.values_only), self.mdp._start
        spec = None if self.spec is None else self.spec | {"horizon": config.horizon}
        found = replace(self, config=config, mdp=mdp, spec=spec, among=None, energies=_copies(self.energies))
        if len(found.labels) > 1:
            found.mdp = found.of_class(found.labels[0]).mdp
        return found

    def _energy_at(self, horizon: int) -> LiveEnergy:
        """The energy of a number of steps: where each has one of its own, that of the next larger number, if any."""
        larger = [one for one in self.energies if one >= horizon] if len(self.horizons) > 1 else []
        return self.energies[min(larger)] if larger else self.mdp.energy

    def _mdp_at(self, config: TaskConfig, horizon: int, schedule: Schedule | None = None) -> DenoisingMDP:
        main = self.mdp
        base = build_base(config, self.target, horizon, main.device, getattr(main.base, "denoiser", None), schedule)
        base.schedule.codes = _codes(base.schedule, main.base.schedule)
        with torch.random.fork_rng(devices=[]):
            kernel = build_kernel(config, self.target, base)
        mdp = DenoisingMDP(
            base, kernel, main.event_shape, tau=main.tau, scale=main.scale, particles=main.particles, device=main.device
        )
        mdp.energy, mdp._start = self._energy_at(horizon), main._start
        share_parameters(kernel, main.kernel)
        if kernel.optimizer is not None and main.kernel.optimizer is not None:
            share_optimizer(kernel.optimizer, main.kernel.optimizer)
        return mdp

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
            else build_kernel(self.config, self.target, self.mdp.base).to(self.device)
        )
        return self.with_parts(kernel=own)

    def with_own_energy(self) -> Task:
        """The task for an agent that learns the energy: others on the same task do not see it."""
        energies = _copies(self.energies)
        main = energies.get(self.mdp.horizon) if len(self.horizons) > 1 else None
        own = self.with_parts(energy=main or LiveEnergy(self.mdp.energy.function, self.mdp.energy.values_only))
        own.energies = energies
        return own

    def with_parts(self, **parts: Any) -> Task:
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


def build_mdp(
    config: TaskConfig, target: Target, device: torch.device, denoiser: nn.Module | None = None,
    labels: tuple[int, ...] = (),
) -> DenoisingMDP:  # fmt: skip
    """The MDP of a configuration, without an energy; with several horizons, that of the largest. ``denoiser`` is one
    that was made before; ``labels`` are the classes among which networks are told this one.

    Raises ValueError for horizons or parts that are not allowed.
    """
    several = isinstance(config.horizon, tuple)
    if several and isinstance(config.label, tuple):
        raise ValueError(f"label must be one class with several horizons, got {config.label}.")
    horizon = config.horizon[-1] if isinstance(config.horizon, tuple) else config.horizon
    base = build_base(config, target, horizon, device, denoiser)
    if isinstance(config.label, tuple) and not isinstance(base, ReverseSampler):
        raise ValueError(f"label must be one class without a denoiser to tell it to (base None), got {config.label}.")
    if several:
        if isinstance(base, ReverseSampler) and config.schedule not in ALIKE:
            raise ValueError(f"schedule must be one of {ALIKE} with several horizons, got {config.schedule!r}.")
        base.schedule.codes = _codes(base.schedule, base.schedule)
    if isinstance(config.label, int) and labels:
        base.schedule.tell_class(labels.index(config.label), len(labels))
    kernel = build_kernel(config, target, base)
    if several and kernel.adapts and kernel.optimizer is None:
        raise ValueError(f"backward {config.backward!r} is fitted step by step, which several horizons cannot share.")
    return DenoisingMDP(
        base,
        kernel,
        target.event_shape,
        tau=config.tau,
        scale=of_base(config, target).scale,
        # (N, d) where states are those of N particles in d dimensions.
        particles=(target.particles, target.space) if isinstance(target, ParticleTarget) else None,
        device=device,
    )


def _copies(energies: dict[int, LiveEnergy]) -> dict[int, LiveEnergy]:
    return {label: LiveEnergy(one.function, one.values_only) for label, one in energies.items()}


def base_energy(config: TaskConfig, target: Target) -> RewardEnergy:
    """The energy of a reward that tilts the base sampler; with several classes, that of the first."""
    if isinstance(config.label, tuple):
        config = replace(config, label=config.label[0])
    return RewardEnergy(task_reward(config, target), config.beta, target, differentiable=config.differentiable)


def check_label(label: object) -> int | tuple[int, ...]:
    """A class, or several as a rising tuple. Raises TypeError or ValueError."""
    if not isinstance(label, (tuple, list)):
        return check_integer("label", label, minimum=0)
    classes = [check_integer("label", one, minimum=0) for one in label]
    if not classes or any(after <= before for before, after in itertools.pairwise(classes)):
        raise ValueError(f"label must be a class or several that rise, such as (0, 1, 2), got {label!r}.")
    return classes[0] if len(classes) == 1 else tuple(classes)


def check_horizon(horizon: object) -> int | tuple[int, ...]:
    """A number of steps, or several as a rising tuple. Raises TypeError or ValueError."""
    if not isinstance(horizon, (tuple, list)):
        return check_integer("horizon", horizon)
    numbers = [check_integer("horizon", number) for number in horizon]
    if not numbers or any(after <= before for before, after in itertools.pairwise(numbers)):
        raise ValueError(f"horizon must be a number of steps or several that rise, such as (1, 2, 4), got {horizon!r}.")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _codes(schedule: Schedule, largest: Schedule) -> Tensor:
    """What networks are told of the steps of a ``schedule`` beside that of the ``largest`` number of steps."""
    return level_codes(schedule, float(largest.levels[-2]), float(largest.levels[0]))
