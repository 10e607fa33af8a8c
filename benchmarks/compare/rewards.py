"""Fine-tuning toward a reward, measured exactly: the frontier of reward and divergence from the data.

    python benchmarks/compare/rewards.py --seeds 0 1 2 3 4 --json rewards.json --picture rewards.png

Tasks are mixtures tilted by a reward, p(x) exp(r(x) / beta), whose density and mean reward are known for every beta; or
tasks whose base sampler is tilted (backward "base"), where weighted samples of the base sampler say what is right.
Agents get ``--evals`` evaluations of the reward at each of ``--betas``. On tilted mixtures DPOK, adjoint matching
and AWM, which add the divergence from the base sampler themselves, and DiffusionNFT and SFT-PG, which aim at the
largest reward, are given the reward alone; the others get the tilted energy. All are scored against the tilted density.
"guidance" is not trained: the base sampler, moved by the gradient of the reward of what its denoiser expects, with the
weight of GUIDANCE that is best by sliced_w2 on other samples and other right ones; its costs are those of the search.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    evals, horizon              what was asked for
    exact                       one entry per task and beta: the tilted density itself; of a base sampler estimated
                                from 100,000 of its samples
      .task, .beta
      .reward, .kl_untilted     its mean reward, and its divergence from what is tilted
      .true_reward              of 100,000 exact samples, where the reward is a proxy
      .ess                      effective sample size of the estimate, a fraction, where it is one
      .sliced_w2                of right samples to as many others, and their number .right
    runs                        one entry per task, agent, beta and seed
      .task, .agent, .beta, .seed   of the run
      .timesteps, .energy_evals, .gradient_steps, .seconds   costs of training
      .weight                   of guidance alone
      .scores                   kl_marginal and kl_marginal_forward (to the tilted density), reward, over_optimisation,
                                true_reward, kl_untilted, kl_base, elbo, fd: as evaluate has them, those that apply;
                                sliced_w2, of as many samples as there are right ones, to these
"""

from __future__ import annotations

import functools
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
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import DxDP, evaluate, make_agent, make_target, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.aims import kl_to_base
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.costs import counting
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.evaluation import marginal_scores
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.evaluation.metrics import sliced_w2
from dxmi_rl.targets import RewardEnergy, TiltedMixture
from dxmi_rl.tasks import TASKS, Task
from dxmi_rl.utils.checks import check_integer, check_real

