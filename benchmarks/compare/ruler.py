"""How much of kl_bound_fit is the slack of its ruler? Two kernels, beside the divergence itself.

    python benchmarks/compare/ruler.py --seeds 0 1 2 --json ruler.json

Every agent is trained once per task, kernel of training and seed. Then kernels are fitted to the finished policy by the
recipe of ``dxmi_rl.evaluation.fit_kernel``: the mixture of Gaussians per step that ``kl_bound_fit`` uses, and one
Gaussian per step. ``kl_marginal``, the divergence of x_T itself, is what both bounds are above; it is known in the
plane only.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    budget                      transitions per run
    runs                        one entry per task, kernel of training, agent and seed
      .task, .backward, .agent, .seed   of the run
      .kl_marginal              the divergence itself [nats], and
      .kl_marginal_se           its standard error; null beyond the plane
      .rulers                   {ruler: {bound, seconds}}: log Z - ELBO [nats], and seconds of the fit
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion import KERNELS, BackwardKernel, Learned
from dxmi_rl.evaluation import fit_kernel, marginal_scores
from dxmi_rl.evaluation.marginal import has_marginal
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy
from dxmi_rl.tasks import reference_target
from dxmi_rl.utils.checks import check_integer

TRAJECTORIES = 100_000
"""Trajectories of every bound."""


Fit = Callable[[DenoisingMDP, Policy], BackwardKernel]
FITS: dict[str, Fit] = {
    "mixture": fit_kernel,
    "one Gaussian": lambda mdp, policy: fit_kernel(mdp, policy, kind=Learned),
}


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    tasks: tuple[str, ...] = ("8gaussians", "gmm25")
    """Tasks with an energy and its exact log Z."""
    backward: tuple[str, ...] = ("learned", "mixture")
    """Kernels of training."""
    agents: tuple[str, ...] = ("ppo", "dxdp")
    """Agents that have a density."""
    budget: int = 100_000
    """Transitions per run."""
    folder: Path = Path("runs/ruler")
    """Finished runs are kept here, and not repeated."""


def measure(task: str, backward: str, name: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Train one agent, and measure it by every ruler."""
    agent = make_agent(name, make_task(task, backward=backward, device=arguments.device), seed=seed)
    agent.learn(arguments.budget)
    mdp, policy, target = agent.mdp, agent.density(), reference_target(agent.task.config)
    paths = mdp.rollout(policy, TRAJECTORIES, torch.Generator(mdp.device).manual_seed(seed + 10_000))
    rulers = {}
    for ruler, fit in FITS.items():
        started = time.perf_counter()
        kernel = fit(mdp, policy)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            log_weights_ = mdp.log_weights(paths, kernel=kernel, energy=target.energy)
        rulers[ruler] = {"bound": float(target.log_z or 0.0) - float(log_weights_.double().mean()), "seconds": seconds}
    scores = marginal_scores(mdp, policy, target, seed=seed + 20_000) if has_marginal(target, policy) else {}
    known = {key: scores.get(key) for key in ("kl_marginal", "kl_marginal_se")}
    return {"task": task, "backward": backward, "agent": name, "seed": seed, **known, "rulers": rulers}


CODE = code_of(measure)
"""Digest of what is measured here: workers, which get functions without their source, cannot make it."""


def run(task: str, backward: str, name: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    settings = {"task": task, "backward": backward, "agent": name, "seed": seed, "budget": arguments.budget,
                "device": arguments.device, "trajectories": TRAJECTORIES, "fits": list(FITS)}  # fmt: skip
    uses = [AGENTS[name], type(make_task(task).target), KERNELS[backward], fit_kernel, marginal_scores]
    with one_thread():
        file = run_file(arguments.folder, settings, uses, CODE)
        return kept_result(file, lambda: measure(task, backward, name, seed, arguments))


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A line per task, kernel of training and agent: means over seeds."""
    runs = found["runs"]
    columns = ["task", "trained with", "agent", "kl_marginal", *FITS, "seconds of each"]
    table = Table(*columns, title="bounds and the divergence [nats]")
    for row in dict.fromkeys((one["task"], one["backward"], one["agent"]) for one in runs):
        own = [one for one in runs if (one["task"], one["backward"], one["agent"]) == row]
        itself = [one["kl_marginal"] for one in own]
        cells = ["-" if None in itself else f"{statistics.fmean(itself):.3f}"]
        cells += [f"{statistics.fmean(one['rulers'][ruler]['bound'] for one in own):.3f}" for ruler in FITS]
        seconds = [f"{statistics.fmean(one['rulers'][ruler]['seconds'] for one in own):.0f}" for ruler in FITS]
        table.add_row(*row, *cells, ", ".join(seconds))
    console.print(table)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    check_integer("budget", arguments.budget)
    for task in arguments.tasks:
        if reference_target(make_task(task, base=None).config).log_z is None:
            raise ValueError(f"tasks must have an energy and its exact log Z, got {task!r}.")
    chosen = itertools.product(arguments.tasks, arguments.backward, arguments.agents, arguments.seeds)
    wanted = [(*one, arguments) for one in chosen]
    return {"budget": arguments.budget, "runs": run_all(run, wanted, arguments.jobs, "rulers")}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs)


if __name__ == "__main__":
    sys.exit(main())
