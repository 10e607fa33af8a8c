"""benchmarks/compare/value_quality.py: exact values have cosine one; keys, picture, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from lqg_cases import lqg_agent
from PIL import Image

from benchmarks.compare import value_quality


@pytest.mark.parametrize("sign", [1, -1])
def test_exact_values_point_as_the_monte_carlo_gradients_do(sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, _, exact = lqg_agent(monkeypatch, "dxdp")
    monkeypatch.setattr(agent, "value", lambda x, t: sign * exact(x, t))
    found, halves = value_quality.gradient_cosines(agent, 32, 400)
    assert len(found) == 5 and min(halves) > 0.95
    assert all(sign * cosine > 0.97 for cosine in found)
    assert agent.costs.energy_evals == 0


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tasks", "8gaussians", "--seeds", "0", "--budget", "1280", "--states", "2", "--continuations", "4"]
    arguments += ["--folder", str(tmp_path / "runs"), "--json", str(tmp_path / "v.json")]
    assert value_quality.main([*arguments, "--picture", str(tmp_path / "v.png")]) == 0
    everything = json.loads((tmp_path / "v.json").read_text())
    text = value_quality.__doc__ or ""
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything)
    assert [run["row"] for run in everything["runs"]] == list(value_quality.ROWS)
    assert set(re.findall(r"\.(\w+)(?=,| {2})", text)) == set(everything["runs"][0])
    assert len(everything["runs"][0]["energy_model"]) == 2, "one after each iteration"
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.width > 300
    printed = capsys.readouterr().out
    assert "8gaussians" in printed and "two halves" in printed


@pytest.mark.parametrize("arguments", [["--states", "0"], ["--tasks", "8gaussian"], ["--tasks", "8gaussians-data"]])
def test_bad_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert value_quality.main([*arguments, "--folder", str(tmp_path), "--seeds", "0"]) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err
