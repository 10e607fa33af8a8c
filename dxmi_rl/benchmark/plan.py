"""What a comparison runs: the rows of a preset and of agents of your own, as the command line selects them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dxmi_rl.agents.plain import check_config, has_plain_settings
from dxmi_rl.benchmark.own_agents import is_own_agent
from dxmi_rl.benchmark.presets import Preset, load_preset, make_row
from dxmi_rl.benchmark.protocol import Row, Run, Sizes, check_rows, make_runs
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.checks import check_integer, check_real, resolve_device
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import check_file

RANKED_WITHIN = ("track", "target", "target_options", "tau", "reward", "reward_options", "beta", "label")
"""Settings of a task that all its rows share; horizons may differ, and are shown."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    preset: str = "quick"
    """What to compare: quick (minutes), standard (many hours: the leaderboard), everything (many hours: thirteen
    tasks from the energy alone), full (days), ablations, base-samplers, coordinate-wise, demo, digits,
    gradient-free, kernels, paper-2d, rewards, samplers, small-steps, stability, tables, or a TOML file of yours."""
    name: str = ""
    """Results go to runs/<name>/; the preset's name by default."""
    seeds: tuple[int, ...] = ()
    """Seeds of all rows; the preset's own by default."""
    tasks: tuple[str, ...] = ()
    """Only these tasks of the preset."""
    agents: tuple[str, ...] = ()
    """Only these agents, by agent (dxmi) or by label (dxmi/ppo)."""
    agent: tuple[str, ...] = ()
    """Agents of your own, beside the preset's on every task that gives an energy: module:Class, file.py:Class,
    checkpoint.safetensors, or model.zip of Stable-Baselines3."""
    trust_checkpoint: bool = False
    """Open .zip checkpoints, whose pickles can run code while they are loaded."""
    config: str | None = None
    """plain: settings from before the search for the agents that were searched; their labels then say so."""
    budget: float | None = None
    """Budget of every agent that trains, instead of the preset's."""
    unit: str | None = None
    """What budgets count: timesteps (environment transitions), energy_evals or seconds."""
    device: tuple[str, ...] = ("cpu",)
    """Torch device, or several GPUs (cuda:0 cuda:1) with one process each."""
    jobs: int | None = None
    """Runs at a time; by default the number of cores, or of GPUs."""
    ray: str | None = None
    """Run on a Ray cluster: its address, auto for the one running here, local to start one of --jobs processes."""
    tensorboard: bool = False
    """Also write TensorBoard logs to runs/<name>/logs/."""
    track: bool = False
    """Also track every run with Weights & Biases."""
    json: Path | None = None
    """Another place for a copy of results.json."""


def all_rows(arguments: Arguments, preset: Preset) -> list[Row]:
    """The rows of the preset and those of agents of your own, with the budget of the command line.

    Raises what ``check_rows`` and ``OwnAgent.check`` raise, and ValueError for a unit without a budget, an unknown
    config, or rows of one task that no table should rank together.
    """
    unit = arguments.unit
    if unit is not None and arguments.budget is None:
        raise ValueError(f"unit {unit!r} needs a budget: the preset's budgets are in units of their own.")
    rows = [*preset.rows, *_own_rows(arguments, preset.rows)]
    if arguments.config is not None:
        check_config(arguments.config)
        rows = [
            make_row(**vars(row), config=arguments.config) if has_plain_settings(row.agent) else row for row in rows
        ]
    if arguments.budget is not None:
        check_real("budget", arguments.budget)
        rows = [
            make_row(**vars(row) | {"budget": arguments.budget, "unit": unit or "timesteps"}) if row.trains else row
            for row in rows
        ]
    check_rows(rows)
    _check_alike(rows)
    return rows


def _check_alike(rows: Sequence[Row]) -> None:
    """Raises ValueError for rows of one task that differ in what its scores are of: they are ranked together."""
    for row in rows:
        first, default = next(other for other in rows if other.task == row.task), TASKS[row.task]
        for key in RANKED_WITHIN:
            values = [one.task_settings.get(key, getattr(default, key)) for one in (first, row)]
            if values[0] != values[1]:
                raise ValueError(
                    f"rows of task {row.task!r} stand in one table, and have {key} = {values[0]!r} ({first.label!r}) "
                    f"and {values[1]!r} ({row.label!r}): put them into presets of their own."
                )


def _own_rows(arguments: Arguments, rows: Sequence[Row]) -> list[Row]:
    """Agents of your own on every task, with budget, settings and seeds of its first row that trains."""
    found, without_energy, elsewhere = [], [], []
    for task in dict.fromkeys(row.task for row in rows):
        like = max((row for row in rows if row.task == task), key=lambda row: row.budget > 0)
        for agent in arguments.agent:
            if Path(agent).is_file() and not is_own_agent(agent):
                raise ValueError(
                    f"agent must be FILE.py:Class, or a file that ends with .safetensors or .zip, got {agent!r}."
                )
            row = make_row(
                task, agent, like.budget, unit=like.unit, fit=like.fit, task_settings=like.task_settings,
                seeds=like.seeds, trust_checkpoint=arguments.trust_checkpoint, folder=os.getcwd(),
            )  # fmt: skip
            assert row.own is not None
            if row.own.trained_on not in (None, task):
                elsewhere.append(f"{row.label} on {task}")
            elif row.energy_given or row.own.learns_energy:
                found.append(row)
            elif not arguments.tasks or task in arguments.tasks:
                without_energy.append(f"{row.label} on {task}")
    for skipped, reason in ((without_energy, "these tasks give no energy to learn from"),
                            (elsewhere, "these checkpoints were trained on another task")):  # fmt: skip
        if skipped:
            print(f"left out, as {reason}: {', '.join(skipped)}")
    return found


