"""Environment steps per second through every interface, against the bare arithmetic of ``mdp.step``; growth; aims.

    python benchmarks/throughput/throughput.py

Every row runs whole episodes, resets included, and draws its actions by the same call as the others, so that ratios to
the bare loop over ``mdp.step`` are of equal work. All rows are timed in turn, round after round, in one process:
what disturbs the machine meets them alike, and the minima over the same rounds make the ratios. Time and peak memory
are also measured against N, T and d, with fitted exponents. Results go to ``runs/<name>/``: ``report.md`` (tables),
``throughput.png``, ``results.json``.

Keys of ``results.json`` (also written to ``--json FILE``):

    name             name of the results
    command          the command line
    task, horizon    the task and its number of steps T
    device           torch device
    threads          threads of torch on the CPU
    clock            "CPU time" (one thread on a CPU) or "wall clock": what all times but ``seconds`` are read from
    seeds            list of seeds; each is an independent repeat of all timings
    seconds          wall-clock seconds of this call
    load             load average of the machine (1 minute) before and after
    versions         versions of what was measured
    machine          where it ran
    cells            one entry per row and N
      cells.row, cells.n                which
      cells.rounds                      rounds it was timed in, over all seeds
      cells.min_us, cells.median_us     microseconds per step of N environments, over the rounds
      cells.ratio                       min_us over that of the bare step in the same rounds
      cells.excess_us                   min_us minus that of the bare step in the same rounds
      cells.steps_per_second            environment steps per second: N / min_us
      cells.seed_min_us                 min_us of every seed
      cells.first_call_seconds          seconds of the first episode: compiling and capturing show here
    skipped          one entry per row and N that is not measured
      skipped.row, skipped.n            which
      skipped.reason                    why
    growth           one entry per curve
      growth.quantity                   "time" (seconds, minimum over rounds) or "memory" (bytes)
      growth.row                        which row
      growth.variable                   what it is measured against: N, T or d
      growth.fixed                      the other two
      growth.values, growth.measured    the curve, of whole episodes
      growth.exponent                   p of c x^p, least squares in log-log
      growth.fit_from                   smallest value of the variable that is part of the fit
    aims             one entry per aim, row and place
      aims.row, aims.quantity, aims.at  what is bounded and where
      aims.bound                        the aim, an upper bound
      aims.measured                     the value, or null when it was not measured
      aims.passed                       true, false, or null when it was not measured
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler prints a line at every start and stop

import torch

from benchmarks.scripts import command_line, header
from benchmarks.throughput.measure import Cell, Growth, Sweep, clock, measure_cells, measure_growth
from benchmarks.throughput.report import (
    Verdict,
    cell_tables,
    draw,
    growth_table,
    interface_versions,
    markdown,
    verdict_table,
    where,
)  # fmt: skip
from benchmarks.throughput.rows import (
    COMPILED,
    GRAPH,
    REWARDS,
    ROLLOUT,
    ROWS,
    SAMPLE,
    SB3,
    SB3_READ,
    SCALAR,
    TIME_ROWS,
    TORCHRL_ROLLOUT,
    TORCHRL_STEP,
    VECTOR,
    Row,
    mixture,
)  # fmt: skip
from dxmi_rl import make_task
from dxmi_rl.benchmark.tables import Table, print_tables
from dxmi_rl.tasks import TASKS, Task
from dxmi_rl.utils.checks import MissingExtraError, check_integer, check_real, require
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.storage import write_json, write_text

# What is measured -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """Sizes of a run."""

    sizes: tuple[int, ...]
    rounds: int
    """Many short rounds: some of them meet the machine undisturbed."""
    sweeps: tuple[Sweep, ...]


CPU = Preset(
    (1, 64, 1_024, 16_384),
    100,
    (
        Sweep("N", (16_384, 32_768, 65_536, 131_072, 262_144), fit_from=16_384),
        Sweep("T", (1, 2, 4, 8, 16, 32, 64), fit_from=8),
        Sweep("d", (2, 8, 32, 128, 512), fit_from=32),
    ),
)
CUDA = Preset(
    (*CPU.sizes, 262_144),
    100,
    (
        Sweep("N", (16_384, 65_536, 262_144, 1_048_576), fit_from=262_144),
        Sweep("T", CPU.sweeps[1].values, fit_from=8, n=16_384),
        Sweep("d", CPU.sweeps[2].values, fit_from=32, n=16_384),
    ),
)
QUICK = Preset(
    (1, 16),
    3,
    (
        Sweep("N", (64, 128), fit_from=64),
        Sweep("T", (1, 2, 4), fit_from=2, n=16),
        Sweep("d", (2, 4), fit_from=2, n=16),
    ),
)


@dataclass(frozen=True)
class Aim:
    """An upper bound on one row."""

    row: Row
    quantity: str
    """"ratio" (to bare), "excess" (microseconds above bare), "time exponent" or "memory growth" (last over first)."""
    bound: float
    low: int = 1
    """Smallest N it is for; for memory growth, the T that counts as the first."""
    high: float = math.inf
    """Largest N."""
    variable: str = "N"


AIMS = (
    Aim(VECTOR, "ratio", 1.3, low=1_024),
    Aim(ROLLOUT, "ratio", 1.1),
    Aim(REWARDS, "ratio", 1.1),
    Aim(TORCHRL_STEP, "excess", 120, high=1_024),
    Aim(TORCHRL_STEP, "ratio", 1.3, low=16_384, high=16_384),
    Aim(SB3, "ratio", 4, low=16_384, high=16_384),
    Aim(SCALAR, "ratio", 3, high=1),
    Aim(SAMPLE, "memory growth", 1.001, low=2, variable="T"),
    *(Aim(row, "time exponent", 1.1, variable=variable) for variable in ("N", "T") for row in TIME_ROWS),
)
"""What issue 3 asks for, on the default task and a CPU; mdp.rollout also with rewards, which the bare step computes."""


def check_aims(cells: Sequence[Cell], growth: Sequence[Growth]) -> list[Verdict]:
    """One entry per aim and place where it applies; ``passed`` is None where it was not measured."""
    verdicts: list[Verdict] = []
    for aim in AIMS:
        nowhere = f"in {aim.variable}" if " " in aim.quantity else ""
        places: list[tuple[str, float | None]] = [*_measured(aim, cells, growth)]
        for at, measured in places or [(nowhere, None)]:
            passed = None if measured is None else measured <= aim.bound
            verdicts.append({
                "row": aim.row.label, "quantity": aim.quantity, "at": at, "bound": aim.bound, "measured": measured,
                "passed": passed,
            })  # fmt: skip
    return verdicts


def _measured(aim: Aim, cells: Sequence[Cell], growth: Sequence[Growth]) -> Iterator[tuple[str, float]]:
    for cell in cells:
        if cell.row == aim.row.label and aim.low <= cell.n <= aim.high:
            if aim.quantity == "ratio":
                yield f"to bare, N = {cell.n:,}", cell.ratio
            elif aim.quantity == "excess":
                yield f"over bare [µs], N = {cell.n:,}", 1e6 * cell.excess
    kind, _, what = aim.quantity.partition(" ")
    for entry in growth:
        if (entry.row, entry.variable, entry.quantity) == (aim.row.label, aim.variable, kind):
            if what == "exponent":
                yield f"in {aim.variable}, {entry.fit_from:,} .. {entry.values[-1]:,}", entry.exponent
            else:
                first = next(value for x, value in zip(entry.values, entry.measured, strict=True) if x >= aim.low)
                yield f"from {aim.variable} = {aim.low} to {entry.values[-1]:,}", entry.measured[-1] / first


HELP = """Environment steps per second through every interface, growth of time and memory, and the aims.

