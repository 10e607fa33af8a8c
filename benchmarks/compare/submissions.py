"""What a submission to the leaderboard must be: rows that are what their runs say, of scores that can be."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark.results import BASE, RANKED_BY, diverged, normalised_score, summarise_best, summarise_runs
from dxmi_rl.costs import BUDGET_UNITS
from dxmi_rl.tasks import ENERGIES

ERROR = 0.01
"""Nats by which the estimate of a divergence, or a distance, may be below 0."""
MOST = 30.0
"""Largest error in nats that a run may state for its divergence."""
LOG_Z_ERROR = 2.0
"""Nats by which an ELBO may be above log Z, and by which two estimates of log Z may differ."""
FLOOR_ERROR = 0.05
"""Part by which other estimates of a floor or a base score may differ, which are made anew on every machine."""
OVERSPENT = 1.25
"""Part of a budget that may be spent: budgets are rounded up to whole iterations."""
NAME = re.compile(r"[A-Za-z0-9_+=/(.][A-Za-z0-9 _+=/().,:-]{0,79}(?<! )")
"""What labels and names of tasks and submissions are made of: nothing that reads as another, and no markup."""


def is_ours(row: dict[str, Any]) -> bool:
    """Whether the agent is one of this package."""
    return row["agent"] in AGENTS


def trains(row: dict[str, Any]) -> bool:
    """Whether the row's agent trains; one that is not ours does unless its runs spent nothing."""
    return AGENTS[row["agent"]].trains if is_ours(row) else bool(row["budget"] or row["costs"].get("timesteps"))


def budget_known(row: dict[str, Any]) -> bool:
    """Whether the row says what was trained for: a model that is not ours and names no budget was trained elsewhere."""
    return is_ours(row) or bool(row["budget"])


def agree(key: str, first: Any, other: Any, task: dict[str, Any]) -> bool:
    """Equal; floors and base scores are estimates, and a comparison without the base sampler has no such score."""
    if key == "base" and None in (first, other):
        return True
    if key in ("floor", "base") and None not in (first, other):
        error = max(FLOOR_ERROR, FLOOR_ERROR * abs(first))
        return abs(first - other) <= (LOG_Z_ERROR if key == "floor" and _is_elbo(task["score"]) else error)
    return bool(first == other)


