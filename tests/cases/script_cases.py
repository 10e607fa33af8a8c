"""What tests of scripts in benchmarks/ share."""

from __future__ import annotations

from types import ModuleType


def documented(module: ModuleType) -> set[str]:
    """Keys that the docstring lists."""
    assert module.__doc__ is not None
    lines = module.__doc__.split("--json FILE``:", 1)[1].splitlines()
    words = [line.strip().split("  ")[0] for line in lines if line.startswith("    ") and line[4] != " "]
    return {key.strip() for word in words for key in word.split(",")}
