"""Plain settings: those of agents before a search chose their defaults (docs/tuning.md)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from dxmi_rl.utils.registry import UnknownNameError

FILE = Path(__file__).with_name("plain.json")
CONFIGS = ["plain"]


@functools.cache
def _settings() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def check_config(config: str) -> None:
    """Raise UnknownNameError for a config other than "plain"."""
    if config not in CONFIGS:
        raise UnknownNameError("config", config, CONFIGS)


def has_plain_settings(agent: str) -> bool:
    """Whether a search has moved the defaults of ``agent``; the others' are plain as they are."""
    return agent in _settings()


def plain_settings(config: str, agent: str) -> dict[str, Any]:
    """Settings of ``agent`` by name that differ from its defaults.

    Raises UnknownNameError for a ``config`` other than "plain", ValueError for an agent whose defaults no search moved.
    """
    check_config(config)
    if not has_plain_settings(agent):
        raise ValueError(
            f"config must be None for agent {agent!r}, whose defaults were not searched, got {config!r}; it is for "
            f"{', '.join(_settings())}."
        )
    return dict(_settings()[agent])
