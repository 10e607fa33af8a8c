"""dxmi-rl demo: it trains each time, shows scores on the way and ends in a page with a film; lines of long work."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dxmi_rl.benchmark import demo, presets
from dxmi_rl.benchmark.attempt import Failure
from dxmi_rl.cli import main
from dxmi_rl.utils.progress import alive

QUICK = """
description = "A demo that teaches nothing."
seeds = [0]
[sizes]
draws = 1
samples = 200
trajectories = 200
curve_points = 2
fit = false
best = false
[[group]]
tasks = ["8gaussians"]
agents = ["base", "dxdp"]
budget = 1_000
task_settings = { backward = "learned" }
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny demo in an empty folder; the pages that would have been opened."""
    file, opened = tmp_path / "demo.toml", list[str]()
    file.write_text(QUICK, encoding="utf-8")
    load = presets.load_preset
    monkeypatch.setattr("dxmi_rl.benchmark.plan.load_preset", lambda name: load(str(file) if name == "demo" else name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(demo, "has_display", lambda: True)
    return opened


@pytest.mark.slow
def test_it_trains_each_time_and_ends_in_a_page(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for turn in range(2):
        assert main(["demo"]) == 0
        printed = capsys.readouterr().out
        assert ("The demo trains each time" in printed) == bool(turn)
        assert "dxdp, 0 transitions" in printed and "kl_bound" in printed and "press play" in printed
        assert max(len(line) for line in printed.splitlines() if "file:" not in line) <= 100
    page = Path("runs/demo/report.html")
    assert quick == [f"{page.absolute().as_uri()}#scene-8gaussians"] * 2
    text = page.read_text(encoding="utf-8")
    assert 'id="scene-8gaussians"' in text and "▶ play" in text
    results = json.loads(Path("runs/demo/results.json").read_text(encoding="utf-8"))
    assert results["command"] == "dxmi-rl compare --preset demo --name demo" and results["seconds"] > 0
    assert {run["agent"] for run in results["runs"]} == {"base", "dxdp"}


def test_a_demo_that_fails_says_so(
    quick: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path("runs/demo/report.html")
    page.parent.mkdir(parents=True)
    page.write_text("of the last demo", encoding="utf-8")
    monkeypatch.setattr(demo, "attempt", lambda run, **options: Failure("ValueError: no", "no"))
    assert main(["demo"]) == 1
    assert "FAILED 8gaussians" in capsys.readouterr().err and quick == [], "no page of the last one is opened"


@pytest.mark.slow
def test_the_browser_is_left_alone_when_asked(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--no-browser", "--name", "mine"]) == 0
    assert quick == [] and Path("runs/mine/report.html").exists()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [("linux", {}, False), ("linux", {"DISPLAY": ":0"}, True), ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
     ("darwin", {}, True), ("win32", {}, True)],
)  # fmt: skip
def test_displays(platform: str, variables: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert demo.has_display() == expected


def test_long_work_says_that_it_is_alive(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    with alive(lambda: "working", every=0.02):
        time.sleep(0.2)
    assert "0 s: working" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with alive(lambda: "working", every=0.02):
        time.sleep(0.1)
    assert capsys.readouterr().err == "", "a terminal has a bar"
