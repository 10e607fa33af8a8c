"""Many runs: in processes of this machine, one per GPU, or on a Ray cluster. What is finished is never lost."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dxmi_rl.benchmark.attempt import ATTEMPTS, Ending, Failure, Logging, Outcome, attempt, one_thread, store
from dxmi_rl.benchmark.protocol import Row, Run
from dxmi_rl.evaluation import exact_floors, tempered_log_z
from dxmi_rl.evaluation.evaluate import scoring_target
from dxmi_rl.tasks import ENERGIES, Task, make_task
from dxmi_rl.utils.checks import require
from dxmi_rl.utils.storage import remove_abandoned

DEATHS = 3
"""A run is given up after this many deaths of its worker: two beside other runs, one alone."""
DIED = "its worker process died again and again (out of memory, or killed); start again to go on."


# Worker processes -----------------------------------------------------------------------------------------------------


def end_with_parent(parent: int) -> None:
    """Let this process end with its ``parent``, within a second of its death, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def worker_processes(jobs: int) -> Any:
    """loky's executor of ``jobs`` processes, which end with this one however it ends, and after ten idle seconds.

    It is the same one, with its processes, until it is shut down: their start takes longer than many a run.
    """
    from joblib.externals import loky

    return loky.get_reusable_executor(jobs, initializer=end_with_parent, initargs=(os.getpid(),))


# Before the first run -------------------------------------------------------------------------------------------------


def prepare(runs: Sequence[Run], jobs: int) -> None:
    """Fill the caches that workers share, and build every agent once, so that bad settings end here.

    Training a task's denoiser and measuring the floors would otherwise be repeated by every worker; the tasks are
    prepared in parallel, the largest first, by the workers that execute the runs later. Raises ChildProcessError when
    one of them dies.
    """
    first = {run.row.task: run for run in reversed(runs)}
    order = sorted(first.values(), key=lambda run: -run.row.target.dim)
    if len(order) > 1:
        executor = worker_processes(min(jobs, len(runs)))
        try:
            for future in [executor.submit(fill_caches, run) for run in order]:
                future.result()
        except BaseException as error:
            executor.shutdown(wait=True, kill_workers=True)
            if isinstance(error, concurrent.futures.BrokenExecutor):
                raise ChildProcessError(f"a worker process died while it prepared tasks: {error}") from error
            raise
    tasks: dict[str, Task] = {}
    checked: list[Row] = []
    for run in runs:
        row = run.row
        name = json.dumps([row.task, row.task_settings], sort_keys=True)
        if name not in tasks:
            tasks[name] = fill_caches(run)
        if row not in checked:
            _try_to_build(row, tasks[name])
            checked.append(row)


def _try_to_build(row: Row, task: Task) -> None:
    """Build the agent, and where it is your own and trains also save and load it, which ends every run.

    Raises ValueError, before any training, for particles of an agent without a density.
    """
    try:
        agent = row.build(task, 0)
        if row.particles is not None and not agent.has_density:
            raise ValueError(f"particles of {row.label!r} must be left out: agent {row.agent!r} has no density.")
        if row.own is not None and row.trains:
            with tempfile.TemporaryDirectory() as folder:
                file = agent.save(Path(folder) / "agent.safetensors")
                type(agent).load(file, task=task)
    except (ValueError, TypeError, ImportError, OSError):
        raise
    except Exception as error:  # whatever an agent of the user's does
        raise ValueError(f"agent {row.label!r} cannot be built: {type(error).__name__}: {error}") from error


def fill_caches(run: Run) -> Task:
    """Build the run's task, which trains its denoiser and energy once, and measure the floors."""
    with one_thread():
        task = make_task(run.row.task, device=run.device, **run.row.task_settings)
        target = scoring_target(task)
        if run.sizes.floors and not target.has_data:
            exact_floors(target, run.sizes.samples)
        if run.sizes.floors and run.row.energy in ENERGIES and task.mdp.tau not in (0.0, 1.0):
            tempered_log_z(task)
    return task


