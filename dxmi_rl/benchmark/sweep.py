"""Many runs: in processes of this machine, one per GPU, or on a Ray cluster. What is finished is never lost."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent
from dxmi_rl.benchmark.logs import RunLogger
from dxmi_rl.benchmark.machine import machine, versions
from dxmi_rl.benchmark.measure import OnPoint, Point, measure
from dxmi_rl.benchmark.protocol import Row, Run
from dxmi_rl.checks import DivergenceError, NonFiniteError, require
from dxmi_rl.evaluation import exact_floors, tempered_log_z
from dxmi_rl.mdp import EnergyError
from dxmi_rl.storage import save_tensors, write_json
from dxmi_rl.tasks import ENERGIES, Task, make_task

REPEATABLE = (DivergenceError, NonFiniteError, EnergyError)
"""The same seed would fail in the same way again."""
ATTEMPTS = 2
"""How often a run is tried in one sweep."""
DIED = "its worker process died twice (out of memory, or killed); start again to go on."


@dataclass(frozen=True)
class Outcome:
    """What became of a run: ``error`` is the message of the exception that ended it, or None."""

    run: Run
    error: str | None = None


@dataclass(frozen=True)
class Logging:
    """Which logs runs write beside their results."""

    root: Path
    """Folder of the logs."""
    tensorboard: bool = False
    """Write TensorBoard's event files."""
    track: bool = False
    """Send them to Weights & Biases."""

    def open(self, run: Run, agent: Agent) -> RunLogger:
        """The log of one run."""
        settings = {"label": run.row.label, "key": run.key, **run.row.plain()}
        return RunLogger(self.root, agent, settings=settings, tensorboard=self.tensorboard, track=self.track)


# Before the first run -------------------------------------------------------------------------------------------------


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
            row.build(tasks[name], 0)
            checked.append(row)


def fill_caches(run: Run) -> Task:
    """Build the run's task, which trains its denoiser and energy once, and measure the floors."""
    with one_thread():
        task = make_task(run.row.task, device=run.device, **run.row.task_settings)
        if run.sizes.floors and task.target.has_sampler:
            exact_floors(task.target, run.sizes.samples)
        if run.sizes.floors and run.row.energy in ENERGIES and task.mdp.tau not in (0.0, 1.0):
            tempered_log_z(task)
    return task


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: fastest for small networks, and sums do not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# One run --------------------------------------------------------------------------------------------------------------


def attempt(
    run: Run, on_point: OnPoint, device: str | None = None, logging: Logging | None = None
) -> tuple[dict[str, Any], Tensor] | str:
    """``measure`` on one thread, once more after a crash: the result, or the tracebacks of what failed."""
    traces = [f"{run.title}\n{json.dumps(asdict(run), indent=2)}\n"]
    for _ in range(ATTEMPTS):
        try:
            with one_thread(), _logged(run, on_point, logging) as note:
                numbers, samples = measure(run, note, device)
            return _identity(run, device or run.device) | numbers, samples
        except Exception as error:
            traces.append(traceback.format_exc())
            if isinstance(error, REPEATABLE):
                break
    return "\n".join(traces)


def _identity(run: Run, device: str) -> dict[str, Any]:
    """What a result says of the run besides its numbers."""
    return {
        "key": run.key,
        "code": run.code,
        **run.row.plain(),
        "seed": run.seed,
        "device": device,
        "sizes": asdict(run.sizes),
        "versions": versions(),
        "machine": machine(device),
    }


@contextlib.contextmanager
def _logged(run: Run, on_point: OnPoint, logging: Logging | None) -> Iterator[OnPoint]:
    """``on_point``, which then also writes the run's log; that is opened with its first point."""
    with contextlib.ExitStack() as stack:
        logger: list[RunLogger] = []

        def note(agent: Agent, point: Point) -> None:
            on_point(agent, point)
            if logging is None:
                return
            if not logger:
                logger.append(stack.enter_context(logging.open(run, agent)))
            logger[0].log(agent, point)

        yield note


def store(run: Run, folder: Path, outcome: tuple[dict[str, Any], Tensor] | str) -> Outcome:
    """Write what came of a run, each file atomically; the result is the last, and is what makes the run finished."""
    if isinstance(outcome, str):
        run.failure_file(folder).write_text(outcome, encoding="utf-8")
        return Outcome(run, outcome.strip().splitlines()[-1])
    result, samples = outcome
    save_tensors(run.samples_file(folder), {"x": samples}, {"key": run.key})
    write_json(run.result_file(folder), result)
    run.failure_file(folder).unlink(missing_ok=True)
    return Outcome(run)


