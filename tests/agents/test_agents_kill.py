"""kill -9 during ``Agent.save``: the file is the old one or the new one, and nothing else stays."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_cases import same, skip_without_extra, small, state, train

from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.utils.storage import LOCKING_SECONDS, load_tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills forked processes")

ROOT = Path(__file__).parents[2]
SAVED = [
    "adjoint-sampling", "any-step", "dxdp", "dxmi", "path-wise", "ppo", "sb3-sac", "torchrl-ppo", "trajectory-balance",
    "vgs",
]  # fmt: skip
"""One of each kind of state; all are saved by the same code."""
KILLS = 4
"""Of each."""
LONGEST = 0.015
"""Seconds that a child saves before it is killed, at most."""


def save_for_ever(agent: Agent, path: Path, count: mmap.mmap) -> None:
    """Save as fast as it can, other costs every time; ``count`` is the number of saves that have returned."""
    agent.costs.timesteps = struct.unpack("q", count[:8])[0]
    while True:
        agent.costs.timesteps += 1
        agent.save(path)
        count[:8] = struct.pack("q", agent.costs.timesteps)


def serve(folder: str, seed: int) -> None:
    """For each: fork, let the child save for ever, kill it, look at what it left. One line of JSON each.

    Forking spares the imports; this process has one thread.
    """
    generator = random.Random(seed)
    for name in SAVED:
        try:
            skip_without_extra(name)
        except pytest.skip.Exception:
            continue
        agent, path, count = small(name), Path(folder, name, "agent.safetensors"), mmap.mmap(-1, 8)
        wanted, _ = load_tensors(train(agent, 1).save(path))  # optimizers have states now
        found = {"agent": name, "saves": 0, "left": 0, "damaged": 0, "lost": 0}
        for _ in range(KILLS):
            before = count[:8]
            child = os.fork()
            if child == 0:
                save_for_ever(agent, path, count)
            while count[:8] == before:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, LONGEST))
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            tensors, metadata = load_tensors(path)
            found["damaged"] += not same(tensors, wanted)
            found["saves"] = struct.unpack("q", count[:8])[0]
            found["lost"] += metadata["costs"]["timesteps"] < found["saves"]
            found["left"] += len(age(path))
        found["damaged"] += not same(state(AGENTS[name].load(path)), state(agent))
        agent.save(path)
        found["files"] = sorted(file.name for file in path.parent.iterdir())
        print(json.dumps(found), flush=True)


def age(path: Path) -> list[Path]:
    """Temporary files beside ``path``, which now look as if the kill had been a while ago."""
    parts = [file for file in path.parent.iterdir() if file != path]
    for part in parts:
        assert part.name.startswith(f".{path.name}.") and part.suffix == ".part"
        os.utime(part, (time.time() - 2 * LOCKING_SECONDS,) * 2)
    return parts


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("kills")
    places = os.pathsep.join(map(str, (ROOT, Path(__file__).parent, ROOT / "tests" / "cases")))
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    code = f"import test_agents_kill; test_agents_kill.serve({str(folder)!r}, 0)"
    lines = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    return {found["agent"]: found for found in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_an_agent_survives_kills_during_saves(name: str, kills: dict[str, dict[str, int]]) -> None:
    if name not in kills:
        skip_without_extra(name)
    found = kills[name]
    assert found["saves"] >= KILLS
    assert found["damaged"] == 0, "what was saved is loaded"
    assert found["lost"] == 0, "a save that has returned is on disk"
    assert found["files"] == ["agent.safetensors"], "the next save removes what the kills left"


@pytest.mark.slow
def test_kills_hit_files_that_are_being_written(kills: dict[str, dict[str, int]]) -> None:
    assert sum(found["left"] for found in kills.values()) >= 3