# One worker -----------------------------------------------------------------------------------------------------------


def execute(run: Run, folder: Path, devices: Sequence[str], logging: Logging | None) -> Outcome:
    """One run in a worker of this machine, stored when it ends."""
    marker = _marker(run, folder)
    marker.touch()
    with borrowed_device(devices, folder) as device:
        outcome = store(run, folder, attempt(run, device, logging))
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
    """Execute runs in ``jobs`` processes, those without training first, as there is soon something to see of them, and
    then the longest first; outcomes come as they finish, one for every run.

    When a worker dies, all do, and what they were working on is tried again; a run that was there twice is then tried
    alone, so that one that takes its worker down does not take others with it for good. Raises ChildProcessError when
    workers die before they start a run.
    """
    tidy(folder)
    left = sorted(runs, key=lambda run: (run.row.trains, -run.cost))
    deaths: collections.Counter[str] = collections.Counter()
    idle_deaths = 0
    while left:
        suspects = [run for run in left if deaths[run.key] == DEATHS - 1][:1]
        try:
            for outcome in _in_workers(suspects or list(left), folder, 1 if suspects else jobs, devices, logging):
                left.remove(outcome.run)
                yield outcome
        except concurrent.futures.BrokenExecutor as error:
            died = [run for run in left if _marker(run, folder).exists()]
            idle_deaths = 0 if died else idle_deaths + 1
            if idle_deaths == DEATHS:
                raise ChildProcessError(f"worker processes die before they start a run: {error}") from error
            for run in died:
                _marker(run, folder).unlink()
                deaths[run.key] += 1
            for run in list(left):
                finished = run.load(folder) is not None
                if finished or deaths[run.key] == DEATHS:
                    left.remove(run)
                    yield Outcome(run, None if finished else DIED)


def tidy(folder: Path) -> None:
    """Make the folder, and remove what a sweep that was killed left half done in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for marker in folder.glob("*.running"):
        marker.unlink(missing_ok=True)
    remove_abandoned(folder)


def _in_workers(
    runs: Sequence[Run], folder: Path, jobs: int, devices: Sequence[str], logging: Logging | None
) -> Iterator[Outcome]:
    """Outcomes of runs in joblib's worker processes; workers are ended when this is left before its end."""
    # Not joblib.Parallel, which makes no worker for one job: a run that kills its process is not to end the sweep.
    executor = worker_processes(min(jobs, len(runs)))
    try:
        futures = [executor.submit(execute, run, folder, devices, logging) for run in runs]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
        executor.shutdown(wait=True)
    except BaseException:
        executor.shutdown(wait=True, kill_workers=True)
        raise


@contextlib.contextmanager
def ray_cluster(address: str, jobs: int) -> Iterator[None]:
    """A connection to a Ray cluster, or the one that this process has already.

    ``address`` is as ``ray.init`` takes it ("auto": the cluster running here), or "local" for one of ``jobs`` processes
    that is started here and ends with the context. Raises MissingExtraError without the extra "ray", ConnectionError
    when there is no cluster at ``address``.
    """
    ray = require("ray", "ray")
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
    ray = require("ray", "ray")
    tidy(folder)
    left = {}
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_remote)
    for run in sorted(runs, key=lambda run: -run.cost):
        gpus = int(torch.device(run.device).type == "cuda")
        left[task.options(num_gpus=gpus).remote(run)] = run
    while left:
        (done,), _ = ray.wait(list(left), num_returns=1)
        run = left.pop(done)
        try:
            ending = ray.get(done)
        except ray.exceptions.RayError as error:  # a dead worker or node, or one that lacks what the run needs
            first = (str(error).strip() or "no message").splitlines()[0]
            ending = Failure(f"{type(error).__name__}: {first}", f"{run.title}\n{error}")
        yield store(run, folder, ending)


def _remote(run: Run) -> Ending:
    return attempt(run)