def runs_of(results: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished runs of a row."""
    return [run for run in results["runs"] if (run["task"], run["label"]) == (row["task"], row["label"])]


def failed_of(results: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Failed runs of a row."""
    return [run for run in results["failed"] if (run["task"], run["label"]) == (row["task"], row["label"])]


def check_submission(name: str, results: dict[str, Any]) -> None:
    """Raises ValueError for rows that are not what their runs say, for runs that are not their row's, and for names
    that read as another or as markup.
    """
    for kind, text in [("submission", name), *(("task", task) for task in results["tasks"])]:
        _check_name(name, kind, text)
    rows = [(row["task"], row["label"]) for row in results["summary"]]
    if len(set(rows)) < len(rows):
        raise ValueError(f"{name!r}: every row must stand in summary once.")
    for task in results["tasks"].values():
        if task["score"] is not None and RANKED_BY.get(task["score"]) != task["better"]:
            raise ValueError(f"{name!r}: tasks.score must be one of {', '.join(RANKED_BY)}, got {task['score']!r}.")
        if task["energy"] not in (known := ["target", "reward", "learned", *ENERGIES.names()]):
            raise ValueError(f"{name!r}: tasks.energy must be one of {', '.join(known)}, got {task['energy']!r}.")
    zeros = dict[str, Any]()
    for row in results["summary"]:
        _check_name(name, "label", row["label"])
        _check_row(name, results, row)
        if row["agent"] == BASE and results["tasks"][row["task"]]["base"] is not None:
            zeros.setdefault(row["task"], row)
    for row in zeros.values():
        task = results["tasks"][row["task"]]
        found = fmean(run["scores"][task["score"]] for run in runs_of(results, row))
        if not math.isclose(found, task["base"], rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(
                f"{name!r}: tasks.base of {row['task']!r} is {task['base']!r}, and its runs give {found!r}."
            )


def _check_name(submission: str, kind: str, text: object) -> None:
    linked = isinstance(text, str) and ("www." in text.lower() or "//" in text)
    if not isinstance(text, str) or NAME.fullmatch(text) is None or linked or "  " in text:
        raise ValueError(
            f"{submission!r}: a {kind} must be up to 80 letters, digits, single spaces and _+=/().,:- , got {text!r}."
        )


def _check_row(name: str, results: dict[str, Any], row: dict[str, Any]) -> None:
    task, runs = results["tasks"][row["task"]], runs_of(results, row)
    lost = diverged(results["failed"], row["task"], row["label"])
    where = f"{name!r}, row {row['label']!r} on {row['task']!r}"
    if row["unit"] not in BUDGET_UNITS:
        raise ValueError(f"{where}: summary.unit must be one of {', '.join(BUDGET_UNITS)}, got {row['unit']!r}.")
    _check_seeds(where, row.get("seeds") or results["seeds"], [*runs, *failed_of(results, row)])
    for run in runs:
        for field in ("agent", "budget", "unit"):
            if run[field] != row[field]:
                raise ValueError(f"{where}: runs.{field} is {run[field]!r}, and summary.{field} {row[field]!r}.")
        for field in ("task_settings", "agent_settings", "sizes", "fit", "particles"):
            if run.get(field) != runs[0].get(field):
                raise ValueError(f"{where}: runs.{field} must be the same in every run.")
        if run["task_settings"].get("horizon", task["horizon"]) != task["horizon"]:
            raise ValueError(f"{where}: runs.task_settings.horizon is not the task's {task['horizon']}.")
        _check_costs(where, row, run["costs"])
        if re.fullmatch("[0-9a-f]{16}", str(run["key"])) is None:
            raise ValueError(f"{where}: runs.key must be 16 hex digits, got {run['key']!r}.")
    key = task["score"]
    finished = [run["scores"][key] for run in runs if key in run["scores"]]
    if not all(_is_number(value) for value in finished):
        raise ValueError(f"{where}: runs.scores.{key} must be finite numbers.")
    check_possible(where, [*finished, *best_of(runs, key)], task)
    for run in runs:
        for scores in [run["scores"], *([run["best"]["scores"]] if run["best"] else [])]:
            _check_consistent(where, scores)
        _check_same(f"{where}: runs.normalised", run["normalised"], normalised_score(run, task))
    if key in row["scores"] and (len(finished) != row["runs"] or not (finished or lost)):
        raise ValueError(f"{where}: summary.runs is {row['runs']}, and runs with {key!r} are {len(finished)}.")
    found = {"runs": len(runs), "diverged": len(lost), "best": summarise_best(runs)}
    found |= summarise_runs(row, results["runs"], results["failed"], task)
    for part, wanted in found.items():
        _check_same(f"{where}: summary.{part}", row.get(part, 0), wanted)


def _check_seeds(where: str, seeds: Any, runs: Sequence[dict[str, Any]]) -> None:
    """Seeds count from 0, so that none can be left out that was worse, and every run has its own."""
    own = [run["seed"] for run in runs]
    if not isinstance(seeds, list):
        raise ValueError(f"{where}: seeds must be a list, got {seeds!r}.")
    if not all(type(seed) is int for seed in [*seeds, *own]) or list(seeds) != list(range(len(seeds))):
        raise ValueError(f"{where}: seeds must be 0, 1, 2 and so on, got {list(seeds)}.")
    if len(set(own)) < len(own) or not set(own) <= set(seeds):
        raise ValueError(f"{where}: runs.seed must be another in every run, and one of {list(seeds)}, got {own}.")


def _check_costs(where: str, row: dict[str, Any], costs: dict[str, Any]) -> None:
    for key, value in costs.items():
        if not _is_number(value) or value < 0:
            raise ValueError(f"{where}: runs.costs.{key} must be a number >= 0, got {value!r}.")
    spent = costs.get(row["unit"], 0)
    if row["budget"] and not row["budget"] <= spent <= OVERSPENT * row["budget"]:
        raise ValueError(
            f"{where}: runs.costs.{row['unit']} must be the budget {row['budget']!r}, or up to {OVERSPENT} times as "
            f"much, got {spent!r}."
        )
    if is_ours(row) and not trains(row) and (row["budget"] or spent or costs.get("gradient_steps")):
        raise ValueError(f"{where}: budget, {row['unit']} and gradient steps must be 0, as the agent does not train.")


def check_possible(where: str, scores: Sequence[float], task: dict[str, Any]) -> None:
    """Raises ValueError for a score beyond what can be: a divergence or distance below 0, an ELBO above log Z, by more
    than the errors of their estimates.
    """
    key, floor = task["score"], task["floor"]
    if task["better"] == "lower":
        impossible = any(score < -ERROR for score in scores)
    else:
        impossible = _is_elbo(key) and floor is not None and any(score > floor + LOG_Z_ERROR for score in scores)
    if impossible:
        raise ValueError(f"{where}: runs.scores.{key} is better than an exact sampler can be.")


def best_of(runs: Sequence[dict[str, Any]], key: str | None) -> list[float]:
    """A score of the best checkpoints of runs, where these were scored."""
    found = [run["best"]["scores"] for run in runs if run["best"]]
    return [scores[key] for scores in found if key in scores]


def _check_consistent(where: str, scores: dict[str, Any]) -> None:
    """Raises ValueError for scores that are no finite numbers, are below 0 where they cannot be, or contradict each
    other by more than their errors: elbo is below log_z and eubo, ess is a fraction, kl_marginal is below its bound.
    """
    if bad := [key for key, value in scores.items() if not _is_number(value)]:
        raise ValueError(f"{where}: runs.scores.{bad[0]} must be a finite number, got {scores[bad[0]]!r}.")
    if bad := [key for key in ("sliced_w2", "mode_tv", "modes", "fd") if scores.get(key, 0) < 0]:
        raise ValueError(f"{where}: runs.scores.{bad[0]} must be >= 0, got {scores[bad[0]]!r}.")
    if not scores.get("elbo", -math.inf) <= min(scores.get("log_z", math.inf), scores.get("eubo", math.inf)) + 0.1:
        raise ValueError(f"{where}: runs.scores.elbo must be the lowest of elbo, log_z and eubo.")
    if not 0 <= scores.get("ess", 0) <= 1 + 1e-6:
        raise ValueError(f"{where}: runs.scores.ess must lie in [0, 1], got {scores['ess']!r}.")
    if "kl_marginal" in scores and "kl_bound_fit" in scores:
        error = 3 * scores.get("kl_marginal_se", 0) + abs(scores.get("kl_marginal_bias", 0)) + ERROR
        if not -ERROR - error <= scores["kl_marginal"] <= scores["kl_bound_fit"] + error or error > MOST:
            raise ValueError(f"{where}: runs.scores.kl_marginal must lie between 0 and its bound, kl_bound_fit.")


def log_z_of(scores: dict[str, Any]) -> float | None:
    """log Z of the target, as a bound on the divergence and the ELBO tell it."""
    return scores["kl_bound_fit"] + scores["elbo"] if {"kl_bound_fit", "elbo"} <= scores.keys() else None


def _check_same(where: str, given: Any, wanted: Any) -> None:
    if isinstance(wanted, dict) and isinstance(given, dict):
        for key in wanted.keys() | given.keys():
            _check_same(f"{where}.{key}", given.get(key), wanted.get(key))
    elif _is_number(wanted) and _is_number(given):
        if not math.isclose(given, wanted, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"{where} is {given!r}, and its runs give {wanted!r}.")
    elif given != wanted:
        raise ValueError(f"{where} is {given!r}, and its runs give {wanted!r}.")


def _is_elbo(key: str | None) -> bool:
    return key is not None and key.startswith("elbo")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
