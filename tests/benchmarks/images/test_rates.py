"""benchmarks/images/rates.py: the same search for every agent inside the game."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prdc")
from benchmarks.images import play as play_module
from benchmarks.images import rates
from benchmarks.images.images import INSIDE
from benchmarks.images.play import Play
from dxmi_rl import make_task
from dxmi_rl.targets import make_target


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = make_target("digits").validation_split()  # type: ignore[attr-defined]

    def task(play: Play, device: str) -> Any:
        assert play.validation, "no test images"
        return make_task(digits, horizon=4, pretraining={"iterations": 5, "width": 16, "batch_size": 16}, device=device)

    monkeypatch.setattr(play_module, "SAMPLES", 64)
    for module in (rates, play_module):
        monkeypatch.setattr(module, "build_task", task)
    words = ["--agents", "dxdp", "path-wise, K = 2", "--rates", "1e-5", "1e-1", "--seeds", "0", "--budget", "600"]
    arguments = [*words, "--folder", str(tmp_path / "runs"), "--json", str(tmp_path / "rates.json")]
    assert rates.main(arguments) == 0
    found = json.loads((tmp_path / "rates.json").read_text(encoding="utf-8"))
    text = rates.__doc__ or ""
    assert {*re.findall(r"^    (\w+)(?:, \w+)* {2}", text, re.MULTILINE), "machine", "versions", "backbone"} == set(
        found
    )
    assert [(run["agent"], run["rate"]) for run in found["runs"]] == [
        (agent, rate) for agent in ("dxdp", "path-wise, K = 2") for rate in (1e-5, 1e-1)
    ]
    assert set(re.findall(r"\.(\w+)(?=,| {2})", text)) == set(found["runs"][0])
    for agent, best in found["best"].items():
        own = {run["rate"]: run["fd"] for run in found["runs"] if run["agent"] == agent}
        assert own[best] == min(own.values()) and len(set(own.values())) == 2
    assert "validation: FD" in capsys.readouterr().out


def test_a_game_that_diverges_is_no_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*_: Any, **__: Any) -> Any:
        raise rates.DivergenceError("gone")

    monkeypatch.setattr(rates, "play_game", diverged)
    (play, *_) = rates.games(rates.Arguments(agents=("ppo",))).values()
    lost = rates.run(play, rates.Arguments())
    runs = [{"agent": "ppo", "rate": rate, "seed": seed, **lost} for rate in (1.0, 2.0) for seed in (0, 1)]
    runs[2] |= {"fd": 5.0}
    assert rates.mean(runs, "ppo", 2.0, "fd") == float("inf")


def test_every_agent_of_the_game_can_be_searched() -> None:
    found = rates.games(rates.Arguments(seeds=(0,)))
    assert {agent for agent, _, _ in found} == {"dxdp", *INSIDE}
    assert all(play.changes["agent.policy.fine_tuning_rate"] == rate for (_, rate, _), play in found.items())


@pytest.mark.parametrize(
    "arguments", [["--agents", "dxdpp"], ["--rates", "0"], ["--budget", "0"], ["--data", "digit"], ["--jobs", "0"]]
)
def test_bad_arguments(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rates.main([*arguments, "--folder", str(tmp_path)]) == 2
    assert "\nerror: " in "\n" + capsys.readouterr().err
