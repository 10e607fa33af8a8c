"""One step from many: samplers with T = 1, trained directly, or fitted to one with more steps and trained on.

    python benchmarks/compare/one_step.py --seeds 0 1 2 3 4 --json one_step.json --picture one_step.png

Tasks with an energy are sampled from scratch (track "sample", Learned kernel): the teacher is DxDP with ``--steps``
steps, students have one step, a wide network and path-wise gradients. Image sets are imitated: the teacher is a DxMI
game with four steps, students fit its samples, and games go on from there with one.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    runs                        one entry per task and seed
      .task, .seed              of the run
      .rows                     {row: scores}: sliced_w2, kl_bound (the kernel of training), kl_marginal and
                                kl_marginal_forward (in the plane), modes, mode_tv; w1, the distance of 2,000 samples
                                to as many exact ones by assignment, and sinkhorn, the same regularised with 1e-3 and
                                stopped after 100 iterations, as published one-step samplers report it; fd on images;
                                seconds and energy_evals of all that led to the row
      .floor                    w1 and sinkhorn of exact samples, or fd
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import DxMI, evaluate, make_agent, make_task
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.agents.one_step import COUPLINGS, distil
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.evaluation.evaluate import scoring_target
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.utils.checks import check_integer

KEYS = (
    "w1", "sinkhorn", "sliced_w2", "kl_bound", "kl_marginal", "kl_marginal_forward", "modes", "mode_tv", "fd",
)  # fmt: skip
POINTS = 2000
"""Samples of w1 and sinkhorn."""
STUDENT: dict[str, Any] = {
    "policy.width": 256, "policy.energy_gradient": False, "policy.learning_rate": 1e-3,
    "policy.sigma_learning_rate": 1e-3,
}  # fmt: skip
"""Settings of students on energies."""
TRAINED = "transport, then trained"


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("gmm9", "funnel10", "digits")
    """Tasks with an energy, or sets of images."""
    steps: int = 10
    """Steps of the teacher on tasks with an energy; games have four."""
    evals: int = 20_000
    """Energy evaluations of the teacher."""
    student_evals: int = 100_000
    """Energy evaluations of a student that is trained, directly or on from the fit."""
    game: int = 100_000
    """Transitions of the teacher's game on images."""
    student_game: int = 100_000
    """Transitions of the student's, one per sample."""
    folder: Path = Path("runs/one_step")
    """Finished runs are kept here, and not repeated."""


def measure(task: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """All rows of one task and seed."""
    started = time.perf_counter()
    rows: dict[str, dict[str, float]] = {}
    samples: dict[str, Any] = {}

    def note(row: str, agent: Agent[Any], since: float, evals: int) -> None:
        seconds = time.perf_counter() - since
        rows[row] = scores_of(agent, seed) | {"seconds": seconds, "energy_evals": evals}
        samples[row] = agent.sample(64 if len(agent.mdp.event_shape) == 3 else 1000, seed=seed + 1).flatten(1).tolist()

    if make_task(task).target.has_energy:
        built = make_task(task, track="sample", horizon=arguments.steps, backward="learned", device=arguments.device)
        teacher: Agent[Any] = make_agent("dxdp", built, seed=seed).learn(energy_evals=arguments.evals)
        before = time.perf_counter() - started  # of training the teacher
        note(f"teacher, T = {arguments.steps}", teacher, started, teacher.costs.energy_evals)
        one = built.with_horizon(1)
        clock = time.perf_counter()
        direct = make_agent("path-wise", one, seed=seed, **STUDENT).learn(energy_evals=arguments.student_evals)
        note("one step, trained directly", direct, clock, direct.costs.energy_evals)
        for coupling in COUPLINGS:
            clock = time.perf_counter() - before
            student = distil(make_agent("path-wise", one, seed=seed, **STUDENT), teacher, coupling=coupling, seed=seed)
            note(f"{coupling} pairs", student, clock, teacher.costs.energy_evals)
            if coupling == "transport":
                clock = time.perf_counter() - rows["transport pairs"]["seconds"]
                student.learn(energy_evals=arguments.student_evals)
                note(TRAINED, student, clock, teacher.costs.energy_evals + student.costs.energy_evals)
    else:
        built = make_task(task, horizon=4, device=arguments.device)
        game = DxMI(built, seed=seed).learn(arguments.game)
        before = time.perf_counter() - started
        note("teacher, T = 4", game, started, 0)
        one = built.with_horizon(1)
        note("DDIM, one step", make_agent("ddim", one), time.perf_counter(), 0)
        for coupling in COUPLINGS:
            clock = time.perf_counter() - before
            student_game = distil(DxMI(one, seed=seed), game, coupling=coupling, seed=seed)
            note(f"{coupling} pairs", student_game, clock, 0)
            if coupling == "transport":
                clock = time.perf_counter() - rows["transport pairs"]["seconds"]
                student_game.learn(arguments.student_game)
                note(TRAINED, student_game, clock, 0)
        direct_game = DxMI(one, seed=seed)
        clock = time.perf_counter()
        note("one step, trained directly", direct_game.learn(arguments.game), clock, 0)
    return {"task": task, "seed": seed, "rows": rows, "floor": floor_of(task), "samples": samples if not seed else {}}


def scores_of(agent: Agent[Any], seed: int) -> dict[str, float]:
    """KEYS that apply."""
    with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):
        found = evaluate(agent, seed=seed, fit=False, samples=4000, draws=4, trajectories=20_000, floors=False)
    target = scoring_target(agent.task)
    if target.has_sampler and len(target.event_shape) == 1:
        exact = target.sample(POINTS, torch.Generator(agent.mdp.device).manual_seed(seed + 5))
        found |= distances(agent.sample(POINTS, seed=seed + 2), exact)
    return {key: found[key] for key in KEYS if key in found}