def select(arguments: Arguments, rows: Sequence[Row]) -> list[Row]:
    """The rows that tasks and agents of the command line leave; agents of your own stay unless one is named, too.

    Raises UnknownNameError for a task or agent that is not there, ValueError for a selection without rows.
    """
    tasks, agents = arguments.tasks, set(arguments.agents)
    _check_known("task", arguments, tasks, {row.task for row in rows})
    _check_known("agent", arguments, arguments.agents, {name for row in rows for name in (row.agent, row.label)})
    named = any({row.agent, row.label} & agents for row in rows if row.own)
    chosen = [
        row
        for row in rows
        if (not tasks or row.task in tasks)
        and (not agents or {row.agent, row.label} & agents or (row.own and not named))
    ]
    if not chosen:
        raise ValueError(
            f"preset {arguments.preset!r} has none of the agents {arguments.agents} on the tasks {arguments.tasks}."
        )
    return chosen


def _check_known(kind: str, arguments: Arguments, wanted: Sequence[str], known: set[str]) -> None:
    for name in wanted:
        if name not in known:
            raise UnknownNameError(f"{kind} of preset {arguments.preset!r}", name, sorted(known))


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison, and those that are to be executed now."""

    arguments: Arguments
    name: str
    jobs: int
    rows: list[Row]
    """All rows of the preset, and those of agents of your own, with all seeds that they may have."""
    selected: list[Run]
    """What the command line selects."""
    others: list[Run]
    """The rest of the preset, which is reported as far as it has ended."""
    missing: list[Run]
    """Selected runs that have no result yet."""

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path("runs") / self.name

    @property
    def results(self) -> Path:
        """Where the results of single runs lie."""
        return self.folder / "results"

    @property
    def reported(self) -> list[Run]:
        """Selected runs and others that have ended, well or not, in the order of the preset."""
        ended = [run for run in self.others if run.failure_file(self.results).is_file() or run.load(self.results)]
        return sorted([*self.selected, *ended], key=lambda run: (self.rows.index(run.row), run.seed))


def _sizes(arguments: Arguments, preset: Preset) -> dict[str, Sizes]:
    """Sizes of every task: the preset's, or a tenth of them, without fitted kernels, for a budget below a tenth of that
    which the preset gives the task. What is selected changes none.
    """
    sizes = preset.sizes
    less = replace(
        sizes, fit=False, best=False, samples=max(1, sizes.samples // 10), trajectories=max(1, sizes.trajectories // 10)
    )
    budgets: dict[str, list[float]] = {}
    for row in preset.rows:
        if row.trains and row.unit == (arguments.unit or "timesteps"):
            budgets.setdefault(row.task, []).append(row.budget)
    asked = math.inf if arguments.budget is None else 10 * arguments.budget
    return {row.task: less if asked < min(budgets.get(row.task, [0])) else sizes for row in preset.rows}


def make_plan(arguments: Arguments) -> Plan:
    """Check the command line and see what is done. Raises ValueError, TypeError, ImportError or OSError."""
    preset = load_preset(arguments.preset)
    name = arguments.name or Path(arguments.preset).stem
    if name in (".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a plain folder name, got {name!r}.")
    rows = all_rows(arguments, preset)
    chosen = select(arguments, rows)
    devices = [str(resolve_device(device)) for device in arguments.device]
    if len({device.split(":")[0] for device in devices}) != 1:
        raise ValueError(f"device must be one device, or several of one kind, got {list(arguments.device)}.")
    device = arguments.device[0]
    if arguments.seeds:
        chosen = [replace(row, seeds=arguments.seeds) for row in chosen]
    sizes = _sizes(arguments, preset)
    if small := [task for task in dict.fromkeys(row.task for row in chosen) if sizes[task] != preset.sizes]:
        print(
            f"a budget below a tenth of the preset's: scores on {', '.join(small)} are of a tenth of its samples "
            "and trajectories, without fitted kernels"
        )

    def planned(rows: Sequence[Row]) -> list[Run]:
        return [run for row in rows for run in make_runs([row], preset.seeds, device, sizes[row.task])]

    selected = planned(chosen)
    rows = [replace(row, seeds=tuple(sorted({*(row.seeds or preset.seeds), *arguments.seeds}))) for row in rows]
    every = planned(rows)
    default_jobs = len(devices) if len(devices) > 1 or devices[0].startswith("cuda") else os.cpu_count() or 1
    jobs = check_integer("jobs", default_jobs if arguments.jobs is None else arguments.jobs)
    if len(devices) > 1 and jobs > len(devices):
        raise ValueError(f"jobs must be at most the number of devices, {len(devices)}, got {jobs}.")
    if arguments.ray is not None and (arguments.tensorboard or arguments.track):
        raise ValueError("tensorboard and track write from the machine that a run is on: not with ray.")
    if arguments.json is not None:
        check_file("json", arguments.json)
    keys = {run.key for run in selected}
    plan = Plan(arguments, name, jobs, rows, selected, [run for run in every if run.key not in keys], [])
    for run in [*selected, *plan.others]:
        for file in run.set_aside_damaged(plan.results):
            print(f"{run.title}: its result cannot be read and is set aside as {file}")
    plan.missing.extend(run for run in selected if run.load(plan.results) is None)
    print(
        f"{len(selected)} runs in {plan.folder}: {len(selected) - len(plan.missing)} finished before, "
        f"{len(plan.missing)} to do, {plan.jobs} at a time"
    )
    ended = [file for end in (".json", ".failed.txt") for file in plan.results.glob(f"*{end}")]
    foreign = {file.name.split(".")[0] for file in ended} - {run.key for run in every} - keys
    if foreign:
        print(f"{len(foreign)} results there are of other settings, seeds or source code, and are left alone")
    return plan
