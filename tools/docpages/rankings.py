"""The ranking on a target's page, from the results on record."""

from __future__ import annotations

import json
from typing import Any

from docpages.agents import RESULTS
from docpages.docstrings import table
from dxmi_rl.benchmark.results import RULERS
from dxmi_rl.benchmark.tables import compact, number
from dxmi_rl.tasks import TASKS

FILES = {
    "standard.json": "the [leaderboard](../leaderboard.md)",
    "experiments/everything.json": "the preset `everything`",
    "experiments/tables.json": "the preset `tables`",
    "experiments/gradient-free.json": "the preset `gradient-free`",
}
"""Results under benchmarks/results that rank agents, and where they come from, in words."""
SHOWN = 5


def ranking(name: str) -> str:
    """The best agents on every task of the target ``name``, a table per kind of results and task."""
    parts = []
    for file, origin in FILES.items():
        results = json.loads((RESULTS / file).read_text(encoding="utf-8"))
        for task, facts in results["tasks"].items():
            if TASKS[task].target == name:
                own = [entry for entry in results["summary"] if entry["task"] == task]
                parts.append(_part(task, facts, own, f"{origin}, {results['date'][:10]}", RULERS[results["schema"]]))
    return "\n\n".join(parts) or "No sweep on record ranks agents here."


def _part(task: str, facts: dict[str, Any], rows: list[dict[str, Any]], origin: str, ruler: str) -> str:
    score, sign = facts["score"], 1 if facts["better"] == "lower" else -1
    scored = [entry for entry in rows if score in entry["scores"]]
    best = sorted(scored, key=lambda entry: sign * entry["scores"][score]["iqm"])[:SHOWN]
    lines = [
        (
            entry["label"], _interval(entry["scores"][score]), compact(entry["costs"]["energy_evals"]),
            compact(entry["costs"]["seconds"]), f"{entry['runs']}",
        )
        for entry in best
    ]  # fmt: skip
    if (floor := facts.get("floor")) is not None:
        label = "*reference states*" if score == "energy_tv" else "*exact sampler*"
        lines.insert(0, (label, number(floor), "", "", ""))
    fitted = f" (the fitted kernel is {ruler})" if score == "kl_bound_fit" else ""
    heading = (
        f"The best {len(best)} of {len(scored)} on `{task}` (track {facts['track']}, T = {facts['horizon']}), from "
        f"{origin}; `{score}`{fitted}, interquartile "
        f"means over seeds with 95 % intervals, {facts['better']} is better:"
    )
    return f"{heading}\n\n{table(('', f'`{score}`', 'energy evaluations', 'seconds', 'runs'), lines)}"


def _interval(score: dict[str, Any]) -> str:
    """Interquartile mean and interval."""
    low, high = (score.get(key) for key in ("low", "high"))
    middle = number(score["iqm"])
    return middle if low is None or high is None else f"{middle} [{number(low)}, {number(high)}]"
