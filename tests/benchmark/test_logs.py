"""RunLogger: what lies on disk after every row, event files read back, names, errors, an offline W&B run."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dxmi_rl import DxMI
from dxmi_rl.agents import PPO
from dxmi_rl.benchmark import logs
from dxmi_rl.benchmark.logs import RunLogger
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.utils.checks import MissingExtraError

NETWORK = {"width": 8, "depth": 1}


@pytest.fixture(name="agent")
def small_agent() -> PPO:
    return PPO("8gaussians", seed=4, n_trajectories=8, n_epochs=1, policy=NETWORK, value=NETWORK)


@pytest.fixture(name="loggers")
def closed_after_the_test() -> Iterator[list[RunLogger]]:
    made: list[RunLogger] = []
    yield made
    for logger in made:
        logger.close()


def table(logger: RunLogger) -> list[dict[str, str]]:
    with open(logger.folder / "progress.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def events(logger: RunLogger) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    return accumulator(str(logger.folder)).Reload()


@pytest.mark.slow
def test_a_training_run(agent: PPO, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with RunLogger(tmp_path, agent, settings={"budget": 1200}, time=1_700_000_000) as logger:
        assert logger.folder == tmp_path / "8gaussians__ppo__4__1700000000"
        logger.log(agent, {"sliced_w2": 0.25})
        agent.learn(60 * 40, callback=logger)  # the losses of iteration 50 and of the last
        scores = quick_scores(agent, samples=100)
        logger.log(agent, scores)
    rows = table(logger)
    assert [int(row["timesteps"]) for row in rows] == [0, 2000, 2400, 2400]
    assert list(rows[0])[:2] == ["timesteps", "charts/sliced_w2"]
    assert float(rows[3]["charts/kl_bound"]) == scores["kl_bound"] and rows[1]["charts/kl_bound"] == ""
    assert rows[0]["charts/SPS"] == "" and float(rows[3]["charts/SPS"]) == 2400 / agent.costs.seconds
    assert int(rows[3]["charts/energy_evals"]) == agent.costs.energy_evals == 480
    assert float(rows[3]["losses/policy_loss"]) == agent.log["policy_loss"]

    read = events(logger)
    assert set(read.Tags()["scalars"]) == set(rows[3]) - {"timesteps"}
    assert [(e.step, e.value) for e in read.Scalars("charts/sliced_w2")] == [
        (0, 0.25), (2400, pytest.approx(scores["sliced_w2"])),
    ]  # fmt: skip
    assert [e.step for e in read.Scalars("losses/value_loss")] == [2000, 2400, 2400]
    text = read.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("|param|value|\n|-|-|\n|task|8gaussians|")
    assert "|config.n_trajectories|8|" in text and "|settings.budget|1200|" in text

    config = json.loads((logger.folder / "config.json").read_text())
    assert (config["task"], config["agent"], config["seed"], config["time"]) == ("8gaussians", "ppo", 4, 1_700_000_000)
    assert config["config"]["n_epochs"] == 1 and {"dxmi_rl", "torch", "numpy", "python"} <= config["versions"].keys()


def test_every_row_is_there_before_the_next(agent: PPO, tmp_path: Path, loggers: list[RunLogger]) -> None:
    pytest.importorskip("tensorboard")
    logger = RunLogger(tmp_path, agent, settings={})
    loggers.append(logger)
    for number in range(1, 4):
        agent.costs.timesteps = number
        logger.log(agent, {"kl_bound": float(number)})
        assert [row["charts/kl_bound"] for row in table(logger)] == [f"{k}.0" for k in range(1, number + 1)]
        assert [e.step for e in events(logger).Scalars("charts/kl_bound")] == list(range(1, number + 1))
    assert sorted(path.name.split(".")[0] for path in logger.folder.iterdir()) == ["config", "events", "progress"]


def test_new_keys_and_numbers_that_are_not_finite(agent: PPO, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with RunLogger(tmp_path, agent, settings={}) as logger:
        logger.log(agent, {"a": math.inf, "timesteps": 0.0, "energy_evals": 7.0})
        logger.log(agent, {"b, c": math.nan, "a": 1})
        logger.log(agent)
    rows = table(logger)
    assert [row["charts/a"] for row in rows] == ["inf", "1", ""]
    assert [row["charts/b, c"] for row in rows] == ["", "nan", ""]
    assert rows[0]["charts/energy_evals"] == "0"  # the cost, not the score of its name
    assert "charts/timesteps" not in rows[0]
    read = events(logger)
    assert [e.value for e in read.Scalars("charts/a")] == [1.0] and "charts/b, c" not in read.Tags()["scalars"]


def test_names_are_taken_once_and_safe(agent: PPO, tmp_path: Path) -> None:
    agent.task.name = "my/task x"
    folders = []
    for _ in range(3):
        with RunLogger(tmp_path / "new", agent, settings={}, tensorboard=False, time=9) as logger:
            folders.append(logger.folder.name)
    assert folders == [f"my-task-x__ppo__4__{second}" for second in (9, 10, 11)]
    assert json.loads((logger.folder / "config.json").read_text())["time"] == 11


def test_settings_of_any_kind(agent: PPO, tmp_path: Path) -> None:
    settings = {"path": Path("a"), "rate": math.inf, "sizes": (1, 2), "nested": {3: None}, "config": agent.config}
    with RunLogger(tmp_path, agent, settings=settings, tensorboard=False) as logger:
        pass
    stored = json.loads((logger.folder / "config.json").read_text())["settings"]
    assert stored["config"]["n_trajectories"] == 8 and stored["nested"] == {"3": None}
    assert (stored["path"], stored["rate"], stored["sizes"]) == ("a", "inf", [1, 2])


def test_it_ends_on_errors_and_once(agent: PPO, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(ZeroDivisionError), RunLogger(tmp_path, agent, settings={}) as logger:
        logger.log(agent, {"kl_bound": 1.0})
        1 / 0
    logger.close()
    with pytest.raises(ValueError, match=r"the log .*8gaussians__ppo__4__\d+' is closed"):
        logger.log(agent)
    assert len(table(logger)) == 1 == len(events(logger).Scalars("charts/kl_bound"))


def test_bad_arguments_write_nothing(agent: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"time must be an integer >= 0, got 1\.5"):
        RunLogger(tmp_path, agent, settings={}, tensorboard=False, time=1.5)  # type: ignore[arg-type]
    for module, extra, track in (("tensorboard", "bench", False), ("wandb", "track", True)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{module} is needed.*dxmi_rl\[{extra}\]"):
            RunLogger(tmp_path, agent, settings={}, tensorboard=not track, track=track)
    assert list(tmp_path.iterdir()) == []
    with RunLogger(tmp_path, agent, settings={}, tensorboard=False) as logger:
        with pytest.raises(TypeError, match=r"charts/kl_bound must be a number, got 'low'"):
            logger.log(agent, {"kl_bound": "low"})  # type: ignore[dict-item]
        assert not (logger.folder / "progress.csv").exists()
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        RunLogger(tmp_path / "file", agent, settings={}, tensorboard=False)


def test_a_crash_while_a_table_is_rewritten_keeps_the_old(
    agent: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, text: str, mode: str) -> None:
        Path(path).write_text(text[:20])
        raise OSError("disk full")

    with RunLogger(tmp_path, agent, settings={}, tensorboard=False) as logger:
        logger.log(agent, {"a": 1.0})
        before = (logger.folder / "progress.csv").read_text()
        monkeypatch.setattr(logs, "_write", fail)
        with pytest.raises(OSError, match="disk full"):
            logger.log(agent, {"b": 1.0})
    assert (logger.folder / "progress.csv").read_text() == before


def test_dxmi_logs_its_energys_losses(tmp_path: Path) -> None:
    inner = {"n_trajectories": 8, "policy": NETWORK, "value": NETWORK}
    dxmi = DxMI("8gaussians", agent="ppo", agent_settings=inner, energy={"width": 8})
    with RunLogger(tmp_path, dxmi, settings={}, tensorboard=False) as logger:
        dxmi.learn(40, callback=logger)
    assert {"losses/energy_loss", "losses/policy_loss", "charts/SPS"} <= set(table(logger)[0])


@pytest.mark.slow
def test_an_offline_wandb_run(agent: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for key, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    for key in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{key}_DIR", str(tmp_path / key.lower()))
    monkeypatch.chdir(tmp_path)
    with RunLogger(tmp_path / "runs", agent, settings={"budget": 40}, tensorboard=False, track=True) as logger:
        agent.learn(40, callback=logger)
        logger.log(agent, {"kl_bound": 2.0, "elbo": math.nan})
        assert logger._run.name == logger.folder.name and logger._run.project == "dxmi_rl"
        summary = dict(logger._run.summary)
    assert summary["timesteps"] == 40 and summary["charts/kl_bound"] == 2.0 and "charts/elbo" not in summary
    assert "losses/policy_loss" in summary
    assert list((logger.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert not (tmp_path / "wandb").exists()