def distances(x: Tensor, y: Tensor) -> dict[str, float]:
    """``w1`` by the best assignment, and ``sinkhorn`` as said above, of as many samples x and y."""
    costs = torch.cdist(x, y)
    rows, columns = linear_sum_assignment(costs.cpu().numpy())
    strength, log_mass = 1e-3, -math.log(len(x))
    right = torch.full_like(costs[0], strength * log_mass)
    for _ in range(100):
        left = strength * (log_mass - torch.logsumexp((right - costs) / strength, dim=1))
        right = strength * (log_mass - torch.logsumexp((left[:, None] - costs) / strength, dim=0))
    plan = ((left[:, None] + right - costs) / strength).exp()
    return {"w1": float(costs[rows, columns].mean()), "sinkhorn": float((plan * costs).sum())}


def floor_of(task: str) -> dict[str, float]:
    """``distances`` of exact samples to exact samples, mean of three pairs; nothing for images."""
    target = scoring_target(make_task(task))
    if not target.has_sampler or len(target.event_shape) != 1:
        return {}
    generator = torch.Generator().manual_seed(0)
    pairs = [distances(target.sample(POINTS, generator), target.sample(POINTS, generator)) for _ in range(3)]
    return {key: statistics.mean(pair[key] for pair in pairs) for key in pairs[0]}


CODE = code_of(measure, scores_of, distances, floor_of)
"""Digest of what is measured here: workers, which get functions without their source, cannot make it."""


def run(task: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    keys = ("steps", "evals", "student_evals") if make_task(task).target.has_energy else ("game", "student_game")
    settings = {"task": task, "seed": seed, "device": arguments.device, "student": STUDENT, "points": POINTS}
    settings |= {key: getattr(arguments, key) for key in keys}
    with one_thread():
        uses = [AGENTS["dxdp"], AGENTS["path-wise"], DxMI, type(make_task(task).target), distil, evaluate]
        return kept_result(run_file(arguments.folder, settings, uses, CODE), lambda: measure(task, seed, arguments))


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A table per task: medians over seeds and, of the first score, the range."""
    runs = found["runs"]
    for task in dict.fromkeys(one["task"] for one in runs):
        own = [one for one in runs if one["task"] == task]
        keys = [key for key in (*KEYS, "seconds", "energy_evals") if key in own[0]["rows"][next(iter(own[0]["rows"]))]]
        table = Table("row", *keys, title=f"{task}: medians of {len(own)} seeds [range]")
        for row in own[0]["rows"]:
            cells = []
            for key in keys:
                values = [one["rows"][row][key] for one in own if key in one["rows"][row]]
                spread = (
                    f" [{min(values):.3g}, {max(values):.3g}]"
                    if key not in ("seconds", "energy_evals") and values
                    else ""
                )
                cells.append(f"{statistics.median(values):.3g}{spread}" if values else "-")
            table.add_row(row, *cells)
        table.add_row(
            "exact samples", *(f"{own[0]['floor'][key]:.3g}" if key in own[0]["floor"] else "" for key in keys)
        )
        console.print(table)


def draw(found: dict[str, Any], file: Path) -> None:
    """Samples of every row, seed 0: a row of panels per task (in more dimensions the first two coordinates)."""
    shown = found["pictures"]
    columns = max(map(len, shown.values()))
    figure = Figure(figsize=(2.1 * columns, 2.4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for line, (task, samples) in zip(axes, shown.items(), strict=True):
        target = make_task(task).target
        for axis in line[len(samples) :]:
            axis.set_visible(False)
        for axis, (row, values) in zip(line, samples.items(), strict=False):
            axis.set_title(f"{task}\n{row}", fontsize=7)
            x = torch.tensor(values)
            if len(target.event_shape) == 3:
                _, height, width = target.event_shape
                tiles = torch.nn.functional.pad(x.view(8, 8, height, width), (1, 1, 1, 1))
                grid = tiles.permute(0, 2, 1, 3).reshape(8 * (height + 2), 8 * (width + 2))
                axis.imshow(grid, cmap="gray", vmin=-1, vmax=1)
                axis.set(xticks=[], yticks=[])
                continue
            axis.scatter(x[:, 0], x[:, 1], s=1.5, color="#0072b2", linewidths=0)
            low, high = target.plot_range
            axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axis.tick_params(labelsize=6)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key in ("steps", "evals", "student_evals", "game", "student_game"):
        check_integer(key, getattr(arguments, key))
    for task in arguments.tasks:
        target = scoring_target(make_task(task))
        grey = len(target.event_shape) == 3 and target.event_shape[0] == 1
        if not (target.has_energy and target.has_sampler) and not grey:
            raise ValueError(f"tasks must have an energy and a sampler, or be grey images, got {task!r}.")
    if arguments.picture is not None and 0 not in arguments.seeds:
        raise ValueError(f"picture shows seed 0, which is not among seeds = {arguments.seeds}.")
    wanted = [(task, seed, arguments) for task in arguments.tasks for seed in arguments.seeds]
    runs = run_all(run, wanted, arguments.jobs, "students")
    shown = {one["task"]: one["samples"] for one in runs if one["samples"]}
    return {"runs": [{key: one[key] for key in one if key != "samples"} for one in runs], "pictures": shown}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
