"""How networks run: in parts, in half precision and on several processes, with the same results."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dxmi_rl import DxMI, make_agent, make_task
from dxmi_rl.agents import execution
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.execution import Execution, is_main_process, own_device, set_execution
from dxmi_rl.utils.registry import UnknownNameError

SCRIPT = Path(__file__).parents[1] / "cases" / "shared_training.py"


def game(agent: str = "dxdp", **settings: Any) -> DxMI:
    task = make_task("digits", horizon=2, pretraining={"iterations": 20, "width": 16, "depth": 1})
    own: dict[str, Any] = {"n_trajectories": 6}
    if agent != "path-wise":
        own["value"] = {"width": 8, "depth": 1}
    energy = {"width": 8, "depth": 1} | settings.pop("energy", {})
    return DxMI(task, agent=agent, agent_settings=own, energy=energy, **settings)


def difference(a: Agent, b: Agent) -> float:
    """Largest difference of weights."""
    one, two = (
        torch.cat([p.detach().flatten().double() for m in agent.modules().values() for p in m.parameters()])
        for agent in (a, b)
    )
    return float((one - two).abs().max())


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    found = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    # --multi_gpu starts two processes without GPUs, too.
    two_processes = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *options]
    for number, launch in ((1, []), (2, two_processes)):
        file = tmp_path / f"{number}.json"
        done = subprocess.run(
            [sys.executable, *launch, str(SCRIPT), str(file), "dxdp"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(file.read_text()))
    one, two = found
    assert (one["processes"], two["processes"]) == (1, 2) and len(two["losses"]) == 5
    for before, after in zip(one["losses"], two["losses"], strict=True):
        assert after == pytest.approx(before, rel=1e-9)
    assert two["x"] == pytest.approx(one["x"], rel=1e-9)
    assert one["losses"][0] != one["losses"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["dxdp", "ppo", "path-wise"])
def test_parts_give_what_the_whole_gives(agent: str) -> None:
    whole, parts = game(agent, gradient_penalty=0.1), game(agent, gradient_penalty=0.1)
    start = game(agent)
    assert set_execution(parts, rows_at_a_time=5) == Execution(rows_at_a_time=5)
    for one in (whole, parts):
        one.learn(3 * one.timesteps_per_iteration)
    assert difference(whole, parts) < 2e-5 < 1e-4 < difference(whole, start)


def test_half_precision_is_near_and_inside_only() -> None:
    plain, half = game(), game()
    set_execution(half, precision="bfloat16")
    x = 0.5 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = plain.policy.base.mean(x, 0), half.policy.base.mean(x, 0)  # type: ignore[operator, union-attr]
    assert b.dtype == torch.float32 and 0 < float((a - b).abs().max()) < 0.05
    half.learn(2 * half.timesteps_per_iteration)
    assert all(p.dtype == torch.float32 for module in half.modules().values() for p in module.parameters())
    set_execution(half)
    again = game()
    again.policy.load_state_dict(half.policy.state_dict())
    assert torch.equal(again.sample(4, seed=1), half.sample(4, seed=1)), "float32 is back, and weights have their names"


def test_copies_run_likewise_and_checkpoints_are_the_same(tmp_path: Path) -> None:
    one = game()
    set_execution(one, rows_at_a_time=2)
    twin = copy.deepcopy(one.policy)
    x = torch.zeros(5, 1, 8, 8)
    assert torch.equal(twin.base.mean(x, 0), one.policy.base.mean(x, 0))  # type: ignore[operator, union-attr]
    assert type(one.energy).__name__ == "EnergyMLP" and type(twin.base.denoiser).__name__ == "DenoiserMLP"  # type: ignore[union-attr]
    one.learn(one.timesteps_per_iteration)
    loaded = DxMI.load(one.save(tmp_path / "game.safetensors"), task=one.task)
    assert difference(one, loaded) == 0.0


def test_what_cannot_be_is_refused() -> None:
    agent = make_agent("dxdp", task="8gaussians")
    with pytest.raises(UnknownNameError, match="Did you mean 'bfloat16'"):
        set_execution(agent, precision="bfloat")
    with pytest.raises(ValueError, match="rows_at_a_time"):
        set_execution(agent, rows_at_a_time=0)
    with pytest.raises(ValueError, match="spectral norms"):
        set_execution(game(energy={"spectral_norm": True, "residual": False}), rows_at_a_time=2)
    with pytest.raises(ValueError, match="a row for each of the 3 processes, got 2"):
        Execution(processes=3)(lambda x: x, torch.zeros(2, 1, requires_grad=True))
    assert is_main_process()


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(execution, "resolve_device", lambda name: torch.device(name or "cpu"))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("cuda") == torch.device("cuda") and not chosen
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device("cuda") == torch.device("cuda", 3) and chosen == [torch.device("cuda", 3)]
    assert own_device("cuda:1") == torch.device("cuda", 1) and own_device(None) == torch.device("cpu")
    assert len(chosen) == 1


def test_rows_are_divided_without_gaps() -> None:
    for n in (1, 4, 7):
        rows = [range(n)[Execution(process=i, processes=3).own_rows(n)] for i in range(3)]
        assert [index for part in rows for index in part] == list(range(n))
