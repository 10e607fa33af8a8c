"""One sampler for several horizons beside samplers that were trained for one horizon each.

    python benchmarks/compare/any_step.py --seeds 0 1 2 3 4 --json any_step.json --picture any_step.png

AnyStep is trained once per task and seed on all ``horizons`` together, for ``--budget`` transitions in all; then the
same algorithm for each of them alone, for ``--alone-budget``. AnyStep is also scored at horizons between, ``--unseen``,
that it was not trained for. On tasks with an energy ``--agent`` trains with a Learned kernel; sets of images are
imitated by DxMI.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    agent, horizons, budget, alone_budget   what was asked for
    runs                        one entry per task, seed and trained agent
      .task, .seed              of the run
      .row                      "any-step", or "T = 4" and so on
      .timesteps, .energy_evals, .gradient_steps, .seconds   costs of training
      .scores                   {T: {key: score}} with kl_marginal and kl_marginal_forward (in the plane), kl_bound
                                (of the kernel of training), sliced_w2 and fd (of images), with their floors
"""

from __future__ import annotations

import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import DxMI, evaluate, make_agent, make_task
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.agents.any_step import AnyStep
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.utils.checks import check_integer

KEYS = ("kl_marginal", "kl_marginal_forward", "kl_bound", "sliced_w2", "sliced_w2_floor", "fd", "fd_floor")
TOGETHER = "any-step"
"""The row of AnyStep."""
SHOWN = {
    "kl_marginal": "KL(samples || target) [nats]", "kl_bound": "bound with the kernel of training [nats]",
    "fd": "Fréchet distance of features",
}  # fmt: skip


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("8gaussians", "gmm25")
    """Tasks with an energy, or sets of images."""
    agent: str = "dxdp"
    """The algorithm on tasks with an energy."""
    horizons: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Horizons that are trained, two or more, rising."""
    unseen: tuple[int, ...] = (3, 6)
    """Horizons between them that AnyStep is scored at, too."""
    budget: int = 450_000
    """Transitions of AnyStep, over all horizons."""
    alone: bool = True
    """Also train the same algorithm for each horizon alone."""
    alone_budget: int = 100_000
    """Transitions of an agent for one horizon."""
    folder: Path = Path("runs/any_step")
    """Finished runs are kept here, and not repeated."""


def measure(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one agent, and score it at the horizons that it has."""
    together = row == TOGETHER
    horizons = arguments.horizons if together else (int(row.removeprefix("T = ")),)
    horizon: Any = horizons if together else horizons[0]
    agent: Agent[Any]
    if _is_game(task):
        agent = DxMI(make_task(task, horizon=horizon, device=arguments.device), seed=seed)
    else:
        built = make_task(task, horizon=horizon, backward="learned", device=arguments.device)
        agent = make_agent(arguments.agent, built, seed=seed)
    agent.learn(arguments.budget if together else arguments.alone_budget)
    scores = {}
    for steps in sorted({*horizons, *(arguments.unseen if together else ())}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableScoresWarning)
            found = evaluate(agent, horizon=steps, seed=seed, draws=4, trajectories=20_000, fit=False)
        scores[str(steps)] = {key: found[key] for key in KEYS if key in found}
    costs = {key: getattr(agent.costs, key) for key in ("timesteps", "energy_evals", "gradient_steps", "seconds")}
    return {"task": task, "row": row, "seed": seed, **costs, "scores": scores}


def _is_game(task: str) -> bool:
    """Whether the energy must be learned."""
    return not make_task(task).target.has_energy


CODE = code_of(measure)
"""Digest of what is measured here: workers, which get functions without their source, cannot make it."""


