"""benchmarks/run_cache.py: a run is known by what its numbers depend on, and finished ones are not repeated."""

from __future__ import annotations

import inspect
import json
import math
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from dxmi_rl import list_tasks
from dxmi_rl.agents import PPO, DxDP
from dxmi_rl.benchmark.code import digest_of_code
from dxmi_rl.live_energy import EnergyError, require_finite_energy
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.checks import NonFiniteError


def one() -> int:
    """One."""
    return 1


def test_a_file_is_named_by_settings_and_code(tmp_path: Path) -> None:
    first = run_file(tmp_path, {"a": 1, "b": [2]}, (PPO,), "x")
    assert first == run_file(tmp_path, {"b": (2,), "a": 1}, [PPO, PPO], "x") and first.parent == tmp_path
    others = [
        run_file(tmp_path, {"a": 1, "b": [3]}, (PPO,), "x"),
        run_file(tmp_path, {"a": 1, "b": [2]}, (DxDP,), "x"),
        run_file(tmp_path, {"a": 1, "b": [2]}, (PPO,), "y"),
        run_file(tmp_path, {"a": 1, "b": [2]}),
    ]
    assert len({first, *others}) == 5


def test_what_a_task_is_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings stand in a registry, which is no part of the source that counts."""
    before = run_file(tmp_path, {"task": "8gaussians"})
    changed = {name: TASKS[name] for name in list_tasks()} | {"8gaussians": replace(TASKS["8gaussians"], tau=0.25)}
    monkeypatch.setattr("benchmarks.run_cache.TASKS", changed)
    assert run_file(tmp_path, {"task": "8gaussians"}) != before


def test_comments_and_docstrings_are_no_code() -> None:
    first = code_of(one)

    def one_again() -> int:
        """Another docstring."""
        return 1  # and a comment

    assert digest_of_code(textwrap.dedent(inspect.getsource(one_again)).replace("one_again", "one")) == first
    assert code_of(one_again) != first and code_of(one, one_again) != first, "names count"


def test_a_finished_run_is_not_repeated_and_a_failed_one_is(tmp_path: Path) -> None:
    calls: list[int] = []

    def run(fails: bool) -> dict[str, Any]:
        calls.append(1)
        if fails:
            raise RuntimeError("no")
        return {"scores": (1.5, None)}

    file = tmp_path / "new" / "run.json"
    with pytest.raises(RuntimeError, match="no"):
        kept_result(file, lambda: run(True))
    assert not file.exists()
    for _ in range(2):
        assert kept_result(file, lambda: run(False)) == {"scores": [1.5, None]}, "the same, made now or read"
    assert len(calls) == 2 and json.loads(file.read_text(encoding="utf-8")) == {"scores": [1.5, None]}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_come_in_order(jobs: int, tmp_path: Path) -> None:
    arguments = [(tmp_path, {"number": number}) for number in (3, 1, 2)]
    assert run_all(run_file, arguments, jobs, "names of files") == [run_file(*own) for own in arguments]


@pytest.mark.slow
def test_one_that_diverges_in_a_worker_of_its_own() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(EnergyError, match="energy") as error:
        run_all(require_finite_energy, [(x, torch.tensor([math.nan])), (x, torch.ones(1))], 2, "games")
    assert error.value.__notes__ == ["1 of 2 games diverged; all others are finished and kept."]


def finished_or_diverged(folder: Path, number: int) -> int:
    if number < 0:
        raise NonFiniteError(f"loss of {number}")
    (folder / str(number)).touch()
    return number


def test_the_others_are_finished_when_one_diverges(tmp_path: Path) -> None:
    arguments = [(tmp_path, number) for number in (-1, 1, -2, 2)]
    with pytest.raises(NonFiniteError, match="loss of -1") as error:
        run_all(finished_or_diverged, arguments, 1, "games")
    assert error.value.__notes__ == ["2 of 4 games diverged; all others are finished and kept."]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "2"]
