"""Our samplers beside the public code of gfn-diffusion, from the energy alone, for equal seconds on one core.

    git clone https://github.com/GFNOrg/gfn-diffusion
    pip install einops  # which their code needs
    python benchmarks/compare/gfn_diffusion.py --clone gfn-diffusion --json gfn_diffusion.json

Their model, losses and optimizer (Sendera et al. 2024, arXiv 2402.05098) are called in the order of their
energy_sampling/train.py, on our energy, with the settings of their README's commands, batches of 300, policy rate 1e-3,
flow rate 0.1 and exploration that falls over 5,000 iterations, but with T = 10 for 100 and with learned variance. Rows
with "Langevin" are given the energy's gradient, as all of ours are; the others see its values only. Their chains start
at 0 and have a Brownian bridge as backward kernel; ours start from noise and have a learned one. Ours are rows of the
preset ``samplers``. All train for
``--seconds`` of wall-clock time (run it on a quiet machine; CPU seconds stand beside), and log-weights of ``chains``
fresh chains are scored in the same way. Nothing of theirs is part of this project.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    commit                      of their repository, or null where it is no git clone
    seconds, chains             sizes
    runs                        one entry per task, row and seed
      .task, .row, .seed        of the run
      .iterations, .cpu_seconds of training
      .energy_evals             rows of E in training
      .energy_grad_evals        those among them that were differentiated
      .elbo, .log_z, .ess       mean log-weight less the true log Z, importance-weighted log Z less the true one [nats],
                                effective sample size as a fraction
      .modes or .well_error     modes found of gmm25; largest error of a well's share on manywell32
      .error                    in place of the scores where training ends with an exception or scores are not finite
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import command_line, header
from dxmi_rl import make_target, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.benchmark.presets import load_preset
from dxmi_rl.benchmark.protocol import Row, check_seeds
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.benchmark.tables import number
from dxmi_rl.evaluation.metrics import log_weight_statistics, mode_statistics
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.utils.checks import (
    DivergenceError,
    NonFiniteError,
    check_integer,
    check_real,
    resolve_device,
)
from dxmi_rl.utils.storage import write_json
from dxmi_rl.utils.torch_tools import seeded

HORIZON, BATCH = 10, 300
THEIRS: dict[str, dict[str, dict[str, Any]]] = {
    "gmm25": {
        "gfn-diffusion: TB": {"loss": "tb", "t_scale": 5.0, "exploration": None},
        "gfn-diffusion: TB, exploration 1.5": {"loss": "tb", "t_scale": 5.0, "exploration": 1.5},
        "gfn-diffusion: TB, exploration 1.5, Langevin": {
            "loss": "tb", "t_scale": 5.0, "exploration": 1.5, "langevin": True,
        },
    },
    "manywell32": {
        "gfn-diffusion: TB, exploration 0.2": {"loss": "tb", "t_scale": 1.0, "exploration": 0.2},
        "gfn-diffusion: VarGrad, exploration 0.2": {"loss": "tb-avg", "t_scale": 1.0, "exploration": 0.2},
        "gfn-diffusion: TB, exploration 0.2, Langevin": {
            "loss": "tb", "t_scale": 1.0, "exploration": 0.2, "langevin": True,
        },
    },
}  # fmt: skip
"""On manywell32 those of their README; on gmm25 the scale that is their default, and the exploration that serves it."""
OURS = {
    "gmm25": ["dxdp, T = 10", "path-wise-vargrad at larger rates, T = 10"],
    "manywell32": ["dxdp", "path-wise-vargrad", "path-wise-vargrad, coordinate by coordinate"],
}
"""Labels of the preset samplers."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    clone: Path
    """Folder of a clone of https://github.com/GFNOrg/gfn-diffusion."""
    tasks: tuple[str, ...] = ("gmm25", "manywell32")
    """Of these."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of every row."""
    seconds: float = 110.0
    """Of training, per run."""
    chains: int = 2000
    """Chains that the scores are of."""
    device: str = "cpu"
    """Torch device."""
    folder: Path = Path("runs/gfn_diffusion")
    """Finished runs are kept here, and not repeated."""
    json: Path | None = None
    """Write everything to this file."""


