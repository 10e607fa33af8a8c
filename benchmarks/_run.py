"""One run of a comparison: what defines it, how it is measured, where its result lies, and many of them at once."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import math
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dxmi_rl
from dxmi_rl import make_agent, make_target, make_task
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.agents.base import seeded
from dxmi_rl.checks import check_integer, resolve_device
from dxmi_rl.envs.rendering import MAX_IMAGES, is_image
from dxmi_rl.evaluation import evaluate, exact_floors, quick_scores
from dxmi_rl.irl import DxMI
from dxmi_rl.storage import save_tensors, write_json
from dxmi_rl.targets import Target
from dxmi_rl.tasks import TASKS, Task

EVALUATION_SEED = 10_000
"""Run s is scored on seeds from 10,000 + 100 s on: the same for every agent, and none that training uses."""
SCORE_COST, FIT_COST = 100_000, 1_000_000
"""What evaluation costs without and with a fitted kernel, in 2-D transitions of training."""


@dataclass(frozen=True)
class Row:
    """One row of a results table: an agent on a task with a budget."""

    label: str
    """Name in tables and pictures, unique within the task."""
    task: str
    """Name of the task; rows of one task share a table."""
    agent: str
    """Name of the agent."""
    budget: int = 0
    """Rollout transitions to train for; 0 for agents that do not train."""
    task_settings: dict[str, Any] = field(default_factory=dict)
    """JSON-able arguments of ``make_task``."""
    agent_settings: dict[str, Any] = field(default_factory=dict)
    """JSON-able settings of the agent."""

    @property
    def target(self) -> Target:
        """The target, without the cost of building the task."""
        target = self.task_settings.get("target", TASKS[self.task].target)
        return target if isinstance(target, Target) else make_target(target)

    @property
    def energy_given(self) -> bool:
        """Whether agents are given the target's energy; otherwise it is learned from data."""
        return self.task_settings.get("reward", TASKS[self.task].reward) is not None

    @property
    def tau(self) -> float:
        """Temperature of training, in nats."""
        return float(self.task_settings.get("tau", TASKS[self.task].tau))


@dataclass(frozen=True)
class Sizes:
    """How much is spent on scoring a run."""

    samples: int = 10_000
    """Samples per draw of the sample metrics."""
    draws: int = 8
    """Draws that sliced W2 is averaged over."""
    trajectories: int = 100_000
    """Trajectories of the log-weights."""
    fit: bool = True
    """Fit a Learned kernel for ``kl_bound_fit`` where the energy is given; it takes longest."""
    floors: bool = True
    """Score exact samples, too."""
    curve_points: int = 20
    """Points of the learning curve after the one before training."""
    kept: int = 2_000
    """Samples kept for the pictures; of images 64."""


