"""The playground: a page on which one chooses a run, and looks at its paths with their energies, values and weights."""

from __future__ import annotations

from importlib import resources
from string import Template

from dxmi_rl.benchmark.report.charts import make_styles, palette_css
from dxmi_rl.benchmark.report.content import Comparison
from dxmi_rl.benchmark.report.formatting import show
from dxmi_rl.benchmark.report.markup import escape, script_json
from dxmi_rl.benchmark.report.scenes import make_scene
from dxmi_rl.utils.storage import JSON

SEEDS = 3
"""Runs of one row that are shown, at most; a page holds all of its paths."""
NUMBERS = ("energy", "value", "log_weight")
"""What is known of every state (dxmi_rl.benchmark.measure.path_numbers)."""


def playground(comparison: Comparison) -> str | None:
    """The page as one string, which needs no server; None where no run kept its paths."""
    content = payload(comparison)
    if not content["runs"]:
        return None
    files = resources.files("dxmi_rl.benchmark.report")
    parts = {name: files.joinpath(name).read_text(encoding="utf-8") for name in
             ("playground.html", "shared.js", "playground.js", "style.css")}  # fmt: skip
    return Template(parts["playground.html"]).substitute(
        title=escape(str(comparison.results["name"])), style=palette_css() + parts["style.css"],
        content=script_json(content), script=parts["shared.js"] + parts["playground.js"],
    )  # fmt: skip


def payload(comparison: Comparison) -> JSON:
    """What the page's script draws from: ``{"tasks": {name: scene}, "runs": [...]}``, JSON-able."""
    styles, tasks, runs = make_styles(comparison.labels), {}, []
    for task in comparison.tasks:
        scene = make_scene(comparison, task, styles)
        if scene is None:
            continue
        drawn = scene.payload()
        exact = [panel for panel, made in zip(drawn["panels"], scene.panels, strict=True) if made.style is None]
        tasks[task] = drawn | {"panels": exact, "note": scene.note}
        for line in comparison.lines(task):
            own = [run for run in comparison.runs_of(task, line.label) if run.get("paths")]
            runs += [_run(run, line.score, scene.horizon) for run in own[:SEEDS]]
    return {"tasks": tasks, "runs": runs}


def _run(run: JSON, score: str, horizon: int) -> JSON:
    paths, value = run["paths"], run["scores"].get(score)
    kept = {key: paths[key] for key in ("shape", "low", "high", "data", *NUMBERS) if key in paths}
    return {
        "task": run["task"], "agent": run["label"], "seed": run["seed"], "T": paths["shape"][0] - 1 or horizon,
        "score": "" if value is None else f"{score} {show(value)}", **kept,
    }  # fmt: skip
