"""Do twisting functions pay? Particle filters on trained agents: log Z, effective sample sizes, and samples.

    python benchmarks/compare/smc.py --seeds 0 1 2 3 4 --json smc.json --picture smc.png

Agents are trained from the energy alone (T = 10, Learned kernel) for ``--budget`` transitions. Then WAYS of weighting
their chains estimate log Z in ``--systems`` particle filters of ``--particles`` energy evaluations each; fits cost no
energies for DxDP, which has a model of the energy, and 2,000 for PPO, once (``.fit_energy_evals``). And samples: the
policy's own, and one of ``--choice`` chains each by SAMPLERS.

Keys of ``--json FILE``:

    command, machine, versions              as in all studies
    budget, systems, particles, choice      what was asked for
    runs                        one entry per agent of AGENTS and seed
      .task, .agent, .seed      of the run
      .log_z                    the true one
      .training_evals, .fit_energy_evals    energy evaluations of training, and of fitting the twisting functions
      .filters                  {way: ...} with errors (log Z of every system less the true one), ess (means over
                                systems, before every step and at the end), origins (part of the starts that has
                                descendants), shares ("mode_tv", "modes" or "well_error" of the weighted particles)
      .samples                  {sampler: scores}: sliced_w2, modes, mode_tv, well_error and the mean energy
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
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
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.guidance import GuidedAgent
from dxmi_rl.agents.twisting import FittedTwist, fit_twist
from dxmi_rl.benchmark.pictures import COLOURS, MARKERS, save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.evaluation.evaluate import scoring_target
from dxmi_rl.evaluation.metrics import mode_statistics, sliced_w2
from dxmi_rl.smc import Particles, particle_filter
from dxmi_rl.utils.checks import check_integer

COORDINATES = {"policy": {"coordinate_width": 32}, "value": {"coordinate_width": 32}}
"""Networks that see one coordinate at a time."""
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gmm25, dxdp": ("gmm25", "dxdp", {}),
    "gmm25, ppo": ("gmm25", "ppo", {}),
    "manywell32, dxdp": ("manywell32", "dxdp", {}),
    "manywell32, dxdp by coordinate": ("manywell32", "dxdp", COORDINATES),
    "manywell32, ppo": ("manywell32", "ppo", {}),
    "funnel10, dxdp": ("funnel10", "dxdp", {}),
}
"""Row: task, agent and its settings."""
CANDIDATES = 4
"""Chains per energy evaluation of the last of WAYS."""
WAYS = ("weights alone", "values as learned", "fitted twist", f"fitted twist, {CANDIDATES} candidates")
SAMPLERS = ("policy", "guided by values", "lowest energy", "weights alone", "fitted twist")
GUIDANCE = 0.05
"""Weight of value guidance, in the target's scale per nat."""
DRAWS = 4000
"""Samples of every sampler."""


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Rows to run."""
    budget: int = 200_000
    """Transitions of training."""
    systems: int = 200
    """Particle filters of every way."""
    particles: int = 1000
    """Energy evaluations of each."""
    choice: int = 16
    """Chains that each sample is chosen from."""
    folder: Path = Path("runs/smc")
    """Finished runs are kept here, and not repeated."""


def measure(row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one agent, run its particle filters and draw its samples."""
    name, kind, settings = ROWS[row]
    options = {"coordinate_width": 32} if settings else {}
    task = make_task(
        name, track="sample", horizon=10, backward="learned", backward_options=options, device=arguments.device
    )
    agent = make_agent(kind, task, seed=seed, **settings).learn(arguments.budget)
    twist = fit_twist(agent, seed=seed)
    target = scoring_target(agent.task)
    assert target.log_z is not None
    filters: dict[str, Any] = {}
    for way in WAYS:
        found = filtered(agent, way, twist, arguments, seed)
        pooled = torch.stack([found.draw(agent.generator_of(seed + k)) for k in range(-(-DRAWS // arguments.systems))])
        filters[way] = {
            "errors": (found.log_z - target.log_z).tolist(),
            "ess": found.ess.mean(1).tolist(),
            "origins": statistics.mean(len(set(row)) for row in found.origins().tolist()) / arguments.particles,
            "shares": {key: value for key, value in scores_of(target, pooled.flatten(0, 1), seed).items()
                       if key in ("modes", "mode_tv", "well_error")},
        }  # fmt: skip
    samples = {}
    for sampler in SAMPLERS:
        x = drawn(agent, sampler, twist, arguments.choice, seed)
        if x is not None:
            samples[sampler] = scores_of(target, x, seed) | {"energy": float(target.energy(x).mean())}
    return {
        "row": row, "task": name, "agent": kind, "seed": seed, "log_z": target.log_z,
        "training_evals": agent.costs.energy_evals, "fit_energy_evals": twist.energy_evals, "filters": filters,
        "samples": samples,
    }  # fmt: skip


def filtered(agent: Any, way: str, twist: FittedTwist, arguments: Arguments, seed: int) -> Particles:
    """The particle filters of one of WAYS."""
    twists: dict[str, Callable[[Tensor, int], Tensor] | None] = dict.fromkeys(WAYS, twist)
    twists |= {WAYS[0]: None, WAYS[1]: lambda x, t: agent.predict_values(x, t) / agent.mdp.tau}
    return particle_filter(
        agent.mdp, agent.density(), arguments.systems, arguments.particles, twist=twists[way],
        candidates=CANDIDATES if way == WAYS[3] else 1, generator=agent.generator_of(seed + 1),
    )  # fmt: skip


def drawn(agent: Any, sampler: str, twist: FittedTwist, choice: int, seed: int) -> Tensor | None:
    """Samples of one of SAMPLERS; None where the agent has it not."""
    if sampler == "policy":
        return agent.sample(DRAWS, seed=seed)
    if sampler == "guided by values":
        scale = GUIDANCE * agent.mdp.scale
        return agent.sample(DRAWS, seed=seed, guidance=scale) if isinstance(agent, GuidedAgent) else None
    if sampler == "lowest energy":
        x = agent.sample(DRAWS * choice, seed=seed)
        best = agent.mdp.energy(x).detach().view(choice, DRAWS).argmin(0)
        chosen: Tensor = x[best * DRAWS + torch.arange(DRAWS, device=x.device)]
        return chosen
    return agent.sample(DRAWS, seed=seed, particles=choice, twist=twist if sampler == "fitted twist" else None)


def scores_of(target: Any, x: Tensor, seed: int) -> dict[str, float]:
    """Sliced W2, and shares of modes or wells where they are known."""
    scores: dict[str, float] = target.own_scores(x)
    if target.modes is not None:
        scores |= mode_statistics(x, target.modes.centers, target.modes.std, target.modes.weights)
    return scores | {"sliced_w2": sliced_w2(x, target.sample(len(x), torch.Generator(x.device).manual_seed(seed)))}


CODE = code_of(measure, filtered, drawn, scores_of)
"""Digest of what is measured here: workers, which get functions without their source, cannot make it."""


def run(row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    task, agent, changed = ROWS[row]
    keys = ("budget", "systems", "particles", "choice", "device")
    constants = {"guidance": GUIDANCE, "draws": DRAWS, "candidates": CANDIDATES}
    settings = {"task": task, "agent": agent, "settings": changed, "seed": seed, **constants}
    settings |= {key: getattr(arguments, key) for key in keys}
    with one_thread():
        uses = [AGENTS[agent], type(make_task(task).target), fit_twist, particle_filter]
        return kept_result(run_file(arguments.folder, settings, uses, CODE), lambda: measure(row, seed, arguments))


def deviation(one: dict[str, Any], way: str) -> float:
    """Standard deviation of log Z from one system to the next."""
    return statistics.stdev(one["filters"][way]["errors"])


def print_runs(found: dict[str, Any], console: Console) -> None:
    """Medians over seeds: log Z and shares by way, then scores of samples."""
    runs = found["runs"]
    table = Table("row", "way", "std of log Z", "mean error", "Z / true Z", "smallest ess", "origins", "shares")
    for row in dict.fromkeys(one["row"] for one in runs):
        own = [one for one in runs if one["row"] == row]
        for way in WAYS:
            filters = [one["filters"][way] for one in own]
            ratios = [torch.tensor(each["errors"], dtype=torch.float64).exp() for each in filters]
            shares = {key: statistics.median(each["shares"][key] for each in filters) for key in filters[0]["shares"]}
            table.add_row(
                row, way,
                f"{statistics.median(deviation(one, way) for one in own):.3f}",
                f"{statistics.median(statistics.mean(each['errors']) for each in filters):+.3f}",
                " ".join(f"{float(r.mean()):.3f}±{float(r.std()) / len(r) ** 0.5:.3f}" for r in ratios),
                f"{statistics.median(min(each['ess']) for each in filters):.3f}",
                f"{statistics.median(each['origins'] for each in filters):.2f}",
                " ".join(f"{key} {value:.3g}" for key, value in shares.items()),
            )  # fmt: skip
    console.print(table)
    table = Table("row", "samples", "scores, medians")
    for row in dict.fromkeys(one["row"] for one in runs):
        own = [one["samples"] for one in runs if one["row"] == row]
        for sampler in own[0]:
            keys = own[0][sampler]
            scores = {key: statistics.median(each[sampler][key] for each in own) for key in keys}
            table.add_row(row, sampler, " ".join(f"{key} {value:.3g}" for key, value in scores.items()))
    console.print(table)


def draw(found: dict[str, Any], file: Path) -> None:
    """A column per row: effective sample sizes along the steps, and the spread of log Z over systems, all seeds."""
    runs = found["runs"]
    rows = list(dict.fromkeys(one["row"] for one in runs))
    figure = Figure(figsize=(3.1 * len(rows), 6.0), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        own = [one for one in runs if one["row"] == row]
        above, below = axes[:, column]
        for index, way in enumerate(WAYS):
            filters = [one["filters"][way] for one in own]
            steps = len(filters[0]["ess"])
            ess = [statistics.mean(each["ess"][t] for each in filters) for t in range(steps)]
            places = [*range(steps - 1), steps - 1] if index < 3 else [*range(steps - 2), steps - 2, steps - 2]
            above.plot(places, ess, color=COLOURS[index], marker=MARKERS[index], markersize=4, label=way)
            means = [statistics.mean(each["errors"]) for each in filters]  # seeds that lost wells have other ones
            spread = [error - mean for each, mean in zip(filters, means, strict=True) for error in each["errors"]]
            below.boxplot(
                [spread], positions=[index], widths=0.6, showfliers=False, patch_artist=True,
                boxprops={"facecolor": COLOURS[index], "alpha": 0.6}, medianprops={"color": "black"},
            )  # fmt: skip
        above.set(title=row.replace(", ", "\n"), xlabel="step t", ylim=(0, 1.02), xticks=range(0, 11, 2))
        below.axhline(0, color="grey", linewidth=0.8)
        below.set_xticks(range(len(WAYS)), [way.replace(" ", "\n") for way in WAYS], fontsize=6)
    axes[0, 0].set_ylabel("effective sample size [fraction]")
    axes[1, 0].set_ylabel("log Z less its mean over the systems\nof a seed [nats]")
    axes[0, 0].legend(fontsize=6)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key, least in {"budget": 1, "systems": 2, "particles": 2, "choice": 2}.items():
        check_integer(key, getattr(arguments, key), minimum=least)
    if unknown := set(arguments.rows) - set(ROWS):
        raise ValueError(f"rows must be of {list(ROWS)}, got {sorted(unknown)}.")
    wanted = [(row, seed, arguments) for row in arguments.rows for seed in arguments.seeds]
    asked = {key: getattr(arguments, key) for key in ("budget", "systems", "particles", "choice")}
    return asked | {"runs": run_all(run, wanted, arguments.jobs, "filters")}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
