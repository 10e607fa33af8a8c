"""One run of a sweep: tried, tried once more after a crash, and stored as a result or a failure."""

from __future__ import annotations

import contextlib
import json
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent
from dxmi_rl.benchmark.logs import RunLogger
from dxmi_rl.benchmark.machine import machine, versions
from dxmi_rl.benchmark.measure import OnPoint, Point, measure
from dxmi_rl.benchmark.protocol import Run, digest_of
from dxmi_rl.mdp import EnergyError
from dxmi_rl.utils.checks import DivergenceError, NonFiniteError
from dxmi_rl.utils.storage import JSON, save_tensors, write_json, write_text


class SourceChangedError(RuntimeError):
    """The source that a run depends on is not the one that its key was made from."""


REPEATABLE = (DivergenceError, NonFiniteError, EnergyError, SourceChangedError)
"""What would fail in the same way again."""
ATTEMPTS = 2
"""How often a run that raises is tried in one sweep."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run: ``error`` is the message of the exception that ended it, or None."""

    run: Run
    error: str | None = None


@dataclass(frozen=True)
class Failure:
    """A run that raised."""

    error: str
    """The exception's class and the first line of its message."""
    traces: str
    """What was run, and the tracebacks of all attempts."""


Ending = tuple[JSON, Tensor] | Failure
"""Result and samples of a run, or its failure."""


class Log(Protocol):
    """What is told of every point of a learning curve."""

    def log(self, agent: Agent[Any], point: Point, /) -> None:
        """Note it."""


class OpensLog(Protocol):
    """What opens the log of a run with its first point."""

    def open(self, run: Run, agent: Agent[Any]) -> contextlib.AbstractContextManager[Log]:
        """The log of one run."""


@dataclass(frozen=True)
class Logging:
    """Which logs runs write beside their results."""

    root: Path
    """Folder of the logs."""
    tensorboard: bool = False
    """Write TensorBoard's event files."""
    track: bool = False
    """Send them to Weights & Biases."""

    def open(self, run: Run, agent: Agent[Any]) -> RunLogger:
        """The log of one run."""
        return RunLogger(
            self.root, agent, settings={"key": run.key, **run.row.plain()}, tensorboard=self.tensorboard,
            track=self.track, name=run.row.label,
        )  # fmt: skip


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: fastest for small networks, and sums do not depend on the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _own_globals() -> Iterator[None]:
    """What an agent of one's own changes for the whole process is put back, as other runs follow in it; RuntimeError
    for torch's default dtype, under which its own numbers are others.
    """
    dtype, errors, graph = torch.get_default_dtype(), np.geterr(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with warnings.catch_warnings():
            yield
        if (found := torch.get_default_dtype()) != dtype:
            raise RuntimeError(f"the run left torch's default dtype at {found}: it must leave {dtype}.")
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(graph)
        torch.use_deterministic_algorithms(deterministic)
        np.seterr(**errors)


def attempt(run: Run, device: str | None = None, logging: OpensLog | None = None) -> Ending:
    """``measure`` on one thread, and once more after a crash: the result and the samples, or a Failure.

    A run whose source has changed since its key was made fails, rather than storing other code's numbers under it.
    """
    traces, error = [f"{run.title}\n{json.dumps(asdict(run), indent=2)}\n"], ""
    for _ in range(ATTEMPTS):
        try:
            if (code := run.row.code) != run.code:
                raise SourceChangedError(f"the source is {code}, but {run.code} when the sweep began: start it again.")
            with one_thread(), _own_globals(), _logged(run, logging) as note:
                numbers, samples = measure(run, note, device)
            result = _identity(run, device or run.device) | numbers
            json.dumps(result, allow_nan=False)  # numbers that no file can hold are a failure of the run
            return result, samples.cpu()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # of an agent of one's own, whatever that is
            traces.append(traceback.format_exc())
            error = f"{type(raised).__name__}: {(str(raised).strip() or 'no message').splitlines()[0]}"
            if isinstance(raised, REPEATABLE):
                break
    return Failure(error, "\n".join(traces))


def _identity(run: Run, device: str) -> JSON:
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
def _logged(run: Run, logging: OpensLog | None) -> Iterator[OnPoint]:
    """A function that writes the points of the curve into the run's log, which is opened with the first."""
    with contextlib.ExitStack() as stack:
        logger: list[Log] = []

        def note(agent: Agent[Any], point: Point) -> None:
            if logging is None:
                return
            if not logger:
                logger.append(stack.enter_context(logging.open(run, agent)))
            logger[0].log(agent, point)

        yield note


def store(run: Run, folder: Path, ending: Ending) -> Outcome:
    """Write what came of a run, each file atomically; the result is the last, and is what makes the run finished."""
    if isinstance(ending, Failure):
        write_text(run.failure_file(folder), f"{ending.error}\n\n{ending.traces}")
        return Outcome(run, ending.error)
    result, samples = ending
    save_tensors(run.samples_file(folder), {"x": samples}, {"key": run.key})
    plain = json.loads(json.dumps(result))  # as it will be read
    write_json(run.result_file(folder), plain | {"digest": digest_of(plain)})
    run.failure_file(folder).unlink(missing_ok=True)
    return Outcome(run)


def failed_before(runs: Sequence[Run], folder: Path) -> list[Outcome]:
    """What became of runs that have no result, and failed when they were last tried."""
    found = []
    for run in runs:
        file = run.failure_file(folder)
        if file.is_file() and run.load(folder) is None:
            found.append(Outcome(run, file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]))
    return found
