"""Meters of benchmarks/throughput/throughput.py: times side by side, bytes that torch allocates, growth exponents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks.throughput.rows import BARE, MEMORY_ROWS, TIME_ROWS, Episodes, Row
from dxmi_rl.tasks import Task

MIN_ROUNDS = 3
"""A slow row takes part in as many rounds at least, whatever the budget."""

Key = TypeVar("Key", bound=Hashable)


# Time -----------------------------------------------------------------------------------------------------------------


def clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """What seconds are read from, and its name.

    On a CPU with one thread, the CPU time of that thread: what other processes take away does not count, and on an
    idle machine it is the wall clock. Work on several threads or another device is timed by the wall clock.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "CPU time", time.thread_time
    return "wall clock", time.perf_counter


def timed(call: Episodes, repeats: int, device: torch.device) -> float:
    """Seconds per call, over ``repeats`` calls and with the device's work done."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    _, now = clock(device)
    synchronize(device)
    started = now()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (now() - started) / repeats


def time_interleaved(
    calls: Mapping[Key, Episodes], seconds: float, rounds: int, device: torch.device
) -> dict[Key, list[float]]:
    """Seconds per call, one number for every round that a call took part in; each has been called before.

    In a round every call is repeated for about ``seconds / rounds``, one after the other, so that what else happens on
    the machine meets all of them alike. A call that is slow for that takes part in the first rounds only, as many as
    its ``seconds`` allow and MIN_ROUNDS at least.
    """
    repeats, limits = {}, {}
    for key, call in calls.items():
        once = max(timed(call, 1, device), 1e-6)  # a clock may stand still
        repeats[key] = max(1, int(seconds / rounds / once))
        limits[key] = min(rounds, max(MIN_ROUNDS, int(seconds / (repeats[key] * once))))
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for index in range(rounds):
        for key, call in calls.items():
            if index < limits[key]:
                times[key].append(timed(call, repeats[key], device))
    return times


@dataclass
class Cell:
    """Times of one row at one N, seconds per step of N environments, and the bare ones of the same rounds."""

    row: str
    n: int
    first: float
    """Seconds of the first call: of building caches, compiling, capturing."""
    times: list[float]
    bare: list[float]
    seed_minima: list[float]
    """The minimum for each seed."""

    @property
    def minimum(self) -> float:
        """Seconds per step in the best round."""
        return min(self.times)

    @property
    def median(self) -> float:
        """Seconds per step in the middle of the rounds."""
        return float(np.median(self.times))

    @property
    def ratio(self) -> float:
        """Minimum over that of the bare step in the same rounds."""
        return self.minimum / min(self.bare)

    @property
    def excess(self) -> float:
        """Seconds per step beyond the bare one's, of the same rounds."""
        return self.minimum - min(self.bare)

    def entry(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "row": self.row,
            "n": self.n,
            "rounds": len(self.times),
            "min_us": 1e6 * self.minimum,
            "median_us": 1e6 * self.median,
            "ratio": self.ratio,
            "excess_us": 1e6 * self.excess,
            "steps_per_second": self.n / self.minimum,
            "seed_min_us": [1e6 * value for value in self.seed_minima],
            "first_call_seconds": self.first,
        }


def measure_cells(
    rows: Sequence[Row], task: Task, n: int, seeds: Sequence[int], seconds: float, rounds: int
) -> list[Cell]:
    """All rows at one N, interleaved; the seeds one after the other, each with environments of its own."""
    horizon, cells = task.mdp.horizon, dict[str, Cell]()
    for seed in seeds:
        calls = {row.label: row.build(task, n, seed) for row in (BARE, *(row for row in rows if row != BARE))}
        firsts = {label: timed(call, 1, task.device) for label, call in calls.items()}
        times = time_interleaved(calls, seconds, rounds, task.device)
        for label, own in times.items():
            steps = [value / horizon for value in own]
            cell = cells.setdefault(label, Cell(label, n, firsts[label], [], [], []))
            cell.times += steps
            cell.bare += [value / horizon for value in times[BARE.label][: len(own)]]
            cell.seed_minima.append(min(steps))
    return list(cells.values())


# Memory ---------------------------------------------------------------------------------------------------------------


def peak_bytes(call: Episodes, device: torch.device) -> int:
    """The most bytes of tensors that ``call`` had alive at once, results and temporaries, beyond those before it.

    On the CPU these are the allocations and releases that torch's profiler records, added up in order: exact to the
    byte and the same in every run, which the resident size of a process is not. On CUDA it is the peak of torch's
    caching allocator. Memory that torch does not allocate (numpy, Python objects) is not counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = call()
    del result
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    alive = np.cumsum([0] + [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(alive.max())


# Growth ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """Time or memory of whole episodes against one variable, the others fixed."""

    quantity: str
    """"time" [s] or "memory" [bytes]."""
    row: str
    variable: str
    """"N", "T" or "d"."""
    fixed: dict[str, int]
    values: tuple[int, ...]
    measured: tuple[float, ...]
    fit_from: int

    @property
    def exponent(self) -> float:
        """Fitted over the values from ``fit_from`` on."""
        return fit_exponent(self.values, self.measured, self.fit_from)

    def entry(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self) | {"exponent": self.exponent}


def fit_exponent(x: Sequence[float], y: Sequence[float], start: float = 0.0) -> float:
    """The p of y = c x^p by least squares of log y on log x, over the points with x >= start.

    Raises ValueError for fewer than two such points or numbers that are not positive.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if a >= start]
    if len(points) < 2:
        raise ValueError(f"an exponent needs two points with x >= {start:g}, got {len(points)} of {list(x)}.")
    if not all(a > 0 and b > 0 and math.isfinite(a * b) for a, b in points):
        raise ValueError(f"an exponent needs positive finite numbers, got {points}.")
    logs = np.log(np.array(points))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


@dataclass(frozen=True)
class Sweep:
    """A variable, its values, and from which value on the exponent is fitted, where fixed costs no longer show."""

    variable: str
    values: tuple[int, ...]
    fit_from: int
    n: int = 1_024
    """N, unless it is the variable."""


def measure_growth(
    sweep: Sweep, tasks: Mapping[int, Task], seeds: Sequence[int], seconds: float, rounds: int
) -> list[Growth]:
    """Time (the minimum over all rounds) and peak memory at the values of one sweep, each with its task.

    The calls of all values are interleaved.
    """
    device = tasks[sweep.values[0]].device
    sizes = {value: value if sweep.variable == "N" else sweep.n for value in sweep.values}
    best: dict[tuple[str, int], float] = {}
    peaks: dict[tuple[str, int], int] = {}
    for seed in seeds:
        calls = {
            (row.label, value): row.build(tasks[value], sizes[value], seed)
            for row in TIME_ROWS
            for value in sweep.values
        }
        for call in calls.values():
            call()
        for row in MEMORY_ROWS:
            for value in sweep.values:
                peaks[row.label, value] = peak_bytes(calls[row.label, value], device)
        for key, times in time_interleaved(calls, seconds, rounds, device).items():
            best[key] = min(times + ([best[key]] if key in best else []))
    mdp = tasks[sweep.values[0]].mdp
    fixed = {"N": sweep.n, "T": mdp.horizon, "d": mdp.dim}
    del fixed[sweep.variable]
    return [
        Growth(quantity, row.label, sweep.variable, fixed, sweep.values,
               tuple(measured[row.label, value] for value in sweep.values), sweep.fit_from)
        for quantity, rows, measured in (("time", TIME_ROWS, best), ("memory", MEMORY_ROWS, peaks))
        for row in rows
    ]  # fmt: skip