@dataclass(frozen=True)
class Run:
    """One seed of one row."""

    row: Row
    seed: int
    device: str = "cpu"
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def key(self) -> str:
        """Digest of all that defines the result: the row without its label, seed, sizes, version, kind of device."""
        definition = asdict(self) | {"version": dxmi_rl.__version__, "device": torch.device(self.device).type}
        del definition["row"]["label"]
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fits(self) -> bool:
        """Whether a kernel is fitted for ``kl_bound_fit``: not on data, where no agent is meant to reach exp(-E)."""
        return self.sizes.fit and self.row.energy_given

    @property
    def cost(self) -> float:
        """Estimated time in 2-D transitions of training; it only orders the runs."""
        return self.row.budget * math.sqrt(self.row.target.dim / 2) + (FIT_COST if self.fits else SCORE_COST)

    @property
    def title(self) -> str:
        """For lines and messages."""
        return f"{self.row.task}  {self.row.label}  seed {self.seed}"

    def result_file(self, folder: Path) -> Path:
        """Where the result lies once the run is finished."""
        return folder / f"{self.key}.json"

    def samples_file(self, folder: Path) -> Path:
        """Where its samples lie."""
        return folder / f"{self.key}.safetensors"

    def failure_file(self, folder: Path) -> Path:
        """Where the traceback lies when it failed."""
        return folder / f"{self.key}.failed.txt"

    def load(self, folder: Path) -> dict[str, Any] | None:
        """The finished result under this row's label, or None."""
        try:
            result = json.loads(self.result_file(folder).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return result | {"label": self.row.label}


@dataclass(frozen=True)
class Outcome:
    """What became of a run: ``error`` is the message of the exception that ended it, or None."""

    run: Run
    error: str | None = None


# One run --------------------------------------------------------------------------------------------------------------


def measure(run: Run, keep_going: Callable[[], None] = lambda: None) -> tuple[dict[str, Any], Tensor]:
    """Train and score one agent: the JSON-able result and its samples ``[kept, *event_shape]``.

    ``keep_going`` is called at every point of the learning curve; what it raises ends the run.
    """
    row, sizes, seed = run.row, run.sizes, EVALUATION_SEED + 100 * run.seed
    with seeded(run.seed):  # a learned kernel's weights are the task's, not the agent's
        task = make_task(row.task, device=run.device, **row.task_settings)
    agent = make_agent(row.agent, task, seed=run.seed, **row.agent_settings)
    curve = _train(agent, run, keep_going)
    started = time.perf_counter()
    scores = evaluate(
        agent, seed=seed, samples=sizes.samples, draws=sizes.draws, trajectories=sizes.trajectories, fit=run.fits,
        floors=sizes.floors,
    )  # fmt: skip
    last = {}
    if isinstance(agent, DxMI):
        last = quick_scores(agent, seed=seed, samples=sizes.samples, policy=agent.agent.policy)
    kept = agent.sample(MAX_IMAGES if is_image(task.event_shape) else sizes.kept, seed=seed)
    result = {
        "key": run.key,
        **asdict(row),
        "seed": run.seed,
        "device": run.device,
        "sizes": asdict(sizes),
        "scores": scores | late_means(curve, row.budget),
        "last_iterate": last,
        "sigma_ratios": sigma_ratios(agent, seed),
        "costs": asdict(agent.costs),
        "curve": curve,
        "evaluation_seconds": time.perf_counter() - started,
        "versions": versions(),
        "machine": machine(run.device),
    }
    return result, kept


def _train(agent: Agent, run: Run, keep_going: Callable[[], None]) -> list[dict[str, float]]:
    """Learn for the budget; the curve has a point before the first iteration and ``curve_points`` after.

    An agent that does not train has the first point only.
    """
    points: list[dict[str, float]] = []

    def note(agent: Agent) -> None:
        costs = agent.costs
        if costs.timesteps >= len(points) * run.row.budget / run.sizes.curve_points:
            keep_going()
            # A draw of its own for every point, so that means over points average the evaluation's noise, too.
            seed = EVALUATION_SEED + 100 * run.seed + len(points)
            scores = quick_scores(agent, seed=seed, samples=run.sizes.samples)
            spent = {"timesteps": costs.timesteps, "seconds": costs.seconds, "energy_evals": costs.energy_evals}
            points.append(spent | scores)

    note(agent)
    if agent.trains:
        agent.learn(run.row.budget, callback=note)
    return points


def late_means(curve: Sequence[dict[str, float]], budget: int) -> dict[str, float]:
    """Means over the last quarter of training, ``<score>_late``: what an oscillating game is judged by."""
    late = [point for point in curve if point["timesteps"] > 0.75 * budget]
    keys = [key for key in (late[0] if late else {}) if key not in ("timesteps", "seconds", "energy_evals")]
    return {f"{key}_late": sum(point[key] for point in late) / len(late) for key in keys}


@torch.no_grad()
def sigma_ratios(agent: Agent, seed: int, n: int = 1000) -> list[float]:
    """Geometric mean of the policy's sigma_t over its own states, over the base sampler's: one number per step.

    Empty for agents without a density and deterministic bases. Entropy that runs away shows here first.
    """
    sigma = agent.mdp.base.sigma
    if not (agent.has_density and bool((sigma > 0).all())):
        return []
    density, states = agent.density(), agent.sample_trajectory(n, seed=seed).x
    log_stds = [density.moments(x, t)[1].mean() for t, x in enumerate(states[:-1])]
    return [float((log_std - sigma[t].log()).exp()) for t, log_std in enumerate(log_stds)]


@functools.cache
def source_digest() -> str:
    """Digest of the package's source: finished runs of other source are kept, but pointed out."""
    digest = hashlib.sha256()
    for file in sorted(Path(dxmi_rl.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions that a number depends on."""
    return {
        "dxmi_rl": dxmi_rl.__version__,
        "source": source_digest(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def machine(device: str) -> dict[str, Any]:
    """Where it ran."""
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count(), "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


# Many runs ------------------------------------------------------------------------------------------------------------


def check_rows(rows: Sequence[Row]) -> None:
    """Raises for unknown names, labels that are taken and budgets that are not numbers; costs nothing."""
    for row in rows:
        TASKS[row.task]
        trains = AGENTS[row.agent].trains
        check_integer(f"budget of {row.label!r}", row.budget, minimum=int(trains))
        if row.budget and not trains:
            raise ValueError(
                f"agent {row.agent!r} does not train: budget of {row.label!r} must be 0, got {row.budget}."
            )
        if sum(other.task == row.task and other.label == row.label for other in rows) > 1:
            raise ValueError(f"label {row.label!r} is used twice on task {row.task!r}.")


def prepare(runs: Sequence[Run], jobs: int) -> None:
    """Fill the caches that workers share, and build every agent once, so that bad settings end here.

    Training a task's denoiser and measuring the floors would otherwise be repeated by every worker; the tasks are
    prepared in parallel, the largest first.
    """
    import joblib

    first = {run.row.task: run for run in reversed(runs)}
    order = sorted(first.values(), key=lambda run: -run.row.target.dim)
    joblib.Parallel(n_jobs=max(1, min(jobs, len(order))))(joblib.delayed(fill_caches)(run) for run in order)
    tasks: dict[str, Task] = {}
    checked: list[Row] = []
    for run in runs:
        row = run.row
        name = json.dumps([row.task, row.task_settings], sort_keys=True)
        if name not in tasks:
            tasks[name] = fill_caches(run)
        if row not in checked:
            make_agent(row.agent, tasks[name], seed=0, **row.agent_settings)
            checked.append(row)


def fill_caches(run: Run) -> Task:
    """Build the run's task, which trains its denoiser once, and measure the floors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task = make_task(run.row.task, device=run.device, **run.row.task_settings)
        if run.sizes.floors and task.target.has_sampler:
            exact_floors(task.target, run.sizes.samples)
    finally:
        torch.set_num_threads(threads)
    return task


def execute(run: Run, folder: Path, parent: int) -> Outcome:
    """``measure`` on one thread, and store what came of it; the result file is the last to be written.

    A worker whose ``parent`` process is gone stops at its next learning-curve point.
    """

    def stop_if_orphan() -> None:
        if parent not in (os.getpid(), os.getppid()):
            os._exit(1)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fastest for small networks, and sums do not depend on the machine's cores
    try:
        result, samples = measure(run, stop_if_orphan)
        save_tensors(run.samples_file(folder), {"x": samples}, {"key": run.key})
        write_json(run.result_file(folder), result)
    except Exception as error:
        text = f"{run.title}\n{json.dumps(asdict(run), indent=2)}\n\n{traceback.format_exc()}"
        run.failure_file(folder).write_text(text, encoding="utf-8")
        return Outcome(run, f"{type(error).__name__}: {error}")
    finally:
        torch.set_num_threads(threads)
    run.failure_file(folder).unlink(missing_ok=True)
    return Outcome(run)


def execute_all(runs: Sequence[Run], folder: Path, jobs: int) -> Iterator[Outcome]:
    """Run them in ``jobs`` processes, the longest first; outcomes come as they finish, one for every run."""
    import joblib

    folder.mkdir(parents=True, exist_ok=True)
    left = sorted(runs, key=lambda run: -run.cost)
    parallel = joblib.Parallel(
        n_jobs=max(1, min(jobs, len(left))), backend="loky", batch_size=1, return_as="generator_unordered"
    )
    try:
        for outcome in parallel(joblib.delayed(execute)(run, folder, os.getpid()) for run in list(left)):
            left.remove(outcome.run)
            yield outcome
    except concurrent.futures.BrokenExecutor:
        for run in left:
            yield Outcome(run, "a worker process died (out of memory, or killed); start again to go on.")


def make_runs(rows: Sequence[Row], seeds: Sequence[int], device: str, sizes: Sizes) -> list[Run]:
    """All runs of a comparison, row by row."""
    resolve_device(device)
    numbers = [check_integer("seed", seed, minimum=0) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds must be distinct and at least one, got {list(seeds)}.")
    return [Run(row, seed, device, sizes) for row in rows for seed in numbers]
