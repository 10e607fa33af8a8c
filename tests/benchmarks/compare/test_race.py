"""benchmarks/compare/race.py: where curves reach a level, and who is ahead."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import race
from dxmi_rl.utils.registry import UnknownNameError


def point(timesteps: float, kl_bound: float) -> dict[str, float]:
    return {"timesteps": timesteps, "seconds": timesteps / 10, "energy_evals": timesteps / 5, "kl_bound": kl_bound}


def run(label: str, seed: int, final: float, curve: list[float]) -> dict[str, Any]:
    scores = {"kl_bound_fit": final, "sliced_w2": final / 10}
    points = [point(100.0 * i, value) for i, value in enumerate(curve)]
    return {"task": "8gaussians", "label": label, "seed": seed, "scores": scores, "curve": points}


def results() -> dict[str, Any]:
    runs = [run("ppo", 0, 1.0, [3.0, 2.0, 1.5]), run("ppo", 1, 1.2, [3.0, 1.0, 0.5])]
    runs += [run("dxdp", 0, 0.5, [3.0, 0.0, 0.0]), run("dxdp", 1, 1.1, [3.0, 2.0, 0.0]), run("dxdp", 2, 0.4, [3.0] * 3)]
    runs += [run("base", 0, 2.0, [3.0])]
    tasks = {"8gaussians": {"score": "kl_bound_fit", "better": "lower", "energy": "target"}}
    return {"command": "dxmi-rl compare", "tasks": tasks, "runs": runs, "failed": []}


def test_a_curve_reaches_a_level_between_its_points() -> None:
    curve = [point(0, 3.0), point(100, 2.0), point(200, 1.0), point(300, 0.5)]
    assert race.first_reach(curve, "kl_bound", 1.25, 1) == {"timesteps": 175.0, "seconds": 17.5, "energy_evals": 35.0}
    assert race.first_reach(curve, "kl_bound", 5.0, 1) == {"timesteps": 0, "seconds": 0, "energy_evals": 0}
    assert race.first_reach(curve, "kl_bound", 0.4, 1) is None
    rising = [point(0, -3.0), point(100, -1.0)]
    reached = race.first_reach(rising, "kl_bound", -2.0, -1)
    assert reached is not None and reached["timesteps"] == 50.0
    broken = [point(0, 3.0), point(100, math.nan), point(200, 1.0)]
    reached = race.first_reach(broken, "kl_bound", 2.0, 1)
    assert reached is not None and reached["timesteps"] == 100.0


def test_a_race_by_hand() -> None:
    """PPO's last points are 1.5 and 0.5, so the level is 1; dxdp's runs reach it at 66.7, 150 and never."""
    task = race.race(results(), "dxdp", "ppo")["8gaussians"]
    assert (task["score"], task["curve"], task["level"]) == ("kl_bound_fit", "kl_bound", 1.0)
    dxdp, ppo, base = task["rows"]
    assert [row["label"] for row in task["rows"]] == ["dxdp", "ppo", "base"], "the best first"
    assert (dxdp["score"], dxdp["sliced_w2"], dxdp["modes"]) == (0.5, 0.05, None)
    assert (dxdp["reached"], dxdp["runs"], dxdp["leader_ahead"]) == (2, 3, None)
    assert dxdp["timesteps"] == pytest.approx(150) and dxdp["energy_evals"] == pytest.approx(30)
    assert ppo["reached"] == 1 and ppo["timesteps"] == 100.0
    # dxdp (0.5, 1.1, 0.4) is below ppo (1.0, 1.2) in 2 + 3 + ... pairs: 0.5 < both, 1.1 < 1.2 only, 0.4 < both.
    assert ppo["leader_ahead"]["probability"] == pytest.approx(5 / 6)
    assert ppo["leader_ahead"]["low"] < 5 / 6 < ppo["leader_ahead"]["high"]
    assert base["reached"] == 0 and base["timesteps"] is None and base["leader_ahead"]["low"] is None


def test_runs_that_diverged_count_as_the_worst() -> None:
    """Two of five runs of dxdp: in the median, the probability, and in who reaches the level."""
    lost = {"key": "k", "task": "8gaussians", "label": "dxdp", "error": "NonFiniteError: x"}
    given = results() | {"failed": [lost | {"seed": 3}, lost | {"seed": 4}]}
    rows = {row["label"]: row for row in race.race(given, "dxdp", "ppo")["8gaussians"]["rows"]}
    assert (rows["dxdp"]["runs"], rows["dxdp"]["reached"], rows["dxdp"]["timesteps"]) == (5, 2, None)
    assert rows["dxdp"]["score"] == 1.1 and rows["ppo"]["leader_ahead"]["probability"] == pytest.approx(5 / 10)


def test_rows_without_the_goals_curve_never_reach_it() -> None:
    """TD3 has no density; with a learned energy curves are read in what is seen of samples."""
    mixed = results()
    flat = [{"timesteps": 0.0, "seconds": 0.0, "energy_evals": 0.0, "sliced_w2": 0.2}]
    mixed["runs"].append(run("td3", 0, 3.0, []) | {"curve": flat})
    row = race.race(mixed, "dxdp", "ppo")["8gaussians"]["rows"][-1]
    assert (row["label"], row["reached"], row["timesteps"]) == ("td3", 0, None)
    with pytest.raises(ValueError, match="goal 'ppo' must have learning curves"):
        learned = results()
        learned["tasks"]["8gaussians"]["energy"] = "learned"
        race.race(learned, "dxdp", "ppo")


def test_tasks_without_both_are_left_out_and_names_are_checked() -> None:
    assert race.race(results(), "base", "ppo")["8gaussians"]["rows"][0]["leader_ahead"]["probability"] == 0
    alone = results()
    alone["tasks"]["gmm25"] = alone["tasks"]["8gaussians"]
    alone["runs"].append(run("dxdp", 0, 0.5, [3.0]) | {"task": "gmm25"})
    assert list(race.race(alone, "dxdp", "ppo")) == ["8gaussians"]
    with pytest.raises(UnknownNameError, match=r"unknown goal 'pppo'.*ppo"):
        race.race(results(), "dxdp", "pppo")


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "race.json"
    assert race.main(["--json", str(file)]) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    assert everything["command"] == f"python benchmarks/compare/race.py --json {file}"
    assert set(everything["tasks"]) >= {"8gaussians", "gmm25", "manywell32"}
    assert "reaching ppo's last kl_bound" in capsys.readouterr().out
    assert race.main(["--results", str(tmp_path / "none.json")]) == 2
    assert race.main(["--leader", "dxdpp"]) == 2
    assert "dxdp" in capsys.readouterr().err
