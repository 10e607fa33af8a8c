"""How right are the gradients of DxDP's values, and its energy model? Measured on fresh states of the trained policy.

    python benchmarks/compare/value_quality.py --seeds 0 1 2 --json value_quality.json

Every row is DxDP with one setting changed (ROWS). grad V_t is compared with a Monte-Carlo gradient: at ``states``
states x_t of fresh rollouts, the mean of grad V over ``continuations`` rollouts that go on from x_t, with the adjoint
along the path (``adjoint_along_paths`` at lambda = 1). That is unbiased for the gradient of the policy's own soft
value, with the gradients that the policy is given as constants. The cosine of two halves of these means says how far
the Monte-Carlo gradients themselves can be trusted. The energy model is compared with E during training, at fresh x_T;
a constant between them counts for nothing, as it moves no policy.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    states, continuations       sizes of the Monte-Carlo means
    budget                      transitions per run
    runs                        one entry per task, row and seed
      .task, .row, .seed        of the run
      .cosine                   mean cosine of grad V_t and the Monte-Carlo gradient, t = 0..T-1
      .cosine_of_halves         that of two halves of the Monte-Carlo means
      .energy_model             one entry per tenth of the budget: timesteps; rmse of the model's energies [nats] and
                                spread (standard deviation) of E over fresh x_T; cosine of the gradients. Empty without
                                an energy model
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import DxDP
from dxmi_rl.agents.adjoint import adjoint_along_paths
from dxmi_rl.benchmark.pictures import COLOURS, MARKERS, save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.benchmark.tables import number
from dxmi_rl.costs import Costs, counting
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.torch_tools import input_gradient

ROWS: dict[str, dict[str, Any]] = {"dxdp": {}, "no gradient targets": {"gradient_weight": 0.0}}
FRESH = 1000
"""Fresh x_T at which the energy model is compared with E."""
POINTS = 10
"""How often that is done in a run."""


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("8gaussians", "gmm25", "manywell32")
    """Tasks that give an energy."""
    budget: int = 100_000
    """Transitions per run."""
    states: int = 32
    """States per step at which gradients are compared."""
    continuations: int = 1000
    """Rollouts that go on from every one of them."""
    folder: Path = Path("runs/value_quality")
    """Finished runs are kept here, and not repeated."""


def measure(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one run and measure it."""
    agent = make_agent("dxdp", make_task(task, backward="learned", device=arguments.device), seed=seed, **ROWS[row])
    assert isinstance(agent, DxDP)
    points: list[dict[str, float]] = []

    def note(trained: Any) -> bool:
        if agent.energy_model is not None and trained.num_timesteps >= arguments.budget * (len(points) + 1) / POINTS:
            points.append({"timesteps": trained.num_timesteps, **energy_model_errors(agent)})
        return True

    agent.learn(arguments.budget, callback=note)
    cosine, halves = gradient_cosines(agent, arguments.states, arguments.continuations)
    return {
        "task": task, "row": row, "seed": seed, "cosine": cosine, "cosine_of_halves": halves, "energy_model": points,
    }  # fmt: skip


def energy_model_errors(agent: DxDP) -> dict[str, float]:
    """Errors of the energy model at fresh x_T, which the agent's costs do not count."""
    with counting(Costs()):
        x = agent.sample(FRESH, seed=12345)
        energy, gradient = agent.mdp.energy.value_and_gradient(x)
    assert agent.energy_model is not None and gradient is not None
    with torch.no_grad():
        missed = agent.energy_model(x) - energy
    slope = input_gradient(agent.energy_model, x)
    return {"rmse": float(missed.std()), "spread": float(energy.std()), "cosine": float(cosines(slope, gradient))}


def gradient_cosines(agent: DxDP, states: int, continuations: int) -> tuple[list[float], list[float]]:
    """Of grad V_t and the Monte-Carlo gradient, and of two halves of the latter, for every t."""
    found, halves, generator = [], [], torch.Generator(agent.mdp.device).manual_seed(54321)
    with counting(Costs()):
        paths = agent.mdp.rollout(agent.policy, states, generator)
        for t in range(agent.mdp.horizon):
            goes_on = continued(agent, paths, t, continuations, generator)
            _, last = agent.mdp.energy.value_and_gradient(goes_on.final)
            assert last is not None
            adjoints = adjoint_along_paths(agent.mdp, agent.policy, agent.values, goes_on, last, mixing=1.0)[t]
            adjoints = adjoints.view(continuations, states, -1)
            slope = input_gradient(functools.partial(agent.values, t=t), paths.x[t])
            found.append(float(cosines(slope, adjoints.mean(0))))
            halves.append(float(cosines(adjoints[::2].mean(0), adjoints[1::2].mean(0))))
    return found, halves


