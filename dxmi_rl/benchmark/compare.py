"""Compare agents on tasks over seeds, under equal budgets.

    dxmi-rl compare --preset quick --name quick            (the same as python benchmarks/compare/compare.py ...)

Results go to ``runs/<name>/`` in the present folder: ``report.html`` (the page to open), ``report.md`` and
``report.tex`` (tables), ``samples_<task>.png``, ``curves_<task>.png``, ``results.json``, ``curves.csv``, and one file
per finished run in ``results/``. A run that is finished is never repeated: after a crash, a kill or Ctrl-C the same
command goes on where it stopped. A run that fails is tried once more, and again by the next call; its traceback is kept
in ``results/<key>.failed.txt``. What is compared is said by the preset, a TOML file (dxmi_rl/benchmark/presets).

Keys of ``results.json`` (also written to ``--json FILE``):

    schema           version of this format, and of the kernel that is fitted after training
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
      summary.diverged   number of runs that diverged: in the score that ranks the task each counts as the worst run
      summary.scores     {score: {iqm, median, low, high, method, floor}} over seeds: 95 % interval and how it was made
                         (from two runs on; "range of the runs" where no interval says anything), the score of exact
                         samples where there is one
      summary.best       the same of the best checkpoints; empty where runs.best is
      summary.normalised   {iqm, median, low, high, method} of normalised scores, or null
      summary.costs      {cost: mean over seeds}
      summary.command    the command that makes the row again
    runs             one entry per finished run
      runs.key           digest of all that defines the run, and the name of its file
      runs.code          digest of the source that its numbers depend on
      runs.label, runs.task, runs.agent, runs.budget, runs.unit, runs.fit, runs.particles      the row
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
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dxmi_rl.benchmark.attempt import Logging, Outcome, failed_before
from dxmi_rl.benchmark.pictures import draw_pictures
from dxmi_rl.benchmark.plan import Arguments, Plan, make_plan
from dxmi_rl.benchmark.report import write_report
from dxmi_rl.benchmark.results import assemble, failure, without_paths
from dxmi_rl.benchmark.sweep import execute_all, execute_on_ray, prepare, ray_cluster, tidy
from dxmi_rl.benchmark.tables import main_scores, print_tables, ranking_tables
from dxmi_rl.utils.progress import alive, progress_columns
from dxmi_rl.utils.settings import check_given_once
from dxmi_rl.utils.storage import JSON, write_atomically, write_json

HELP = """Compare agents on tasks over seeds, under equal budgets.

Tables, pictures, report.html and results.json go to runs/<name>/ in the present folder.

