"""``dxmi-rl demo``: DxDP trained before one's eyes, and a page with the film of its denoising, before and after."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dxmi_rl.agents.base import Agent
from dxmi_rl.benchmark.attempt import attempt, store
from dxmi_rl.benchmark.compare import carry_out, check_writable, only_one
from dxmi_rl.benchmark.measure import Point
from dxmi_rl.benchmark.plan import Arguments, make_plan
from dxmi_rl.benchmark.protocol import Run
from dxmi_rl.benchmark.tables import number
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.storage import write_json

SHOWN = ("kl_bound", "sliced_w2", "modes")
"""Scores that are shown while it trains."""


@dataclass(frozen=True)
class Demo:
    """Train DxDP on 8 Gaussians, in a minute of one core, and open a page with the film of its denoising."""

    name: str = "demo"
    """The page goes to runs/<name>/report.html."""
    browser: bool = True
    """Open the page where there is a display."""

    def __call__(self, command: str) -> int:
        """Train, write the page and name it; exit status as ``carry_out``."""
        plan = make_plan(Arguments(preset="demo", name=self.name, jobs=1))
        check_writable(plan.folder)
        if len(plan.missing) < len(plan.selected):
            print("The demo trains each time, as that is what it shows.")
        with only_one(plan.folder):
            started = time.perf_counter()
            failed = []
            for run in plan.selected:
                outcome = store(run, plan.results, attempt(run, logging=Live()))
                failed += [] if outcome.error is None else [f"FAILED {run.title}: {outcome.error}"]
            if failed:
                print("\n".join(failed), file=sys.stderr)
                return 1
            write_json(plan.folder / "seconds.json", time.perf_counter() - started)
            status = carry_out(replace(plan, missing=[]), f"dxmi-rl compare --preset demo --name {self.name}")
        page = (plan.folder.absolute() / "report.html").as_uri() + "#scene-8gaussians"
        print(f"Both samplers, step by step: press play on {page}")
        if self.browser and has_display():
            webbrowser.open(page)
        return status


class Live:
    """Shows a run's scores as it trains: beside a bar in a terminal, elsewhere in a line each."""

    @contextlib.contextmanager
    def open(self, run: Run, agent: Agent[Any]) -> Iterator[Live]:
        """For one run."""
        with progress(run.title, max(run.row.budget, 1)) as advance:
            self.advance = advance
            yield self

    def log(self, agent: Agent[Any], point: Point) -> None:
        """Show a point of the learning curve."""
        scores = ", ".join(f"{key} {number(point[key])}" for key in SHOWN if key in point)
        self.advance(point["timesteps"], scores)
        if not sys.stderr.isatty():
            print(
                f"{agent.name}, {point['timesteps']:,.0f} transitions, {point['seconds']:.0f} s: {scores}", flush=True
            )


def has_display() -> bool:
    """Whether a browser with a window can be expected here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
