"""Tables beside what is published: the best row of a task by its own score, medians and ranges over seeds."""

from __future__ import annotations

from typing import Any

from benchmarks.compare.published import all_rows, best_rows


def made_up(task: str, label: str, scores: list[dict[str, float]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    runs = [
        {"task": task, "label": label, "costs": {"energy_evals": 1000.0 * (i + 1)}, "scores": one | {"ess": 0.5}}
        for i, one in enumerate(scores)
    ]
    return {"task": task, "label": label}, runs


def results(*parts: tuple[dict[str, Any], list[dict[str, Any]]]) -> dict[str, Any]:
    rows, runs = [row for row, _ in parts], [run for _, own in parts for run in own]
    return {"tasks": {row["task"]: {} for row in rows}, "summary": rows, "runs": runs}


EXACT = {"sliced_w2": 1.0}
FOUND = results(
    made_up("gmm40", "wide", [EXACT | {"elbo": -0.1, "eubo": 9.0, "log_z": 0.0, "modes": 40.0}] * 2),
    made_up(
        "gmm40",
        "near",
        [EXACT | {"elbo": -gap / 2, "eubo": gap / 2, "log_z": gap, "modes": 39.0} for gap in (0.4, 0.5, 0.9)],
    ),
    made_up("funnel10", "low", [{"elbo": -2.0, "eubo": 1.0, "log_z": -1.0}]),
    made_up("funnel10", "high", [{"elbo": -1.0, "eubo": 1e9, "log_z": -1.0}]),
    made_up("dw4", "far", [{"elbo": 30.0, "log_z": 30.0, "energy_tv": 0.3}]),
    made_up("dw4", "close", [{"elbo": 20.0, "log_z": 30.0, "energy_tv": 0.1}]),
    made_up("manywell32", "only", [EXACT | {"elbo": 164.0, "eubo": 165.0, "log_z": 164.7, "well_error": 0.1}]),
    made_up("lj55", "unpublished", [{"elbo": 1.0, "log_z": 1.0, "energy_tv": 1.0}]),
)


def test_the_best_row_of_every_task() -> None:
    """By the score that is published, or by the ELBO; tasks without a finished run have no line."""
    assert best_rows(results(made_up("gmm40", "none", []), made_up("dw4", "none", []))).count("\n") == 1
    assert best_rows(FOUND).splitlines()[2:] == [
        "| gmm40 | EUBO - ELBO ↓ | near | 0.5 [0.4, 0.9] | 0.69, 0.73 |",
        "| funnel10 | ELBO ↑ | high | -1 | -0.42, -0.53 |",
        "| manywell32 | EUBO - ELBO ↓ | only | 1 | 2.93, 3.85 |",
        "| dw4 | `energy_tv` ↓ | close | 0.1 | 0.066 (T = 30) |",
        "| lj55 | ELBO ↑ | unpublished | 1 |  |",
    ]


def test_all_rows_are_less_the_true_log_z() -> None:
    lines = all_rows(FOUND).splitlines()
    assert len(lines) == 2 + 8
    spread = "0.5 [0.4, 0.9]"
    assert lines[3] == f"|  | near | 3 | -0.25 [-0.45, -0.2] | {spread} | {spread} | 0.5 | 39 | 2000 |  |"
    assert lines[6] == "| manywell32 | only | 1 | -0.696 | 1 | 0.00432 | 0.5 | 0.1 | 1000 | EUBO - ELBO 2.93, 3.85 |"
    assert lines[7] == "| dw4 | far | 1 | 30 |  | 30 | 0.5 | 0.3 | 1000 | `energy_tv` 0.066 (T = 30) |"
