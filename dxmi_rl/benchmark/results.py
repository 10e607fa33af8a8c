"""Results of a comparison: the one JSON file that reports, leaderboards and submissions are made from."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from statistics import fmean

from dxmi_rl.benchmark.attempt import Outcome
from dxmi_rl.benchmark.measure import first_score
from dxmi_rl.benchmark.protocol import Row
from dxmi_rl.benchmark.statistics import Interval, interquartile_mean, interval, median
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.storage import JSON

Result = JSON
Summary = JSON

SCHEMA = 3
RULERS = {2: "one Gaussian per step", SCHEMA: "a mixture of Gaussians per step"}
"""The kernel that is fitted after training, by schema: bounds of different schemas cannot be compared."""
RANKED_BY = {
    "kl_bound_fit": "lower", "kl_marginal": "lower", "elbo_tau": "higher", "elbo": "higher", "fd": "lower",
    "sliced_w2": "lower", "quantile_error": "lower", "energy_tv": "lower",
}  # fmt: skip
"""Scores that a task can be ranked by, the first that applies, and which direction is better."""
PROBLEM = ("dim", "event_shape", "horizon", "tau", "track", "energy", "score", "better")
"""Keys of a task's entry: rows are compared with each other where these are the same."""
BASE = "base"
"""Name of the agent that normalised scores count from, in the first of its rows."""
DIVERGED = ("DivergenceError", "NonFiniteError", "EnergyError")
"""Exceptions that end a run that diverged; it counts as the worst run of its task."""
RANGE = "range of the runs"
"""In place of an interval's method where no interval says anything."""
FAR = 1000
"""An interval says nothing when a run is this many times as far from the median as half of the runs are."""
NOT_SUMMARISED = ("_floor", "_se", "_bias")
"""Endings of scores that say something about another score."""
COSTS = (
    "timesteps", "energy_evals", "energy_grad_evals", "gradient_steps", "policy_draws", "denoiser_calls", "seconds",
    "setbacks",
)  # fmt: skip


