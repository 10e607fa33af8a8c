"""The cache of finished runs, for all studies: a command that was stopped goes on where it stopped.

The result of a run is one JSON file. Its name is a digest of everything that the numbers depend on: the settings, the
package's modules that are used, and functions of the script. The file is written last and as a whole, so that a run is
finished if its file exists. Other files of the run, such as a checkpoint, have its name with another ending.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dxmi_rl.benchmark.code import code_digest, digest_of_code
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.targets import TARGETS
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.checks import DivergenceError, NonFiniteError
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.storage import write_json

Result = TypeVar("Result")

DIVERGED = (DivergenceError, NonFiniteError, EnergyError)
"""What training raises that went astray."""


def run_file(folder: Path, settings: Mapping[str, Any], uses: Iterable[Any] = (), code: str = "") -> Path:
    """Where the result of a run is, or will be.

    Args:
        folder: folder of the study's runs.
        settings: what was asked for, as JSON has it; where one is the name of a task or a target, the task's own
            settings and the target's module count, too.
        uses: classes and functions of dxmi_rl that the run uses; their modules count, with all that these import from
            the package (``code_digest``).
        code: digest of other code that the run uses (``code_of``).
    """
    named = [value for value in settings.values() if isinstance(value, str)]
    tasks = {name: repr(TASKS[name]) for name in named if name in TASKS}
    kernels = [KERNELS[name] for name in KERNELS]  # a study may change that of a task
    targets = [TARGETS[name] for name in named if name in TARGETS]
    modules = tuple(sorted({part.__module__ for part in (*uses, *kernels, *targets)}))
    parts = {"settings": settings, "package": code_digest(modules), "code": code, "tasks": tasks}
    return folder / f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}.json"


def code_of(*parts: Any) -> str:
    """Digest of the source of functions, classes or modules; comments and docstrings do not count."""
    return digest_of_code("\n".join(textwrap.dedent(inspect.getsource(part)) for part in parts))


def kept_result(file: Path, run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The result in ``file``; if there is none, that of ``run()``, which is written there. What raises is not kept."""
    if not file.is_file():
        write_json(file, dict(run()))
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def run_all(run: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], jobs: int, title: str) -> list[Result]:
    """``run(*own)`` for every ``own`` of ``arguments``: the results, in order.

    ``jobs`` run at a time, in processes of their own if there are several; ``title`` stands beside the progress bar.
    A run that diverges is raised when all others are finished; anything else that a run raises ends them.
    """
    from joblib import Parallel, delayed

    from dxmi_rl.benchmark.sweep import end_with_parent

    results: list[Result] = []
    lost: list[Exception] = []
    parallel = Parallel(jobs, return_as="generator", initializer=end_with_parent, initargs=(os.getpid(),))
    work = parallel(delayed(_unless_diverged)(run, *own) for own in arguments)
    with progress(title, len(arguments)) as advance:
        for number, result in enumerate(work, 1):
            (lost if isinstance(result, Exception) else results).append(result)
            advance(number)
    if lost:
        lost[0].add_note(f"{len(lost)} of {len(arguments)} {title} diverged; all others are finished and kept.")
        raise lost[0]
    return results


def _unless_diverged(run: Callable[..., Result], *own: Any) -> Result | Exception:
    try:
        return run(*own)
    except DIVERGED as error:
        return error
