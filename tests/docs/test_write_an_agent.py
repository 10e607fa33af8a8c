"""docs/write_an_agent.md and examples/own_agent.py: short, runnable, and better than the base sampler."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sweep_cases import TINY, read, tiny_main

from dxmi_rl import make_agent
from dxmi_rl.agents import AGENTS
from dxmi_rl.evaluation import quick_scores

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_agent.py"
PAGE = (ROOT / "docs" / "write_an_agent.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("own_agent", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_agent"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_it_is_short() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").count("\n")
    assert lines < 80 and f"in {lines} lines" in PAGE


@pytest.mark.slow
def test_it_beats_the_base_sampler(example: ModuleType) -> None:
    base = quick_scores(make_agent("base", "8gaussians"))
    agent = example.CrossEntropy("8gaussians", seed=0).learn(150_000)
    scores = quick_scores(agent)
    assert scores["kl_bound"] < 0.5 * base["kl_bound"], (scores, base)
    assert scores["sliced_w2"] < 0.8 * base["sliced_w2"], (scores, base)


def test_it_resumes_and_counts(example: ModuleType, tmp_path: Path) -> None:
    calls: list[int] = []
    agent = example.CrossEntropy("8gaussians", seed=1, n_trajectories=32)
    agent.policy.base.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    file = tmp_path / "agent.safetensors"
    agent.learn(4 * 160, callback=lambda one: one.save(file) and None if one.num_timesteps == 2 * 160 else None)
    assert sum(calls) == agent.costs.denoiser_calls
    resumed = example.CrossEntropy.load(file).learn(2 * 160, reset_num_timesteps=False)
    assert torch.equal(resumed.sample(20, seed=0), agent.sample(20, seed=0))


def test_inside_dxmi_its_reward_is_the_new_energy(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGENTS._entries, "cross-entropy", example.CrossEntropy)
    model = make_agent("dxmi", "8gaussians", agent="cross-entropy", agent_settings={"n_trajectories": 32})
    model.learn(3 * model.timesteps_per_iteration)
    assert model.sample(5).shape == (5, 2) and "energy_loss" in model.log


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    """As its first line says, but for the size of the budget and of the evaluation."""
    code = EXAMPLE.read_text(encoding="utf-8")
    short = code.replace("learn(400_000", "learn(20_000").replace("fit=False", "fit=False, samples=500, draws=1")
    assert short != code
    (tmp_path / "own_agent.py").write_text(short, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "own_agent.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    base, own = (line for line in done.stdout.splitlines() if "kl_bound" in line)
    assert base.startswith("Base(") and own.startswith("CrossEntropy(") and "num_timesteps=20480" in own


@pytest.mark.slow
def test_compared_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's ``dxmi-rl compare``, with a preset that takes seconds."""
    monkeypatch.chdir(tmp_path)
    groups = [
        {"tasks": ["8gaussians"], "agents": ["base"]},
        {"tasks": ["8gaussians"], "agents": ["ppo"], "budget": 4_000},
    ]
    reference = f"{EXAMPLE}:CrossEntropy"
    assert tiny_main("--agent", reference, "--jobs", "1", "--seeds", "0", content=TINY | {"group": groups}) == 0
    summary = read(tmp_path / "runs" / "tiny" / "results.json")["summary"]
    assert [entry["label"] for entry in summary] == ["base", "ppo", "cross-entropy"]
    assert summary[2]["budget"] == 4_000 and summary[2]["costs"]["timesteps"] >= 4_000
    assert "examples/own_agent.py:CrossEntropy" in PAGE


@pytest.mark.slow
def test_the_pages_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], example: ModuleType
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(AGENTS, "_entries", dict(AGENTS._entries))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "write_an_agent.md", "exec"), {"__name__": "__main__"})
    assert "kl_bound" in capsys.readouterr().out and (tmp_path / "mine.safetensors").is_file()
