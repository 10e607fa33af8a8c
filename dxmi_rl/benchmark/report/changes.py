"""What changed between two comparisons, row by row: for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dxmi_rl.benchmark.report.content import Comparison, Difference, Line, difference_of
from dxmi_rl.benchmark.report.formatting import MISSING, show, show_date, show_entry, show_range, show_signed
from dxmi_rl.benchmark.report.markup import Cell, Column, anchor, escape, plain, table
from dxmi_rl.benchmark.results import PROBLEM, RULERS, is_fitted
from dxmi_rl.benchmark.tables import compact

SCORED_ON = ("samples", "draws", "trajectories", "fit")
"""Sizes that scores depend on by more than chance."""
NAMED = 5
"""More rows than so many are counted, not named."""
HEADER = ("agent", "task", "score", "before", "now", "change", "verdict", "energy evaluations", "seconds")


@dataclass(frozen=True)
class Change:
    """One agent on one task, before and now."""

    task: str
    label: str
    score: str
    """Name of the ranking score with an arrow; empty where the two comparisons rank by different ones."""
    before: Line | None
    """None where it was not there."""
    now: Line | None
    difference: Difference | None
    """In the mean of the ranking score, positive is better."""
    differing: tuple[str, ...] = ()
    """Names of what keeps the two from being compared."""

    @property
    def verdict(self) -> str:
        """One word, or two: what is certain of the change."""
        if self.before is None or self.now is None:
            return "new" if self.before is None else "gone"
        if self.difference is None:
            return "not comparable"
        if self.difference.clear is None:
            return "one run" if self.difference.value else "the same"
        if not self.difference.clear:
            return "no clear change"
        return "better" if self.difference.value > 0 else "worse"

    def cells(self) -> list[str]:
        """Texts of a row of HEADER."""
        change = MISSING
        if self.difference is not None:
            bounds = show_range(self.difference.low, self.difference.high)
            change = f"{show_signed(self.difference.value)} {bounds}".strip()
        costs = [" → ".join(_cost(entry, key) for entry in (self.before, self.now)) for key in HEADER_COSTS]
        return [
            self.label, self.task, self.score, self._score(self.before), self._score(self.now), change, self.verdict,
            *costs,
        ]  # fmt: skip

    def _score(self, line: Line | None) -> str:
        return MISSING if line is None else show_entry(line.entry)


HEADER_COSTS = ("energy_evals", "seconds")


def _cost(line: Line | None, key: str) -> str:
    return MISSING if line is None else show(line.summary["costs"].get(key), compact)


def changes(now: Comparison, before: Comparison) -> list[Change]:
    """Rows of both comparisons, in the order of ``now`` and then those that are gone."""
    found = []
    for task in dict.fromkeys([*now.tasks, *before.tasks]):
        lines = {line.label: line for line in now.lines(task)} if task in now.tasks else {}
        earlier = {line.label: line for line in before.lines(task)} if task in before.tasks else {}
        for label in dict.fromkeys([*lines, *earlier]):
            line, old = lines.get(label), earlier.get(label)
            shown = line or old
            assert shown is not None
            difference, differing = None, tuple[str, ...]()
            if line is not None and old is not None:
                differing = _differing(now, before, task, label)
                if not differing:
                    sign = -1.0 if line.better == "lower" else 1.0
                    difference = difference_of(now.values(task, label), before.values(task, label), label, sign)
            name = "" if "score" in differing else shown.name
            found.append(Change(task, label, name, old, line, difference, differing))
    return found


def _differing(now: Comparison, before: Comparison, task: str, label: str) -> tuple[str, ...]:
    """Names of what differs in the row's problem and in the evaluation of its scores; budgets may, and are shown."""
    sides = []
    for one in (now, before):
        facts = {key: one.tasks[task].get(key) for key in PROBLEM}
        for run in one.runs_of(task, label)[:1]:
            facts |= {"task_settings": run.get("task_settings"), "fit": run.get("fit", True)}
            facts["particles"] = run.get("particles")
            facts |= {f"sizes.{key}": run.get("sizes", {}).get(key) for key in SCORED_ON}
            facts |= {"fitted kernel": RULERS[one.results["schema"]]} if is_fitted(run) else {}
        sides.append(facts)
    return tuple(key for key in sides[0] if key in sides[1] and sides[0][key] != sides[1][key])


def title(before: Comparison) -> str:
    """What the earlier comparison is."""
    return f"What changed since {before.results['name']} ({show_date(str(before.results['date']))})"


def notes(found: Sequence[Change]) -> str:
    """How to read the table of these changes, and which of its rows cannot be compared."""
    text = "Changes are in the mean of the ranking score, positive is better, with the interval of Welch's t-test."
    rows: dict[tuple[str, ...], list[str]] = {}
    for change in found:
        if change.differing:
            rows.setdefault(change.differing, []).append(f"{change.label} on {change.task}")
    for differing, names in rows.items():
        which = ", ".join(names) if len(names) <= NAMED else f"{len(names)} rows"
        text += f" Not comparable, as they differ in {', '.join(differing)}: {which}."
    return text


def changes_section(now: Comparison, before: Comparison) -> str:
    """The section of the page."""
    columns = [Column(name, numeric=index > 2 and name != "verdict") for index, name in enumerate(HEADER)]
    rows, found = [], changes(now, before)
    for change in found:
        cells = [plain(text, text) for text in change.cells()]
        if change.difference is not None:
            cells[5] = Cell(escape(change.cells()[5]), change.difference.value)
        if change.verdict in ("better", "worse"):
            cells[6] = Cell(f"<strong>{change.verdict}</strong>", change.verdict)
        rows.append((cells, {"task": change.task, "label": change.label}))
    caption = f"{escape(notes(found))} Earlier: <code>{escape(str(before.results['command']))}</code>"
    return (
        '<section id="changes" aria-labelledby="changes-title"><h2 id="changes-title">'
        f"{escape(title(before))}{anchor('changes')}</h2>{table(columns, rows, caption, sortable=True)}</section>"
    )