def rows_by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that share a table, in order."""
    return {task: [row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)}


def results_of(row: Row, results: Sequence[Result]) -> list[Result]:
    """Finished runs of one row."""
    return [result for result in results if (result["task"], result["label"]) == (row.task, row.label)]


def is_fitted(result: Result) -> bool:
    """Whether a kernel was fitted to the policy after training."""
    return bool(result.get("sizes", {}).get("fit", True) and result.get("fit", True))


def assemble(
    rows: Sequence[Row], results: Sequence[Result], failed: Sequence[JSON], command: str, header: JSON
) -> JSON:
    """Everything about a comparison; ``header`` holds its name, preset, command, devices, seeds and seconds.

    ``failed`` has the failed runs (``failure``). ``command`` is the command line without a selection; the commands of
    rows and runs add one to it.
    """
    tasks = {task: _describe(own, results) for task, own in rows_by_task(rows).items()}
    runs = []
    for row in rows:
        for result in results_of(row, results):
            extra = {"normalised": normalised_score(result, tasks[row.task])}
            runs.append(result | extra | {"command": f"{_row_command(command, row)} --seeds {result['seed']}"})
    return {
        "schema": SCHEMA,
        **header,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tasks": tasks,
        "summary": [_summarise(row, runs, failed, tasks[row.task], _row_command(command, row)) for row in rows],
        "runs": runs,
        "failed": list(failed),
    }


def without_paths(results: JSON) -> JSON:
    """Results of a comparison without the denoising paths of its runs, which would be most of the file."""
    runs = [{key: value for key, value in run.items() if key != "paths"} for run in results["runs"]]
    return results | {"runs": runs}


def _row_command(command: str, row: Row) -> str:
    return f"{command} --tasks {shlex.quote(row.task)} --agents {shlex.quote(row.label)}"


def _describe(rows: Sequence[Row], results: Sequence[Result]) -> JSON:
    """What a task is, and how its runs are ranked."""
    row, target = rows[0], rows[0].target
    own = [result for other in rows for result in results_of(other, results)]
    scores: list[dict[str, float]] = [result["scores"] for result in own]
    # With a kernel that was trained beside it a bound says as much about the kernel as about the policy.
    given = {other.energy for other in rows} == {row.energy} and row.energy_given
    fits = {is_fitted(result) for result in own}
    kernels = {other.backward for other in rows}
    same_ruler = fits == {True} or (fits == {False} and kernels in ({"forward"}, {"base"}))
    # An agent without a density lacks some scores; it stays unranked then, and does not change how others are ranked.
    zero = next((other for other in rows if other.agent == BASE and other.particles is None), None)
    zeros = [result["scores"] for result in results_of(zero, results)] if zero else []
    shared = [key for key in RANKED_BY if scores and all(key in one for one in zeros or scores)]
    key = first_score(RANKED_BY, shared, given and same_ruler)
    if key is None:  # nothing to compare samples with
        key = first_score(RANKED_BY, shared, given and len(fits) == len(kernels) == 1)
    base = [one[key] for one in zeros] if key else []
    floors = [floor for one in scores if key and (floor := exact_score(one, key)) is not None]
    config = TASKS[row.task]
    return {
        "dim": target.dim,
        "event_shape": list(target.event_shape),
        "horizon": row.task_settings.get("horizon", config.horizon),
        "tau": row.tau,
        "track": row.task_settings.get("track", config.track),
        "energy": row.energy,
        "score": key,
        "better": RANKED_BY[key] if key else None,
        "base": fmean(base) if base else None,
        "floor": fmean(floors) if floors else None,
    }


def normalised_score(result: Result, task: JSON) -> float | None:
    """The ranking score of a run, 0 for the base sampler and 1 for exact samples; None where one of them is unknown."""
    key, base, floor = task["score"], task["base"], task["floor"]
    if key is None or base is None or floor is None or base == floor or key not in result["scores"]:
        return None
    return normalise(result["scores"][key], base, floor)


def exact_score(scores: dict[str, float], key: str) -> float | None:
    """What an exact sampler scores: a KL and its bound are 0, others have a floor beside them, or nothing is known."""
    return 0.0 if key in ("kl_bound_fit", "kl_marginal") else scores.get(f"{key}_floor")


def normalise(score: float, base: float, floor: float) -> float:
    """(score - base) / (floor - base): 0 for the base sampler, 1 for an exact sampler, negative when worse than base.

    The same for scores where lower and where higher is better.
    """
    return (score - base) / (floor - base)


def diverged(failed: Sequence[JSON], task: str, label: str) -> list[JSON]:
    """The failed runs of one row that diverged, of the ``failed`` of a results file."""
    own = [one for one in failed if (one["task"], one["label"]) == (task, label)]
    return [one for one in own if str(one["error"]).startswith(DIVERGED)]


def worst_score(runs: Sequence[Result], task: str, key: str, better: str) -> float | None:
    """The worst finite score of all finished runs of a task; None where none has it."""
    found = [run["scores"][key] for run in runs if run["task"] == task and key in run["scores"]]
    return None if not found else max(found) if better == "lower" else min(found)


def counted_scores(
    runs: Sequence[Result], failed: Sequence[JSON], task: str, label: str, key: str, better: str
) -> list[float]:  # fmt: skip
    """A score of the finished runs of a row, and for each of its runs that diverged the worst of the task; none where a
    finished run lacks the score.
    """
    own = [run["scores"] for run in runs if (run["task"], run["label"]) == (task, label)]
    if not all(key in one for one in own):
        return []
    worst = worst_score(runs, task, key, better)
    lost = [] if worst is None else [worst] * len(diverged(failed, task, label))
    return [one[key] for one in own] + lost


def lacking(runs: Sequence[Result], task: str, label: str, key: str) -> str:
    """``score in 1 of 3 runs`` where not all finished runs of a row have the score, else nothing."""
    own = [run["scores"] for run in runs if (run["task"], run["label"]) == (task, label)]
    having = sum(key in one for one in own)
    return f"score in {having} of {len(own)} runs" if 0 < having < len(own) else ""


def _summarise(row: Row, runs: Sequence[Result], failed: Sequence[JSON], task: JSON, command: str) -> Summary:
    """One row of the tables."""
    own = results_of(row, runs)
    name = {"task": row.task, "label": row.label}
    return {
        **name,
        "agent": row.agent,
        "track": task["track"],
        "budget": row.budget,
        "unit": row.unit,
        "seeds": list(row.seeds),
        "runs": len(own),
        "diverged": len(diverged(failed, row.task, row.label)),
        **summarise_runs(name, runs, failed, task),
        "best": summarise_best(own),
        "command": command,
    }


def summarise_runs(row: JSON, runs: Sequence[Result], failed: Sequence[JSON], task: JSON) -> JSON:
    """``scores``, ``normalised`` and ``costs`` of the row with this ``task`` and ``label``, from the ``runs`` and
    ``failed`` of a results file and its entry of the task.

    Runs that diverged count in the ranking score alone, as other scores have no worst.
    """
    name, label = row["task"], row["label"]
    own = [run for run in runs if (run["task"], run["label"]) == (name, label)]
    lost = len(diverged(failed, name, label))
    scores = _score_statistics([run["scores"] for run in own])
    key = task["score"]
    if key is not None and lost and (values := counted_scores(runs, failed, name, label, key, task["better"])):
        scores[key] = score_statistics(values, lost) | {k: v for k, v in scores.get(key, {}).items() if k == "floor"}
    normalised = {
        (run["label"], run["seed"]): value for run in runs if run["task"] == name
        if (value := normalised_score(run, task)) is not None
    }  # fmt: skip
    values = [value for (other, _), value in normalised.items() if other == label]
    values = values + [min(normalised.values())] * lost if normalised and len(values) == len(own) else []
    costs = {
        key: fmean(run["costs"][key] for run in own) for key in COSTS if own and all(key in run["costs"] for run in own)
    }
    return {"scores": scores, "normalised": score_statistics(values, lost) if values else None, "costs": costs}


def summarise_best(runs: Sequence[Result]) -> dict[str, JSON]:
    """Statistics of the scores of the best checkpoints of a row's finished runs, where they were scored."""
    return _score_statistics([run["best"]["scores"] for run in runs if run["best"]])


