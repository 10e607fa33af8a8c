"""benchmarks/agents.py and benchmarks/ppo_parity.py: what they compare is what they say, and their results' keys."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("tyro")
from dxmi_rl.agents import PPO
from dxmi_rl.utils.torch_tools import seeded


def script(name: str) -> ModuleType:
    """A script of benchmarks/; not by import, as the name may be that of a folder, such as agents."""
    file = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


agents, ppo_parity = script("agents"), script("ppo_parity")


def documented(module: ModuleType) -> set[str]:
    """Keys that the docstring lists."""
    assert module.__doc__ is not None
    lines = module.__doc__.split("--json FILE``:", 1)[1].splitlines()
    words = [line.strip().split("  ")[0] for line in lines if line.startswith("    ") and line[4] != " "]
    return {key.strip() for word in words for key in word.split(",")}


def test_the_cost_of_an_iteration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agents.json"
    assert agents.main(["--seeds", "0", "--rounds", "1", "--iterations", "1", "--json", str(file)]) in (0, 1)
    results = json.loads(file.read_text(encoding="utf-8"))
    assert set(results) == documented(agents) - {"compiled_ratio"}
    assert results["ratio"] > 0 and "of the loop" in capsys.readouterr().out
    assert agents.main(["--rounds", "0"]) == 2


def test_the_loop_regresses_on_the_same_targets() -> None:
    """One pass of the release's loop, with frozen values, has the targets of DxDP's one regression."""
    agent = agents.paper_agent(0, "cpu")
    loop = agents.Loop(agent)
    with seeded(0), torch.no_grad():
        for parameter in agent.value.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    agent.generator.manual_seed(1)
    rollout = agent.collect(None)
    wanted = agent.value_targets(rollout)
    with torch.no_grad():
        log_std = agent.policy.log_std(rollout.x, rollout.t).expand_as(rollout.x)
        found = loop.future(rollout.x_next, rollout.t) + loop.cost(rollout.x, rollout.x_next, rollout.t, log_std)
    constant = wanted - found  # the entropy's, which the loop leaves out
    assert float(constant.std()) < 1e-3 * float(wanted.std())


def test_parity_of_the_libraries(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    file = tmp_path / "parity.json"
    arguments = ["--seeds", "0", "1", "--budget", "5120", "--points", "2", "--json", str(file)]
    assert ppo_parity.main(arguments) in (0, 1)
    results = json.loads(file.read_text(encoding="utf-8"))
    assert set(results) == documented(ppo_parity)
    assert all(len(curve) == 2 for curves in results["curves"].values() for curve in curves)
    assert ppo_parity.main(["--seeds", "0"]) == 2


def test_the_two_start_as_the_same_sampler() -> None:
    pytest.importorskip("stable_baselines3")
    ours = ppo_parity.matched_ppo(0, "cpu", PPO)
    theirs = ppo_parity.their_ppo(0, "cpu", PPO)
    x, t = 2 * torch.randn(50, 2), torch.randint(5, (50,))
    with torch.no_grad():
        (mean, log_std), (their_mean, their_log_std) = (a.density().moments(x, t) for a in (ours, theirs))
    assert torch.allclose(log_std.expand_as(x), their_log_std)
    assert float((mean - their_mean).abs().max()) < 0.1, "small random means, of each its own"
    assert sum(p.numel() for p in ours.policy.parameters()) == sum(
        p.numel() for name, p in theirs.policy.named_parameters() if "value" not in name
    )
