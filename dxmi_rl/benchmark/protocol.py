"""The protocol: what defines a run, and the key of its result."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dxmi_rl.agents import AGENTS, make_agent
from dxmi_rl.agents.any_class import AnyClass
from dxmi_rl.agents.any_step import AnyStep
from dxmi_rl.agents.base import Agent
from dxmi_rl.benchmark.code import code_digest
from dxmi_rl.benchmark.own_agents import OwnAgent, is_own_agent
from dxmi_rl.costs import BUDGET_UNITS
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.irl import DxMI
from dxmi_rl.targets import Target, make_target
from dxmi_rl.tasks import ENERGIES, TASKS, Task
from dxmi_rl.tasks.config import FROM_SCRATCH
from dxmi_rl.utils.checks import CheckpointError, check_flag, check_integer, check_real, check_seed, resolve_device
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import flat_settings
from dxmi_rl.utils.storage import JSON, load_tensors

SCORE_COST, FIT_COST = 100_000, 1_300_000
"""What evaluation costs without and with a fitted kernel, in 2-D transitions of training."""
TRANSITIONS_PER_SECOND = 30_000
"""Rough speed of training in 2-D; it only orders the runs."""


@functools.cache
def _target(name: str) -> Target:
    """Built once: thousands of runs share a few targets."""
    return make_target(name)


@dataclass(frozen=True)
class Row:
    """One row of a results table: an agent on a task with a budget."""

    label: str
    """Name in tables and pictures, unique within the task."""
    task: str
    """Name of the task; rows of one task share a table."""
    agent: str
    """Name of the agent, or "module:Class" or a checkpoint file of your own."""
    budget: float = 0
    """What to train for, in ``unit``; 0 for agents that do not train."""
    unit: str = "timesteps"
    """"timesteps" (rollout transitions), "energy_evals" or "seconds"."""
    task_settings: JSON = field(default_factory=dict)
    """JSON-able arguments of ``make_task``."""
    agent_settings: JSON = field(default_factory=dict)
    """JSON-able settings of the agent."""
    fit: bool = True
    """Fit a kernel when the comparison's sizes ask for it; on images that takes longer than short trainings do."""
    particles: int | None = None
    """Score samples that are chosen by weight among this many chains each (``Agent.sample``); None: all samples."""
    trust_checkpoint: bool = False
    """Open a checkpoint of your own although it holds pickles, which run code."""
    folder: str = "."
    """Where an agent of your own is looked for."""
    seeds: tuple[int, ...] = field(default=(), compare=False)
    """Seeds of this row; empty: those of the comparison. They say how often it is run, not what is run."""

    @property
    def own(self) -> OwnAgent | None:
        """The agent when it is your own."""
        return OwnAgent(self.agent, self.trust_checkpoint, self.folder) if is_own_agent(self.agent) else None

    def plain(self) -> JSON:
        """The fields that results hold: what was run, not where it was found."""
        found_where = ("trust_checkpoint", "folder", "seeds")
        return {key: value for key, value in asdict(self).items() if key not in found_where}

    @property
    def trains(self) -> bool:
        """Whether the agent trains; raises for an unknown one."""
        return AGENTS[self.agent].trains if self.own is None else self.own.trains

    @property
    def target(self) -> Target:
        """The target, without the cost of building the task."""
        target = self.task_settings.get("target", TASKS[self.task].target)
        return target if isinstance(target, Target) else _target(str(target))

    @property
    def energy(self) -> str:
        """Where the reward is from: "target", "reward", the name of a cached energy such as "fixed", or "learned"."""
        named = self.task_settings.get("energy")
        reward = self.task_settings.get("reward", TASKS[self.task].reward)
        found = "learned" if reward is None else "target" if reward == "target" else "reward"
        return found if named is None else named

    @property
    def energy_given(self) -> bool:
        """Whether agents are given an energy; otherwise it is learned from data."""
        return self.energy != "learned"

    @property
    def backward(self) -> str:
        """Name of the backward kernel of training."""
        return str(self.task_settings.get("backward", TASKS[self.task].backward))

    @property
    def track(self) -> str:
        """The track of the task."""
        return str(self.task_settings.get("track", TASKS[self.task].track))

    @property
    def has_denoiser(self) -> bool:
        """Whether the task's base sampler has one."""
        base = self.task_settings.get("base", TASKS[self.task].base)
        return base not in (None, "none") and self.track not in FROM_SCRATCH

    @property
    def tau(self) -> float:
        """Temperature of training, in nats."""
        return float(self.task_settings.get("tau", TASKS[self.task].tau))

    @property
    def resolved_settings(self) -> JSON:
        """All settings of the agent, by name; of DxMI and of an agent of your own those that are given."""
        if self.own is not None or self.agent == DxMI.name:
            return self.agent_settings
        return flat_settings(AGENTS[self.agent].parse_config(self.agent_settings))

    def build(self, task: Task, seed: int) -> Agent[Any]:
        """The agent on a built task."""
        if self.own is not None:
            return self.own.build(task, seed, **self.agent_settings)
        return make_agent(self.agent, task, seed=seed, **self.agent_settings)

    def modules(self) -> list[str]:
        """Modules from which all source is reached by import that the numbers depend on."""
        found = {"dxmi_rl.benchmark.measure", "dxmi_rl.evaluation.evaluate"}
        classes: list[type] = [type(self.target), KERNELS[self.backward]]
        if self.own is not None:
            found |= set(self.own.modules)
        else:
            classes.append(AGENTS[self.agent])
        if isinstance(self.task_settings.get("horizon"), (list, tuple)):
            classes.append(AnyStep)
        if isinstance(self.task_settings.get("label", TASKS[self.task].label), (list, tuple)):
            classes.append(AnyClass)
        if self.agent in (DxMI.name, AnyStep.name, AnyClass.name):
            classes.append(AGENTS[self.agent_settings.get("agent", "dxdp")])
        if self.energy in ENERGIES:
            found.add(ENERGIES[self.energy].split(":")[0])
            classes.append(AGENTS["dxdp"])  # which trained it
        for one in classes:
            found |= {parent.__module__ for parent in one.__mro__}
        return sorted(found)

    @property
    def code(self) -> str:
        """Digest of the source that the numbers depend on, and of an agent of your own."""
        own = "" if self.own is None else f"+{self.own.digest[:12]}"
        return code_digest(tuple(self.modules())) + own


