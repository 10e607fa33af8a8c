"""What scripts of all studies share: their command lines, from arguments to results with a header."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from dxmi_rl.benchmark.machine import machine, versions
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.storage import check_file, write_json

ROOT = Path(__file__).parents[1]
"""Root of the repository."""
RESULTS = ROOT / "benchmarks" / "results"
"""Results on record."""


def command_line(script: str, argv: Sequence[str] | None) -> str:
    """The command that makes the results again: ``python benchmarks/<study>/<script>.py`` and its arguments.

    Args:
        script: the ``__file__`` of the script.
        argv: arguments; None for those of this process.
    """
    path = Path(script).resolve().relative_to(ROOT.resolve()).as_posix()
    return shlex.join(["python", path, *(sys.argv[1:] if argv is None else argv)])


def header(command: str, device: str) -> dict[str, Any]:
    """First keys of results: ``command``, ``machine`` and ``versions``."""
    return {"command": command, "machine": machine(device), "versions": versions()}


@dataclass(frozen=True)
class Study:
    """What the command lines of studies set: a study has a class of its own, with what else it can be asked for."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every row."""
    device: str = "cpu"
    """Torch device."""
    jobs: int = 1
    """Runs at a time, one thread each."""
    folder: Path = Path("runs/studies")
    """Finished runs are kept here, and not repeated."""
    json: Path | None = None
    """Write everything to this file."""
    picture: Path | None = None
    """Draw the results into this PNG file."""


Arguments = TypeVar("Arguments", bound=Study)


def carry_out(
    kind: type[Arguments],
    argv: Sequence[str] | None,
    study: Callable[[Arguments], dict[str, Any]],
    show: Callable[[dict[str, Any], Console], None],
    draw: Callable[[dict[str, Any], Path], None] | None = None,
) -> int:
    """Carry out a study as its command line says; the exit status, 2 for bad input.

    Args:
        kind: the arguments.
        argv: the command line; None for that of this process.
        study: runs everything: the content of ``--json FILE`` below its header, and under "pictures" what only the
            picture shows, which is not written.
        show: prints the content.
        draw: draws it into a file.
    """
    import tyro

    script = sys.modules[study.__module__]
    arguments = tyro.cli(kind, args=argv, description=script.__doc__)
    try:
        check_integer("jobs", arguments.jobs)
        check_seeds(arguments.seeds)
        resolve_device(arguments.device)
        for key in ("json", "picture"):
            if (file := getattr(arguments, key)) is not None:
                check_file(key, file)
        found = study(arguments)
        if arguments.json is not None:
            written = {key: value for key, value in found.items() if key != "pictures"}
            write_json(arguments.json, header(command_line(str(script.__file__), argv), arguments.device) | written)
        if arguments.picture is not None and draw is not None:
            draw(found, arguments.picture)
    except (OSError, ValueError, ImportError) as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 2
    show(found, Console())
    return 0
