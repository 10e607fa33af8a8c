"""benchmarks/compare/rewards.py: a small run has all keys and a picture, and is not repeated."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import rewards
from dxmi_rl.evaluation import marginal_scores
from dxmi_rl.targets import QuadraticReward
from dxmi_rl.tasks import TASKS

SIZES = ["--seeds", "0", "--tasks", "8gaussians-proxy", "gmm25-tilted", "--betas", "1", "0.5", "--evals", "64",
         "--horizon", "3", "--agents", "base", "ppo", "dpok"]  # fmt: skip


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewards, "SAMPLES", 200)
    monkeypatch.setattr(rewards, "SCORED", 50)

    @functools.wraps(marginal_scores)
    def quick(*parts: Any, **options: Any) -> dict[str, float]:
        return marginal_scores(*parts, **(options | {"states": 50, "points": 50}))

    monkeypatch.setattr(rewards, "marginal_scores", quick)
    file, picture = tmp_path / "all.json", tmp_path / "all.png"
    arguments = [*SIZES, "--json", str(file), "--picture", str(picture), "--folder", str(tmp_path / "runs")]
    assert rewards.main(arguments) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    text = str(rewards.__doc__).split("Keys of", 1)[1]
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything)
    runs = everything["runs"]
    assert len(runs) == 2 * 2 * 3 and {run["agent"] for run in runs} == {"base", "ppo", "dpok"}
    for run in runs:
        expected = set(rewards.KEYS) - {"elbo", "fd"} - ({"true_reward"} if run["task"] == "gmm25-tilted" else set())
        assert set(run["scores"]) == expected
        assert (run["energy_evals"] >= 64) == (run["agent"] != "base")
        if run["agent"] == "base":
            assert run["scores"]["kl_base"] == pytest.approx(0.0, abs=1e-3)
    proxies = [one for one in everything["exact"] if one["task"] == "8gaussians-proxy"]
    assert [one["beta"] for one in proxies] == [1.0, 0.5] and all("true_reward" in one for one in proxies)
    assert all(one["kl_untilted"] > 0 for one in everything["exact"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "gmm25-tilted, beta = 0.5: medians over seeds" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert rewards.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_a_tilted_base_sampler_is_known_by_its_weighted_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 8gaussians, whose base sampler in many steps is nearly the data, it is nearly the tilted mixture."""
    monkeypatch.setitem(
        TASKS._entries, "a-base", replace(TASKS["8gaussians"], backward="base", reward=QuadraticReward((1.0, 0.0)))
    )  # fmt: skip
    arguments = rewards.Arguments(horizon=30)
    for beta in (1.0, 2.0):
        ours, known = (rewards.exact(task, beta, arguments) for task in ("a-base", "8gaussians-proxy"))
        assert ours["reward"] == pytest.approx(known["reward"], abs=0.12)
        assert ours["kl_untilted"] == pytest.approx(known["kl_untilted"], abs=0.12) and 0 < ours["ess"] < 1


@pytest.mark.parametrize(
    "arguments",
    [["--evals", "0"], ["--tasks", "8gaussians"], ["--betas", "0"], ["--agents", "dxpd"], ["--seeds", "0", "0"]],
)
def test_bad_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rewards.main([*arguments, "--folder", str(tmp_path)]) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err
