"""How often the intervals of dxmi_rl.benchmark.statistics cover what they are about, by simulation.

    python benchmarks/compare/interval_coverage.py --page docs/statistics.md

Every cell repeats an experiment with known scores: R runs on K tasks are drawn from a distribution, their interval is
computed, and it is counted whether it holds the true value. For the interquartile mean that is its value at infinitely
many runs; beside ``interval`` stands the percentile bootstrap (``bootstrap_interval``, rliable's) of the same scores.
For the probability of improvement the scores are normal, y's with another standard deviation in half of the cells.
With 2,000 repeats a coverage of 0.95 is measured to within 0.01 (two standard errors). These statistics are numpy, so
there is no ``--device``.

Keys of ``--json FILE``:

    command                       the command line
    seed                          seed of the scores and of the resampling
    repeats                       experiments per cell
    resamples                     bootstrap samples per interval
    level                         coverage aimed at
    seconds                       wall-clock seconds of this call
    versions                      versions of python, numpy and scipy
    interquartile_mean            one entry per cell
      .distribution               of the scores: a key of DISTRIBUTIONS
      .runs, .tasks               R and K
      .truth                      the value to be covered
      .method                     label of the interval
      .percentile, .interval      fraction of the intervals of either kind that hold the truth
      .width_ratio                mean width of ``interval`` over mean width of the percentile bootstrap
    probability_of_improvement    one entry per cell
      .probability                P(X > Y), on every task, or "mixed": the probabilities of PROBABILITIES in turn
      .spread                     standard deviation of y's scores; of x's it is 1
      .runs, .tasks               R, of either agent, and K
      .method                     label of the interval
      .interval                   fraction of the intervals that hold the truth
      .width                      their mean width
"""

from __future__ import annotations

import functools
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import scipy
import scipy.stats
from rich.console import Console
from rich.table import Table

from benchmarks.scripts import command_line
from dxmi_rl.benchmark.statistics import bootstrap_interval, interval, probability_of_improvement
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.storage import write_json, write_text

