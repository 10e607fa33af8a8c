"""Compare agents on tasks over seeds, under equal budgets.

    dxmi-rl compare --preset quick --name quick            (the same as python benchmarks/compare/compare.py ...)

Results go to ``runs/<name>/`` in the present folder: ``report.html`` (the page to open), ``report.md`` and
``report.tex`` (tables), ``samples_<task>.png``, ``curves_<task>.png``, ``results.json``, ``curves.csv``, and one file
per finished run in ``results/``. A run that is finished is never repeated: after a crash, a kill or Ctrl-C the same
command goes on where it stopped. A run that fails is tried once more, and again by the next call; its traceback is kept
in ``results/<key>.failed.txt``. What is compared is said by the preset, a TOML file (dxmi_rl/benchmark/presets).

Keys of ``results.json`` (also written to ``--json FILE``):

    schema           version of this format
    name             name of the comparison
    preset           name or path of the preset
    command          the command line
    devices          torch devices
    seeds            list of seeds
    seconds          wall-clock seconds of all calls that worked on it, killed ones up to their last finished run
    date             day of writing, UTC
    tasks            one entry per task
      tasks.dim, tasks.event_shape, tasks.horizon, tasks.tau, tasks.track     what the task is
      tasks.energy       "target" (exact), the name of a cached energy ("fixed"), or "learned" (from data, DxMI)
      tasks.score        the score that it is ranked by, or null
      tasks.better       "lower" or "higher"
      tasks.base         mean of that score over the runs of the base sampler: 0 of normalised scores; or null
      tasks.floor        that score of an exact sampler: 1 of normalised scores; or null
    summary          one entry per row
      summary.task, summary.label, summary.agent, summary.track, summary.budget, summary.unit     which row
      summary.seeds      its seeds: those of the preset or its group, and of the command line
      summary.runs       number of finished runs
      summary.scores     {score: {iqm, median, low, high, method, floor}} over seeds: 95 % interval and how it was made
                         (from two runs on), the score of exact samples where there is one
      summary.best       the same of the best checkpoints; empty where runs.best is
      summary.normalised   {iqm, median, low, high, method} of normalised scores, or null
      summary.costs      {cost: mean over seeds}
      summary.command    the command that makes the row again
    runs             one entry per finished run
      runs.key           digest of all that defines the run, and the name of its file
      runs.code          digest of the source that its numbers depend on
      runs.label, runs.task, runs.agent, runs.budget, runs.unit, runs.fit      the row
      runs.task_settings, runs.agent_settings      its settings
      runs.seed, runs.device            where it differs from the others of its row
      runs.sizes         samples, draws, trajectories, ... of its evaluation
      runs.scores        of the last iterate, what dxmi_rl.evaluate returns; <score>_late: mean of the last quarter
      runs.best          {timesteps, scores} of the best checkpoint of the curve; empty for agents that do not train,
                         and where the preset's sizes leave it out
      runs.unaveraged    quick scores of DxMI's policy without averaging; empty for other agents
      runs.normalised    normalised score of the last iterate: 0 the base sampler, 1 an exact sampler; or null
      runs.sigma_ratios  per step, sigma of the policy over that of the base sampler
      runs.costs         timesteps, seconds, policy_draws, energy_evals, energy_grad_evals, ...
      runs.curve         quick scores during training, with timesteps, energy_evals and seconds
      runs.evaluation_seconds           seconds that the final scores took
      runs.versions, runs.machine       what it ran on
      runs.command       the command that makes the run again
    failed           one entry per run that failed
      failed.key, failed.label, failed.task, failed.seed      which run
      failed.error       the last line of its traceback

Denoising paths, which the report draws (dxmi_rl.benchmark.measure.paths), are in the files of single runs only.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dxmi_rl.benchmark.pictures import draw_pictures
from dxmi_rl.benchmark.presets import Preset, load_preset, make_row
from dxmi_rl.benchmark.protocol import Row, Run, check_rows, make_runs
from dxmi_rl.benchmark.report import write_report
from dxmi_rl.benchmark.results import assemble, without_paths
from dxmi_rl.benchmark.sweep import Logging, Outcome, execute_all, execute_on_ray, prepare, ray_cluster, tidy
from dxmi_rl.benchmark.tables import main_scores, make_tables, print_tables
from dxmi_rl.utils.checks import check_integer, check_real, require, resolve_device
from dxmi_rl.utils.progress import progress_columns
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import write_atomically, write_json

HELP = """Compare agents on tasks over seeds, under equal budgets.

Tables, pictures, report.html and results.json go to runs/<name>/ in the present folder.

