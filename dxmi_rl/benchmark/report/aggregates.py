"""Normalised scores over the tasks of a track, and how likely a run of one agent is better than one of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dxmi_rl.benchmark.results import diverged
from dxmi_rl.benchmark.statistics import (
    Interval,
    interquartile_mean,
    interval,
    median,
    optimality_gap,
    probability_of_improvement,
)
from dxmi_rl.utils.storage import JSON

STATISTICS: dict[str, Callable[[NDArray[np.float64]], float]] = {
    "IQM": interquartile_mean,
    "median": median,
    "optimality gap": optimality_gap,
}


Improvements = dict[tuple[str, str], tuple[float, tuple[float, float] | None]]
"""By two labels: the probability that a run of the first is better than one of the second, and its interval."""


@dataclass(frozen=True)
class Aggregate:
    """Normalised scores over the tasks of one track."""

    track: str
    tasks: list[str]
    seeds: list[int]
    scores: dict[str, NDArray[np.float64]]
    """``[runs, tasks]`` of every label that finished all tasks, where two or more did."""
    left_out: list[str]
    """Labels that lack a task, or its score in some of their runs."""
    notes: list[str]
    statistics: dict[str, dict[str, tuple[float, Interval | None]]] = field(default_factory=dict)
    """``[label][statistic]``: value and interval or None."""


def aggregate(
    track: str, tasks: dict[str, JSON], runs: list[JSON], labels: list[str], failed: Sequence[JSON] = ()
) -> Aggregate | None:
    """Normalised scores of the labels that finished every normalised task of the track; None without any.

    ``tasks`` are all tasks of a comparison by name, ``runs`` its finished runs, ``labels`` its rows, in order, and
    ``failed`` its failed runs: those that diverged count as the worst run of their task.
    """
    normalised: dict[tuple[str, str], dict[int, float]] = {}
    partly: set[tuple[str, str]] = set()
    for run in (run for run in runs if tasks[run["task"]]["track"] == track):
        cell, value = (run["task"], run["label"]), run["normalised"]
        if value is not None and math.isfinite(value):
            normalised.setdefault(cell, {})[run["seed"]] = float(value)
        else:
            partly.add(cell)
    ranked = [task for task in tasks if any(task == key[0] for key in normalised)]
    for task in ranked:
        worst = min(min(cell.values()) for key, cell in normalised.items() if key[0] == task)
        for one in (one for label in labels for one in diverged(failed, task, label)):
            normalised.setdefault((task, one["label"]), {}).setdefault(one["seed"], worst)
    if not ranked:
        return None
    present = [label for label in labels if any(label == key[1] for key in normalised)]
    whole = normalised.keys() - partly
    complete = [label for label in present if all((task, label) in whole for task in ranked)]
    left_out = [label for label in present if label not in complete]
    cells = [normalised[task, label] for task in ranked for label in complete]
    seeds = sorted(set.intersection(*map(set, cells))) if cells else []
    notes = []
    if cells and any(set(cell) != set(seeds) for cell in cells):
        notes.append(f"Seeds differ between rows: only the {len(seeds)} common ones are used ({_listed(seeds)}).")
    if left_out:
        notes.append(f"Left out, because a task of the track, or its score in a run, is missing: {_listed(left_out)}.")
    other = [name for name, task in tasks.items() if task["track"] == track and name not in ranked]
    if other:
        notes.append(f"Not normalised (no base or exact value, or no gap between them): {_listed(other)}.")
    scores = {}
    if len(complete) == 1:
        notes.append(f"Nothing to compare: only {complete[0]} has all tasks of the track.")
    elif seeds:
        scores = {
            label: np.array([[normalised[task, label][seed] for task in ranked] for seed in seeds])
            for label in complete
        }
    statistics = {
        label: {name: (float(statistic(x)), interval(x, statistic=statistic)) for name, statistic in
                STATISTICS.items()}
        for label, x in scores.items()
    }  # fmt: skip
    return Aggregate(track, ranked, seeds, scores, left_out, notes, statistics)


def improvements(scores: dict[str, NDArray[np.float64]], higher_is_better: bool = True) -> Improvements:
    """Probability of improvement for every ordered pair of labels, with its interval as (low, high) or None."""
    found: Improvements = {}
    labels = list(scores)
    for index, first in enumerate(labels):
        for second in labels[index + 1 :]:
            value, bounds = probability_of_improvement(scores[first], scores[second], higher_is_better=higher_is_better)
            found[first, second] = value, None if bounds is None else (bounds.low, bounds.high)
            found[second, first] = 1 - value, None if bounds is None else (1 - bounds.high, 1 - bounds.low)
    return found


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
