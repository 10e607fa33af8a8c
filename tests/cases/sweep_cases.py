"""A preset whose runs take a second, and readers of what its sweeps wrote."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tuning.tune import Inline
from dxmi_rl.benchmark import compare, sweep

ROOT = Path(__file__).parents[2]
BATCH = {"n_trajectories": 32}
PRETRAINING = {"iterations": 20, "width": 16, "batch_size": 32}
TINY = {
    "seeds": [0, 1],
    "sizes": {"samples": 400, "draws": 2, "trajectories": 500, "fit": False, "curve_points": 4, "kept": 100},
    "group": [
        {"tasks": ["8gaussians"], "agents": ["base"]},
        {
            "tasks": ["8gaussians"], "agents": ["dxdp"], "budget": 1_600,
            "agent_settings": BATCH | {"warmup_iterations": 2, "policy_steps": 4, "value_steps": 2, "replay": 1},
        },
        {
            "tasks": ["8gaussians"], "agents": ["ppo"], "budget": 1_600, "agent_settings": BATCH,
            "task_settings": {"backward": "learned"},
        },
        {
            "tasks": ["8gaussians-data"], "agents": ["dxmi"], "budget": 1_600,
            "task_settings": {"pretraining": PRETRAINING},
            "agent_settings": {"agent_settings": BATCH | {"warmup_iterations": 2}},
        },
    ],
}  # fmt: skip
"""A preset whose runs take a second."""
RUNS = 8


def tiny_main(*arguments: str, content: dict[str, Any] | None = None, whole: bool = False) -> int:
    """Compare with a preset of its own in the current folder; its status. ``whole``: not ``in_this_process``."""
    write_tiny(content=content)
    with contextlib.nullcontext() if whole else in_this_process():
        return compare.main(["--preset", "tiny.toml", *arguments])


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Sweeps without worker processes, whose start takes longer than their runs, and without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "worker_processes", lambda jobs: Inline())
        patch.setattr(compare, "draw_pictures", lambda *_: [])
        yield


def write_tiny(folder: Path = Path(), content: dict[str, Any] | None = None) -> Path:
    """The preset's file."""
    file = folder / "tiny.toml"
    file.write_text(toml(TINY if content is None else content), encoding="utf-8")
    return file


def toml(content: dict[str, Any]) -> str:
    """TOML of a preset: JSON's values are TOML's, but for inline tables."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(entry)}" for key, entry in value.items()) + "}"
        return json.dumps(value).replace("Infinity", "inf")

    lines = [f"{key} = {inline(value)}" for key, value in content.items() if key != "group"]
    for group in content["group"]:
        lines += ["[[group]]", *(f"{key} = {inline(value)}" for key, value in group.items())]
    return "\n".join(lines)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every result."""
    files = [*(folder / "results").glob("*.json"), *(folder / "results").glob("*.safetensors")]
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def results(folder: Path) -> dict[str, Any]:
    """Results by key, without what a clock measured and the digest of it."""
    found = {file.stem: read(file) for file in (folder / "results").glob("*.json")}
    for result in found.values():
        del result["evaluation_seconds"], result["costs"]["seconds"], result["digest"]
        for point in result["curve"]:
            del point["seconds"]
    return found