Tables, picture and results.json go to runs/<name>/ in the present folder. About three minutes."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    task: str = "8gaussians"
    """Name of the task."""
    name: str = "throughput"
    """Results go to runs/<name>/."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noise; every seed repeats all timings."""
    device: str = "cpu"
    """Torch device."""
    sizes: tuple[int, ...] = ()
    """Numbers of environments N; by default 1, 64, 1024, 16384, on CUDA also 262144."""
    seconds: float = 1.0
    """Timing budget of one row at one N, per seed."""
    threads: int = 1
    """Threads of torch on the CPU."""
    compile: bool = False
    """Also time the compiled mdp.rollout on a CPU (tens of seconds of compiling for every N)."""
    growth: bool = True
    """Measure time and memory against N, T and d."""
    quick: bool = False
    """A few seconds, at tiny sizes: to see that everything runs."""
    json: Path | None = None
    """Another place for a copy of results.json."""


# The measurement ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A checked command line."""

    arguments: Arguments
    task: Task
    preset: Preset
    rows: tuple[Row, ...]
    seconds: float

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path("runs") / self.arguments.name

    @property
    def title(self) -> str:
        """For tables and pictures."""
        return f"{self.task.name}, T = {self.task.mdp.horizon}, {self.task.device}"


def make_plan(arguments: Arguments) -> Plan:
    """Check the whole command line and build the task; raises ValueError, TypeError or ImportError for a bad one."""
    name = arguments.name
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a plain folder name, got {name!r}.")
    seeds = [check_integer("seed", seed, minimum=0) for seed in arguments.seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be distinct and at least one, got {seeds}.")
    check_integer("threads", arguments.threads)
    seconds = check_real("seconds", arguments.seconds, strict=True)
    if TASKS[arguments.task].reward is None:  # asked before its denoiser is trained
        raise ValueError(f"task {arguments.task!r} has no energy and so no reward: name a task that has one.")
    task = make_task(arguments.task, device=arguments.device)
    cuda = task.device.type == "cuda"
    preset = QUICK if arguments.quick else CUDA if cuda else CPU
    sizes = tuple(sorted({check_integer("size", n) for n in arguments.sizes})) or preset.sizes
    rows = ROWS + ((COMPILED,) if cuda or arguments.compile else ()) + ((GRAPH,) if cuda else ())
    preset = Preset(sizes, preset.rounds, preset.sweeps if arguments.growth else ())
    return Plan(arguments, task, preset, rows, min(seconds, 0.02) if arguments.quick else seconds)


def measure(plan: Plan) -> tuple[list[Cell], list[dict[str, Any]], list[Growth]]:
    """All cells, what is skipped and why, and the growth curves."""
    preset, seeds = plan.preset, plan.arguments.seeds
    missing = _missing_extras()
    cells: list[Cell] = []
    skipped: list[dict[str, Any]] = []
    growth: list[Growth] = []
    for n in track(preset.sizes, "N"):
        rows = []
        for row in plan.rows:
            too_large = row.largest is not None and n > row.largest
            reason = missing.get(row) or (row.excuse if too_large else None)
            if reason:
                skipped.append({"row": row.label, "n": n, "reason": reason})
            else:
                rows.append(row)
        cells += measure_cells(rows, plan.task, n, seeds, plan.seconds, preset.rounds)
    for sweep in track(preset.sweeps, "growth"):
        tasks = {value: _task_at(plan, sweep, value) for value in sweep.values}
        growth += measure_growth(sweep, tasks, seeds, plan.seconds, preset.rounds)
    return cells, skipped, growth


def _task_at(plan: Plan, sweep: Sweep, value: int) -> Task:
    if sweep.variable == "N":
        return plan.task
    if sweep.variable == "T":
        return make_task(plan.arguments.task, device=plan.arguments.device, horizon=value)
    return make_task(mixture(value), device=plan.arguments.device)


def _missing_extras() -> dict[Row, str]:
    """Rows whose package is not installed."""
    missing: dict[Row, str] = {}
    for rows, module, extra in (
        ((SB3, SB3_READ), "stable_baselines3", "sb3"),
        ((TORCHRL_STEP, TORCHRL_ROLLOUT), "torchrl", "torchrl"),
    ):
        try:
            require(module, extra)
        except MissingExtraError as error:
            missing |= dict.fromkeys(rows, str(error).rstrip("."))
    return missing


def carry_out(plan: Plan, command: str) -> int:
    """Measure, write everything, print the tables; always 0: a missed aim is a finding, not an error."""
    started, load = time.perf_counter(), os.getloadavg()[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.arguments.threads)
    try:
        clock_name, _ = clock(plan.task.device)
        with torch.no_grad():
            cells, skipped, growth = measure(plan)
    finally:
        torch.set_num_threads(threads)
    verdicts = check_aims(cells, growth)
    own = header(command, plan.arguments.device)
    own["versions"] |= interface_versions()
    everything = {
        "name": plan.arguments.name,
        **own,
        "task": plan.task.name,
        "horizon": plan.task.mdp.horizon,
        "device": str(plan.task.device),
        "threads": plan.arguments.threads,
        "clock": clock_name,
        "seeds": list(plan.arguments.seeds),
        "seconds": time.perf_counter() - started,
        "load": [load, os.getloadavg()[0]],
        "cells": [cell.entry() for cell in cells],
        "skipped": skipped,
        "growth": [entry.entry() for entry in growth],
        "aims": verdicts,
    }
    for file in filter(None, [plan.folder / "results.json", plan.arguments.json]):
        write_json(file, everything)
    draw(plan.title, cells, growth, plan.folder / "throughput.png")
    tables = cell_tables(plan.title, clock_name, cells, skipped)
    tables += [growth_table(growth)] if growth else []
    tables.append(verdict_table(verdicts))
    _write_report(plan, command, where(everything), tables)
    print(f"{command}\n{where(everything)}\n")
    print_tables(tables)
    print(f"{everything['seconds']:.0f} s; see {plan.folder / 'report.md'}")
    return 0


def _write_report(plan: Plan, command: str, where: str, tables: list[Table]) -> None:
    report = markdown(plan.arguments.name, command, where, tables, "throughput.png")
    write_text(plan.folder / "report.md", report)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and measure. Exit status: 2 for bad arguments, 130 after Ctrl-C."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=HELP)
    command = command_line(__file__, argv)
    try:
        try:
            plan = make_plan(arguments)
        except (ValueError, TypeError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return carry_out(plan, command)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
