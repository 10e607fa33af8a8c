"""Commands of Python that start in no time: forks of one process that has imported what they all need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

SERVER = """
import importlib, json, os, runpy, sys

imports, commands = json.loads(sys.argv[1])
for name in imports:
    importlib.import_module(name)
for kind, what, *arguments in commands:
    child = os.fork()
    if not child:
        sys.argv = [kind, *arguments]
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        sys.exit()
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(status)
"""


def run_python(
    commands: Sequence[Sequence[str]], imports: Sequence[str], **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module ...`` or ``python -c code ...`` for each of ``commands``, given without ``python``.

    One after another, until one fails; output and exit status are those of all of them together. ``imports`` are the
    modules that the commands find imported, so they must be none whose import is a part of the test.
    """
    if not hasattr(os, "fork"):
        pytest.skip("forks processes")
    server = [sys.executable, "-c", SERVER, json.dumps([list(imports), [list(command) for command in commands]])]
    return subprocess.run(server, capture_output=True, text=True, **options)