TASKS = (1, 4)
DISTRIBUTIONS = {
    "normal": ("normal, the same on every task", [scipy.stats.norm()]),
    "lognormal": ("lognormal, sigma = 0.5", [scipy.stats.lognorm(0.5)]),
    "beta": ("beta(8, 2), skewed to the left", [scipy.stats.beta(8, 2)]),
    "unequal tasks": (
        "normal, task means 0, 0.3, 0.6, 0.9, standard deviations 0.02, 0.05, 0.1, 0.2",
        [scipy.stats.norm(mean, scale) for mean, scale in ((0, 0.02), (0.3, 0.05), (0.6, 0.1), (0.9, 0.2))],
    ),
}
"""Name -> what it is, and the distribution of the scores of every task, or of all."""
PROBABILITIES = (0.5, 0.75, 0.9, 0.98)
SPREADS = (1.0, 3.0)
IMPROVEMENT_RUNS = (2, 3, 4, 5, 10, 20)
"""Those of --runs at which the probability of improvement is measured."""
START, END = "<!-- coverage: written by benchmarks/compare/interval_coverage.py -->", "<!-- end of coverage -->"
HELP = """How often the intervals of dxmi_rl.benchmark.statistics cover the true value, beside the percentile bootstrap.

By simulation, about ten minutes."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: int = 0
    """The seed (one): of the scores and of the resampling."""
    repeats: int = 2000
    """Simulated experiments per cell."""
    resamples: int = 1000
    """Bootstrap samples per interval."""
    runs: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50)
    """Numbers of runs per task."""
    json: Path | None = None
    """Write the results here."""
    page: Path | None = None
    """Rewrite the tables between the two marker comments of this page."""


LEVEL = 0.95


# The simulation -------------------------------------------------------------------------------------------------------


@functools.cache
def population_interquartile_mean(name: str) -> float:
    """Interquartile mean of infinitely many runs on every task, by 100,001 quantiles per task."""
    grid = (np.arange(100_001) + 0.5) / 100_001
    pooled = np.concatenate([distribution.ppf(grid) for distribution in DISTRIBUTIONS[name][1]])
    return float(scipy.stats.trim_mean(pooled, 0.25))


def draw(name: str, shape: tuple[int, int, int], generator: np.random.Generator) -> np.ndarray:
    """Scores ``[repeats, runs, tasks]``."""
    quantiles = generator.uniform(size=shape)
    own = DISTRIBUTIONS[name][1]
    return np.stack([own[task % len(own)].ppf(quantiles[..., task]) for task in range(shape[2])], axis=-1)


def cover_interquartile_mean(name: str, runs: int, tasks: int, arguments: Arguments) -> dict[str, Any]:
    """One cell of the first table."""
    truth = population_interquartile_mean(name)
    generator = np.random.default_rng([arguments.seeds, runs, tasks, [*DISTRIBUTIONS].index(name)])
    experiments = draw(name, (arguments.repeats, runs, tasks), generator)
    bounds, percentiles, method = [], [], ""
    for repeat, scores in enumerate(experiments):
        options: dict[str, Any] = {"level": LEVEL, "resamples": arguments.resamples, "seed": arguments.seeds + repeat}
        found = interval(scores, **options)
        assert found is not None  # there are at least two runs
        bounds.append(found[:2])
        method = found.method
        percentiles.append(bootstrap_interval(scores, **options))
    (covered, width), (percentile, percentile_width) = _coverage(bounds, truth), _coverage(percentiles, truth)
    return {
        "distribution": name, "runs": runs, "tasks": tasks, "truth": truth, "method": method,
        "percentile": percentile, "interval": covered, "width_ratio": width / percentile_width,
    }  # fmt: skip


def cover_improvement(
    probability: float | str, spread: float, runs: int, tasks: int, arguments: Arguments
) -> dict[str, Any]:
    """One cell of the second table."""
    per_task = np.resize(PROBABILITIES, tasks) if probability == "mixed" else np.full(tasks, float(probability))
    shift = scipy.stats.norm.ppf(per_task) * np.hypot(1, spread)
    generator = np.random.default_rng([arguments.seeds, runs, tasks, int(100 * per_task.sum()), int(spread)])
    shape = (arguments.repeats, runs, tasks)
    xs, ys = generator.normal(shift, 1, shape), generator.normal(0, spread, shape)
    bounds, method = [], ""
    for x, y in zip(xs, ys, strict=True):
        _, found = probability_of_improvement(x, y, level=LEVEL)
        assert found is not None  # there are at least two runs
        bounds.append(found[:2])
        method = found.method
    covered, width = _coverage(bounds, float(per_task.mean()))
    return {
        "probability": probability, "spread": spread, "runs": runs, "tasks": tasks, "method": method,
        "interval": covered, "width": width,
    }  # fmt: skip


def _coverage(bounds: Sequence[tuple[float, float]], truth: float) -> tuple[float, float]:
    """Fraction of the intervals that hold the truth, and their mean width."""
    low, high = np.array(bounds).T
    return float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean())


def simulate(arguments: Arguments) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All cells of both tables."""
    cells = [
        (name, runs, tasks)
        for name in DISTRIBUTIONS for tasks in TASKS for runs in arguments.runs
        if tasks >= len(DISTRIBUTIONS[name][1])
    ]  # fmt: skip
    means = [cover_interquartile_mean(*cell, arguments) for cell in track(cells, "interquartile mean")]
    alone: list[float | str] = [*PROBABILITIES]
    pairs = [
        (probability, spread, runs, tasks)
        for tasks in TASKS for spread in SPREADS for runs in arguments.runs if runs in IMPROVEMENT_RUNS
        for probability in (alone if tasks == 1 else [*alone, "mixed"])
    ]  # fmt: skip
    return means, [cover_improvement(*pair, arguments) for pair in track(pairs, "probability of improvement")]


# The tables -----------------------------------------------------------------------------------------------------------