A finished run is never repeated: after a kill or Ctrl-C the same command goes on."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    preset: str = "quick"
    """What to compare: quick (minutes), standard (many hours: the leaderboard), full (days: everything), ablations,
    digits, kernels, paper-2d, samplers, or a TOML file of yours."""
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

    Raises what ``check_rows`` and ``OwnAgent.check`` raise, and ValueError for a unit without a budget.
    """
    unit = arguments.unit
    if unit is not None and arguments.budget is None:
        raise ValueError(f"unit {unit!r} needs a budget: the preset's budgets are in units of their own.")
    rows = [*preset.rows, *_own_rows(arguments, preset.rows)]
    if arguments.budget is not None:
        check_real("budget", arguments.budget)
        rows = [
            make_row(**vars(row) | {"budget": arguments.budget, "unit": unit or "timesteps"}) if row.trains else row
            for row in rows
        ]
    check_rows(rows)
    return rows


def _own_rows(arguments: Arguments, rows: Sequence[Row]) -> list[Row]:
    """Agents of your own on every task, with the budget of its first row that trains."""
    found, skipped = [], []
    for task in dict.fromkeys(row.task for row in rows):
        like = max((row for row in rows if row.task == task), key=lambda row: row.budget > 0)
        for agent in arguments.agent:
            row = make_row(
                task, agent, like.budget, unit=like.unit, fit=like.fit, task_settings=like.task_settings,
                trust_checkpoint=arguments.trust_checkpoint, folder=os.getcwd(),
            )  # fmt: skip
            assert row.own is not None
            if row.energy_given or row.own.learns_energy:
                found.append(row)
            else:
                skipped.append(f"{row.label} on {task}")
    if skipped:
        print(f"left out, as these tasks give no energy to learn from: {', '.join(skipped)}")
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


# The comparison -------------------------------------------------------------------------------------------------------


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
    """The rest of the preset, which is reported as far as it is finished."""
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
        """Selected runs and other finished ones, in the order of the preset."""
        finished = [run for run in self.others if run.load(self.results) is not None]
        return sorted([*self.selected, *finished], key=lambda run: (self.rows.index(run.row), run.seed))


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
    selected = make_runs(chosen, preset.seeds, device, preset.sizes)
    rows = [replace(row, seeds=tuple(sorted({*(row.seeds or preset.seeds), *arguments.seeds}))) for row in rows]
    every = make_runs(rows, preset.seeds, device, preset.sizes)
    default_jobs = len(devices) if len(devices) > 1 or devices[0].startswith("cuda") else os.cpu_count() or 1
    jobs = check_integer("jobs", default_jobs if arguments.jobs is None else arguments.jobs)
    if len(devices) > 1 and jobs > len(devices):
        raise ValueError(f"jobs must be at most the number of devices, {len(devices)}, got {jobs}.")
    if arguments.ray is not None and (arguments.tensorboard or arguments.track):
        raise ValueError("tensorboard and track write from the machine that a run is on: not with ray.")
    if arguments.json is not None and (arguments.json.is_dir() or arguments.json.parent.is_file()):
        raise ValueError(f"json must name a file to write, got {str(arguments.json)!r}.")
    keys = {run.key for run in selected}
    plan = Plan(arguments, name, jobs, rows, selected, [run for run in every if run.key not in keys], [])
    plan.missing.extend(run for run in selected if run.load(plan.results) is None)
    print(
        f"{len(selected)} runs in {plan.folder}: {len(selected) - len(plan.missing)} finished before, "
        f"{len(plan.missing)} to do, {plan.jobs} at a time"
    )
    foreign = {file.stem for file in plan.results.glob("*.json")} - {run.key for run in every} - keys
    if foreign:
        print(f"{len(foreign)} results there are of other settings, seeds or source code, and are left alone")
    return plan


def carry_out(plan: Plan, command: str) -> int:
    """Execute the missing runs, write results, tables, pictures and report; the exit status, 1 when a run failed."""
    failed = [outcome for outcome in _execute(plan) if outcome.error is not None]
    folder, runs = plan.folder, plan.reported
    tidy(plan.results)
    seeds = sorted({run.seed for run in runs})
    rows = [
        replace(row, seeds=tuple(seed for seed in row.seeds if seed in seeds))
        for row in plan.rows
        if any(run.row == row for run in runs)
    ]
    results = [result for run in runs if (result := run.load(plan.results)) is not None]
    header = {
        "name": plan.name,
        "preset": plan.arguments.preset,
        "command": command,
        "devices": list(plan.arguments.device),
        "seeds": seeds,
        "seconds": _seconds_spent(folder),
    }
    everything = assemble(rows, results, failed, _unselected(plan, command), header)
    for file in filter(None, [folder / "results.json", plan.arguments.json]):
        write_json(file, without_paths(everything))
    write_atomically(folder / "curves.csv", lambda file: _write_curves(everything["runs"], file))
    tables = make_tables(rows, everything["summary"])
    draw_pictures(rows, runs, results, folder)
    write_report(everything, folder)
    print_tables(tables)
    for outcome in failed:
        trace = outcome.run.failure_file(plan.results)
        print(f"FAILED {outcome.run.title}: {outcome.error}" + (f"\n       {trace}" if trace.exists() else ""))
    finished = sum(run.load(plan.results) is not None for run in plan.selected)
    print(f"{finished} of {len(plan.selected)} runs are finished, {len(failed)} failed; see {folder / 'report.html'}")
    return 1 if failed else 0


def _unselected(plan: Plan, command: str) -> str:
    """The command line without tasks, agents and seeds, which the commands of rows and runs add.

    It has a name of its own: under the present one what is finished would not be run again.
    """
    arguments = plan.arguments
    words = [*shlex.split(command)[:2], "--preset", arguments.preset, "--name", f"{plan.name}-again"]
    if arguments.agent:
        words += ["--agent", *arguments.agent] + ["--trust-checkpoint"] * arguments.trust_checkpoint
    if arguments.budget is not None:
        words += ["--budget", repr(arguments.budget).removesuffix(".0")]
    words += ["--unit", arguments.unit] if arguments.unit is not None else []
    words += ["--device", *arguments.device] if arguments.device != ("cpu",) else []
    return shlex.join(words)


def _seconds_spent(folder: Path) -> float:
    """Wall-clock seconds of all calls that executed runs for this folder, up to the last run that each saw end."""
    try:
        return float(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return 0.0


def _write_curves(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """All learning curves, one point per line."""
    points = [{key: run[key] for key in ("task", "label", "seed")} | point for run in runs for point in run["curve"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for point in points for key in point)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    file.write_text(text.getvalue(), encoding="utf-8")


def _execute(plan: Plan) -> list[Outcome]:
    """Execute the missing runs, with a line for each that ends."""
    outcomes: list[Outcome] = []
    if not plan.missing:
        return outcomes
    arguments = plan.arguments
    if arguments.ray is not None:
        stream = execute_on_ray(plan.missing, plan.results)
    else:
        logging = None
        if arguments.tensorboard or arguments.track:
            logging = Logging(plan.folder.absolute() / "logs", arguments.tensorboard, arguments.track)
        stream = execute_all(plan.missing, plan.results, plan.jobs, arguments.device, logging)
    started, before = time.perf_counter(), _seconds_spent(plan.folder)
    with _progress(len(plan.missing)) as advance:
        for outcome in stream:
            outcomes.append(outcome)
            write_json(plan.folder / "seconds.json", before + time.perf_counter() - started)
            result = outcome.run.load(plan.results)
            text = f"FAILED: {outcome.error}" if outcome.error or result is None else main_scores(result)
            print(f"[{len(outcomes)}/{len(plan.missing)}] {outcome.run.title}: {text}", flush=True)
            advance()
    return outcomes


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar with the time left below the lines; nothing when standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    # Lines go above the bar when both share the terminal, and stay in their file when they do not.
    console = Console(stderr=True)
    with Progress(*progress_columns(), console=console, redirect_stdout=sys.stdout.isatty()) as bar:  # type: ignore[arg-type]
        task = bar.add_task("runs", total=total)
        yield lambda: bar.advance(task)


def compare(arguments: Arguments, command: str) -> int:
    """Compare. Exit status: 1 after failed runs, 2 for bad arguments, 130 after Ctrl-C."""
    try:
        with ExitStack() as stack:
            try:
                plan = make_plan(arguments)
                if plan.missing:
                    if arguments.ray is not None:
                        stack.enter_context(ray_cluster(arguments.ray, plan.jobs))
                    print("preparing: denoisers, energies, floors, a look at every agent", flush=True)
                    prepare(plan.missing, plan.jobs)  # so that bad settings end here, before anything is trained
            except (ValueError, TypeError, ImportError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            return carry_out(plan, command)
    except OSError as error:  # such as a full disk: what is finished stays
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        return 130


def main(argv: Sequence[str] | None = None, prog: str = "benchmarks/compare/compare.py") -> int:
    """Parse the command line and compare; exit status as ``compare``."""
    tyro = require("tyro", "bench")
    arguments = tyro.cli(Arguments, args=argv, description=HELP, prog=Path(prog).name)
    return compare(arguments, shlex.join(["python", prog, *(sys.argv[1:] if argv is None else argv)]))