def execute(run: Run, folder: Path, parent: int, devices: Sequence[str], logging: Logging | None) -> Outcome:
    """One run in a worker of this machine, stored when it ends.

    A worker whose ``parent`` process is gone stops at its next point of the learning curve.
    """

    def stop_if_orphan(agent: Agent, point: Point) -> None:
        if parent not in (os.getpid(), os.getppid()):
            os._exit(1)

    marker = _marker(run, folder)
    marker.touch()
    with borrowed_device(devices, folder) as device:
        outcome = store(run, folder, attempt(run, stop_if_orphan, device, logging))
    marker.unlink(missing_ok=True)
    return outcome


def _marker(run: Run, folder: Path) -> Path:
    """A file that is there while the run is being executed: it tells whose worker died."""
    return folder / f"{run.key}.running"


@contextlib.contextmanager
def borrowed_device(devices: Sequence[str], folder: Path) -> Iterator[str]:
    """One of the devices that no other worker has; the lock goes with the process, however that ends."""
    if len(devices) == 1:
        yield devices[0]
        return
    import fcntl

    while True:
        for index, device in enumerate(devices):
            with (folder / f"device-{index}.lock").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield device
                return
        time.sleep(0.05)


# Many runs ------------------------------------------------------------------------------------------------------------


def execute_all(
    runs: Sequence[Run], folder: Path, jobs: int, devices: Sequence[str] = ("cpu",), logging: Logging | None = None
) -> Iterator[Outcome]:
    """Execute runs in ``jobs`` processes, the longest first; outcomes come as they finish, one for every run.

    When a worker dies, all do; what they were working on is tried once more, one run at a time in a worker of its own,
    so that one that takes its worker down does not take others with it. With one job runs are executed in this process.
    """
    folder = folder.absolute()  # workers that joblib keeps may have been started elsewhere
    _tidy(runs, folder)
    left = sorted(runs, key=lambda run: -run.cost)
    deaths: collections.Counter[str] = collections.Counter()
    while left:
        suspects = [run for run in left if deaths[run.key]][:1]
        try:
            # joblib makes no worker for one job, so the single suspect gets one of two.
            for outcome in _parallel(suspects or list(left), folder, 2 if suspects else jobs, devices, logging):
                left.remove(outcome.run)
                yield outcome
        except concurrent.futures.BrokenExecutor:
            for run in list(left):
                if (died := _marker(run, folder)).exists():
                    died.unlink()
                    deaths[run.key] += 1
                finished = run.load(folder) is not None
                if finished or deaths[run.key] >= ATTEMPTS:
                    left.remove(run)
                    yield Outcome(run, None if finished else DIED)


def _tidy(runs: Sequence[Run], folder: Path) -> None:
    """Remove what a sweep that was killed left half done."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        _marker(run, folder).unlink(missing_ok=True)
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def _parallel(
    runs: Sequence[Run], folder: Path, jobs: int, devices: Sequence[str], logging: Logging | None
) -> Iterator[Outcome]:
    import joblib

    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", batch_size=1, return_as="generator_unordered")
    yield from parallel(joblib.delayed(execute)(run, folder, os.getpid(), devices, logging) for run in runs)


@contextlib.contextmanager
def ray_cluster(address: str, jobs: int) -> Iterator[None]:
    """A connection to a Ray cluster, or the one that this process has already.

    ``address`` is as ``ray.init`` takes it ("auto": the cluster running here), or "local" for one of ``jobs`` processes
    that is started here and ends with the context. Raises MissingExtraError without the extra "ray", ConnectionError
    when there is no cluster at ``address``.
    """
    ray: Any = require("ray", "ray")
    if ray.is_initialized():
        yield
        return
    if address == "local":
        ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def execute_on_ray(runs: Sequence[Run], folder: Path) -> Iterator[Outcome]:
    """Execute runs as tasks of the Ray cluster of ``ray_cluster``; this process stores the results.

    Nodes need not share files; they keep caches of their own. Every task asks for one CPU, and one GPU when its run is
    on CUDA. Ray tries the tasks of a worker or node that died once more.
    """
    ray: Any = require("ray", "ray")
    _tidy(runs, folder)
    left = {}
    for run in sorted(runs, key=lambda run: -run.cost):
        gpus = int(torch.device(run.device).type == "cuda")
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1)(_remote)
        left[task.remote(run)] = run
    while left:
        (done,), _ = ray.wait(list(left), num_returns=1)
        run = left.pop(done)
        try:
            outcome = ray.get(done)
        except ray.exceptions.RayError as error:
            outcome = f"{run.title}\n{error}\n{DIED}"
        yield store(run, folder, outcome)


def _remote(run: Run) -> tuple[dict[str, Any], Tensor] | str:
    outcome = attempt(run, lambda agent, point: None)
    return outcome if isinstance(outcome, str) else (outcome[0], outcome[1].cpu())
