"""Settings that ``benchmarks/tune.py`` found, frozen in ``tuned.json``: what agents start from instead of defaults."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tuned.json")
SEARCH = "search"
"""The entry of the file that is no agent: how each was searched, and the scores of its trials."""


def load_tuned() -> dict[str, dict[str, Any]]:
    """The file: ``{agent: {setting: value}}``, and one entry SEARCH, ``{agent: {"command", "scores", ...}}``."""
    return _load(FILE)


@functools.cache
def _load(file: Path) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def tuned_settings(kind: Any, event_shape: tuple[int, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tuned settings of the Agent class ``kind`` on states of this shape, but for those in ``settings``.

    Only agents of this package have any. The search is on vectors, where policies correct a base sampler: a setting
    whose default is None depends on the kind of policy, and is left alone when that is a fine-tuned network.
    """
    if not kind.__module__.startswith("dxmi_rl."):  # a class of the user's may have any name
        return {}
    left = set(settings)
    policy = settings.get("policy", "auto")
    if policy == "fine-tuned" or (policy == "auto" and len(event_shape) == 3):
        left |= {field.name for field in fields(kind.Config) if field.default is None}
    return {key: value for key, value in load_tuned().get(kind.name, {}).items() if key not in left}