A finished run is never repeated: after a kill or Ctrl-C the same command goes on."""


def carry_out(plan: Plan, command: str) -> int:
    """Execute the missing runs, write results, tables, pictures and report; the exit status, 1 when a run failed.

    Ctrl-C ends the runs, and what is finished is written: 130.
    """
    outcomes: list[Outcome] = []
    stopped = False
    try:
        for outcome in _execute(plan):
            outcomes.append(outcome)
    except KeyboardInterrupt:
        stopped = True
        print("\nstopped; the same command goes on from here. Writing what is finished.", file=sys.stderr)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    folder, runs = plan.folder, plan.reported
    tidy(plan.results)
    seeds = sorted({run.seed for run in runs})
    rows = [
        replace(row, seeds=tuple(seed for seed in row.seeds if seed in seeds))
        for row in plan.rows
        if any(run.row == row for run in runs)
    ]
    results = [result for run in runs if (result := run.load(plan.results)) is not None]
    if stopped and not results:
        return 130
    header = {
        "name": plan.name,
        "preset": plan.arguments.preset,
        "command": command,
        "devices": list(plan.arguments.device),
        "seeds": seeds,
        "seconds": _seconds_spent(folder),
    }
    ended = {outcome.run.key for outcome in outcomes}
    before = failed_before([run for run in runs if run.key not in ended], plan.results)
    everything = assemble(
        rows, results, [failure(outcome) for outcome in (*failed, *before)], _unselected(plan, command), header
    )
    for file in filter(None, [folder / "results.json", plan.arguments.json]):
        write_json(file, without_paths(everything))
    write_atomically(folder / "curves.csv", lambda file: _write_curves(everything["runs"], file))
    draw_pictures(rows, runs, results, folder)
    write_report(everything, folder)
    print_tables(ranking_tables(everything))
    for outcome in [*failed, *before]:
        trace = outcome.run.failure_file(plan.results)
        print(f"FAILED {outcome.run.title}: {outcome.error}" + (f"\n       {trace}" if trace.exists() else ""))
    finished = sum(run.load(plan.results) is not None for run in plan.selected)
    print(f"{finished} of {len(plan.selected)} runs are finished, {len(failed)} failed; see {folder / 'report.html'}")
    return 130 if stopped else 1 if failed else 0


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
    words += ["--config", arguments.config] if arguments.config is not None else []
    words += ["--unit", arguments.unit] if arguments.unit is not None else []
    words += ["--device", *arguments.device] if arguments.device != ("cpu",) else []
    return shlex.join(words)


def _seconds_spent(folder: Path) -> float:
    """Wall-clock seconds of all calls that executed runs for this folder, up to the last run that each saw end."""
    try:
        seconds = float(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _write_curves(runs: Sequence[JSON], file: Path) -> None:
    """All learning curves, one point per line."""
    points = [{key: run[key] for key in ("task", "label", "seed")} | point for run in runs for point in run["curve"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for point in points for key in point)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    file.write_text(text.getvalue(), encoding="utf-8")


def _execute(plan: Plan) -> Iterator[Outcome]:
    """Execute the missing runs, with a line for each that ends."""
    if not plan.missing:
        return
    arguments = plan.arguments
    if arguments.ray is not None:
        stream = execute_on_ray(plan.missing, plan.results)
    else:
        logging = None
        if arguments.tensorboard or arguments.track:
            logging = Logging(plan.folder.absolute() / "logs", arguments.tensorboard, arguments.track)
        stream = execute_all(plan.missing, plan.results, plan.jobs, arguments.device, logging)
    print(
        "running: every run is trained and then scored; a line comes when it ends, with the seconds of both", flush=True
    )
    started, before = time.perf_counter(), _seconds_spent(plan.folder)
    titles = {run.key: run.title for run in plan.missing}

    def now() -> str:
        running = [titles[file.stem] for file in sorted(plan.results.glob("*.running")) if file.stem in titles]
        return f"running {'; '.join(running)}" if running else "running"

    with _progress(len(plan.missing)) as advance, alive(now):
        for number, outcome in enumerate(stream, 1):
            write_json(plan.folder / "seconds.json", before + time.perf_counter() - started)
            result = outcome.run.load(plan.results)
            text = f"FAILED: {outcome.error}" if outcome.error or result is None else main_scores(result)
            print(f"[{number}/{len(plan.missing)}] {outcome.run.title}: {text}", flush=True)
            advance()
            yield outcome


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar with the time left below the lines; nothing when standard error is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    # Lines go above the bar when both share the terminal, and stay in their file when they do not.
    console = Console(stderr=True)
    with Progress(*progress_columns(), console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("runs", total=total)
        yield lambda: bar.advance(task)


def check_writable(folder: Path) -> None:
    """Raises PermissionError where the folder, or the first of its parents that is there, takes no files."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"results would go to {folder}, and {there} cannot be written.")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; raises ValueError while another process does. Nothing on Windows."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:  # the lock goes with the process, however that ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process works on {folder}: wait for it, or give this one a --name.") from error
        yield


def compare(arguments: Arguments, command: str) -> int:
    """Compare. Exit status: 1 after failed runs, 2 for bad arguments, 130 after Ctrl-C."""
    try:
        with ExitStack() as stack:
            try:
                plan = make_plan(arguments)
                check_writable(plan.folder)
                if plan.missing:
                    if arguments.ray is not None:
                        stack.enter_context(ray_cluster(arguments.ray, plan.jobs))
                    print("preparing: denoisers, energies, floors, a look at every agent", flush=True)
                    with alive(lambda: "preparing"):
                        prepare(plan.missing, plan.jobs)  # so that bad settings end here, before anything is trained
                stack.enter_context(only_one(plan.folder))
                # Another process may have ended them meanwhile.
                plan.missing[:] = [run for run in plan.missing if run.load(plan.results) is None]
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
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=HELP, prog=Path(prog).name)
    words = sys.argv[1:] if argv is None else argv
    try:
        check_given_once(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return compare(arguments, shlex.join(["python", prog, *words]))