# Theirs ---------------------------------------------------------------------------------------------------------------


def their_modules(clone: Path) -> SimpleNamespace:
    """Their modules models, utils and gflownet_losses. Raises ValueError for a folder that has none, or needs more."""
    folder = clone / "energy_sampling"
    if not (folder / "gflownet_losses.py").is_file():
        raise ValueError(
            "clone must be a clone of https://github.com/GFNOrg/gfn-diffusion, and "
            f"{str(clone)!r} has no energy_sampling/gflownet_losses.py."
        )
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.insert(0, path)
    try:
        return SimpleNamespace(
            models=importlib.import_module("models"), utils=importlib.import_module("utils"),
            losses=importlib.import_module("gflownet_losses"),
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(f"clone: the code in {path!r} needs a package that is not here: {error}.") from error


def train_theirs(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """One run of their code."""
    theirs, settings, target = their_modules(arguments.clone), THEIRS[task][row], make_target(task)
    device = torch.device(arguments.device)
    target.to(device)
    theirs.utils.set_seed(seed)
    evals = grad_evals = 0

    def log_reward(x: Tensor) -> Tensor:
        nonlocal evals, grad_evals
        evals += len(x)
        grad_evals += len(x) if x.requires_grad and torch.is_grad_enabled() else 0
        return -target.energy(x)

    model = theirs.models.GFN(
        target.dim, 64, 64, 64, 64, trajectory_length=HORIZON, clipping=True, learned_variance=True,
        t_scale=settings["t_scale"], pis_architectures=True, zero_init=True, langevin_scaling_per_dimension=False,
        langevin=settings.get("langevin", False), device=device,
    ).to(device)  # fmt: skip
    optimizer = theirs.utils.get_gfn_optimizer(model, 1e-3, 1e-1, 1e-3)
    start, cpu, iterations = time.perf_counter(), time.process_time(), 0
    zeros = torch.zeros(BATCH, target.dim, device=device)
    while time.perf_counter() - start < arguments.seconds:
        factor = settings["exploration"]
        extra = theirs.utils.get_exploration_std(iterations, factor is not None, factor, True)
        model.zero_grad()
        loss = theirs.utils.get_gfn_forward_loss(settings["loss"], zeros, model, log_reward, None, extra)
        loss.backward()
        optimizer.step()
        iterations += 1
    cost = {
        "iterations": iterations, "cpu_seconds": time.process_time() - cpu, "energy_evals": evals,
        "energy_grad_evals": grad_evals,
    }  # fmt: skip
    with torch.no_grad():
        chains = torch.zeros(arguments.chains, target.dim, device=device)
        states, forward, backward, _ = model.get_trajectory_fwd(chains, None, log_reward)
        log_w = log_reward(states[:, -1]) + backward.sum(1) - forward.sum(1)
    return cost | scored(task, states[:, -1], log_w)


# Ours -----------------------------------------------------------------------------------------------------------------


def our_row(task: str, label: str) -> Row:
    """The row of the preset samplers."""
    (row,) = (row for row in load_preset("samplers").rows if (row.task, row.label) == (task, label))
    return row


def train_ours(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """One run of an agent of ours."""
    ours = our_row(task, row)
    with seeded(seed):
        built = make_task(ours.task, device=arguments.device, **ours.task_settings)
    agent, cpu = ours.build(built, seed), time.process_time()
    agent.learn(seconds=arguments.seconds)
    cost = {
        "iterations": agent.num_timesteps // agent.timesteps_per_iteration, "cpu_seconds": time.process_time() - cpu,
        "energy_evals": agent.costs.energy_evals, "energy_grad_evals": agent.costs.energy_grad_evals,
    }  # fmt: skip
    paths = agent.sample_trajectory(arguments.chains, seed=seed + 1)
    with torch.no_grad():
        log_w = agent.mdp.log_weights(paths)
    return cost | scored(task, paths.final, log_w)


# Both -----------------------------------------------------------------------------------------------------------------


def scored(task: str, x: Tensor, log_w: Tensor) -> dict[str, Any]:
    """Scores of final states and their log-weights."""
    target, x, log_w = make_target(task), x.cpu(), log_w.cpu()
    if not bool(log_w.isfinite().all()):
        return {"error": f"{int((~log_w.isfinite()).sum())} of {len(log_w)} log-weights are not finite"}
    known, found = target.log_z, log_weight_statistics(log_w)
    assert known is not None
    scores = {"elbo": found["elbo"] - known, "log_z": found["log_z"] - known, "ess": found["ess"]}
    if target.modes is not None:
        modes = target.modes
        statistics = mode_statistics(x, modes.centers, modes.std, modes.weights)
        return scores | {"modes": statistics["modes"]}
    return scores | target.own_scores(x)


def run(task: str, row: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """The result of a run, from its file if it is finished."""
    theirs = row in THEIRS[task]
    made_of = THEIRS[task][row] | {"horizon": HORIZON, "batch": BATCH} if theirs else our_row(task, row).plain()
    settings = {
        "task": task, "row": row, "seed": seed, "seconds": arguments.seconds, "chains": arguments.chains,
        "device": arguments.device, "clone": commit_of(arguments.clone) if theirs else None, "settings": made_of,
    }  # fmt: skip

    def measure() -> dict[str, Any]:
        named = {"task": task, "row": row, "seed": seed}
        try:
            return named | (train_theirs if theirs else train_ours)(task, row, seed, arguments)
        except (DivergenceError, NonFiniteError, EnergyError) as error:
            return named | {"error": f"{type(error).__name__}: {error}"}

    uses: list[Any] = [Row, type(make_target(task)), log_weight_statistics]
    uses += [] if theirs else [AGENTS[our_row(task, row).agent]]
    with one_thread():
        return kept_result(run_file(arguments.folder, settings, uses, CODE), measure)


CODE = code_of(train_theirs, train_ours, scored)
"""What the numbers depend on."""


def commit_of(clone: Path) -> str | None:
    """The commit of their clone; None for a folder that is none."""
    words = ["git", "-C", str(clone), "rev-parse", "--show-toplevel", "HEAD"]
    top, _, commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip().partition("\n")
    return commit if top and Path(top).resolve() == clone.resolve() else None


def print_runs(runs: Sequence[dict[str, Any]], console: Console) -> None:
    """A line per run; ELBO and log Z less the true log Z."""
    table = Table("task", "row", "seed")
    table.columns[1].overflow = "fold"
    for title in ("ELBO", "log Z", "ESS", "modes / wells", "CPU s", "E calls"):
        table.add_column(title, justify="right")
    for own in runs:
        found = [own.get(key, math.nan) for key in ("elbo", "log_z", "ess")]
        last = own.get("modes", own.get("well_error", math.nan))
        table.add_row(
            own["task"], own["row"], str(own["seed"]), *(number(value) for value in (*found, last)),
            f"{own.get('cpu_seconds', math.nan):.0f}", f"{own.get('energy_evals', 0):,}",
        )  # fmt: skip
        if "error" in own:
            table.add_row("", own["error"])
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; exit status 2 for bad input."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_real("seconds", arguments.seconds, strict=True)
        check_integer("chains", arguments.chains, minimum=2)
        check_seeds(arguments.seeds)
        resolve_device(arguments.device)
        for task in arguments.tasks:
            if task not in THEIRS:
                raise ValueError(f"tasks must be of {', '.join(THEIRS)}, got {task!r}.")
        their_modules(arguments.clone)
        rows = [(task, row) for task in arguments.tasks for row in [*THEIRS[task], *OURS[task]]]
        wanted = [(task, row, seed, arguments) for task, row in rows for seed in arguments.seeds]
        runs = run_all(run, wanted, 1, "runs")
        if arguments.json is not None:
            sizes = {"commit": commit_of(arguments.clone), "seconds": arguments.seconds, "chains": arguments.chains}
            write_json(arguments.json, header(command_line(__file__, argv), arguments.device) | sizes | {"runs": runs})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_runs(runs, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
