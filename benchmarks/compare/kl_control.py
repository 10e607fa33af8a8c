"""Which control of the divergence keeps a reward from being over-optimised? Agents tilt one base sampler.

    python benchmarks/compare/kl_control.py --seeds 0 1 2 3 4 --json kl_control.json --picture kl_control.png

Every agent gets ``--evals`` evaluations of the reward on the task with ``backward="base"``: at each of ``--betas``,
fixed ("beta"; agents that no beta holds only at the smallest); with beta steered to each divergence of ``--kls``
("adaptive", agents that beta holds), from the largest of the betas on; and stopped at that divergence, at the smallest
of the betas ("stop"). Rewards and divergences are looked at on the way, on samples of their own.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    evals, horizon, settings    what was asked for
    exact                       on tilted mixtures, the density itself at betas from the largest to the smallest
      .beta, .reward, .true_reward, .kl   and its divergence from the data
    runs                        one entry per task, agent, control and seed
      .task, .agent, .control, .level, .seed   of the run; level is beta, or the divergence
      .timesteps, .energy_evals, .gradient_steps, .seconds   costs of training
      .beta                     that of the end
      .curve                    rows (evaluations, mean reward, true reward or null, divergence)
      .scores                   reward, true_reward, kl_base, sliced_w2, modes, fd, recall, coverage: those that apply
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

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import Agent, evaluate, make_agent, make_target, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.aims import kl_to_base
from dxmi_rl.agents.kl_control import AdaptiveBeta, StopAtKL
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.targets import RewardEnergy, TiltedMixture
from dxmi_rl.tasks import TASKS, Task
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import changed, parsed_settings

CONTROLS = ["beta", "adaptive", "stop"]
KEYS = ("reward", "true_reward", "kl_base", "sliced_w2", "modes", "fd", "recall", "coverage")
LOOKS, LOOK_CHAINS = 20, 1000
"""Looks at reward and divergence during a run, and chains of each."""
SAMPLES = 10_000
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
MARKERS = {"beta": "o", "adaptive": "D", "stop": "X"}
WORDS = {"beta": "fixed beta", "adaptive": "beta steered", "stop": "stopped"}


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("8gaussians-proxy",)
    """Tilted mixtures, or tasks whose base sampler a reward tilts."""
    agents: tuple[str, ...] = (
        "dxdp", "ppo", "grpo", "dpok", "adjoint-matching", "awm", "diffusion-nft", "draft",
    )  # fmt: skip
    """Agents with a density that start at the base sampler."""
    settings: tuple[str, ...] = ()
    """Of agents, as AGENT.SETTING=VALUE: ``ppo.policy.fine_tuning_rate=3e-6``."""
    controls: tuple[str, ...] = ("beta", "adaptive", "stop")
    """Of the divergence."""
    betas: tuple[float, ...] = (1.0, 0.25, 0.0625)
    """Strengths of the pull to the base sampler where it is fixed, from strong to weak."""
    kls: tuple[float, ...] = (3.0,)
    """Divergences, in nats, of the other controls."""
    evals: int = 10_000
    """Evaluations of the reward in training."""
    horizon: int = 10
    """Denoising steps."""
    folder: Path = Path("runs/kl_control")
    """Finished runs are kept here, and not repeated."""
    picture: Path | None = None
    """Draw rewards against divergences into this PNG file."""


def tilted_base(task: str, beta: float, arguments: Arguments) -> Task:
    """The base sampler of a task, tilted by its reward."""
    parts: dict[str, Any] = {"horizon": arguments.horizon, "device": arguments.device, "beta": beta}
    if not TASKS[task].rewarded:
        target = make_target(task)
        assert isinstance(target, TiltedMixture)
        task, parts = task.partition("-")[0], parts | {"reward": target.reward, "backward": "base"}
    return make_task(task, **parts)


def settings_of(name: str, arguments: Arguments) -> dict[str, Any]:
    """Those of ``arguments.settings`` that are for this agent."""
    start = f"{name}."
    return parsed_settings("settings", [w.removeprefix(start) for w in arguments.settings if w.startswith(start)])


class Curve:
    """A callback that notes rewards and divergences on the way, and asks ``control`` whether to go on."""

    def __init__(self, task: str, arguments: Arguments, control: Any) -> None:
        target = None if TASKS[task].rewarded else make_target(task)
        self.true_reward = target.true_reward if isinstance(target, TiltedMixture) else None
        self.every, self.control = arguments.evals / LOOKS, control
        self.rows: list[tuple[int, float, float | None, float]] = []

    def __call__(self, agent: Agent[Any]) -> bool | None:
        """Called by ``learn`` after each iteration."""
        if agent.costs.energy_evals >= self.every * (len(self.rows) + 1):
            self.look(agent)
        found: bool | None = None if self.control is None else self.control(agent)
        return found

    def look(self, agent: Agent[Any]) -> None:
        """One row, from chains of its own."""
        chains = agent.sample_trajectory(LOOK_CHAINS, seed=len(self.rows))
        true = None if self.true_reward is None else _mean(self.true_reward(chains.final))
        row = (agent.costs.energy_evals, _reward(agent, chains.final), true, kl_to_base(agent.mdp, chains))
        self.rows.append(row)


def measure(task: str, name: str, control: str, level: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one agent under one control, and score it."""
    beta = {"beta": level, "adaptive": max(arguments.betas), "stop": min(arguments.betas)}[control]
    agent = make_agent(name, tilted_base(task, beta, arguments), seed=seed, **settings_of(name, arguments))
    controls = {"beta": lambda: None, "adaptive": lambda: AdaptiveBeta(level), "stop": lambda: StopAtKL(level)}
    curve = Curve(task, arguments, controls[control]())
    agent.learn(energy_evals=arguments.evals, callback=curve)
    with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):
        scores = evaluate(agent, seed=seed, samples=SAMPLES, trajectories=SAMPLES // 2, fit=False, floors=False)
    if curve.true_reward is not None:
        scores["true_reward"] = _mean(curve.true_reward(agent.sample(SAMPLES, seed=seed + 1)))
    costs = {key: getattr(agent.costs, key) for key in ("timesteps", "energy_evals", "gradient_steps", "seconds")}
    energy = agent.mdp.energy.function
    assert isinstance(energy, RewardEnergy)
    return {
        "task": task, "agent": name, "control": control, "level": level, "seed": seed, **costs, "beta": energy.beta,
        "curve": curve.rows, "scores": {key: scores[key] for key in KEYS if key in scores},
    }  # fmt: skip


def _reward(agent: Agent[Any], x: Tensor) -> float:
    energy = agent.mdp.energy.function
    assert isinstance(energy, RewardEnergy)
    return _mean(energy.rewards(x))


@torch.no_grad()
def _mean(values: Tensor) -> float:
    return float(values.double().mean())


CODE = code_of(sys.modules[__name__])
"""Digest of this file."""


def run(task: str, name: str, control: str, level: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    settings = {
        "task": task, "agent": name, "control": control, "level": level, "seed": seed, "evals": arguments.evals,
        "horizon": arguments.horizon, "device": arguments.device, "betas": [max(arguments.betas), min(arguments.betas)],
        "settings": settings_of(name, arguments),
    }  # fmt: skip
    uses = [AGENTS[name], TiltedMixture, type(make_task(task).target), KERNELS["base"], evaluate, AdaptiveBeta]
    with one_thread():
        file = run_file(arguments.folder, settings, uses, CODE)
        return kept_result(file, lambda: measure(task, name, control, level, seed, arguments))


def exact(task: str, arguments: Arguments) -> list[dict[str, float]]:
    """The tilted density itself, at betas from the largest to the smallest, where it is known."""
    high, low = max(arguments.betas), min(arguments.betas)
    rows = list[dict[str, float]]()
    for place in range(41 if not TASKS[task].rewarded else 0):
        target = make_target(task, beta=high * (low / high) ** (place / 40))
        assert isinstance(target, TiltedMixture) and target.log_z is not None
        row = {"beta": target.beta, "reward": target.mean_reward}
        if target.true_reward is not None:
            x = target.sample(SAMPLES, torch.Generator().manual_seed(0))
            row["true_reward"] = target.own_scores(x)["true_reward"]
        rows.append(row | {"kl": target.mean_reward / target.beta - target.log_z})
    return rows


def groups(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str, float], list[dict[str, Any]]]:
    """Runs that differ in the seed alone, by agent, control and level."""
    found = dict[tuple[str, str, float], list[dict[str, Any]]]()
    for one in runs:
        found.setdefault((one["agent"], one["control"], one["level"]), []).append(one)
    return found


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A table per task: medians over seeds with the range."""
    runs = found["runs"]
    for task in dict.fromkeys(one["task"] for one in runs):
        own = [one for one in runs if one["task"] == task]
        keys = [key for key in KEYS if any(key in one["scores"] for one in own)]
        table = Table("agent", "control", "beta", "evals", *keys, "s", title=f"{task}: medians over seeds")
        for (name, control, level), same in groups(own).items():
            cells = []
            for key in keys:
                values = [one["scores"][key] for one in same]
                cells.append(f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]")
            middle = {key: statistics.median(one[key] for one in same) for key in ("beta", "energy_evals", "seconds")}
            table.add_row(
                name, f"{control} {level:g}", f"{middle['beta']:.3g}", f"{middle['energy_evals']:.0f}", *cells,
                f"{middle['seconds']:.0f}",
            )  # fmt: skip
        console.print(table)


def draw(found: dict[str, Any], file: Path) -> None:
    """Per task: the reward (and the true one) that each agent ends at against its divergence from the base sampler; and
    the reward against evaluations, where beta is steered.
    """
    runs, known = found["runs"], found["exact"]
    tasks = list(dict.fromkeys(one["task"] for one in runs))
    figure = Figure(figsize=(12.5, 3.9 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 3, squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        own = [one for one in runs if one["task"] == task]
        names = list(dict.fromkeys(one["agent"] for one in own))
        colours = dict(zip(names, COLOURS, strict=False))
        keys = [key for key in ("reward", "true_reward", "fd") if key in own[0]["scores"]][:2]
        for axis, key in zip(line[: len(keys)], keys, strict=True):
            curve = [row for row in known[task] if key in row]
            if curve:
                axis.plot([row["kl"] for row in curve], [row[key] for row in curve], "k-", linewidth=1, label="exact")
            seen = list[float]()
            reached = sorted(one["scores"]["kl_base"] for one in own)
            # Who runs away would squeeze all others into a corner: the table has them.
            aimed = max((one["level"] for one in own if one["control"] != "beta"), default=0.0)
            high = max(4 * max((row["kl"] for row in curve), default=reached[len(reached) // 2]), 2 * aimed)
            for (name, control, _), same in groups(own).items():
                x, y = (statistics.median(one["scores"][part] for one in same) for part in ("kl_base", key))
                seen += [y] if x < high else []
                label = None if name in axis.get_legend_handles_labels()[1] else name
                axis.plot(
                    max(x, 1e-2), y, MARKERS[control], color=colours[name], markersize=6, markeredgecolor="white",
                    markeredgewidth=0.5, label=label,
                )  # fmt: skip
            axis.set_xlim(max(1e-2, 0.5 * reached[0]), high)
            axis.set(xscale="log", xlabel="KL(chains || base sampler) [nats]", ylabel=key.replace("_", " "), title=task)
            margin = 0.15 * (max(seen) - min(seen))
            axis.set_ylim(min(seen) - margin, max(seen) + margin)
        for name in names:
            same = [one for one in own if one["agent"] == name and one["control"] != "beta"]
            steered = [one for one in same if one["control"] == "adaptive"] or same
            if not steered:
                continue
            levels = sorted({one["level"] for one in steered})
            steered = [one for one in steered if one["level"] == levels[len(levels) // 2]]
            shortest = min(len(one["curve"]) for one in steered)
            rows = [[one["curve"][place] for one in steered] for place in range(shortest)]
            line[2].plot(
                [statistics.median(row[0] for row in seeds) for seeds in rows],
                [statistics.median(row[1] for row in seeds) for seeds in rows],
                color=colours[name], label=name, linestyle="-" if steered[0]["control"] == "adaptive" else ":",
            )  # fmt: skip
        line[2].set(xlabel="evaluations of the reward", ylabel="reward, beta steered", title=task)
        for axis in line[len(keys) : 2]:
            axis.set_visible(False)
    for control in dict.fromkeys(one["control"] for one in runs):
        axes[0, 0].plot([], [], MARKERS[control], color="#7f7f7f", label=WORDS[control])
    axes[0, 0].legend(frameon=False, fontsize=7)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def wanted_runs(arguments: Arguments) -> list[tuple[Any, ...]]:
    """Arguments of ``run``, seed by seed."""
    found = list[tuple[Any, ...]]()
    for seed in arguments.seeds:
        for task in arguments.tasks:
            for name in arguments.agents:
                for control in arguments.controls:
                    if control == "adaptive" and not AGENTS[name].held_by_beta:
                        continue
                    betas = arguments.betas if AGENTS[name].held_by_beta else (min(arguments.betas),)
                    levels = betas if control == "beta" else arguments.kls
                    found += [(task, name, control, level, seed, arguments) for level in levels]
    return found


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key in ("evals", "horizon"):
        check_integer(key, getattr(arguments, key))
    for key in ("betas", "kls"):
        for level in getattr(arguments, key):
            check_real(key, level, strict=True)
    for word in arguments.settings:
        if word.partition(".")[0] not in arguments.agents:
            raise ValueError(f"settings must begin with one of agents, got {word!r}.")
    for name in arguments.agents:
        changed(AGENTS[name].Config(), settings_of(name, arguments), f"setting of {name!r}")
    for control in arguments.controls:
        if control not in CONTROLS:
            raise UnknownNameError("control", control, CONTROLS)
    for task in arguments.tasks:
        if not TASKS[task].rewarded and not isinstance(make_task(task).target, TiltedMixture):
            raise ValueError(f"tasks must have a reward, got {task!r}.")
    asked = {key: getattr(arguments, key) for key in ("evals", "horizon", "settings")}
    runs = run_all(run, wanted_runs(arguments), arguments.jobs, "agents")
    return asked | {"exact": {task: exact(task, arguments) for task in arguments.tasks}, "runs": runs}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
