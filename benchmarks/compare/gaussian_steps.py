"""What can Gaussian steps reach, whoever trains them? A policy is fitted to exact samples, not to rewards.

    python benchmarks/compare/gaussian_steps.py --seeds 0 1 2 --json gaussian_steps.json

Chains are drawn backwards from exact samples (particles: reference states) with the Forward kernel, and the network
that agents train as their policy is fitted to these chains by maximum likelihood. An agent from the energy alone whose
samples are as good as this policy's is held back by its steps or its network, not by how it learns.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    gradient_steps, batch       gradient steps of every fit, and chains of each
    settings                    of the policy
    runs                        one entry per task, horizon and seed
      .task, .horizon, .seed    of the run
      .scores                   of ``evaluate``, with the Forward kernel
      .seconds                  of the fit
"""

from __future__ import annotations

import itertools
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
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import evaluate, make_agent, make_task
from dxmi_rl.agents.path_wise import PathWise
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.evaluation.particles import STATES
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import log_prob
from dxmi_rl.targets import ParticleTarget, Target
from dxmi_rl.tasks import reference_target
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.settings import parsed_settings
from dxmi_rl.utils.torch_tools import gradient_step

RATES = {"learning_rate": 3e-3, "sigma_learning_rate": 1e-2}
"""Rates of Adam at the start; they fall to 0 as a cosine."""
TEST = 2000
"""Samples and chains of the scores."""


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("dw4",)
    """Tasks with an energy, and exact samples or reference states."""
    horizons: tuple[int, ...] = (10, 20)
    """Numbers of steps T."""
    gradient_steps: int = 1500
    """Gradient steps of every fit."""
    batch: int = 128
    """Chains of each."""
    settings: tuple[str, ...] = ()
    """Settings of the policy, such as "depth=1"."""
    folder: Path = Path("runs/gaussian_steps")
    """Finished runs are kept here, and not repeated."""


def exact_chains(mdp: DenoisingMDP, target: Target, n: int, generator: torch.Generator) -> Tensor:
    """n chains that the backward kernel draws from exact samples or reference states: ``[T + 1, n, *event]``."""
    if isinstance(target, ParticleTarget):
        states = target.reference_states()[STATES:]  # scores compare with the first ones
        x = states[torch.randint(len(states), (n,), generator=generator, device=generator.device)]
    else:
        x = target.sample(n, generator)
    chain = [x]
    for t in reversed(range(mdp.horizon)):
        chain.insert(0, mdp.kernel.sample(chain[0], t, generator))
    return torch.stack(chain)


def fit(agent: PathWise, target: Target, steps: int, batch: int) -> None:
    """Maximum likelihood of exact chains: ``steps`` gradient steps of the agent's policy."""
    mdp, policy, optimizer = agent.mdp, agent.policy, agent.policy_optimizer
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    t = torch.arange(mdp.horizon, device=mdp.device).repeat_interleave(batch)
    for _ in range(steps):
        x = exact_chains(mdp, target, batch, agent.generator)
        loss = -log_prob(policy, x[:-1].flatten(0, 1), x[1:].flatten(0, 1), t).mean()
        gradient_step(optimizer, policy, loss, 1.0)
        schedule.step()


def measure(task: str, horizon: int, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Fit one policy and score it."""
    built = make_task(task, track="sample", horizon=horizon, backward="forward", device=arguments.device)
    target = reference_target(built.config).to(arguments.device)
    agent = make_agent("path-wise", built, seed=seed, policy=RATES | parsed_settings("settings", arguments.settings))
    started = time.perf_counter()
    fit(agent, target, arguments.gradient_steps, arguments.batch)
    seconds = time.perf_counter() - started
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableScoresWarning)
        scores = evaluate(agent, samples=TEST, trajectories=TEST, fit=False, seed=seed)
    return {"task": task, "horizon": horizon, "seed": seed, "scores": scores, "seconds": seconds}


CODE = code_of(measure, fit, exact_chains)
"""Digest of what is measured here: workers, which get functions without their source, cannot make it."""


def run(task: str, horizon: int, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    settings = {"task": task, "horizon": horizon, "seed": seed, "gradient_steps": arguments.gradient_steps,
                "batch": arguments.batch, "device": arguments.device, "test": TEST, "rates": RATES,
                "policy": parsed_settings("settings", arguments.settings)}  # fmt: skip
    with one_thread():
        file = run_file(arguments.folder, settings, [PathWise, type(make_task(task).target), evaluate], CODE)
        return kept_result(file, lambda: measure(task, horizon, seed, arguments))


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A line per task and horizon: smallest, median and largest over seeds."""
    runs = found["runs"]
    names = [key for key in ("elbo", "eubo", "ess", "modes", "well_error", "energy_tv", "energy_w2")
             if any(key in one["scores"] for one in runs)]  # fmt: skip
    table = Table("task", "T", *names, title="policies fitted to exact chains")
    for task, horizon in dict.fromkeys((one["task"], one["horizon"]) for one in runs):
        own = [one["scores"] for one in runs if (one["task"], one["horizon"]) == (task, horizon)]
        cells = []
        for name in names:
            values = sorted(scores[name] for scores in own if name in scores)
            spread = [values[0], statistics.median(values), values[-1]] if values else []
            cells.append(", ".join(f"{value:.3g}" for value in spread))
        table.add_row(task, str(horizon), *cells)
    console.print(table)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for key in ("gradient_steps", "batch"):
        check_integer(key, getattr(arguments, key))
    for task in arguments.tasks:
        target = reference_target(make_task(task, base=None).config)
        if not target.has_energy or not (target.has_sampler or getattr(target, "reference", None)):
            raise ValueError(f"tasks must have an energy, and exact samples or reference states, got {task!r}.")
    chosen = itertools.product(arguments.tasks, arguments.horizons, arguments.seeds)
    wanted = [(*one, arguments) for one in chosen]
    runs = run_all(run, wanted, arguments.jobs, "fits")
    sizes = {"gradient_steps": arguments.gradient_steps, "batch": arguments.batch}
    return {**sizes, "settings": list(arguments.settings), "runs": runs}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs)


if __name__ == "__main__":
    sys.exit(main())
