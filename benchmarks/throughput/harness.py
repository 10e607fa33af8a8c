"""What the harness costs, and what more processes bring: the same sweep on one process, on several, and on Ray.

    python benchmarks/throughput/harness.py

A sweep of 40 short runs (8 agents' settings x 5 seeds on 8gaussians) is executed in one process, in ``--jobs``
processes, and on a local Ray cluster of as many workers; and once more by calling ``measure`` in this process, which is
the work without a harness. Keys of ``--json FILE``:

    command          the command line
    machine, versions      what it ran on
    runs, jobs       number of runs; processes
    direct           seconds of ``measure`` alone, in one process
    seconds          {"1": ..., "<jobs>": ..., "ray": ...}: wall-clock seconds of sweeps, with the start of the workers
    speedup          seconds of one process over those of several
    overhead         seconds per run that one process spends beyond ``measure``
    identical        whether all sweeps gave the same numbers
    aims             {aim: [measured, bound, passed]}
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.scripts import command_line, header
from dxmi_rl.benchmark.measure import measure
from dxmi_rl.benchmark.protocol import Row, Run, Sizes, make_runs
from dxmi_rl.benchmark.sweep import execute_all, execute_on_ray, one_thread, prepare, ray_cluster
from dxmi_rl.utils.checks import check_integer, require
from dxmi_rl.utils.storage import write_json

SIZES = Sizes(samples=2_000, draws=1, trajectories=5_000, fit=False, curve_points=5, kept=500)
LONG_RUN = 20.0
"""Seconds of the run that the overhead is compared with."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of every row."""
    budget: int = 40_000
    """Environment transitions per run."""
    jobs: int = 2
    """Processes."""
    device: str = "cpu"
    """Torch device."""
    ray: bool = True
    """Also run on a local Ray cluster (extra "ray")."""
    json: Path | None = None
    """File for the results."""


def short_runs(arguments: Arguments) -> list[Run]:
    """Eight rows with every seed."""
    rows = [
        Row(f"{agent}, {n} at a time", "8gaussians", agent, arguments.budget, agent_settings={"n_trajectories": n})
        for agent in ("ppo", "dxdp")
        for n in (64, 96, 128, 192)
    ]
    return make_runs(rows, arguments.seeds, arguments.device, SIZES)


def timed_sweep(execute: Callable[[Path], Any]) -> tuple[float, list[Any]]:
    """Seconds of a sweep into a fresh folder, and its numbers without what a clock measured."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        failed = [outcome for outcome in execute(Path(folder)) if outcome.error]
        seconds = time.perf_counter() - started
        if failed:
            raise RuntimeError(f"{len(failed)} runs failed, the first with {failed[0].error}")
        results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))]
    return seconds, [[result["key"], result["scores"], result["best"], result["paths"]] for result in results]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit status 1 when an aim is missed, 2 for bad arguments."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("jobs", arguments.jobs, minimum=2)
        check_integer("budget", arguments.budget)
        runs = short_runs(arguments)
        if arguments.ray:
            require("ray", "ray")
    except (ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    prepare(runs, 1)
    with one_thread():
        measure(runs[0])  # imports and first calls
        started = time.perf_counter()
        for run in runs:
            measure(run)
        direct = time.perf_counter() - started
    print(f"{len(runs)} runs, measure alone: {direct:.1f} s", flush=True)
    seconds, numbers = {}, []
    for name, jobs in (("1", 1), (str(arguments.jobs), arguments.jobs)):
        seconds[name], found = timed_sweep(lambda folder, jobs=jobs: execute_all(runs, folder, jobs))
        numbers.append(found)
        print(f"{name} process{'es' * (jobs > 1)}: {seconds[name]:.1f} s", flush=True)
    if arguments.ray:
        with ray_cluster("local", arguments.jobs):
            seconds["ray"], found = timed_sweep(lambda folder: execute_on_ray(runs, folder))
        numbers.append(found)
        print(f"Ray, {arguments.jobs} workers: {seconds['ray']:.1f} s", flush=True)
    speedup = seconds["1"] / seconds[str(arguments.jobs)]
    overhead = (seconds["1"] - direct) / len(runs)
    identical = all(found == numbers[0] for found in numbers)
    aims = {
        "speed-up on two processes": [speedup, 1.8, speedup >= 1.8 or arguments.jobs != 2],
        f"overhead per run, of a {LONG_RUN:.0f}-second run": [overhead / LONG_RUN, 0.02, overhead < 0.02 * LONG_RUN],
        "the same numbers everywhere": [float(identical), 1.0, identical],
    }
    for aim, (measured, bound, passed) in aims.items():
        print(f"{aim}: {measured:.3f} (aim {bound:g}) {'passed' if passed else 'MISSED'}")
    if arguments.json is not None:
        results = {
            "runs": len(runs), "jobs": arguments.jobs, "direct": direct, "seconds": seconds, "speedup": speedup,
            "overhead": overhead, "identical": identical, "aims": aims,
        }  # fmt: skip
        write_json(arguments.json, header(command_line(__file__, argv), arguments.device) | results)
    return 0 if all(passed for _, _, passed in aims.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
