"""benchmarks/throughput/agents.py: what it compares is what it says, and its results' keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from script_cases import documented

from benchmarks.throughput import agents
from dxmi_rl.utils.torch_tools import seeded


@pytest.mark.slow
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
    rollout = agents.rollout(agent)
    wanted = agent.value_targets(rollout).flatten()
    x, x_next, t = rollout.transitions()
    with torch.no_grad():
        _, log_std = agent.policy.moments_along(rollout)
        found = loop.future(x_next, t) + loop.cost(x, x_next, t, log_std)
    constant = wanted - found  # the entropy's, which the loop leaves out
    assert float(constant.std()) < 1e-3 * float(wanted.std())
