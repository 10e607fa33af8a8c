"""Compare agents on tasks over seeds, under equal budgets of environment transitions.

    python benchmarks/compare.py --preset quick --name quick

Results go to ``runs/<name>/`` in the present folder: ``report.md`` (tables), ``samples_<task>.png``,
``curves_<task>.png``, ``results.json``, and one file per finished run in ``results/``. A run that is finished is never
repeated: after a crash, a kill or Ctrl-C the same command goes on where it stopped, and runs that failed are tried
again. To change what is compared, edit PRESETS below.

Keys of ``results.json`` (also written to ``--json FILE``):

    name             name of the comparison
    preset           name of the preset
    command          the command line
    device           torch device
    seeds            list of seeds
    seconds          wall-clock seconds of this call
    summary          one entry per row
      summary.task, summary.label       which row
      summary.runs                      number of finished runs
      summary.scores                    {score: {iqm, low, high, floor}}: interquartile mean over seeds, 95 % bootstrap
                                        interval, the score of exact samples where there is one
      summary.costs                     {cost: mean over seeds}
    runs             one entry per finished run
      runs.key                          digest of all that defines the run, and the name of its file
      runs.label, runs.task, runs.agent, runs.budget, runs.task_settings, runs.agent_settings      the row
      runs.seed, runs.device            where it differs from the others of its row
      runs.sizes                        samples, draws, trajectories, ... of its evaluation
      runs.scores                       what dxmi_rl.evaluate returns; <score>_late: mean of the curve's last quarter
      runs.last_iterate                 quick scores of DxMI's policy without averaging; empty for other agents
      runs.sigma_ratios                 per step, sigma of the policy over that of the base sampler
      runs.costs                        timesteps, seconds, policy_draws, energy_evals, energy_grad_evals, ...
      runs.curve                        quick scores during training, with timesteps, energy_evals and seconds
      runs.evaluation_seconds           seconds that the final scores took
      runs.versions, runs.machine       what it ran on
    failed           one entry per run that failed
      failed.key, failed.label, failed.task, failed.seed      which run
      failed.error                      the exception that ended it
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from _pictures import draw_pictures
from _report import main_scores, make_tables, markdown, print_tables, summarise
from _run import Outcome, Row, Run, Sizes, check_rows, execute_all, make_runs, prepare, source_digest
from rich.console import Console
from rich.progress import Progress

from dxmi_rl.checks import check_integer, require
from dxmi_rl.progress import progress_columns
from dxmi_rl.registry import Registry, UnknownNameError
from dxmi_rl.storage import write_atomically, write_json

# What is compared -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """Rows, and the seeds and evaluation sizes they have by default."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    sizes: Sizes = field(default_factory=Sizes)


QUICK_BUDGET = 400_000
QUICK_DATA_BUDGET = 1_000_000
QUICK_DIGITS_BUDGET = 150_000
KERNELS_BUDGET = 4_000_000
DXMI_2D_BUDGET = 3_500_000
DIGITS_BUDGET = 512_000
FIVE_SEEDS = (0, 1, 2, 3, 4)
LEARNED = {"backward": "learned"}

