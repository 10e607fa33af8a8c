"""benchmarks/compare/gaussian_steps.py: a small run has all keys, and a fit nears exact chains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.compare import gaussian_steps
from dxmi_rl import make_agent, make_task
from dxmi_rl.agents.path_wise import PathWise
from dxmi_rl.tasks import reference_target


def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gaussian_steps, "TEST", 200)
    file = tmp_path / "g.json"
    sizes = ["--seeds", "0", "--gradient-steps", "2", "--batch", "4", "--folder", str(tmp_path), "--json", str(file)]
    assert gaussian_steps.main(["--tasks", "gmm9", "--horizons", "2", "3", *sizes]) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    text = gaussian_steps.__doc__.split("Keys of", 1)[1]
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything)
    assert set(re.findall(r"\.(\w+)(?=,| {2})", text)) == set(everything["runs"][0])
    assert [run["horizon"] for run in everything["runs"]] == [2, 3]
    assert "eubo" in capsys.readouterr().out


def test_chains_end_in_exact_samples_and_the_fit_nears_them() -> None:
    task = make_task("gmm9", track="sample", horizon=10, backward="forward")
    target = reference_target(task.config)
    chain = gaussian_steps.exact_chains(task.mdp, target, 500, torch.Generator().manual_seed(0))
    assert chain.shape == (11, 500, 2)
    torch.testing.assert_close(chain[-1], target.sample(500, torch.Generator().manual_seed(0)))
    agent = make_agent("path-wise", task, seed=0, policy=gaussian_steps.RATES)
    assert isinstance(agent, PathWise)

    def divergence() -> float:  # of exact chains from the policy's, up to a constant
        paths = task.mdp.backward_rollout(agent.policy, chain[-1], torch.Generator().manual_seed(1))
        return -float(paths.log_prob.sum(0).mean())

    before = divergence()
    gaussian_steps.fit(agent, target, 100, 64)
    assert divergence() < before - 1


@pytest.mark.parametrize(
    "arguments",
    [["--gradient-steps", "0"], ["--tasks", "dw"], ["--tasks", "lj55"], ["--tasks", "rings"], ["--settings", "dept=1"]],
)
def test_bad_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gaussian_steps.main([*arguments, "--folder", str(tmp_path), "--seeds", "0"]) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err
