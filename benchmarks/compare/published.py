"""Tables of samplers in few steps, from results of the preset ``tables``, beside what is published for a hundred."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from dxmi_rl.benchmark.tables import compact, number
from dxmi_rl.targets import make_target
from dxmi_rl.tasks import TASKS

Runs = list[dict[str, Any]]

PUBLISHED = {
    "gmm25": ("ELBO", "-0.17, -0.21"),
    "gmm40": ("EUBO - ELBO", "0.69, 0.73"),
    "funnel10": ("ELBO", "-0.42, -0.53"),
    "manywell32": ("EUBO - ELBO", "2.93, 3.85"),
    "manywell64": ("EUBO - ELBO", "16.3, 26.7"),
    "manywell128": ("EUBO - ELBO", "70.4, 93.4"),
    "dw4": ("`energy_tv`", "0.066 (T = 30)"),
    "lj13": ("`energy_tv`", "0.112"),
    "lgcp40": ("ELBO", "471.6, 468.7"),
    "lgcp40-whitened": ("ELBO", "471.6, 468.7"),
}
"""Per task a score and the best figures published for it, with T = 100 where nothing else is said;
docs/results_energy.md and the targets' pages name their sources."""
SCORES: dict[str, tuple[int, Callable[[dict[str, float]], float]]] = {
    "ELBO": (-1, lambda scores: scores["elbo"]),
    "EUBO - ELBO": (1, lambda scores: scores["eubo"] - scores["elbo"]),
    "`energy_tv`": (1, lambda scores: scores["energy_tv"]),
}
"""Those scores of a run, with 1 where less is better, else -1."""


def best_rows(results: dict[str, Any]) -> str:
    """README's table: the best row of every task by the score that is published, or by the ELBO."""
    lines = ["| target | score | agent | | published |", "|---|---|---|---|---|"]
    for task, rows in _runs(results).items():
        name, figures = PUBLISHED.get(task, ("ELBO", ""))
        sign, score = SCORES[name]
        values = {label: [score(run["scores"]) for run in runs] for label, runs in rows.items()}
        label = min(values, key=lambda one: sign * median(values[one]))
        lines.append(f"| {task} | {name} {'↓' if sign > 0 else '↑'} | {label} | {_spread(values[label])} | {figures} |")
    return "\n".join(lines)


def all_rows(results: dict[str, Any]) -> str:
    """The table of docs/results_energy.md: all rows. ELBO and log Z are less the true log Z, where it is known."""
    heads = ["task", "agent", "seeds", "ELBO ↑", "EUBO - ELBO ↓", "log Z, weighted", "ESS"]
    heads += ["`modes`, `well_error` or `energy_tv`", "energy evaluations", "published"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for task, rows in _runs(results).items():
        truth = make_target(TASKS[task].target).log_z or 0.0
        for label, runs in rows.items():
            scores = [run["scores"] for run in runs]
            gaps = [one["eubo"] - one["elbo"] for one in scores if "eubo" in one]
            of_samples = next((key for key in ("modes", "well_error", "energy_tv") if key in scores[0]), None)
            first = runs is next(iter(rows.values()))
            cells = [
                task if first else "", label, str(len(runs)),
                _spread([one["elbo"] - truth for one in scores]), _spread(gaps) if gaps else "",
                _spread([one["log_z"] - truth for one in scores]), _spread([one["ess"] for one in scores]),
                _spread([one[of_samples] for one in scores]) if of_samples else "",
                compact(median(run["costs"]["energy_evals"] for run in runs)),
                " ".join(PUBLISHED[task]) if first and task in PUBLISHED else "",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _runs(results: dict[str, Any]) -> dict[str, dict[str, Runs]]:
    """Runs by task, in the order of ``PUBLISHED``, and row, in that of the summary."""
    order = [*PUBLISHED, *results["tasks"]]
    found: dict[str, dict[str, Runs]] = {task: {} for task in sorted(results["tasks"], key=order.index)}
    for row in results["summary"]:
        found[row["task"]][row["label"]] = []
    for run in results["runs"]:
        found[run["task"]][run["label"]].append(run)
    finished = {task: {label: runs for label, runs in rows.items() if runs} for task, rows in found.items()}
    return {task: rows for task, rows in finished.items() if rows}


def _spread(values: list[float]) -> str:
    """The median, with the least and the largest where they differ."""
    low, middle, high = (number(value) for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} [{low}, {high}]"
