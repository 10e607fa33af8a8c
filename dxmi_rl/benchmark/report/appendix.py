"""The page's last sections: performance profiles, probabilities of improvement, settings and commands."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable

from dxmi_rl.benchmark.report.aggregates import Improvements, improvements
from dxmi_rl.benchmark.report.charts import Style, profile_charts
from dxmi_rl.benchmark.report.content import Comparison
from dxmi_rl.benchmark.report.formatting import MISSING, show, show_range
from dxmi_rl.benchmark.report.markup import Cell, Column, Row, agent, command, escape, legend, plain, table
from dxmi_rl.benchmark.tables import compact
from dxmi_rl.utils.storage import JSON

# Profiles and improvements --------------------------------------------------------------------------------------------


WIDE = 6
"""Matrices of more agents get a line of their own."""


def profiles_section(comparison: Comparison, styles: dict[str, Style]) -> str:
    """Performance profiles, track by track."""
    parts = []
    for aggregate in comparison.aggregates:
        if aggregate.scores:
            figures = "".join(f"<figure>{chart}</figure>" for _, chart in profile_charts(aggregate, styles))
            labels = legend(list(aggregate.scores), styles)
            parts.append(f'<h3>Track {escape(aggregate.track)}</h3>{labels}<div class="charts">{figures}</div>')
    return "\n".join(parts) or '<p class="note">No normalised scores.</p>'


def improvements_section(comparison: Comparison) -> str:
    """Matrices of the probability of improvement: over all tasks of a track, and task by task."""
    parts = []
    for aggregate in comparison.aggregates:
        if len(aggregate.scores) > 1 and len(aggregate.tasks) > 1:
            title = f"Over all tasks of track {aggregate.track} ({', '.join(aggregate.tasks)}), normalised scores"
            parts.append(_matrix(title, list(aggregate.scores), improvements(aggregate.scores)))
    for task, entry in comparison.tasks.items():
        found = comparison.improvements(task)
        if found:
            labels = [line.label for line in comparison.lines(task) if any(line.label == key[0] for key in found)]
            parts.append(_matrix(f"{task}, {entry['score']}", labels, found))
    return "\n".join(parts) or '<p class="note">It takes two agents on a task.</p>'


def _matrix(title: str, labels: list[str], found: Improvements) -> str:
    columns = [Column("row beats …", numeric=False), *(Column(label) for label in labels)]
    rows: list[Row] = []
    for first in labels:
        cells = [plain(first)]
        for second in labels:
            if (first, second) not in found:
                cells.append(Cell("·"))
                continue
            value, bounds = found[first, second]
            clear = bounds is not None and (bounds[0] > 0.5 or bounds[1] < 0.5)
            text = f"<strong>{value:.2f}</strong>" if clear else f"{value:.2f}"
            text += f"<small>{escape(show_range(*(round(x, 2) for x in bounds)))}</small>" if bounds else ""
            sign = "plus" if value > 0.5 else "minus"
            attributes = f' data-sign="{sign}" style="--strength: {abs(value - 0.5) * (80 if clear else 40):.0f}%"'
            cells.append(Cell(text, value, attributes))
        rows.append((cells, {}))
    return table(columns, rows, escape(title), kind="matrix wide" if len(labels) > WIDE else "matrix")


# Settings -------------------------------------------------------------------------------------------------------------


def settings_table(comparison: Comparison, styles: dict[str, Style]) -> str:
    """What defines every row."""
    names = ("agent", "task", "algorithm", "runs", "budget", "task settings", "agent settings", "command")
    columns = [Column(name, numeric=name in ("runs", "budget")) for name in names]
    rows: list[Row] = []
    for entry in comparison.summary:
        runs = comparison.runs_of(entry["task"], entry["label"])
        settings = [_settings(runs[0][key]) if runs else MISSING for key in ("task_settings", "agent_settings")]
        budget = f"{show(entry['budget'], compact)} {entry['unit']}" if entry["budget"] else MISSING
        cells = [Cell(agent(entry["label"], styles)), plain(entry["task"]), plain(entry["agent"]),
                 plain(entry["runs"]), plain(budget), *map(Cell, settings),
                 Cell(command(entry["command"]))]  # fmt: skip
        rows.append((cells, {}))
    return table(columns, rows, "Settings of every row that differ from the defaults.", kind="settings")


def _settings(settings: JSON) -> str:
    text = json.dumps(settings, ensure_ascii=False)
    return f"<code>{escape(text)}</code>" if settings else "defaults"


def runs_table(comparison: Comparison) -> str:
    """Every finished run with its command."""
    columns = [Column("agent", numeric=False), Column("task", numeric=False), Column("seed"), Column("score"),
               Column("normalised"), Column("seconds"), Column("key", numeric=False),
               Column("command", numeric=False)]  # fmt: skip
    rows: list[Row] = []
    for run in comparison.runs:
        score = comparison.tasks[run["task"]]["score"]
        value = run["scores"].get(score)
        seconds = run["costs"].get("seconds")
        cells = [plain(run["label"], run["label"]), plain(run["task"], run["task"]), plain(run["seed"], run["seed"]),
                 plain(f"{score} {show(value)}".strip(), _finite(value)),
                 plain(show(run["normalised"]), _finite(run["normalised"])),
                 plain(show(seconds), seconds), Cell(f"<code>{escape(str(run['key']))}</code>"),
                 Cell(command(run["command"]))]  # fmt: skip
        rows.append((cells, {}))
    return table(columns, rows, f"All {len(rows)} finished runs.", sortable=True, kind="runs")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def machines_list(comparison: Comparison) -> str:
    """Machines and versions that made the runs."""
    items = [*counted(comparison, machine), *counted(comparison, versions)]
    codes: dict[tuple[str, str], set[str]] = {}
    for run in comparison.runs:
        codes.setdefault((run["task"], run["label"]), set()).add(str(run.get("code")))
    mixed = [f"{label} on {task}" for (task, label), found in codes.items() if len(found) > 1]
    if mixed:
        items.append(f"Runs of one row come from different source code: {', '.join(mixed)}.")
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def counted(comparison: Comparison, text: Callable[[JSON], str]) -> list[str]:
    """What runs have in common, with the number of runs where there are several kinds."""
    counts = Counter(text(run) for run in comparison.runs)
    if len(counts) == 1:
        return list(counts)
    return [f"{name} ({number} runs)" for name, number in counts.most_common()] or [MISSING]


def machine(run: JSON) -> str:
    """Where a run was made."""
    machine = run["machine"]
    parts = [machine.get("processor"), f"{machine.get('cores')} cores", machine.get("gpu"), machine.get("system")]
    return ", ".join(str(part) for part in parts if part)


def versions(run: JSON) -> str:
    """The versions that made a run."""
    return ", ".join(f"{key} {value}" for key, value in run["versions"].items())
