"""rl_zoo3 trains, plays, records and leaves a model to score: its own code, and the commands of docs/clients.md."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dxmi_rl

pytest.importorskip("rl_zoo3")
sb3 = pytest.importorskip("stable_baselines3")

ROOT = Path(__file__).parents[2]


def command(module: str) -> list[str]:
    """Of the page, on files of the repository."""
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^    python (-.*rl_zoo3\.{module}\b.*)", text, flags=re.MULTILINE)
    return [sys.executable, *shlex.split(found.replace("examples/", f"{ROOT}/examples/"))]


@pytest.mark.slow
def test_rl_zoo3_trains_and_plays(tmp_path: Path) -> None:
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    trained = subprocess.run([*command("train"), "-n", "400"], **options)
    assert trained.returncode == 0, trained.stderr
    file = tmp_path / "runs/zoo/ppo/DxMIDenoise-v0_1/DxMIDenoise-v0.zip"
    assert file.exists()
    played = subprocess.run([*command("enjoy"), "-n", "20"], **options)
    assert played.returncode == 0, played.stderr
    assert "Mean episode length: 5.00" in played.stdout
    if importlib.util.find_spec("moviepy"):
        recorded = subprocess.run([*command("record_video"), "-n", "5"], **options)
        assert recorded.returncode == 0 and list((tmp_path / "videos").glob("*.mp4")), recorded.stderr
    scores = dxmi_rl.evaluate(
        sb3.PPO.load(file, device="cpu"), "8gaussians", fit=False, draws=1, samples=200, trajectories=200, floors=False
    )
    assert "kl_bound" in scores