@torch.no_grad()
def continued(agent: DxDP, paths: Trajectory, t: int, copies: int, generator: torch.Generator) -> Trajectory:
    """Every path ``copies`` times: the same up to x_t, and played on with fresh noise."""
    repeats = (copies, *[1] * (paths.x.dim() - 2))
    x = [state.repeat(repeats) for state in paths.x[: t + 1]]
    base_means = [agent.policy.base_mean(state, step) for step, state in enumerate(x[:-1])]
    for step in range(t, agent.mdp.horizon):
        base_means.append(agent.policy.base_mean(x[-1], step))
        mean, log_std = agent.policy.moments(x[-1], step, base_means[-1])
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        x.append(mean + log_std.exp() * noise)
    recorded = [part for part in base_means if part is not None]
    return Trajectory(torch.stack(x), torch.empty(0), torch.stack(recorded) if recorded else None)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of the rows of two tensors."""
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean()


CODE = code_of(measure, energy_model_errors, gradient_cosines, continued, cosines)
"""What the numbers depend on."""


def draw(found: dict[str, Any], file: Path) -> None:
    """Cosines of grad V_t above, errors of the energy model below: a panel per task, a line per row and seed."""
    runs = found["runs"]
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure = Figure(figsize=(4.2 * len(tasks), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        above, below = grid[:, column]
        for index, row in enumerate(ROWS):
            own = [run for run in runs if (run["task"], run["row"]) == (task, row)]
            if not own:
                continue
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "label": row}
            steps = range(len(own[0]["cosine"]))
            above.plot(steps, [statistics.mean(run["cosine"][t] for run in own) for t in steps], **style)
            for run in own:
                above.plot(steps, run["cosine"], color=COLOURS[index], alpha=0.35, linewidth=0.8)
                share = [point["rmse"] / point["spread"] for point in run["energy_model"]]
                label = row if run is own[0] else None
                timesteps = [point["timesteps"] for point in run["energy_model"]]
                below.plot(timesteps, share, **style | {"label": label}, markersize=4, linewidth=0.9)
        above.set(title=task, xlabel="step t", xticks=list(steps), ylim=(min(-0.05, above.get_ylim()[0]), 1.02))
        below.set(xlabel="environment transitions", yscale="log")
        below.xaxis.set_major_formatter(EngFormatter())
        for panel in (above, below):
            panel.grid(alpha=0.3)
    grid[0, 0].set_ylabel("cosine of grad V and Monte Carlo")
    grid[1, 0].set_ylabel("error of the energy model\n[standard deviations of E]")
    grid[0, -1].legend()
    save_figure(figure, file)


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A table of means over seeds."""
    runs = found["runs"]
    table = Table("task", "row", "runs", "cosine of grad V, t = 0, 1, ...", "two halves", "E: error / spread", "cosine")
    for task, row in dict.fromkeys((run["task"], run["row"]) for run in runs):
        own = [run for run in runs if (run["task"], run["row"]) == (task, row)]
        columns = []
        for key in ("cosine", "cosine_of_halves"):
            steps = zip(*(run[key] for run in own), strict=True)
            columns.append(" ".join(number(statistics.mean(values)) for values in steps))
        last = [run["energy_model"][-1] for run in own if run["energy_model"]]
        error = number(statistics.mean(point["rmse"] / point["spread"] for point in last)) if last else ""
        cosine = number(statistics.mean(point["cosine"] for point in last)) if last else ""
        table.add_row(task, row, str(len(own)), *columns, error, cosine)
    console.print(table)


def run(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """The result of a run, from its file if it is finished."""
    settings = {
        "task": task, "row": ROWS[row], "seed": seed, "budget": arguments.budget, "states": arguments.states,
        "continuations": arguments.continuations, "device": arguments.device,
    }  # fmt: skip
    file = run_file(arguments.folder, settings, (DxDP,), CODE)
    with one_thread():
        return kept_result(file, lambda: measure(task, row, seed, arguments))


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key, least in {"budget": POINTS, "states": 1, "continuations": 2}.items():
        check_integer(key, getattr(arguments, key), minimum=least)
    for task in arguments.tasks:
        if TASKS[task].reward is None:
            raise ValueError(f"tasks must give an energy, and {task!r} has only data.")
    wanted = [(task, row, seed, arguments) for task in arguments.tasks for row in ROWS for seed in arguments.seeds]
    sizes = {key: getattr(arguments, key) for key in ("states", "continuations", "budget")}
    return sizes | {"runs": run_all(run, wanted, arguments.jobs, "values")}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
