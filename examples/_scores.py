"""What the example scripts share: their command line, the scores against the base sampler's, table and JSON file.

Keys of the file of ``--json``:

    command          the command line
    library          whose algorithm it is
    algorithm        its name
    task             the task
    horizon, tau     its number of steps T and its temperature, which is the entropy coefficient
    num_envs         samples made at once in training
    seeds            list of seeds
    device           torch device
    seconds          wall-clock seconds of this call, imports excluded
    cpu_seconds      seconds of CPU of this process, imports included
    versions         versions of what was run
    base             the base sampler's scores: what dxmi_rl.evaluate returns
    runs             one entry per seed
      runs.seed               the seed
      runs.timesteps          transitions it was trained for
      runs.train_seconds, runs.train_cpu_seconds      what training took, environments and networks included
      runs.score_seconds, runs.score_cpu_seconds      what scoring took
      runs.scores             what dxmi_rl.evaluate returns
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dxmi_rl import Task, evaluate, make_agent, make_task
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.storage import write_json

TASK = "8gaussians"
SCORING_SEED = 10_000
"""One for all policies, and none that training is likely to use."""
SIZES = {"draws": 2, "trajectories": 50_000}
"""Arguments of ``evaluate``."""


@dataclass(frozen=True)
class Budget:
    """How long an algorithm trains by default."""

    timesteps: int
    """Transitions."""
    num_envs: int
    """Samples made at once."""


Trainer = Callable[[argparse.Namespace, Task, int], tuple[Any, int]]
"""Arguments, task, seed -> what ``evaluate`` takes, and the transitions it was trained for."""


def make_parser(description: str, budgets: Mapping[str, Budget]) -> argparse.ArgumentParser:
    """The options that all examples have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=list(budgets), default=next(iter(budgets)))
    each = ", ".join(f"{name} {budget.timesteps:,}" for name, budget in budgets.items())
    parser.add_argument("--timesteps", type=int, help=f"transitions to train for ({each}), rounded up to whole batches")
    each = ", ".join(f"{name} {budget.num_envs:,}" for name, budget in budgets.items())
    parser.add_argument("--num-envs", type=int, help=f"samples made at once ({each})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run for each (0)")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    return parser


def parse(
    parser: argparse.ArgumentParser, budgets: Mapping[str, Budget], argv: Sequence[str] | None
) -> argparse.Namespace:
    """Checked arguments with the algorithm's own defaults; exits with status 2 and one line for bad ones."""
    arguments = parser.parse_args(argv)
    budget = budgets[arguments.algorithm]
    for name in ("timesteps", "num_envs"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(budget, name))
    try:
        for name in ("timesteps", "num_envs"):
            check_integer(f"--{name.replace('_', '-')}", getattr(arguments, name))
        for seed in arguments.seeds:
            check_integer("--seeds", seed, minimum=0)
        resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def run(
    arguments: argparse.Namespace, library: str, packages: Sequence[str], train: Trainer, script: str
) -> dict[str, Any]:
    """Score the base sampler, train and score every seed, print the table: everything that the JSON file holds.

    Args:
        arguments: what ``parse`` returned.
        library: whose algorithm it is, for the title.
        packages: packages whose versions are noted, besides torch, numpy and gymnasium.
        train: trains one seed.
        script: name of the script, for the command line.
    """
    torch.set_num_threads(1)  # the networks are small: one thread is fastest, and keeps results reproducible
    started = time.perf_counter()
    task = make_task(TASK, device=arguments.device)
    title = f"{library} {arguments.algorithm.upper()} on {TASK}, T = {task.mdp.horizon}, tau = {task.mdp.tau:g}"
    print(f"{title}: scoring the base sampler", flush=True)
    base = _score(make_agent("base", task=task), task)
    runs = []
    for seed in arguments.seeds:
        print(f"seed {seed}: training for {arguments.timesteps:,} transitions", flush=True)
        before = time.perf_counter(), time.process_time()
        model, timesteps = train(arguments, task, seed)
        trained = time.perf_counter(), time.process_time()
        scores = _score(model, task)
        scored = time.perf_counter(), time.process_time()
        entry: dict[str, Any] = {"seed": seed, "timesteps": timesteps}
        for name, begin, end in (("train", before, trained), ("score", trained, scored)):
            entry |= {f"{name}_seconds": end[0] - begin[0], f"{name}_cpu_seconds": end[1] - begin[1]}
        runs.append(entry | {"scores": scores})
    everything = {
        "command": _command(arguments, script),
        "library": library,
        "algorithm": arguments.algorithm,
        "task": TASK,
        "horizon": task.mdp.horizon,
        "tau": task.mdp.tau,
        "num_envs": arguments.num_envs,
        "seeds": arguments.seeds,
        "device": arguments.device,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time(),
        "versions": _versions(packages),
        "base": base,
        "runs": runs,
    }
    _print_table(title, everything)
    if arguments.json is not None:
        write_json(arguments.json, everything)
    return everything


def _score(model: Any, task: Task) -> dict[str, float]:
    return evaluate(model, task, seed=SCORING_SEED, **SIZES)


def _command(arguments: argparse.Namespace, script: str) -> str:
    options = {key: value for key, value in vars(arguments).items() if value is not None}
    words = ["python", f"examples/{script}"]
    for key, value in options.items():
        words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    names = ["dxmi_rl", "torch", "numpy", "gymnasium", *packages]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


COLUMNS = {"kl_bound": ".3f", "kl_bound_fit": ".3f", "sliced_w2": ".3f", "modes": ".0f", "beyond_box": ".4f"}
"""Scores in the table, and how they are written."""


def _print_table(title: str, everything: dict[str, Any]) -> None:
    base, runs = everything["base"], everything["runs"]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(no_wrap=True)
    for header in [*COLUMNS, "train s\n(CPU)", "score s\n(CPU)"]:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_row("exact samples (floor)", *_cells({key: base.get(f"{key}_floor") for key in COLUMNS}))
    table.add_row("base sampler", *_cells(base))
    for entry in runs:
        seconds = [f"{entry[f'{n}_seconds']:.0f} ({entry[f'{n}_cpu_seconds']:.0f})" for n in ("train", "score")]
        table.add_row(f"seed {entry['seed']}", *_cells(entry["scores"]), *seconds)
    Console(width=max(110, Console().width)).print(table)
    limit = base["kl_bound_fit"]
    lower = sum(entry["scores"]["kl_bound_fit"] < limit for entry in runs)
    print(f"kl_bound_fit is below the base sampler's {limit:.3f} for {lower} of {len(runs)} seeds.")
    print(f"{everything['seconds']:.0f} s in all, {everything['cpu_seconds']:.0f} s of CPU.")


def _cells(scores: Mapping[str, float | None]) -> list[str]:
    values = {key: scores.get(key) for key in COLUMNS}
    return ["" if (value := values[key]) is None else format(value, style) for key, style in COLUMNS.items()]
