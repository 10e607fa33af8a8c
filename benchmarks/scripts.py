"""What scripts of all studies share: the command line and the header of their results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dxmi_rl.benchmark.machine import machine, versions

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
