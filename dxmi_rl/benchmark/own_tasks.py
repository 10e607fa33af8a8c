"""Tasks of your own, named by a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dxmi_rl.benchmark.own_agents import load_file
from dxmi_rl.utils.registry import UnknownNameError


def named_task(text: str) -> Any:
    """What ``text`` names: a task's name stays as it is, ``file.py:NAME`` is the object of that name in the file.

    Raises FileNotFoundError, UnknownNameError for a name that the file has not, and what its code raises.
    """
    source, _, name = text.rpartition(":")
    if not source.endswith(".py"):
        return text
    module = load_file(Path(source))
    if not hasattr(module, name):
        raise UnknownNameError(f"object of {source}", name, [key for key in vars(module) if not key.startswith("_")])
    return getattr(module, name)