PRESETS: Registry[Preset] = Registry("preset")
PRESETS.add(
    "quick",
    Preset(
        (
            Row("base", "8gaussians", "base", task_settings=LEARNED),
            Row("dxdp", "8gaussians", "dxdp", QUICK_BUDGET, task_settings=LEARNED),
            Row("ppo", "8gaussians", "ppo", QUICK_BUDGET, task_settings=LEARNED),
            Row("sb3-ppo", "8gaussians", "sb3-ppo", QUICK_BUDGET, task_settings=LEARNED),
            Row("base", "8gaussians-data", "base"),
            Row("dxmi/dxdp", "8gaussians-data", "dxmi", QUICK_DATA_BUDGET),
            Row("base", "digits", "base"),
            Row("dxmi/dxdp", "digits", "dxmi", QUICK_DIGITS_BUDGET, agent_settings={"agent": "dxdp"}),
            Row("dxmi/ppo", "digits", "dxmi", QUICK_DIGITS_BUDGET, agent_settings={"agent": "ppo"}),
        ),
        sizes=Sizes(draws=2, trajectories=50_000, curve_points=10),
    ),
)
PRESETS.add(
    "kernels",
    Preset(
        tuple(
            Row(f"{agent}, {kernel}", "8gaussians", agent, KERNELS_BUDGET, task_settings={"backward": kernel})
            for kernel in ("forward", "learned")
            for agent in ("dxdp", "ppo")
        ),
        seeds=FIVE_SEEDS,
    ),
)
PRESETS.add("dxmi-2d", Preset((Row("dxmi/dxdp", "8gaussians-data", "dxmi", DXMI_2D_BUDGET),), seeds=FIVE_SEEDS))
PRESETS.add(
    "digits",
    Preset(
        (
            Row("base", "digits", "base"),
            Row("ddpm, 100 steps", "digits", "base", task_settings={"horizon": 100}),
            Row("dxmi/dxdp", "digits", "dxmi", DIGITS_BUDGET, agent_settings={"agent": "dxdp"}),
            Row("dxmi/ppo", "digits", "dxmi", DIGITS_BUDGET, agent_settings={"agent": "ppo"}),
        )
    ),
)


HELP = """Compare agents on tasks over seeds, under equal budgets of environment transitions.

Tables, pictures and results.json go to runs/<name>/ in the present folder.

A finished run is never repeated: after a kill or Ctrl-C the same command goes on."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    preset: str = "quick"
    """What to compare: quick (minutes), kernels, dxmi-2d or digits (hours)."""
    name: str = ""
    """Results go to runs/<name>/; the preset's name by default."""
    seeds: tuple[int, ...] = ()
    """Seeds; the preset's own by default."""
    tasks: tuple[str, ...] = ()
    """Only these tasks of the preset."""
    agents: tuple[str, ...] = ()
    """Only these agents of the preset, by agent (dxmi) or by label (dxmi/ppo)."""
    budget: int | None = None
    """Environment transitions of every agent that trains, instead of the preset's."""
    device: str = "cpu"
    """Torch device."""
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Runs at a time; the number of cores by default."""
    json: Path | None = None
    """Another place for a copy of results.json."""


def select(arguments: Arguments) -> list[Row]:
    """The rows of the preset that the command line leaves.

    Raises UnknownNameError for a preset, task or agent that is not there, ValueError for a selection without rows.
    """
    preset = PRESETS[arguments.preset]
    rows = list(preset.rows)
    for kind, wanted, names in (
        ("task", arguments.tasks, lambda row: {row.task}),
        ("agent", arguments.agents, lambda row: {row.agent, row.label}),
    ):
        known = sorted(set().union(*(names(row) for row in preset.rows)))
        for name in wanted:
            if name not in known:
                raise UnknownNameError(f"{kind} of preset {arguments.preset!r}", name, known)
        rows = [row for row in rows if not wanted or names(row) & set(wanted)]
    if not rows:
        raise ValueError(
            f"preset {arguments.preset!r} has none of the agents {arguments.agents} on the tasks {arguments.tasks}."
        )
    if arguments.budget is not None:
        budget = check_integer("budget", arguments.budget)
        rows = [replace(row, budget=budget) if row.budget else row for row in rows]
    check_rows(rows)
    return rows


# The comparison -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison, and those of them that have no result yet."""

    name: str
    seeds: tuple[int, ...]
    jobs: int
    rows: list[Row]
    runs: list[Run]
    missing: list[Run]

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path("runs") / self.name