def _score_statistics(scores: list[dict[str, float]]) -> dict[str, JSON]:
    """Of the scores that all runs have: those that lack one may be the bad ones."""
    entries: dict[str, JSON] = {}
    for key in scores[0] if scores else {}:
        if key.endswith(NOT_SUMMARISED) or not all(key in one for one in scores):
            continue
        entries[key] = score_statistics([one[key] for one in scores])
        floor = scores[0].get(f"{key.removesuffix('_late')}_floor")
        if floor is not None:
            entries[key]["floor"] = floor
    return entries


def score_statistics(values: Sequence[float], diverged: int = 0) -> JSON:
    """``{"iqm", "median"}`` of one score over runs, and with two or more its 95 % interval and how it was made.

    ``diverged`` of the values stand for runs that diverged. Then, and where one run is far from all others, no interval
    says anything, and the range of the runs takes its place.
    """
    statistics: JSON = {"iqm": interquartile_mean(values), "median": median(values)}
    found = interval(values)
    if found is not None and (diverged or _one_is_far(values)):
        found = Interval(min(values), max(values), RANGE)
    return statistics if found is None else statistics | found._asdict()


def _one_is_far(values: Sequence[float]) -> bool:
    centre = median(values)
    distances = [abs(value - centre) for value in values]
    return max(distances) > FAR * median(distances) > 0


def failure(outcome: Outcome) -> JSON:
    """A failed run's entry in a results file."""
    row = outcome.run.row
    return {
        "key": outcome.run.key,
        "label": row.label,
        "task": row.task,
        "seed": outcome.run.seed,
        "error": outcome.error,
    }
