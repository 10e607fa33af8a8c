"""benchmarks/compare/ruler.py: a small run has all keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.compare import ruler
from dxmi_rl.evaluation import fit_kernel


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {name: lambda mdp, policy: fit_kernel(mdp, policy, steps=5) for name in ruler.FITS}
    monkeypatch.setattr(ruler, "FITS", quick)
    monkeypatch.setattr(ruler, "TRAJECTORIES", 500)
    file = tmp_path / "r.json"
    sizes = ["--seeds", "0", "--budget", "100", "--folder", str(tmp_path), "--json", str(file)]
    assert ruler.main(["--tasks", "8gaussians", "--backward", "learned", "--agents", "base", *sizes]) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    text = ruler.__doc__.split("Keys of", 1)[1]
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything)
    (run,) = everything["runs"]
    assert set(re.findall(r"\.(\w+)(?=,| {2})", text)) == set(run)
    assert all(0 < run["kl_marginal"] < one["bound"] for one in run["rulers"].values())
    assert "base" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--budget", "0"], ["--tasks", "8gaussian"], ["--tasks", "dw4"], ["--backward", "learnd"]]
)
def test_bad_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ruler.main([*arguments, "--folder", str(tmp_path), "--seeds", "0"]) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err
