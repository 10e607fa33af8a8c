"""What a report says, apart from how it is written: rankings, differences, aggregates and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dxmi_rl.benchmark.report.aggregates import Aggregate, Improvements, aggregate, improvements
from dxmi_rl.benchmark.report.formatting import MISSING, show, show_entry, show_p, show_range, show_signed
from dxmi_rl.benchmark.results import RULERS, counted_scores, diverged, is_fitted, lacking
from dxmi_rl.benchmark.statistics import welch_t_test
from dxmi_rl.benchmark.tables import COSTS, MARK, MEANINGS, SCORES, compact, count_seeds, setbacks, unreliable
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.storage import JSON

ENERGIES = {
    "target": "the target's own density, exact",
    "reward": "a reward r(x), with a pull to the data or the base sampler",
    "fixed": "learned once from data, the same for all agents; what it is lowest on need not look like data",
    "learned": "learned from data together with the sampler (DxMI)",
}
TRACKS = {
    "fine-tune": "a pretrained or exact denoiser is given",
    "sample": "only the energy and its gradient are given",
    "energy": "only values of the energy are given, no gradients",
}
DISTANCES = ("sliced_w2", "fd")
"""Distances to samples, lower is better, that stand beside the ranking score."""


@dataclass(frozen=True)
class Difference:
    """By how much one row is ahead of another in the mean of the ranking score; positive is better."""

    other: str
    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def clear(self) -> bool | None:
        """Whether the interval excludes 0; None without an interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0

    @property
    def short(self) -> str:
        """``+0.02 vs dxdp``."""
        return f"{show_signed(self.value)} vs {self.other}"

    @property
    def text(self) -> str:
        """``+0.02 vs dxdp [0.01, 0.03]``."""
        return f"{self.short} {show_range(self.low, self.high)}".strip()


@dataclass(frozen=True)
class Line:
    """One agent on one task."""

    task: str
    label: str
    summary: JSON
    score: str
    better: str
    best: bool
    difference: Difference | None
    """To the second where this is the best, to the best elsewhere."""

    @property
    def entry(self) -> JSON | None:
        """The ranking score's statistics."""
        entry: JSON | None = self.summary["scores"].get(self.score)
        return entry

    @property
    def name(self) -> str:
        """The ranking score with an arrow in the better direction."""
        return f"{self.score} {'↓' if self.better == 'lower' else '↑'}" if self.score else MISSING


FAILED_RUNS = (
    "Runs that diverged count below as the worst of their task, in the score that ranks it; others are missing."
)
"""What has become of the failed runs of a comparison."""


def difference_of(
    values: Sequence[float], others: Sequence[float], other: str, sign: float, *, tested: bool = True
) -> Difference | None:  # fmt: skip
    """By how much the first scores are ahead of those of ``other``; ``sign`` is 1 where higher is better, else -1.

    Without an interval where not ``tested``, as where some scores stand for runs that diverged.
    """
    own, theirs = sign * np.array(values), sign * np.array(others)
    if not (own.size and theirs.size):
        return None
    if tested and min(own.size, theirs.size) > 1 and (np.ptp(own) > 0 or np.ptp(theirs) > 0):
        test = welch_t_test(own, theirs)
        return Difference(other, test.difference, test.low, test.high, test.p_value)
    return Difference(other, float(own.mean() - theirs.mean()))