def make_plan(arguments: Arguments) -> Plan:
    """Check the whole command line, and prepare what the missing runs share; nothing is trained for a bad one.

    Raises ValueError, TypeError or ImportError.
    """
    name = arguments.name or arguments.preset
    if name in (".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a plain folder name, got {name!r}.")
    rows = select(arguments)
    preset = PRESETS[arguments.preset]
    seeds = arguments.seeds or preset.seeds
    runs = make_runs(rows, seeds, arguments.device, preset.sizes)
    plan = Plan(name, seeds, check_integer("jobs", arguments.jobs), rows, runs, [])
    done = _load(plan)
    finished = {result["key"] for result in done}
    plan.missing.extend(run for run in runs if run.key not in finished)
    print(
        f"{len(runs)} runs in {plan.folder}: {len(done)} finished before, {len(plan.missing)} to do, "
        f"{plan.jobs} at a time"
    )
    other = sum(result["versions"]["source"] != source_digest() for result in done)
    if other:
        print(f"warning: {other} finished runs come from other source code; another --name runs them anew")
    if plan.missing:
        print("preparing: denoisers, floors, a look at every agent", flush=True)
        prepare(plan.missing, plan.jobs)
    return plan


def carry_out(plan: Plan, arguments: Arguments, command: str) -> int:
    """Execute the missing runs, write results, tables and pictures; the exit status, 1 when a run failed."""
    started = time.perf_counter()
    failed = [outcome for outcome in _execute(plan) if outcome.error is not None]
    results, folder = _load(plan), plan.folder
    summaries = summarise(plan.rows, results)
    everything = {
        "name": plan.name,
        "preset": arguments.preset,
        "command": command,
        "device": arguments.device,
        "seeds": list(plan.seeds),
        "seconds": time.perf_counter() - started,
        "summary": summaries,
        "runs": results,
        "failed": [_failure(outcome) for outcome in failed],
    }
    for file in filter(None, [folder / "results.json", arguments.json]):
        write_json(file, everything)
    tables = make_tables(plan.rows, summaries, len(plan.seeds))
    pictures = draw_pictures(plan.rows, plan.runs, results, folder)
    report = markdown(plan.name, command, tables, pictures, results, failed)
    write_atomically(folder / "report.md", functools.partial(_write_text, report))
    print_tables(tables)
    for outcome in failed:
        trace = outcome.run.failure_file(folder / "results")
        print(f"FAILED {outcome.run.title}: {outcome.error}" + (f"\n       {trace}" if trace.exists() else ""))
    print(f"{len(results)} of {len(plan.runs)} runs are finished, {len(failed)} failed; see {folder / 'report.md'}")
    return 1 if failed else 0


def _write_text(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")


def _load(plan: Plan) -> list[dict[str, Any]]:
    return [result for run in plan.runs if (result := run.load(plan.folder / "results")) is not None]


def _failure(outcome: Outcome) -> dict[str, Any]:
    row = outcome.run.row
    return {
        "key": outcome.run.key,
        "label": row.label,
        "task": row.task,
        "seed": outcome.run.seed,
        "error": outcome.error,
    }


def _execute(plan: Plan) -> list[Outcome]:
    """Execute the missing runs, with a line for each that ends."""
    outcomes: list[Outcome] = []
    if not plan.missing:
        return outcomes
    results = plan.folder / "results"
    with _progress(len(plan.missing)) as advance:
        for outcome in execute_all(plan.missing, results, plan.jobs):
            outcomes.append(outcome)
            result = outcome.run.load(results)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and compare. Exit status: 1 after failed runs, 2 for bad arguments, 130 after Ctrl-C."""
    tyro = require("tyro", "bench")
    arguments = tyro.cli(Arguments, args=argv, description=HELP, prog="compare.py")
    command = shlex.join(["python", *(sys.argv if argv is None else ["benchmarks/compare.py", *argv])])
    try:
        try:
            plan = make_plan(arguments)
        except (ValueError, TypeError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return carry_out(plan, arguments, command)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
