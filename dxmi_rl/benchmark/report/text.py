"""The tables of a comparison as Markdown and as LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dxmi_rl.benchmark.report.aggregates import STATISTICS, Aggregate
from dxmi_rl.benchmark.report.changes import HEADER, changes, notes, title
from dxmi_rl.benchmark.report.content import FAILED_RUNS, Comparison
from dxmi_rl.benchmark.report.formatting import MISSING, show, show_date, show_entry, show_range, show_seconds
from dxmi_rl.benchmark.tables import LEGEND, compact, count_seeds

BEST = "★ best"
BOUNDS = ("elbo", "log_z", "eubo", "ess")
"""Scores that stand together."""
MINUS = "\u2212"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "★": r"$\star$",
    "—": "--", MINUS: "$-$", "…": r"\ldots{}", "τ": r"$\tau$", "[": "{[}", "]": "{]}",
}  # fmt: skip
"""What stands for a character in LaTeX; brackets are wrapped, because after a line break they would be an option."""


@dataclass(frozen=True)
class TextTable:
    """A table without markup."""

    title: str
    name: str
    header: list[str]
    body: list[list[str]]
    bold: list[list[bool]]
    caption: str


def markdown(comparison: Comparison, before: Comparison | None = None) -> str:
    """Verdicts, what changed since ``before``, aggregates and one table per task."""
    results = comparison.results
    seconds = show_seconds(float(results["seconds"]))
    command = _one_line(str(results["command"]))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    parts = [
        f"# {_plain(str(results['name']))}",
        f"{fence}\n{command}\n{fence}",
        f"{len(comparison.runs)} runs, {seconds}, {_plain(show_date(str(results['date'])))}. "
        "Normalised: 0 = base sampler, 1 = exact sampler. " + _plain(comparison.intervals_sentence()),
    ]
    if comparison.failed:
        failed = [f"- {_plain(_failure(run))}" for run in comparison.failed]
        runs = "run" if len(failed) == 1 else "runs"
        parts += [f"**{len(failed)} failed {runs}.** {FAILED_RUNS}", "\n".join(failed)]
    verdicts = [f"- **{_plain(task)}**: {_plain(comparison.verdict(task))}" for task in comparison.tasks]
    parts += ["**The best of each task:**", "\n".join(verdicts)]
    for table in ([] if before is None else [_changes_table(comparison, before)]) + tables(comparison):
        lines = [_markdown_line([_plain(cell) for cell in table.header])]
        lines.append(_markdown_line(["---", *["---:"] * (len(table.header) - 1)]))
        for cells, bold in zip(table.body, table.bold, strict=True):
            lines.append(
                _markdown_line([f"**{_plain(cell)}**" if on else _plain(cell) for cell, on in zip(cells, bold,
                                                                                                 strict=True)])
            )  # fmt: skip
        parts += [f"## {_plain(table.title)}", "\n".join(lines), _plain(table.caption)]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """A document with the same tables, each an own ``table`` environment to copy."""
    parts = [
        f"% {_one_line(str(comparison.results['command']))}",
        "\\documentclass{article}",
        "\\usepackage[T1]{fontenc}",
        "\\usepackage[utf8]{inputenc}",
        "\\usepackage{booktabs,graphicx}",
        "\\begin{document}",
    ]
    for table in tables(comparison):
        rows = [" & ".join(_latex(cell) for cell in table.header) + r" \\", "\\midrule"]
        for cells, bold in zip(table.body, table.bold, strict=True):
            line = [rf"\textbf{{{_latex(cell)}}}" if on else _latex(cell) for cell, on in zip(cells, bold, strict=True)]
            rows.append(" & ".join(line) + r" \\")
        columns = "l" + "r" * (len(table.header) - 1)
        parts += [
            "",
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_latex(f'{table.title}. {table.caption}')}}}",
            f"\\label{{tab:{table.name}}}",
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
        ]
    return "\n".join([*parts, "", "\\end{document}", ""])


def tables(comparison: Comparison) -> list[TextTable]:
    """The aggregates, one per track, then one table per task."""
    aggregates = [_aggregate_table(aggregate) for aggregate in comparison.aggregates if aggregate.scores]
    return aggregates + [_task_table(comparison, task) for task in comparison.tasks]


def _changes_table(comparison: Comparison, before: Comparison) -> TextTable:
    found = changes(comparison, before)
    bold = [[False] * 6 + [change.verdict in ("better", "worse")] + [False] * 2 for change in found]
    body = [change.cells() for change in found]
    return TextTable(title(before), "changes", list(HEADER), body, bold, notes(found))


def _aggregate_table(aggregate: Aggregate) -> TextTable:
    body, bold = [], []
    top = {
        name: (min if name == "optimality gap" else max)(entry[name][0] for entry in aggregate.statistics.values())
        for name in STATISTICS
    }
    for label, entry in aggregate.statistics.items():
        cells, marks = [label], [False]
        for name, (value, bounds) in entry.items():
            marks.append(value == top[name] and len(aggregate.scores) > 1)
            text = show(value) + (f" {show_range(bounds.low, bounds.high)}" if bounds else "")
            cells.append(f"{text} {BEST}" if marks[-1] else text)
        body.append(cells)
        bold.append(marks)
    caption = f"Normalised scores over {', '.join(aggregate.tasks)}; {count_seeds([len(aggregate.seeds)])}."
    caption = " ".join([caption, *aggregate.notes])
    header = ["agent", *(f"{name} {'↓' if name == 'optimality gap' else '↑'}" for name in STATISTICS)]
    return TextTable(f"Track {aggregate.track}", f"aggregate-{_name(aggregate.track)}", header, body, bold, caption)


def _task_table(comparison: Comparison, task: str) -> TextTable:
    lines = comparison.lines(task)
    entry = comparison.tasks[task]
    keys = comparison.score_keys(lines)
    others = keys[:4]
    if set(others) & set(BOUNDS):  # one of them alone may hide lost modes
        others = [key for key in keys if key in (*others, *BOUNDS)]
    score = lines[0].name if lines else MISSING
    header = ["agent", score, "ahead by", "normalised", *others, "energy evaluations", "seconds"]
    body, bold = [], []
    for line in lines:
        scores, costs = line.summary["scores"], line.summary["costs"]
        value = show_entry(line.entry)
        body.append([
            " ".join([line.label, *comparison.incomplete(line)]), f"{value} {BEST}" if line.best else value,
            line.difference.text if line.difference else MISSING, show_entry(line.summary["normalised"]),
            *(show_entry(scores.get(key)) + comparison.mark(line.summary, key) for key in others),
            show(costs.get("energy_evals"), compact), show(costs.get("seconds")),
        ])  # fmt: skip
        bold.append([False, line.best, *[False] * (len(header) - 2)])
    if entry["floor"] is not None:
        body.append(["exact sampler", show(entry["floor"]), *[MISSING] * (len(header) - 2)])
        bold.append([False] * len(header))
    facts = "; ".join(f"{name} {value}" for name, value in comparison.facts(task)[:-3])  # without the ranking
    caption = f"{facts}. {LEGEND}" if "log_z" in others else f"{facts}."
    return TextTable(task, _name(task), header, body, bold, caption)


def _failure(run: dict[str, object]) -> str:
    return f"{run.get('task')}, {run.get('label')}, seed {run.get('seed')}: {run.get('error')}"


def _name(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "-", text)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_|<>\[\]#$~])", r"\\\1", _one_line(text))


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _latex(text: str) -> str:
    """Escaped; what the standard fonts lack becomes a question mark."""
    text = re.sub(r"(?<![\w-])-(?=\d)", MINUS, _one_line(text))
    return "".join(LATEX.get(letter, letter if ord(letter) < 0x180 else "?") for letter in text)
