"""dxmi_rl.agents.tuned: agents, and keys of their runs, follow the tuned settings."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from agent_cases import PRETRAINING

import dxmi_rl
from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import PPO, PPOConfig, tuned
from dxmi_rl.benchmark import protocol
from dxmi_rl.irl import AGENTS, DxMI
from dxmi_rl.irl.recipes import recipe

ROOT = Path(__file__).parents[2]
TUNED = {"policy_learning_rate": 0.004, "value_learning_rate": 0.005, "clip_ratio": 0.4}


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tuned.json of its own, with settings of ppo."""
    return freeze(tmp_path / "tuned.json", monkeypatch, {"ppo": TUNED})


def freeze(file: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> Path:
    file.write_text(json.dumps({"search": {}, **content}), encoding="utf-8")
    monkeypatch.setattr(tuned, "FILE", file)
    return file


def test_the_settings_are_those_on_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "tuning.json").read_text(encoding="utf-8"))
    content = tuned.load_tuned()
    assert {name: entry["settings"] for name, entry in record.items()} == {
        name: settings for name, settings in content.items() if name != tuned.SEARCH
    }


@pytest.mark.usefixtures("frozen")
def test_agents_start_from_tuned_settings() -> None:
    for agent in (make_agent("ppo", "8gaussians"), PPO("8gaussians")):
        assert agent.config == dataclasses.replace(PPOConfig(), **TUNED)
    changed = make_agent("ppo", "8gaussians", clip_ratio=0.1, width=16)
    assert changed.config == dataclasses.replace(PPOConfig(), **TUNED | {"clip_ratio": 0.1, "width": 16})
    assert PPO("8gaussians", config=PPOConfig()).config == PPOConfig()
    assert make_agent("dxdp", "8gaussians").config == AGENTS["dxdp"].Config()
    assert PPO("8gaussians").policy_optimizer.param_groups[0]["peak"] == 0.004


@pytest.mark.usefixtures("frozen")
def test_a_class_of_the_users_has_no_tuned_settings() -> None:
    class Mine(PPO):
        pass

    assert Mine("8gaussians").config == PPOConfig()


@pytest.mark.usefixtures("frozen")
def test_rates_of_corrections_are_none_of_fine_tuned_networks() -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    config = PPO(task, policy="fine-tuned").config
    assert config.policy_learning_rate is None and config.value_learning_rate == 0.005
    digits = tuned.tuned_settings(PPO, (1, 8, 8), {})
    assert digits == {"value_learning_rate": 0.005, "clip_ratio": 0.4}
    assert tuned.tuned_settings(PPO, (1, 8, 8), {"policy": "correction"}) == TUNED


def test_recipes_of_dxmi_do_not_change(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING)
    config = DxMI(task, agent="ppo").agent.config
    assert config == dataclasses.replace(PPOConfig(), **recipe("8gaussians-data", "ppo").agent_settings)


def test_keys_follow_the_tuned_settings_of_their_agent_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> dict[str, str]:
        rows = {
            name: protocol.Row(name, task, name, 4000)
            for name, task in (("dxdp", "gmm25"), ("ppo", "gmm25"), ("dxmi", "8gaussians-data"))
        }
        rows["ppo, clipped"] = dataclasses.replace(rows["ppo"], agent_settings={"clip_ratio": 0.3})
        return {label: protocol.Run(row, 0).key for label, row in rows.items()}

    before = []
    for content in ({}, {"ppo": {"clip_ratio": 0.4}}, {"ppo": {"clip_ratio": 0.4, "epochs": 3}}):
        freeze(tmp_path / f"{len(before)}.json", monkeypatch, content)
        before.append(keys())
    plain, clip, more = before
    assert plain["dxdp"] == clip["dxdp"] == more["dxdp"] and plain["dxmi"] == clip["dxmi"] == more["dxmi"]
    assert len({plain["ppo"], clip["ppo"], more["ppo"]}) == 3
    assert plain["ppo, clipped"] == clip["ppo, clipped"] != more["ppo, clipped"], "what a row sets is not tuned"


def test_the_package_ships_the_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package = Path(dxmi_rl.__file__).parent
    patterns = project["tool"]["setuptools"]["package-data"]["dxmi_rl"]
    assert any(package / "agents" / "tuned.json" in package.glob(pattern) for pattern in patterns)
