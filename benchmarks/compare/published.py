"""README's table of samplers in few steps, from results of the preset ``tables``, beside published rows of a hundred."""

from __future__ import annotations

from statistics import median
from typing import Any

from dxmi_rl.benchmark.tables import number

PUBLISHED = {
    "gmm25": "ELBO -0.17, -0.21",
    "gmm40": "EUBO - ELBO 0.69, 0.73",
    "funnel10": "ELBO -0.42, -0.53",
    "manywell32": "2.93, 3.85",
    "manywell64": "16.3, 26.7",
    "manywell128": "70.4, 93.4",
    "dw4": "0.066 (T = 30)",
    "lj13": "0.112 (T = 100)",
    "lgcp40": "471.6, 468.7",
}
"""The best two published figures of a target, or one (docs/results.md and the targets' pages name the sources)."""


def target_table(results: dict[str, Any]) -> str:
    """The best row of every task by ``headline``, its median, least and largest over seeds, and what is published."""
    lines = ["| target | agent | T | score | published, T = 100 |", "|---|---|---|---|---|"]
    for task, facts in results["tasks"].items():
        rows: dict[str, list[dict[str, float]]] = {}
        for run in results["runs"]:
            if run["task"] == task:
                rows.setdefault(run["label"], []).append(run["scores"])
        name, sign = headline(facts, next(iter(rows.values()))[0])
        label = min(rows, key=lambda one: sign * median(value(name, scores) for scores in rows[one]))
        values = sorted(value(name, scores) for scores in rows[label])
        text = f"{name} {number(median(values))}"
        if len(values) > 1:
            text += f" ({number(values[0])} to {number(values[-1])})"
        lines.append(f"| {task} | {label} | {facts['horizon']} | {text} | {PUBLISHED.get(task, '')} |")
    return "\n".join(lines)


def headline(facts: dict[str, Any], scores: dict[str, float]) -> tuple[str, int]:
    """The score that a task's line shows, and 1 where less of it is better, else -1.

    EUBO - ELBO where exact samples give both, and ``energy_tv`` of particles; the ELBO where the exact samples' tails
    decide the EUBO (the funnel), or where there are none.
    """
    if "energy_tv" in scores:
        return "`energy_tv`", 1
    if "eubo" in scores and "sliced_w2" in scores:
        return "EUBO - ELBO", 1
    return "ELBO", -1


def value(name: str, scores: dict[str, float]) -> float:
    """The score of that name of one run."""
    return scores["eubo"] - scores["elbo"] if "EUBO" in name else scores[name.strip("`").lower()]