class Comparison:
    """The results of one comparison, with what the report derives from them."""

    def __init__(self, results: JSON) -> None:
        self.results = results
        # A task without a score that all its runs share is not ranked: its score is "".
        self.tasks: dict[str, JSON] = {
            name: task | {"score": task["score"] or "", "better": task["better"] or ""}
            for name, task in results["tasks"].items()
        }
        self.runs: list[JSON] = results["runs"]
        self.failed: list[JSON] = results["failed"]
        self.summary: list[JSON] = results["summary"]
        self.labels = list(dict.fromkeys(entry["label"] for entry in self.summary))

    @property
    def tracks(self) -> list[str]:
        """Tracks that are present, in order."""
        return list(dict.fromkeys(task["track"] for task in self.tasks.values()))

    def runs_of(self, task: str, label: str) -> list[JSON]:
        """Finished runs of one row."""
        return [run for run in self.runs if run["task"] == task and run["label"] == label]

    def values(self, task: str, label: str) -> list[float]:
        """The ranking score of every run of one row; a run that diverged has the worst of the task."""
        score, better = self.tasks[task]["score"], self.tasks[task]["better"]
        values = counted_scores(self.runs, self.failed, task, label, score, better)
        return [float(value) for value in values if math.isfinite(value)]

    @cached_property
    def _lines(self) -> dict[str, list[Line]]:
        return {task: self._rank(task) for task in self.tasks}

    def lines(self, task: str) -> list[Line]:
        """Rows of one task, in the order of the summary."""
        return self._lines[task]

    def track_lines(self, track: str) -> list[Line]:
        """Rows of all tasks of a track."""
        return [line for name, task in self.tasks.items() if task["track"] == track for line in self.lines(name)]

    def _rank(self, name: str) -> list[Line]:
        task = self.tasks[name]
        sign = -1.0 if task["better"] == "lower" else 1.0
        entries = [entry for entry in self.summary if entry["task"] == name]

        def rank(entry: JSON) -> float:
            value = (entry["scores"].get(task["score"]) or {}).get("iqm")
            return -math.inf if value is None or not math.isfinite(value) else sign * value

        order = sorted((entry for entry in entries if rank(entry) > -math.inf), key=rank, reverse=True)
        lines = []
        for entry in entries:
            label, best = entry["label"], bool(order) and entry is order[0]
            other = None
            if best and len(order) > 1:
                other = order[1]["label"]
            elif not best and rank(entry) > -math.inf:
                other = order[0]["label"]
            values, others = self.values(name, label), [] if other is None else self.values(name, other)
            whole = not any(diverged(self.failed, name, one) for one in (label, other) if one is not None)
            difference = None if other is None else difference_of(values, others, other, sign, tested=whole)
            lines.append(Line(name, label, entry, task["score"], task["better"], best, difference))
        return lines

    def seeds_of(self, summary: JSON) -> int:
        """Number of seeds that a row was to have; results from before rows had seeds of their own say it for all."""
        return len(summary["seeds"] if "seeds" in summary else self.results["seeds"])

    def incomplete(self, line: Line) -> list[str]:
        """``(3 of 5 runs)`` for a row that lacks some, ``(2 of 5 runs diverged)``, a ranking score that not all runs
        have, steps back, else nothing.
        """
        runs, seeds = line.summary["runs"], self.seeds_of(line.summary)
        lost = len(diverged(self.failed, line.task, line.label))
        notes = [f"({lost} of {seeds} runs diverged)"] if lost else []
        notes += [f"({runs} of {seeds} runs)"] if runs + lost < seeds else []
        partly = lacking(self.runs, line.task, line.label, line.score) if line.score else ""
        return notes + [f"({note})" for note in (partly, setbacks(line.summary)) if note]

    def best(self, task: str) -> Line | None:
        """The first by interquartile mean of the ranking score."""
        return next((line for line in self.lines(task) if line.best), None)

    def score_keys(self, lines: Iterable[Line]) -> list[str]:
        """Scores of these rows beside the ranking score: known ones in the order of the tables, then others."""
        lines = list(lines)
        present = dict.fromkeys(key for line in lines for key in line.summary["scores"] if not key.endswith("_floor"))
        ranked = {line.score for line in lines}
        if len(ranked) == 1:
            present = {key: None for key in present if key not in ranked}
        known = [key for key in SCORES if key in present]
        return known + [key for key in present if key not in known and key not in COSTS]

    @staticmethod
    def mark(summary: JSON, key: str) -> str:
        """What stands behind a score: an asterisk behind a log Z that is not to be trusted."""
        ess = summary["scores"].get("ess")
        return MARK if key == "log_z" and ess is not None and unreliable(ess["iqm"]) else ""

    # Sentences --------------------------------------------------------------------------------------------------------

    def interval_methods(self) -> list[str]:
        """Methods of the intervals in the summary, each once."""
        entries = [entry for row in self.summary for entry in row["scores"].values()]
        return list(dict.fromkeys(entry["method"] for entry in entries if entry.get("method")))

    def intervals_sentence(self) -> str:
        """How intervals are made, and how far to trust them."""
        counts = [self.seeds_of(summary) for summary in self.summary]
        methods = self.interval_methods()
        if not methods:
            return "One run per row: there are no intervals, and no difference can be told from chance."
        text = f"Values are interquartile means (IQM) over {count_seeds(counts)}, with 95 % intervals in brackets "
        text += f"({', '.join(methods)})."
        if (seeds := min(counts)) < 10:
            text += f" With {seeds} seeds such intervals are rough: overlapping ones call for more seeds."
        return text

    def facts(self, name: str) -> list[tuple[str, str]]:
        """What a task is, as names and values."""
        task = self.tasks[name]
        shape = " x ".join(map(str, task["event_shape"])) if len(task["event_shape"]) > 1 else ""
        score = task["score"]
        meaning = f" ({MEANINGS[score]})" if score in MEANINGS else ""
        ranked = f"{score}{meaning}, {task['better']} is better" if score else "nothing that all runs share"
        given = task["energy"] != "learned"
        fitted = given and any(is_fitted(run) for run in self.runs if run["task"] == name)
        return [
            ("dimension", f"{task['dim']}{f' ({shape})' * bool(shape)}"),
            ("horizon T", self._horizons(name)),
            ("tau", f"{show(task['tau'])} nats"),
            ("track", f"{task['track']} ({TRACKS.get(task['track'], 'see DESIGN.md')})"),
            ("energy", ENERGIES.get(task["energy"], str(task["energy"]))),
            *([("fitted kernel", RULERS[self.results["schema"]])] if fitted else []),
            *self._scored_on(name),
            ("ranked by", ranked),
            ("base sampler (0)", show(task["base"])),
            ("exact sampler (1)", show(task["floor"])),
        ]

    def _scored_on(self, name: str) -> list[tuple[str, str]]:
        """How much scores of a task rest on: of small budgets, on a tenth."""
        sizes: JSON = next((run["sizes"] for run in self.runs if run["task"] == name and run.get("sizes")), {})
        counts = [f"{sizes[key]:,} {key}" for key in ("samples", "trajectories") if key in sizes]
        return [("scored on", f"{' and '.join(counts)} per run")] if counts else []

    def _horizons(self, name: str) -> str:
        """The horizon of a task, or those of its rows where they have several."""
        usual = TASKS[name].horizon if name in TASKS else self.tasks[name]["horizon"]
        runs = [run for run in self.runs if run["task"] == name]
        found = dict.fromkeys(str(run["task_settings"].get("horizon", usual)) for run in runs)
        return ", ".join(found) or str(self.tasks[name]["horizon"])

    def verdict(self, name: str) -> str:
        """Which agent is best, by how much, at what cost, and whether distances to samples say otherwise."""
        line = self.best(name)
        if line is None:
            return f"No finished run has {self.tasks[name]['score'] or 'a ranking score'}: nothing to rank."
        text = f"best: {line.label}, {line.score} {show_entry(line.entry)}"
        difference = line.difference
        if difference is None:
            text += ", the only row"
        else:
            bounds, p = show_range(difference.low, difference.high), show_p(difference.p_value)
            detail = f" ({p or 'no interval'})"
            if difference.clear or difference.clear is None:
                text += f", {show(difference.value)} {bounds}".rstrip()
                text += f" better in the mean than {difference.other}{detail}"
            else:
                text += f", not clearly ahead of {difference.other}: {show_signed(difference.value)} in the mean "
                text += f"{bounds}{detail}"
        spent = _spent(line.summary["costs"], " energy evaluations")
        if line.summary["costs"] and spent is None:
            text += ", without training"
        elif spent:
            text += f", at {spent} per run"
        second = next((row for row in self.summary if difference and row["task"] == name
                       and row["label"] == difference.other), None)  # fmt: skip
        if second is not None and (other := _spent(second["costs"])):
            text += f" ({second['label']}: {other})"
        return f"{text}.{self._by_distance(line)}"

    def _by_distance(self, line: Line) -> str:
        """A sentence for every distance to samples by which another row is lowest: a bound need not agree."""
        text = ""
        for score in DISTANCES:
            rows = [row for row in self.summary if row["task"] == line.task and score in row["scores"]]
            if line.score == score or not rows or score not in line.summary["scores"]:
                continue
            best = min(rows, key=lambda row: row["scores"][score]["iqm"])
            if best["label"] != line.label:
                own = show(line.summary["scores"][score]["iqm"])
                text += f" By {score}, {best['label']} has the lowest mean: {show(best['scores'][score]['iqm'])} "
                text += f"({line.label} {own}; lower is better)."
        return text

    # Aggregates -------------------------------------------------------------------------------------------------------

    @cached_property
    def aggregates(self) -> list[Aggregate]:
        """One aggregate per track that has normalised scores."""
        every = [aggregate(track, self.tasks, self.runs, self.labels, self.failed) for track in self.tracks]
        return [found for found in every if found is not None]

    def improvements(self, task: str) -> Improvements:
        """Probability that a run of the first label is better than one of the second, on one task."""
        values = {line.label: self.values(task, line.label) for line in self.lines(task)}
        return improvements(
            {label: np.array(x) for label, x in values.items() if x}, self.tasks[task]["better"] == "higher"
        )


def _spent(costs: dict[str, float], unit: str = "") -> str | None:
    """Energy evaluations and seconds of training; None when nothing was spent."""
    if not any(costs.get(name) for name in ("timesteps", "energy_evals", "seconds")):
        return None
    parts = [f"{show(costs['energy_evals'], compact)}{unit}"] if "energy_evals" in costs else []
    parts += [f"{show(costs['seconds'])} s"] if "seconds" in costs else []
    return " and ".join(parts)
