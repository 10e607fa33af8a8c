"""How soon, and how surely, one agent is ahead of the others: read from the results of a comparison.

    python benchmarks/compare/race.py                                       DxDP against PPO's final score
    python benchmarks/compare/race.py --results runs/mine/results.json --leader ppo --goal reinforce

For every task that both agents have, every row gets the probability that a run of the leader beats a run of it (with
its 95 % interval, ``probability_of_improvement``), and what its median run had spent when its learning curve first
reached the goal's last point (the median of the goal's runs), interpolated between points. Curves hold
quick scores (``kl_bound`` with the kernel of training), final scores are those of the results. Nothing is trained.

Keys of ``--json FILE``:

    command      the command line
    results      the file that was read, and "made_by" its own command line
    leader, goal names of the two rows
    tasks        one entry per task
      .score     what the task is ranked by; .better "lower" or "higher"
      .curve     what curves are read in; .level the goal's last point
      .rows      one entry per row: label, runs, medians of score, sliced_w2 and modes, leader_ahead {probability, low,
                 high} (null for the leader), reached (runs that reached the level), and timesteps, energy_evals,
                 seconds of the median run when it did (null where fewer than half did); a run that diverged counts
                 as the worst of its task
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from rich.console import Console
from rich.table import Table

from benchmarks.scripts import RESULTS, command_line
from dxmi_rl.benchmark.measure import COSTS_OF_A_POINT, SELECTED_BY, first_score
from dxmi_rl.benchmark.report import load_results
from dxmi_rl.benchmark.results import diverged, worst_score
from dxmi_rl.benchmark.statistics import probability_of_improvement
from dxmi_rl.benchmark.tables import compact, number
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import write_json


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    results: Path = RESULTS / "standard.json"
    """The results.json of a comparison."""
    leader: str = "dxdp"
    """Label of the row that is compared with all others."""
    goal: str = "ppo"
    """Label of the row whose last point is to be reached."""
    json: Path | None = None
    """Write everything to this file."""


def race(results: dict[str, Any], leader: str, goal: str) -> dict[str, Any]:
    """The entries of ``tasks``. Raises UnknownNameError for a label that no task has."""
    labels = sorted({run["label"] for run in results["runs"]})
    for kind, label in (("leader", leader), ("goal", goal)):
        if label not in labels:
            raise UnknownNameError(kind, label, labels)
    found = {}
    for name, task in results["tasks"].items():
        rows: dict[str, list[dict[str, Any]]] = {}
        for run in results["runs"]:
            if run["task"] == name and task["score"] in run["scores"]:
                rows.setdefault(run["label"], []).append(run)
        if leader in rows and goal in rows:
            worst = worst_score(results["runs"], name, task["score"], task["better"])
            scores = {
                label: [run["scores"][task["score"]] for run in runs]
                + [worst] * len(diverged(results["failed"], name, label))
                for label, runs in rows.items()
            }
            found[name] = _race_of(task, rows, scores, leader, goal)
    return found


def _race_of(
    task: dict[str, Any], rows: dict[str, list[dict[str, Any]]], scores: dict[str, Any], leader: str, goal: str
) -> dict[str, Any]:  # fmt: skip
    """``scores`` also have the worst of the task for each run that diverged, which never reaches the goal."""
    score, lower = task["score"], task["better"] == "lower"
    curve = first_score(SELECTED_BY, list(rows[goal][0]["curve"][-1]), task["energy"] != "learned")
    if curve is None:
        raise ValueError(f"goal {goal!r} must have learning curves, and has none.")
    level = statistics.median(run["curve"][-1][curve] for run in rows[goal])
    sign = 1 if SELECTED_BY[curve] == "lower" else -1
    lines = []
    for label, runs in rows.items():
        ahead = None
        if label != leader:
            own, theirs = scores[leader], scores[label]
            probability, interval = probability_of_improvement(own, theirs, higher_is_better=not lower)
            ahead = {"probability": probability, "low": None, "high": None}
            if interval is not None:
                ahead |= {"low": interval.low, "high": interval.high}
        spent = [one for run in runs if (one := first_reach(run["curve"], curve, level, sign)) is not None]
        # Runs that never reach it are last: the median run is one of those that do when at least half do.
        typical = sorted(spent, key=lambda one: one["timesteps"])[(len(scores[label]) - 1) // 2 :][:1]
        lines.append(
            {
                "label": label, "runs": len(scores[label]), "score": statistics.median(scores[label]),
                **{key: _middle(runs, key) for key in ("sliced_w2", "modes")},
                "leader_ahead": ahead, "reached": len(spent),
                **{key: typical[0][key] if typical else None for key in COSTS_OF_A_POINT},
            }
        )  # fmt: skip
    lines.sort(key=lambda line: line["score"] if lower else -line["score"])
    return {"score": score, "better": task["better"], "curve": curve, "level": level, "rows": lines}


def _middle(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run["scores"][key] for run in runs if key in run["scores"]]
    return statistics.median(values) if values else None


def first_reach(curve: Sequence[dict[str, float]], key: str, level: float, sign: int) -> dict[str, float] | None:
    """Costs where sign * curve[key] first comes down to sign * level, linear between points; None if it never does."""
    last: dict[str, float] | None = None
    for point in curve:
        if not math.isfinite(point.get(key, math.nan)):  # or an agent without a density
            continue
        if sign * point[key] <= sign * level:
            if last is None:
                return {cost: point[cost] for cost in COSTS_OF_A_POINT}
            part = (last[key] - level) / (last[key] - point[key])
            return {cost: last[cost] + part * (point[cost] - last[cost]) for cost in COSTS_OF_A_POINT}
        last = point
    return None


def print_race(everything: dict[str, Any], console: Console) -> None:
    """One table per task."""
    leader = everything["leader"]
    for name, task in everything["tasks"].items():
        title = f"{name}: reaching {everything['goal']}'s last {task['curve']}, {number(task['level'])}"
        table = Table(
            "agent", task["score"], "sliced W2", "modes", f"P({leader} ahead)", "reached", "transitions",
            "energy evaluations", "seconds", title=title,
        )  # fmt: skip
        for row in task["rows"]:
            ahead = row["leader_ahead"]
            text = "" if ahead is None else number(ahead["probability"])
            if ahead is not None and ahead["low"] is not None:
                text += f" [{number(ahead['low'])}, {number(ahead['high'])}]"
            scores = ["" if row[key] is None else number(row[key]) for key in ("score", "sliced_w2", "modes")]
            costs = ["" if row[key] is None else compact(row[key]) for key in ("timesteps", "energy_evals", "seconds")]
            table.add_row(row["label"], *scores, text, f"{row['reached']} of {row['runs']}", *costs)
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, print, write; exit status 2 for bad input."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    command = command_line(__file__, argv)
    try:
        results = load_results(arguments.results)
        everything = {
            "command": command, "results": str(arguments.results), "made_by": results["command"],
            "leader": arguments.leader, "goal": arguments.goal,
            "tasks": race(results, arguments.leader, arguments.goal),
        }  # fmt: skip
        if arguments.json is not None:
            write_json(arguments.json, everything)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_race(everything, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