def run(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    asked = {"horizons": arguments.horizons, "unseen": arguments.unseen, "budget": arguments.budget}
    agent = "dxmi" if _is_game(task) else arguments.agent
    settings = {"task": task, "row": row, "seed": seed, "agent": agent, "device": arguments.device,
                **(asked if row == TOGETHER else {"budget": arguments.alone_budget})}  # fmt: skip
    uses = [AGENTS[agent], AnyStep, type(make_task(task).target), KERNELS["learned"], evaluate]
    with one_thread():
        file = run_file(arguments.folder, settings, uses, CODE)
        return kept_result(file, lambda: measure(task, row, seed, arguments))


def scores_at(runs: Sequence[dict[str, Any]], task: str, together: bool, key: str) -> dict[int, list[float]]:
    """``{T: scores of all seeds}`` of AnyStep, or of the agents for one horizon each."""
    found: dict[int, list[float]] = {}
    for one in runs:
        if one["task"] == task and (one["row"] == TOGETHER) == together:
            for steps, scores in one["scores"].items():
                if key in scores:
                    found.setdefault(int(steps), []).append(scores[key])
    return dict(sorted(found.items()))


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A line per task and horizon: medians over seeds, of AnyStep and of the agent for this horizon alone."""
    runs = found["runs"]
    for task in dict.fromkeys(one["task"] for one in runs):
        table = Table("T", title=f"{task}: any-step / one horizon alone, medians over seeds")
        keys = [key for key in KEYS if scores_at(runs, task, True, key) and not key.endswith("_floor")]
        for key in keys:
            table.add_column(key, justify="right")
        for steps in scores_at(runs, task, True, keys[0]):
            cells = []
            for key in keys:
                ours, alone = (scores_at(runs, task, together, key).get(steps) for together in (True, False))
                cells.append(
                    " / ".join("-" if found is None else f"{statistics.median(found):.3f}" for found in (ours, alone))
                )
            table.add_row(str(steps), *cells)
        console.print(table)
        spent = [sum(one["timesteps"] for one in runs if one["task"] == task and (one["row"] == TOGETHER) == together)
                 / len({one["seed"] for one in runs}) for together in (True, False)]  # fmt: skip
        console.print(f"transitions per seed: {spent[0]:,.0f} together, {spent[1]:,.0f} for all horizons one by one")


def draw(found: dict[str, Any], file: Path) -> None:
    """A column of panels per task, one for each of its scores in SHOWN: medians with the range, against T."""
    runs = found["runs"]
    tasks = list(dict.fromkeys(one["task"] for one in runs))
    keys = {task: [key for key in SHOWN if scores_at(runs, task, True, key)] for task in tasks}
    rows = max(len(found) for found in keys.values())
    figure = Figure(figsize=(4.2 * len(tasks), 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        for axis in axes[len(keys[task]) :, column]:
            axis.set_visible(False)
        for axis, key in zip(axes[:, column], keys[task], strict=False):
            _draw_panel(axis, runs, task, key, found["horizons"])
    axes[0, 0].legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def _draw_panel(axis: Any, runs: Sequence[dict[str, Any]], task: str, key: str, trained: Sequence[int]) -> None:
    """One score against T, of AnyStep and of the agents for one horizon each."""
    styles = {True: ("any-step, one sampler", "#0072b2", "o-"), False: ("one sampler for each T", "#d55e00", "s--")}
    for together, (name, colour, style) in styles.items():
        found = scores_at(runs, task, together, key)
        if not found:
            continue
        steps, medians = list(found), [statistics.median(values) for values in found.values()]
        axis.plot(steps, medians, style, color=colour, label=name, markersize=5)
        axis.fill_between(
            steps, [min(v) for v in found.values()], [max(v) for v in found.values()], color=colour, alpha=0.15
        )
        new = {step: median for step, median in zip(steps, medians, strict=True) if step not in trained}
        if new:
            axis.plot(
                list(new), list(new.values()), "o", color="white", markeredgecolor=colour, markersize=7,
                label="any-step, T not trained",
            )  # fmt: skip
    axis.set(xscale="log", yscale="log", title=task, xlabel="steps T", ylabel=SHOWN[key])
    ticks = list(scores_at(runs, task, True, key))
    axis.set_xticks(ticks, [str(step) for step in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key in ("budget", "alone_budget"):
        check_integer(key, getattr(arguments, key))
    for task in arguments.tasks:
        built = make_task(task, horizon=arguments.horizons)
        if len(built.horizons) < 2:
            raise ValueError(f"horizons must be two or more, got {arguments.horizons}.")
        for horizon in arguments.unseen:
            built.at(horizon)
    rows = [TOGETHER, *(f"T = {horizon}" for horizon in arguments.horizons if arguments.alone)]
    wanted = [(task, row, seed, arguments) for task in arguments.tasks for seed in arguments.seeds for row in rows]
    runs = run_all(run, wanted, arguments.jobs, "horizons")
    return {key: getattr(arguments, key) for key in ("agent", "horizons", "budget", "alone_budget")} | {"runs": runs}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
