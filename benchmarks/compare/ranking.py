"""Rows of all submissions to the leaderboard, task by task and in order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.compare.submissions import (
    agree,
    budget_known,
    check_possible,
    failed_of,
    is_ours,
    log_z_of,
    runs_of,
    trains,
)
from dxmi_rl.benchmark.results import PROBLEM, RULERS, diverged, is_fitted, summarise_runs

SAME_TASK = (*PROBLEM, "floor", "base")
"""What submissions must agree in for their rows to stand in one table, besides budgets and sizes of evaluation."""
EXACT = "exact sampler"
"""Label of the floors in README's table."""


@dataclass(frozen=True)
class Entry:
    """One row of a submission."""

    submission: str
    task: dict[str, Any]
    row: dict[str, Any]
    finished: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    seeds: int
    label: str
    """The row's label, with the submission's name where another row has it."""

    @property
    def diverged(self) -> int:
        """Number of runs that diverged."""
        return len(diverged(self.failed, self.row["task"], self.row["label"]))

    @property
    def complete(self) -> bool:
        """Whether it has a rank: two runs or more, and all of them finished or diverged, for a budget that is known."""
        whole = len(self.finished) + self.diverged == self.seeds
        return self.seeds > 1 and whole and budget_known(self.row)

    @property
    def runs(self) -> str:
        """How many runs of how many seeds finished, and how many diverged."""
        return f"{len(self.finished)} of {self.seeds}" + (f", {self.diverged} diverged" if self.diverged else "")

    @property
    def score(self) -> dict[str, Any]:
        """Statistics of the score that the task is ranked by."""
        found: dict[str, Any] = self.row["scores"][self.task["score"]]
        return found


def ranked(submissions: dict[str, dict[str, Any]]) -> dict[str, list[Entry]]:
    """Rows of all submissions by task, the best first, those that lack runs last; rows with a ranking score only, or
    with runs that diverged.

    A row of one of our agents that an earlier submission has, too, is not repeated: the luckier of the two would win.
    Other rows with a label that is taken have the submission's name in theirs. Raises ValueError for submissions that
    differ on a task in what it is, in budgets or in sizes of the evaluation, and for a run that stands in two rows.
    """
    tasks: dict[str, list[Entry]] = {}
    terms: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, results in submissions.items():
        for row in results["summary"]:
            task = results["tasks"][row["task"]]
            lost = diverged(failed_of(results, row), row["task"], row["label"])
            if task["score"] not in row["scores"] and not lost:
                continue
            title = row["task"] if task["energy"] == "target" else f"{row['task']}, {task['energy']} energy"
            own, runs = {key: task[key] for key in SAME_TASK}, runs_of(results, row)
            if runs:
                own |= {key: runs[0].get(key) for key in ("task_settings", "sizes")} | {"fit": runs[0].get("fit", True)}
                own |= {"fitted kernel": RULERS[results["schema"]]} if is_fitted(runs[0]) else {}
            own |= {"budget": (row["budget"], row["unit"])} if trains(row) and row["budget"] else {}
            other, first = terms.setdefault(title, (name, own))
            different = [key for key in own if key in first and not agree(key, first[key], own[key], task)]
            if different:
                raise ValueError(f"{name!r} and {other!r} differ on {title!r} in {', '.join(different)}.")
            for key, value in own.items():
                first.setdefault(key, value)
            entries = tasks.setdefault(title, [])
            same = [entry for entry in entries if entry.row["label"].casefold() == row["label"].casefold()]
            if is_ours(row) and any(entry.row["agent"] == row["agent"] for entry in same):
                continue
            label = f"{row['label']} ({name})" if same or row["label"].casefold() == EXACT else row["label"]
            if label.casefold() in {entry.label.casefold() for entry in entries}:
                raise ValueError(f"{name!r}: label {label!r} stands on {title!r} already.")
            seeds = len(row.get("seeds") or results["seeds"])
            entries.append(Entry(name, task, row, runs, failed_of(results, row), seeds, label))
    return {title: found for title, entries in tasks.items() if (found := _in_order(title, entries))}


def _in_order(title: str, entries: list[Entry]) -> list[Entry]:
    """The entries of a task, the best first, with statistics from the runs of all: a run that diverged counts as the
    worst of the task, whoever ran that one, and the first submission's base sampler and floor normalise all.
    """
    task, owners = entries[0].task, dict[str, str]()
    runs: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    log_z = [value for entry in entries for run in entry.finished if (value := log_z_of(run["scores"])) is not None]
    for entry in entries:
        place = {"task": title, "label": entry.label}
        where = f"{entry.submission!r}, row {entry.label!r} on {title!r}"
        for run in entry.finished:
            if owners.setdefault(run["key"], where) != where:
                raise ValueError(f"{where}: run {run['key']!r} stands in {owners[run['key']]}, too.")
        for run in entry.finished:  # the same numbers are the same run, whatever it is called
            numbers = str(sorted(run["scores"].items()))
            if trains(entry.row) and owners.setdefault(numbers, run["key"]) != run["key"]:
                raise ValueError(f"{where}: the scores of run {run['key']!r} are those of another run.")
        if len({run["key"] for run in entry.finished}) < len(entry.finished):
            raise ValueError(f"{where}: runs.key must be another in every run.")
        scored = [run["scores"] for run in entry.finished if task["score"] in run["scores"]]
        check_possible(where, [scores[task["score"]] for scores in scored], task)
        for scores in (run["scores"] for run in entry.finished):
            own = log_z_of(scores)
            if own is not None and abs(own - log_z[0]) > 1e-3 + 1e-6 * abs(scores["elbo"]):
                raise ValueError(f"{where}: elbo and kl_bound_fit must add to log Z = {log_z[0]:.6g}, got {own:.6g}.")
        runs += [run | place for run in entry.finished]
        failed += [run | place for run in entry.failed]
    found = []
    for entry in entries:
        own = summarise_runs({"task": title, "label": entry.label}, runs, failed, task)
        if task["score"] in own["scores"]:
            found.append(replace(entry, task=task, row=entry.row | own))
    sign = 1 if task["better"] == "lower" else -1
    return sorted(found, key=lambda entry: (not entry.complete, sign * entry.score["iqm"]))


def by_mean_rank(tasks: dict[str, list[Entry]]) -> list[str]:
    """Labels, the best mean rank over the tasks first; a task that a label lacks counts as its last rank."""

    def mean_rank(label: str) -> float:
        ranks = []
        for entries in tasks.values():
            own = [rank for rank, entry in enumerate(entries) if entry.label == label]
            ranks.append(own[0] if own and entries[own[0]].complete else len(entries))
        return sum(ranks) / len(ranks)

    labels = dict.fromkeys(entry.label for entries in tasks.values() for entry in entries)
    return sorted(labels, key=mean_rank)