@dataclass(frozen=True)
class Sizes:
    """How much is spent on scoring a run."""

    samples: int = 10_000
    """Samples per draw of the sample metrics."""
    draws: int = 8
    """Draws that sliced W2 is averaged over."""
    trajectories: int = 100_000
    """Trajectories of the log-weights."""
    fit: bool = True
    """Fit a Mixture kernel for ``kl_bound_fit`` where the energy is given; it takes longest."""
    best: bool = True
    """Score the best checkpoint of the learning curve, too, which takes as long as the last iterate's scores."""
    floors: bool = True
    """Score exact samples, too."""
    curve_points: int = 20
    """Points of the learning curve after the one before training; checkpoints that can be the best."""
    kept: int = 2_000
    """Samples kept for the pictures; of images 64."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            (check_flag if name in ("fit", "best", "floors") else check_integer)(name, value)


@dataclass(frozen=True)
class Run:
    """One seed of one row."""

    row: Row
    seed: int
    device: str = "cpu"
    sizes: Sizes = field(default_factory=Sizes)

    @functools.cached_property
    def code(self) -> str:
        """Digest of the source that the numbers depend on, as it was when first asked for."""
        return self.row.code

    @functools.cached_property
    def key(self) -> str:
        """Digest of all that defines the result.

        The row without its label but with all settings of the agent, the task's configuration, seed, sizes, kind of
        device, and the source that its numbers depend on; computed once, so that workers do not read source that has
        changed meanwhile.
        """
        definition = asdict(self) | {
            "task_config": repr(TASKS[self.row.task]),
            "device": torch.device(self.device).type,
            "code": self.code,
        }
        definition["row"] = self.row.plain() | {"agent_settings": self.row.resolved_settings}
        del definition["row"]["label"]
        if self.row.own:  # known by its code and its class: wherever the file lies, and whatever it is called
            definition["row"]["agent"] = self.row.own.class_name
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fits(self) -> bool:
        """Whether a kernel is fitted for ``kl_bound_fit``: not where the energy is learned, as no agent aims at it."""
        return self.sizes.fit and self.row.fit and self.row.energy_given and self.row.backward != "base"

    @property
    def cost(self) -> float:
        """Estimated time in 2-D transitions of training; it only orders the runs."""
        row = self.row
        transitions = row.budget * (TRANSITIONS_PER_SECOND if row.unit == "seconds" else 1)
        return transitions * math.sqrt(row.target.dim / 2) + (FIT_COST if self.fits else SCORE_COST)

    @property
    def title(self) -> str:
        """For lines and messages."""
        return f"{self.row.task}  {self.row.label}  seed {self.seed}"

    def result_file(self, folder: Path) -> Path:
        """Where the result lies once the run is finished."""
        return folder / f"{self.key}.json"

    def samples_file(self, folder: Path) -> Path:
        """Where its samples lie."""
        return folder / f"{self.key}.safetensors"

    def failure_file(self, folder: Path) -> Path:
        """Where the traceback lies when it failed."""
        return folder / f"{self.key}.failed.txt"

    def load(self, folder: Path) -> JSON | None:
        """The finished result under this row's label, or None: it is not there, or is not what ``store`` wrote."""
        try:
            stored = json.loads(self.result_file(folder).read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
            return None
        if not isinstance(stored, dict) or stored.get("key") != self.key:
            return None
        result = {key: value for key, value in stored.items() if key != "digest"}
        return result | {"label": self.row.label} if stored.get("digest") == digest_of(result) else None

    def set_aside_damaged(self, folder: Path) -> list[Path]:
        """Rename the run's files where one cannot be read, so that the run is made again; the new names."""
        result, samples = self.result_file(folder), self.samples_file(folder)
        if not result.exists():
            return []
        try:
            tensors, metadata = load_tensors(samples)
            if self.load(folder) is not None and "x" in tensors and metadata == {"key": self.key}:
                return []
        except (CheckpointError, FileNotFoundError):
            pass
        return [_aside(file) for file in (result, samples) if file.exists()]


def _aside(file: Path) -> Path:
    """Rename a damaged file to FILE.damaged, or FILE.damaged1 and so on where that is taken."""
    names = (file.with_name(f"{file.name}.damaged{number or ''}") for number in range(10_000))
    return file.replace(next(name for name in names if not name.exists()))


def digest_of(result: JSON) -> str:
    """Digest of a result, which its file holds, so that damage to a single number is noticed: 16 hex digits."""
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def check_rows(rows: Sequence[Row]) -> None:
    """Raises for unknown names, labels that are taken and budgets that are not allowed; costs nothing."""
    for row in rows:
        TASKS[row.task]
        if row.own is not None:
            row.own.check()
        if row.unit not in BUDGET_UNITS:
            raise UnknownNameError("budget unit", row.unit, list(BUDGET_UNITS))
        check_settings(row.label, row.agent_settings)
        name = f"budget of {row.label!r}"
        if not row.trains and row.budget:
            raise ValueError(f"agent {row.agent!r} does not train: {name} must be 0, got {row.budget}.")
        if row.unit == "seconds":
            check_real(name, row.budget, strict=row.trains)
        else:
            check_integer(name, row.budget, minimum=int(row.trains))
        if row.particles is not None:
            check_integer(f"particles of {row.label!r}", row.particles, minimum=2)
        if sum(other.task == row.task and other.label == row.label for other in rows) > 1:
            raise ValueError(f"label {row.label!r} is used twice on task {row.task!r}.")


def check_settings(label: str, settings: JSON) -> None:
    """Raises ValueError for what has an argument of its own."""
    for key in {"task", "seed", "device", "config"} & settings.keys():
        raise ValueError(f"{key!r} must not be among the settings of {label!r}: it has an argument of its own.")


def make_runs(rows: Sequence[Row], seeds: Sequence[int], device: str, sizes: Sizes) -> list[Run]:
    """All runs of a comparison, row by row; ``seeds`` are those of rows that have none of their own."""
    resolve_device(device)
    return [Run(row, seed, device, sizes) for row in rows for seed in check_seeds(row.seeds or seeds)]


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds; raises TypeError or ValueError unless they are distinct integers >= 0, and at least one."""
    numbers = [check_seed(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be distinct and at least one, got {list(seeds)}.")
    return numbers