KEYS = (
    "kl_marginal", "kl_marginal_forward", "reward", "over_optimisation", "true_reward", "kl_untilted", "kl_base",
    "elbo", "fd", "sliced_w2",
)  # fmt: skip
REWARD_ALONE = ("adjoint-matching", "awm", "diffusion-nft", "dpok", "sft-pg", "guidance")
"""Agents that add the divergence from the base sampler themselves, or aim at the largest reward."""
SAMPLES = 100_000
SCORED, SETS = 5000, 5
"""Samples on either side of ``sliced_w2``, and right sets that it is a mean over; of base samplers fewer and one."""
POOLS = 15
"""Times SAMPLES of the base sampler, of which right ones are accepted."""
GUIDANCE = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of guidance that are tried, in units of the target's scale."""
UNTRAINED: dict[str, Any] = {
    "lookahead_value": True, "value_steps": 0, "energy_model": False, "gradient_weight": 0.0, "correction": False,
    "value_input": False,
}  # fmt: skip
"""Settings of DxDP whose values are the reward of what the base sampler's denoiser expects."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("gmm25-tilted",)
    """Tilted mixtures in the plane, or tasks whose base sampler a reward tilts."""
    agents: tuple[str, ...] = ("base", "dxdp", "ppo", "grpo", "dpok", "adjoint-matching")
    """Agents with a density, or "guidance"."""
    betas: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5, 0.25)
    """Strengths of the pull to the data, from strong to weak."""
    evals: int = 20_000
    """Evaluations of the reward in training."""
    horizon: int = 10
    """Denoising steps."""
    folder: Path = Path("runs/rewards")
    """Finished runs are kept here, and not repeated."""
    picture: Path | None = None
    """Draw the frontiers into this PNG file."""


def measure(task: str, name: str, beta: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one agent at one beta, and score it against what is right."""
    built = tilted_task(task, beta, arguments)
    target = built.target
    if isinstance(target, TiltedMixture) and name in REWARD_ALONE:
        reward, parts = target.reward, {"horizon": arguments.horizon, "device": arguments.device}
        built = make_task(task.partition("-")[0], energy=lambda x: -reward(x), tau=beta, backward="learned", **parts)
    if name == "guidance":
        return guided(task, built, beta, seed, arguments)
    agent = make_agent(name, built, seed=seed)
    if agent.trains:
        agent.learn(energy_evals=arguments.evals)
    if isinstance(target, TiltedMixture):
        mdp, density = agent.mdp, agent.density()
        scores = marginal_scores(mdp, density, target, seed=seed + 6)
        scores |= target.own_scores(agent.sample(SAMPLES, seed=seed + 1))
        scores["kl_untilted"] = scores["kl_marginal"] + scores["reward"] / beta - (target.log_z or 0.0)
        scores["kl_base"] = kl_to_base(mdp, agent.sample_trajectory(SAMPLES // 10, seed=seed + 8))
    else:
        with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):
            scores = evaluate(agent, seed=seed, samples=SAMPLES // 10, trajectories=SAMPLES // 10, floors=False)
        scores["over_optimisation"] = scores["reward"] - exact(task, beta, arguments)["reward"]
    scores["sliced_w2"] = distance(task, agent.sample(SCORED, seed=seed + 2), beta, arguments)
    costs = {key: getattr(agent.costs, key) for key in ("timesteps", "energy_evals", "gradient_steps", "seconds")}
    kept = {key: scores[key] for key in KEYS if key in scores}
    return {"task": task, "agent": name, "beta": beta, "seed": seed, **costs, "scores": kept}


def guided(task: str, built: Task, beta: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """The scores of the base sampler with guidance, that of the best weight."""
    agent = DxDP(built, seed=seed, **UNTRAINED)
    started, found = time.perf_counter(), dict[float, float]()
    for weight in GUIDANCE:
        with counting(agent.costs):
            x = agent.sample(SCORED, seed=seed + 3, guidance=weight * built.target.scale)
        found[weight] = distance(task, x, beta, arguments, place=1)
    seconds = time.perf_counter() - started
    best = min(found, key=lambda weight: found[weight])
    x = agent.sample(SCORED, seed=seed + 2, guidance=best * built.target.scale)
    scores = {"sliced_w2": distance(task, x, beta, arguments), "reward": float(rewards_of(built, x).mean())}
    scores["over_optimisation"] = scores["reward"] - exact(task, beta, arguments)["reward"]
    costs = {key: getattr(agent.costs, key) for key in ("timesteps", "energy_evals", "gradient_steps")}
    run = {"task": task, "agent": "guidance", "beta": beta, "seed": seed, "weight": best}
    return run | costs | {"seconds": seconds, "scores": scores}


@torch.no_grad()
def rewards_of(built: Task, x: Tensor) -> Tensor:
    """r of samples ``[n]`` in float64, of an energy that is the reward alone."""
    energy = built.mdp.energy.function
    return (energy.rewards(x) if isinstance(energy, RewardEnergy) else -built.mdp.energy(x)).double()


def distance(task: str, x: Tensor, beta: float, arguments: Arguments, *, place: int = 0) -> float:
    """Sliced W2 to as many right samples, the mean over sets of them; ``place`` 0 and 1 share none."""
    sets = 1 if TASKS[task].rewarded else SETS
    right = [right_samples(task, beta, 2 * number + place, arguments) for number in range(sets)]
    return statistics.mean(sliced_w2(x[: len(one)].flatten(1), one.flatten(1)) for one in right)


@functools.lru_cache(maxsize=64)
def right_samples(task: str, beta: float, seed: int, arguments: Arguments) -> Tensor:
    """Samples of the tilted density: SCORED, or of a base sampler every second that is accepted."""
    if TASKS[task].rewarded:
        return accepted(task, beta, arguments)[seed % 2 :: 2][:SCORED]
    generator = torch.Generator(arguments.device).manual_seed(seed)
    return make_target(task, beta=beta).to(torch.device(arguments.device)).sample(SCORED, generator)


@functools.cache
def accepted(task: str, beta: float, arguments: Arguments) -> Tensor:
    """Samples of the base sampler, each accepted with probability exp((r - largest r) / beta): exact ones, but for
    rewards beyond the largest of the first pool.
    """
    built = tilted_task(task, beta, arguments)
    base, generator = make_agent("base", built, seed=1), torch.Generator(arguments.device).manual_seed(1)
    largest, kept = float(base_samples(task, arguments)[1].max()), list[Tensor]()
    for _ in range(POOLS):
        x = base.sample(SAMPLES)
        chance = ((rewards_of(built, x) - largest) / beta).exp()
        kept.append(x[torch.rand(len(x), generator=generator, device=x.device) < chance])
        if sum(map(len, kept)) >= 2 * SCORED:
            break
    return torch.cat(kept)


def tilted_task(task: str, beta: float, arguments: Arguments) -> Task:
    """The task at one beta."""
    parts: dict[str, Any] = {"horizon": arguments.horizon, "device": arguments.device}
    if TASKS[task].rewarded:
        return make_task(task, beta=beta, **parts)
    return make_task(task, target_options={"beta": beta}, backward="learned", **parts)


def exact(task: str, beta: float, arguments: Arguments) -> dict[str, Any]:
    """The mean reward of what is right, and its divergence from what is tilted."""
    found: dict[str, Any] = {"task": task, "beta": beta}
    if TASKS[task].rewarded:
        rewards = base_samples(task, arguments)[1] / beta
        weights = rewards.softmax(0)
        reward = float(weights @ rewards) * beta
        log_z = float(rewards.logsumexp(0)) - math.log(len(rewards))
        found["ess"] = float(1 / weights.square().sum()) / len(weights)
    else:
        target = make_target(task, beta=beta)
        assert isinstance(target, TiltedMixture) and target.log_z is not None
        reward, log_z = target.mean_reward, target.log_z
        if target.true_reward is not None:
            samples = target.sample(SAMPLES, torch.Generator().manual_seed(0))
            found["true_reward"] = target.own_scores(samples)["true_reward"]
    return found | {"reward": reward, "kl_untilted": reward / beta - log_z}


def curve(task: str, arguments: Arguments) -> list[dict[str, Any]]:
    """``exact`` from the smallest to the largest beta, for the picture."""
    low, high = min(arguments.betas), max(arguments.betas)
    return [exact(task, low * (high / low) ** (place / 40), arguments) for place in range(41)]


def floor(task: str, beta: float, arguments: Arguments) -> dict[str, Any]:
    """The ``sliced_w2`` of right samples, and their number."""
    others = [right_samples(task, beta, 2 * number + 1, arguments) for number in range(SETS)]
    found = statistics.mean(distance(task, x, beta, arguments) for x in others)
    return {"sliced_w2": found, "right": len(right_samples(task, beta, 0, arguments))}


@functools.cache
def base_samples(task: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Samples of the base sampler, and r of them in float64."""
    built = tilted_task(task, 1.0, arguments)
    x = make_agent("base", built).sample(SAMPLES, seed=0)
    return x, rewards_of(built, x)


CODE = code_of(sys.modules[__name__])
"""Digest of this file."""


def run(task: str, name: str, beta: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    settings = {"task": task, "agent": name, "beta": beta, "seed": seed, "evals": arguments.evals,
                "horizon": arguments.horizon, "device": arguments.device}  # fmt: skip
    kind = DxDP if name == "guidance" else AGENTS[name]
    uses = [kind, TiltedMixture, type(make_task(task).target), KERNELS["learned"], KERNELS["base"], evaluate]
    with one_thread():
        file = run_file(arguments.folder, settings, uses, CODE)
        return kept_result(file, lambda: measure(task, name, beta, seed, arguments))


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A table per task and beta: medians over seeds with the range, the exact density first."""
    for one in found["exact"]:
        own = [each for each in found["runs"] if (each["task"], each["beta"]) == (one["task"], one["beta"])]
        keys = [key for key in KEYS if any(key in each["scores"] for each in own)]
        table = Table("agent", *keys, "seconds", title=f"{one['task']}, beta = {one['beta']:g}: medians over seeds")
        table.add_row("exact", *(f"{one[key]:.3f}" if key in one else "" for key in keys), "")
        for name in dict.fromkeys(each["agent"] for each in own):
            cells = []
            for key in keys:
                values = [each["scores"][key] for each in own if each["agent"] == name and key in each["scores"]]
                if not values:
                    cells.append("")
                    continue
                cells.append(f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
            spent = statistics.median(each["seconds"] for each in own if each["agent"] == name)
            table.add_row(name, *cells, f"{spent:.0f}")
        console.print(table)


def draw(found: dict[str, Any], file: Path) -> None:
    """Per task: reward against divergence from what is tilted; divergence from the tilted density against beta (of base
    samplers reward beyond the right one); and, where the reward is a proxy, the true reward against beta.
    """
    runs = found["runs"]
    tasks = list(dict.fromkeys(one["task"] for one in runs if one["agent"] != "guidance"))
    if not tasks:
        raise ValueError("picture needs an agent that is trained, or 'base'.")
    proxies = [task for task in tasks if any("true_reward" in one["scores"] for one in runs if one["task"] == task)]
    columns = 3 if proxies else 2
    figure = Figure(figsize=(4.4 * columns, 3.7 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), columns, squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        own = [one for one in runs if one["task"] == task and one["agent"] != "guidance"]
        betas = sorted({one["beta"] for one in own})
        known = found["pictures"][task]
        line[0].plot([one["kl_untilted"] for one in known], [one["reward"] for one in known], "k-", label="exact")
        divergence = "kl_base" if TASKS[task].rewarded else "kl_untilted"
        panels = {1: ("kl_marginal", "KL(samples || tilted density) [nats]")}
        if TASKS[task].rewarded:
            panels = {1: ("over_optimisation", "mean reward beyond the right one")}
            line[1].axhline(0.0, color="black", linewidth=1)
        if task in proxies:
            panels[2] = ("true_reward", "true reward")
            line[2].plot([one["beta"] for one in known], [one["true_reward"] for one in known], "k-", label="exact")
        elif columns == 3:
            line[2].set_visible(False)
        for place, name in enumerate(dict.fromkeys(one["agent"] for one in own)):
            style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "label": name}
            medians = {
                beta: {key: statistics.median(one["scores"][key] for one in own
                                              if (one["agent"], one["beta"]) == (name, beta))
                       for key in (divergence, "reward", *(key for key, _ in panels.values()))}
                for beta in betas
            }  # fmt: skip
            rows = [medians[beta] for beta in betas]
            line[0].plot(
                [row[divergence] for row in rows], [row["reward"] for row in rows], linestyle=":", markersize=5,
                **style,
            )  # fmt: skip
            for column, (key, _) in panels.items():
                line[column].plot(betas, [row[key] for row in rows], linestyle="-", markersize=5, **style)
        of = "KL(chains || base sampler)" if TASKS[task].rewarded else "KL(samples || data)"
        # Who runs away would squeeze all others into a corner: the table has them.
        far, best = max(one["kl_untilted"] for one in known), max(one["reward"] for one in known)
        least = min(0.0, *(one["reward"] for one in known))
        if best > least:
            line[0].set(xlim=(-0.05 * far, 1.5 * far), ylim=(least - 0.1 * (best - least), best + 0.4 * (best - least)))
        line[0].set(xlabel=f"{of} [nats]", ylabel="mean reward", title=task)
        for column, (key, label) in panels.items():
            line[column].set(xscale="log", xlabel="beta", ylabel=label, title=task)
            line[column].set_xticks(betas, [f"{beta:g}" for beta in betas])
            line[column].minorticks_off()
            if key == "kl_marginal":
                line[column].set_yscale("log")
            else:
                values = [one["true_reward"] for one in known] if key == "true_reward" else [-best, best]
                margin = 0.3 * (max(values) - min(values))
                line[column].set_ylim(min(values) - margin, max(values) + margin)
    axes[0, 0].legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key in ("evals", "horizon"):
        check_integer(key, getattr(arguments, key))
    for beta in arguments.betas:
        check_real("betas", beta, strict=True)
    for name in arguments.agents:
        if name != "guidance":
            AGENTS[name]
    for task in arguments.tasks:
        if not TASKS[task].rewarded and not isinstance(make_task(task).target, TiltedMixture):
            raise ValueError(f"tasks must have a reward, got {task!r}.")
    wanted = [(task, name, beta, seed, arguments) for seed in arguments.seeds for task in arguments.tasks
              for name in arguments.agents for beta in arguments.betas]  # fmt: skip
    runs = run_all(run, wanted, arguments.jobs, "agents")
    known = [
        exact(task, beta, arguments) | floor(task, beta, arguments)
        for task in arguments.tasks
        for beta in arguments.betas
    ]
    shown = {task: curve(task, arguments) for task in arguments.tasks} if arguments.picture is not None else {}
    return {"evals": arguments.evals, "horizon": arguments.horizon, "exact": known, "runs": runs, "pictures": shown}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
