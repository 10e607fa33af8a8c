"""benchmarks/compare/gfn_diffusion.py, with a stand-in for their code that samples exactly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import gfn_diffusion
from dxmi_rl.benchmark.presets import load_preset
from dxmi_rl.utils.checks import DivergenceError

MODELS = """
import torch
from dxmi_rl import make_target

class GFN(torch.nn.Module):
    def __init__(self, dim, *sizes, trajectory_length, t_scale, **options):
        super().__init__()
        assert trajectory_length == 10 and options["learned_variance"] and options["zero_init"]
        self.target = make_target("gmm25" if dim == 2 else "manywell32")
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def get_trajectory_fwd(self, start, extra, log_reward):
        x = self.target.sample(len(start))
        states = torch.stack([start, x], 1)
        forward = (-self.target.energy(x) - (self.target.log_z or 0.0))[:, None]
        return states, forward, torch.zeros_like(forward), torch.zeros_like(forward)
"""
UTILS = """
import torch

def set_seed(seed):
    torch.manual_seed(seed)

def get_gfn_optimizer(model, *rates):
    assert rates == (1e-3, 1e-1, 1e-3)
    return torch.optim.Adam(model.parameters())

def get_exploration_std(iteration, exploratory, factor, falls):
    assert falls and exploratory == (factor is not None)

def get_gfn_forward_loss(mode, start, model, log_reward, coefficients, exploration_std=None):
    assert mode in ("tb", "tb-avg") and start.shape[0] == 300 and not start.any()
    log_reward(start)
    return model.weight.square()
"""


@pytest.fixture(name="clone")
def a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "clone" / "energy_sampling"
    folder.mkdir(parents=True)
    for name, text in (("models", MODELS), ("utils", UTILS), ("gflownet_losses", "")):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield folder.parent
    for name in ("models", "utils", "gflownet_losses"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_their_rows_are_scored_as_ours(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gfn_diffusion, "OURS", {"gmm25": ["dxdp, T = 10"], "manywell32": []})
    words = ["--clone", str(clone), "--seconds", "0.2", "--chains", "400", "--seeds", "0", "--json", "found.json"]
    assert gfn_diffusion.main(words) == 0
    content = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert content["seconds"] == 0.2 and content["chains"] == 400
    rows: dict[tuple[str, str], dict[str, Any]] = {(run["task"], run["row"]): run for run in content["runs"]}
    assert len(rows) == 7
    for (task, row), run in rows.items():
        if row.startswith("gfn-diffusion"):
            assert run["elbo"] == pytest.approx(0, abs=1e-3) and run["log_z"] == pytest.approx(0, abs=1e-3)
            assert run["ess"] == pytest.approx(1, abs=1e-3)
            assert run["energy_evals"] == 300 * run["iterations"]
            assert run["modes"] == 25 if task == "gmm25" else run["well_error"] < 0.1
        else:
            assert run["elbo"] < 0 and run["energy_evals"] > 0 and 1 <= run["modes"] <= 25
    before = Path("found.json").read_bytes()
    assert gfn_diffusion.main(words) == 0 and Path("found.json").read_bytes() == before, "finished runs are kept"


def test_divergence_of_ours_is_a_row_and_no_end(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any) -> dict[str, Any]:
        raise DivergenceError("gone")

    monkeypatch.setattr(gfn_diffusion, "train_ours", diverge)
    monkeypatch.setattr(gfn_diffusion, "THEIRS", {"gmm25": {}})
    words = ["--clone", str(clone), "--tasks", "gmm25", "--seeds", "3", "--json", "found.json"]
    assert gfn_diffusion.main(words) == 0
    runs = json.loads(Path("found.json").read_text(encoding="utf-8"))["runs"]
    assert [run["error"] for run in runs] == ["DivergenceError: gone"] * len(gfn_diffusion.OURS["gmm25"])


def test_rows_of_ours_are_the_presets() -> None:
    known = {(row.task, row.label) for row in load_preset("samplers").rows}
    for task, labels in gfn_diffusion.OURS.items():
        for label in labels:
            assert (task, label) in known
            assert gfn_diffusion.our_row(task, label).task_settings["horizon"] == gfn_diffusion.HORIZON


def test_bad_input(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--clone", "nowhere"], "has no energy_sampling/gflownet_losses.py"),
        (["--clone", str(clone), "--tasks", "gmm9"], "tasks must be of gmm25, manywell32, got 'gmm9'"),
        (["--clone", str(clone), "--seconds", "0"], "seconds must be"),
        (["--clone", str(clone), "--chains", "1"], "chains must be"),
        (["--clone", str(clone), "--seeds", "-1"], "seed must be >= 0"),
        (["--clone", str(clone), "--device", "foo"], "device"),
    ):
        assert gfn_diffusion.main(words) == 2
        assert message in capsys.readouterr().err
