"""Tables, report and picture of benchmarks/throughput/throughput.py."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.throughput.measure import Cell, Growth
from benchmarks.throughput.rows import BARE, COMPILED, GRAPH, MEMORY_ROWS, ROWS, TIME_ROWS
from dxmi_rl.benchmark.pictures import COLOURS, MARKERS
from dxmi_rl.benchmark.tables import Table, compact, number
from dxmi_rl.utils.storage import write_atomically

Verdict = dict[str, Any]
UNITS = {"time": (1e3, "ms"), "memory": (1e-6, "MB")}
"""Factor and unit that growth is printed in."""
ABSENT = "-"
STYLED = [row.label for row in (*ROWS, COMPILED, GRAPH) if row != BARE]
MORE_MARKERS = ["<", ">", "*", "p", "h", "d"]


# Tables ---------------------------------------------------------------------------------------------------------------


def cell_tables(title: str, clock: str, cells: Sequence[Cell], skipped: Sequence[dict[str, Any]]) -> list[Table]:
    """Microseconds per step with ratios to the bare step, and environment steps per second."""
    sizes = sorted({cell.n for cell in cells})
    labels = list(dict.fromkeys([cell.row for cell in cells] + [entry["row"] for entry in skipped]))
    found = {(cell.row, cell.n): cell for cell in cells}
    times, rates = [], []
    for label in labels:
        own = [found.get((label, n)) for n in sizes]
        times.append([label, *(text for cell in own for text in _time_cells(cell))])
        rates.append([label, *(ABSENT if cell is None else compact(cell.n / cell.minimum) for cell in own)])
    time_header = ["", *(text for n in sizes for text in (f"N = {n:,}\nmin (median)", "\nx bare"))]
    caption = (
        f"Microseconds ({clock}) per step of N environments, whole episodes with their resets: minimum (median) over "
        f"rounds; the ratio is of minima over the same rounds.{_excuses(skipped)}{_preparations(cells)}"
    )
    rate_caption = "Environment steps per second, from the minimum."
    return [
        Table(f"{title}: µs per step", time_header, times, len(time_header) - 1, caption),
        Table("environment steps per second", ["", *(f"N = {n:,}" for n in sizes)], rates, len(sizes), rate_caption),
    ]


def _time_cells(cell: Cell | None) -> tuple[str, str]:
    if cell is None:
        return ABSENT, ""
    low, middle = (
        f"{value:,.0f}" if value >= 1_000 else number(value) for value in (1e6 * cell.minimum, 1e6 * cell.median)
    )
    return f"{low} ({middle})", f"{cell.ratio:.2f}"


def _excuses(skipped: Sequence[dict[str, Any]]) -> str:
    reasons = dict.fromkeys((entry["row"], entry["reason"]) for entry in skipped)
    text = ""
    for row, reason in reasons:
        sizes = ", ".join(f"{entry['n']:,}" for entry in skipped if (entry["row"], entry["reason"]) == (row, reason))
        text += f" {row} is not measured at N = {sizes}: {reason}."
    return text


def _preparations(cells: Sequence[Cell]) -> str:
    text = ""
    for label in (COMPILED.label, GRAPH.label):
        own = [f"{cell.first:.1f} s at N = {cell.n:,}" for cell in cells if cell.row == label]
        text += f" First call of {label}: {', '.join(own)}." if own else ""
    return text


def growth_table(growth: Sequence[Growth]) -> Table:
    """Ends of every curve and its exponent."""
    body = []
    for entry in growth:
        factor, unit = UNITS[entry.quantity]
        low, high = (f"{number(factor * entry.measured[index])} {unit}" for index in (0, -1))
        ends = f"{entry.values[0]:,} .. {entry.values[-1]:,}"
        fitted = f"{entry.fit_from:,} .. {entry.values[-1]:,}"
        body.append([f"{entry.quantity}, {entry.row}", entry.variable, ends, low, high, _exponent(entry), fitted])
    header = ["", "against", "from .. to", "first", "last", "exponent", "fitted on"]
    caption = (
        "Whole episodes. The exponent p of c x^p is fitted by least squares in log-log on the range given. "
        f"Otherwise {_fixed(growth)}. Memory: most bytes of tensors alive at once."
    )
    return Table("growth of time and peak memory", header, body, len(header) - 1, caption)


def _exponent(entry: Growth) -> str:
    return f"{round(entry.exponent, 2) + 0:.2f}"  # + 0 makes -0.00 of a constant 0.00


def _fixed(growth: Sequence[Growth]) -> str:
    parts = dict.fromkeys((entry.variable, tuple(entry.fixed.items())) for entry in growth)
    return "; ".join(
        f"against {name}: {', '.join(f'{key} = {value:,}' for key, value in fixed)}" for name, fixed in parts
    )


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Every aim with what was measured."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    body = [
        [
            v["row"], f"{v['quantity']} {v['at']}".strip(), f"<= {v['bound']:g}",
            ABSENT if v["measured"] is None else f"{v['measured']:.4g}", words[v["passed"]],
        ]
        for v in verdicts
    ]  # fmt: skip
    caption = "The aims are for the default task on a CPU; a busy machine can miss them."
    return Table("aims", ["", "quantity", "aim", "measured", "verdict"], body, 4, caption)


def markdown(name: str, command: str, machine: str, tables: Sequence[Table], picture: str) -> str:
    """The report: command, machine, tables, picture."""
    lines = [f"# Throughput {name}", "", "```", command, "```", "", machine, ""]
    for table in tables:
        header = [cell.replace("\n", " ").strip() for cell in table.header]
        rows = [header, ["---", *["---:"] * (len(header) - 1)], *table.body]
        lines += [f"## {table.title}", "", *("| " + " | ".join(row) + " |" for row in rows), "", table.caption, ""]
    return "\n".join([*lines, f"![{picture}]({picture})", ""])


def interface_versions() -> dict[str, str]:
    """Versions of the packages behind the interfaces; one that is absent is left out."""
    found = {}
    for package in ("gymnasium", "stable-baselines3", "torchrl", "tensordict"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def where(everything: dict[str, Any]) -> str:
    """Machine, threads, load and versions in one line."""
    spec, load = everything["machine"], everything["load"]
    gpu = f", {spec['gpu']}" if spec["gpu"] else ""
    names = ", ".join(f"{key} {value}" for key, value in everything["versions"].items())
    return (
        f"{spec['processor']} ({spec['cores']} cores{gpu}), torch threads: {everything['threads']}, load average "
        f"{load[0]:.1f} before and {load[1]:.1f} after; {names}"
    )


# Picture --------------------------------------------------------------------------------------------------------------


def draw(title: str, cells: Sequence[Cell], growth: Sequence[Growth], file: Path) -> None:
    """Steps per second of every row, and below it the growth curves, all log-log."""
    lines = 1 + 2 * bool(growth)
    figure = Figure(figsize=(11, 4.2 if lines == 1 else 11.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(lines, 3, height_ratios=[1.25, 1, 1][:lines])
    ax = figure.add_subplot(grid[0, :])
    for label in dict.fromkeys(cell.row for cell in cells):
        own = [cell for cell in cells if cell.row == label]
        ax.plot([cell.n for cell in own], [cell.n / cell.minimum for cell in own], label=label, **_style(label))
    sizes = sorted({cell.n for cell in cells})
    _log_log(ax, sizes, "number of environments N", "environment steps per second")
    ax.set_xlim(right=sizes[-1] * max(10, sizes[-1] / sizes[0]) ** 0.35)  # room for the legend
    ax.legend(loc="center right", frameon=False, fontsize=9)
    for line, (quantity, rows) in enumerate((("time", TIME_ROWS), ("memory", MEMORY_ROWS)), 1):
        if growth:
            labels = [row.label for row in rows]
            for column, variable in enumerate(("N", "T", "d")):
                own_growth = [g for g in growth if (g.quantity, g.variable) == (quantity, variable) and g.row in labels]
                _draw_growth(figure.add_subplot(grid[line, column]), own_growth)
    FigureCanvasAgg(figure)
    write_atomically(file, lambda path: figure.savefig(path, format="png", dpi=110))


def _draw_growth(ax: Axes, growth: Sequence[Growth]) -> None:
    for entry in growth:
        factor, _ = UNITS[entry.quantity]
        label = f"{entry.row}: {_exponent(entry)}"
        ax.plot(entry.values, factor * np.array(entry.measured), label=label, **_style(entry.row))
    first = growth[0]
    unit = UNITS[first.quantity][1]
    label = f"time of an episode [{unit}]" if first.quantity == "time" else f"peak memory [{unit}]"
    _log_log(
        ax,
        first.values,
        f"{first.variable}   ({', '.join(f'{key} = {value:,}' for key, value in first.fixed.items())})",
        label,
    )
    ax.margins(y=0.08)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** (0.11 * len(growth)))  # room for the legend
    ax.legend(title=f"exponent, {first.variable} >= {first.fit_from:,}", title_fontsize=8, fontsize=8, frameon=False,
              loc="upper left")  # fmt: skip


def _style(label: str) -> dict[str, Any]:
    """A colour, marker and dashes that a row has in all panels; the bare step is black."""
    style: dict[str, Any] = {"linewidth": 1.5, "markersize": 5}
    if label == BARE.label:
        return style | {"color": "black", "marker": "X", "zorder": 3}
    second, index = divmod(STYLED.index(label), len(COLOURS))
    colour = COLOURS[(index + 3 * second) % len(COLOURS)]  # shifted, so that rows of one panel differ in colour
    return style | {"color": colour, "marker": [MARKERS, MORE_MARKERS][second][index], "linestyle": ["-", "--"][second]}


def _log_log(ax: Axes, values: Sequence[int], x: str, y: str) -> None:
    """Logarithmic axes with the measured values as ticks, every other one where they are many."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ticks = values if len(values) < 5 else values[::2]
    ax.set_xticks(ticks, [f"{value:,}" for value in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.3, linewidth=0.5)
