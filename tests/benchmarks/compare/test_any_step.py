"""benchmarks/compare/any_step.py: a small run has all keys and a picture, and is not repeated."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import any_step
from dxmi_rl import evaluate

SIZES = ["--seeds", "0", "1", "--tasks", "8gaussians", "--horizons", "1", "2", "4", "--unseen", "3", "--agent", "ppo"]


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @functools.wraps(evaluate)
    def quick(agent: Any, **options: Any) -> dict[str, float]:
        return evaluate(agent, **{**options, "samples": 100, "draws": 1, "trajectories": 100})

    monkeypatch.setattr(any_step, "evaluate", quick)
    file, picture = tmp_path / "all.json", tmp_path / "all.png"
    budgets = ["--budget", "900", "--alone-budget", "300", "--folder", str(tmp_path / "runs")]
    arguments = [*SIZES, *budgets, "--json", str(file), "--picture", str(picture)]
    assert any_step.main(arguments) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    text = str(any_step.__doc__).split("Keys of", 1)[1]
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything) and everything["horizons"] == [1, 2, 4]
    runs = everything["runs"]
    assert [(run["row"], run["seed"]) for run in runs] == [
        (row, seed) for seed in (0, 1) for row in ("any-step", "T = 1", "T = 2", "T = 4")
    ]
    assert set(re.findall(r"\.(\w+)(?=,| {2})", text)) == set(runs[0])
    for run in runs:
        horizons = ["1", "2", "3", "4"] if run["row"] == "any-step" else [run["row"].removeprefix("T = ")]
        assert list(run["scores"]) == horizons and run["timesteps"] >= 300
        assert all(set(scores) == set(any_step.KEYS) - {"fd", "fd_floor"} for scores in run["scores"].values())
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "8gaussians: any-step / one horizon alone" in printed and "one by one" in printed
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert any_step.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert any_step.main([*arguments, "--no-alone"]) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["runs"] == [run for run in runs if run["row"] == "any-step"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


@pytest.mark.parametrize(
    "arguments",
    [["--budget", "0"], ["--tasks", "8gaussian"], ["--horizons", "4"], ["--horizons", "4", "2"], ["--unseen", "17"],
     ["--seeds", "0", "0"], ["--device", "qpu"], ["--jobs", "0"]],
)  # fmt: skip
def test_bad_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert any_step.main([*arguments, "--folder", str(tmp_path)]) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err
