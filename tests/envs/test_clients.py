"""rl_zoo3 trains, plays, records and leaves a model to score: its own code, and the commands of docs/clients.md."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from forked import run_python

import dxmi_rl

pytest.importorskip("rl_zoo3")
sb3 = pytest.importorskip("stable_baselines3")

ROOT = Path(__file__).parents[2]


def command(module: str) -> list[str]:
    """Of the page, on files of the repository, without "python"."""
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^    python (-.*rl_zoo3\.{module}\b.*)", text, flags=re.MULTILINE)
    return shlex.split(found.replace("examples/", f"{ROOT}/examples/"))


@pytest.mark.slow
def test_rl_zoo3_trains_and_plays(tmp_path: Path) -> None:
    films = importlib.util.find_spec("moviepy") is not None
    commands = [[*command("train"), "-n", "400"], [*command("enjoy"), "-n", "20"]]
    if films:
        commands.append([*command("record_video"), "-n", "5"])
    done = run_python(commands, ["rl_zoo3.exp_manager"], cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "runs/zoo/ppo/DxMIDenoise-v0_1/DxMIDenoise-v0.zip"
    assert file.exists()
    assert "Mean episode length: 5.00" in done.stdout
    assert not films or list((tmp_path / "videos").glob("*.mp4")), done.stderr
    scores = dxmi_rl.evaluate(
        sb3.PPO.load(file, device="cpu"), "8gaussians", fit=False, draws=1, samples=200, trajectories=200, floors=False
    )
    assert "kl_bound" in scores