def mean_table(entries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per distribution and number of tasks and runs."""
    header = ["distribution", "tasks", "runs", "percentile bootstrap", "interval", "width ratio"]
    return header, [
        [
            entry["distribution"], str(entry["tasks"]), str(entry["runs"]), f"{entry['percentile']:.3f}",
            f"{entry['interval']:.3f}", f"{entry['width_ratio']:.2f}",
        ]
        for entry in entries
    ]  # fmt: skip


def wide_table(entries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The same for the page: one row per number of runs, "percentile / interval (width ratio)" in every cell."""
    columns = list(dict.fromkeys((entry["distribution"], entry["tasks"]) for entry in entries))
    found = {(entry["distribution"], entry["tasks"], entry["runs"]): entry for entry in entries}
    header = ["runs", *(f"{name}, {tasks} task{'s' * (tasks > 1)}" for name, tasks in columns)]
    rows = []
    for runs in dict.fromkeys(entry["runs"] for entry in entries):
        own = [found[*column, runs] for column in columns]
        cells = [f"{e['percentile']:.3f} / **{e['interval']:.3f}** ({e['width_ratio']:.2f})" for e in own]
        rows.append([str(runs), *cells])
    return header, rows


def improvement_table(entries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: coverage, one column per probability."""
    columns = list(dict.fromkeys(entry["probability"] for entry in entries))
    found = {(e["tasks"], e["spread"], e["runs"], e["probability"]): e["interval"] for e in entries}
    header = ["tasks", "SD of y / SD of x", "runs", *(p if p == "mixed" else f"P = {p:g}" for p in columns)]
    rows = []
    for tasks, spread, runs in dict.fromkeys(key[:3] for key in found):
        values = [found.get((tasks, spread, runs, p)) for p in columns]
        rows.append([str(tasks), f"{spread:g}", str(runs), *("" if v is None else f"{v:.3f}" for v in values)])
    return header, rows


def markdown(everything: dict[str, Any]) -> str:
    """The text between the markers of the page."""
    parts = [
        f"Made in {everything['seconds']:.0f} s by `{everything['command']}`: {everything['repeats']:,} repeats per "
        f"cell, {everything['resamples']:,} bootstrap samples per interval. Figures near 0.95 are good to about "
        f"{1.96 * (0.05 * 0.95 / everything['repeats']) ** 0.5:.2f}.",
        "Interquartile mean: coverage of the percentile bootstrap / **of `interval`** (ratio of their mean widths).",
        *_lines(*wide_table(everything["interquartile_mean"])),
        "Scores: " + "; ".join(f"*{name}*: {text}" for name, (text, _) in DISTRIBUTIONS.items()) + ".",
        "Probability of improvement: coverage of the interval.",
        *_lines(*improvement_table(everything["probability_of_improvement"])),
    ]
    return "\n\n".join(parts)


def _lines(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["\n".join("| " + " | ".join(row) + " |" for row in [header, ["---:"] * len(header), *rows])]


def rewrite(page: str, text: str) -> str:
    """The page with ``text`` between its markers; raises ValueError when it does not have both, once, in order."""
    if page.count(START) != 1 or page.count(END) != 1 or page.index(START) > page.index(END):
        raise ValueError(f"page must hold the lines {START!r} and {END!r}, once and in this order.")
    return page[: page.index(START) + len(START)] + f"\n\n{text}\n\n" + page[page.index(END) :]


def print_table(title: str, header: list[str], rows: list[list[str]], console: Console) -> None:
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


# The command line -----------------------------------------------------------------------------------------------------


def check(arguments: Arguments) -> None:
    """Raises ValueError, TypeError or OSError for a command line that cannot be carried out."""
    check_integer("seeds", arguments.seeds, minimum=0)
    check_integer("repeats", arguments.repeats)
    check_integer("resamples", arguments.resamples, minimum=2)
    if not arguments.runs:
        raise ValueError("runs must be at least one number, got none.")
    for runs in arguments.runs:
        check_integer("runs", runs, minimum=2)
    if arguments.page is not None:
        rewrite(arguments.page.read_text(encoding="utf-8"), "")


def carry_out(arguments: Arguments, command: str) -> int:
    """Simulate, print, write."""
    started = time.perf_counter()
    means, improvements = simulate(arguments)
    everything = {
        "command": command,
        "seed": arguments.seeds,
        "repeats": arguments.repeats,
        "resamples": arguments.resamples,
        "level": LEVEL,
        "seconds": time.perf_counter() - started,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "interquartile_mean": means,
        "probability_of_improvement": improvements,
    }
    if arguments.json is not None:
        write_json(arguments.json, everything)
    if arguments.page is not None:
        page = rewrite(arguments.page.read_text(encoding="utf-8"), markdown(everything))
        write_text(arguments.page, page)
    console = Console()
    console.print(command, markup=False)
    print_table("coverage of intervals of the interquartile mean", *mean_table(means), console)
    print_table("coverage of intervals of the probability of improvement", *improvement_table(improvements), console)
    console.print(f"{everything['seconds']:.0f} s")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and simulate. Exit status: 2 for bad arguments, 130 after Ctrl-C."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=HELP)
    command = command_line(__file__, argv)
    try:
        try:
            check(arguments)
        except (ValueError, TypeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return carry_out(arguments, command)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
