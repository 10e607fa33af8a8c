"""benchmarks/compare/ppo_parity.py: the two are matched, and the results' keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from script_cases import documented

from benchmarks.compare import ppo_parity
from dxmi_rl.agents import PPO


@pytest.mark.slow
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
