"""What a submission to the leaderboard must be: rows that are what their runs say, of scores that can be."""

from __future__ import annotations

import math
from typing import Any

from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark.results import diverged, summarise_runs

SLACK = 0.05
"""Error of an estimate that is still believed: in nats of a divergence, as a fraction of log Z."""


def trains(row: dict[str, Any]) -> bool:
    """Whether the row's agent trains; one that is not ours does unless its runs spent nothing."""
    return (
        AGENTS[row["agent"]].trains if row["agent"] in AGENTS else bool(row["budget"] or row["costs"].get("timesteps"))
    )


def agree(key: str, first: Any, other: Any) -> bool:
    """Equal; floors are estimates, made anew on every machine."""
    if key == "floor" and None not in (first, other):
        return math.isclose(first, other, rel_tol=SLACK, abs_tol=SLACK)
    return bool(first == other)


def run_of(results: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """A finished run of the row; None where all of its runs diverged."""
    return next(iter(_runs_of(results, row)), None)


def _runs_of(results: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if (run["task"], run["label"]) == (row["task"], row["label"])]


def check_row(name: str, results: dict[str, Any], row: dict[str, Any]) -> None:
    """Raises ValueError for a row that is not what its runs say, and for runs that are not the row's."""
    task = results["tasks"][row["task"]]
    key = task["score"]
    runs = _runs_of(results, row)
    finished = [run["scores"][key] for run in runs if key in run["scores"]]
    where = f"{name!r}, row {row['label']!r} on {row['task']!r}"
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in finished):
        raise ValueError(f"{where}: runs.scores.{key} must be finite numbers.")
    if any(_impossible(value, key, task) for value in finished):
        raise ValueError(f"{where}: runs.scores.{key} is better than an exact sampler can be.")
    for field in ("seed", "key"):
        if len({run[field] for run in runs}) < len(runs):
            raise ValueError(f"{where}: runs.{field} must be another in every run.")
    for run in runs:
        for field in ("agent", "budget", "unit"):
            if run[field] != row[field]:
                raise ValueError(f"{where}: runs.{field} is {run[field]!r}, and summary.{field} {row[field]!r}.")
        if run["task_settings"].get("horizon", task["horizon"]) != task["horizon"]:
            raise ValueError(f"{where}: runs.task_settings.horizon is not the task's {task['horizon']}.")
    if len(finished) != row["runs"] or not (finished or diverged(results["failed"], row["task"], row["label"])):
        raise ValueError(f"{where}: summary.runs is {row['runs']}, and runs with {key!r} are {len(finished)}.")
    found = summarise_runs(row, results["runs"], results["failed"], task)
    for part, given, wanted in (
        (f"scores.{key}", row["scores"][key], found["scores"][key]),
        ("normalised", row["normalised"], found["normalised"]),
        ("costs", row["costs"], found["costs"]),
    ):
        for statistic, value in (wanted or {}).items():
            own = given.get(statistic)
            if isinstance(value, (int, float)) and not (
                isinstance(own, (int, float)) and math.isclose(own, value, rel_tol=1e-9, abs_tol=1e-12)
            ):
                raise ValueError(f"{where}: summary.{part}.{statistic} is {own!r}, and its runs give {value!r}.")
        if wanted is None and given is not None:
            raise ValueError(f"{where}: summary.{part} must be null.")


def _impossible(value: float, key: str, task: dict[str, Any]) -> bool:
    """Whether a score is beyond what can be: a divergence or distance below 0, an ELBO above log Z, by more than the
    errors of their estimates.
    """
    if task["better"] == "lower":
        return value < -SLACK
    return key.startswith("elbo") and task["floor"] is not None and value > task["floor"] + SLACK * abs(task["floor"])
