"""kill -9 in the middle of a game on a U-Net in half precision: what is resumed ends as what nothing happened to."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dxmi_rl import DxMI, make_task
from dxmi_rl.agents.execution import set_execution
from dxmi_rl.evaluation.metrics import sliced_w2
from dxmi_rl.targets import ImageSet
from dxmi_rl.tasks import Task
from dxmi_rl.utils.storage import load_tensors, write_json

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills forked processes")

ROOT = Path(__file__).parents[2]
ITERATIONS, KILLS = 24, 3
SETTINGS: dict[str, Any] = {
    "augmentation_target": 0.5,
    "augmentation": 0.3,
    "augmentation_flip": True,
    "replay": 2,
    "energy_learning_rate": 1e-3,
    "agent_settings": {
        "n_trajectories": 8,
        "value_steps": 4,
        "policy_steps": 4,
        "kernel_steps": 4,
        "warmup_value_steps": 8,
        "policy": {"fine_tuning_rate": 1e-3},
    },
}


def tiny_task() -> Task:
    rows = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    quick = {"iterations": 3, "batch_size": 8, "channels": [8, 8], "attention": False, "patch": 2}
    return make_task(ImageSet(rows[:40], rows[40:], name="tiny"), backward="learned", pretraining=quick)


def play(checkpoint: Path) -> None:
    """Begin the game or go on with it to the end, saving after every iteration; then write its scores beside it."""
    task = tiny_task()
    game = DxMI.load(checkpoint, task=task) if checkpoint.is_file() else DxMI(task, seed=0, **SETTINGS)
    set_execution(game, precision="bfloat16")
    left = ITERATIONS * game.timesteps_per_iteration - game.num_timesteps
    game.learn(left, reset_num_timesteps=False, checkpoint=checkpoint, checkpoint_every=1)
    x, test = game.sample(64, seed=1), task.target.test_data(20)
    scores = {"sliced_w2": sliced_w2(x.flatten(1), test.flatten(1)), "energy": float(game.score(test).mean())}
    costs = {key: value for key, value in vars(game.costs).items() if key != "seconds"}
    write_json(checkpoint.with_suffix(".json"), game.log | scores | costs)


def forked(work: Callable[[Path], None], checkpoint: Path) -> int:
    """The child that does it, which ends with 0 when it has."""
    child = os.fork()
    if child == 0:
        try:
            work(checkpoint)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def serve(folder: str, seed: int) -> None:
    """One game undisturbed, and one killed again and again at any moment after it has got on a little.

    Every child builds all anew. Forking spares the imports; this process has one thread, and no autograd of its own.
    """
    torch.set_num_threads(1)
    importlib.import_module("diffusers.models.unets.unet_2d")
    generator, whole, other = random.Random(seed), Path(folder, "whole.safetensors"), Path(folder, "other.safetensors")
    assert os.waitpid(forked(play, whole), 0)[1] == 0
    seen, reached = 0, []
    for _ in range(KILLS):
        child = forked(play, other)
        while not other.is_file() or other.stat().st_mtime_ns == seen:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:  # this process was put off so long that the game is over
            break
        seen = other.stat().st_mtime_ns
        reached.append(load_tensors(other)[1]["costs"]["timesteps"])
    else:
        assert os.waitpid(forked(play, other), 0)[1] == 0
    print(json.dumps(reached))


@pytest.mark.slow
def test_a_game_on_a_unet_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, Path(__file__).parent))), "OMP_NUM_THREADS": "1",
        "DXMI_RL_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    code = f"import test_irl_kill; test_irl_kill.serve({str(tmp_path)!r}, 0)"
    served = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert served.returncode == 0, served.stderr
    reached = json.loads(served.stdout)
    whole, metadata = load_tensors(tmp_path / "whole.safetensors")
    other, _ = load_tensors(tmp_path / "other.safetensors")
    end = metadata["costs"]["timesteps"]
    assert reached == sorted(reached) and reached and reached[-1] < end, "killed in the middle"
    assert whole.keys() == other.keys() and "augmentation.probability" in whole
    apart = {name: float((other[name].double() - value.double()).abs().max()) for name, value in whole.items()}
    assert max(apart.values()) < 1e-5, {name: by for name, by in apart.items() if by >= 1e-5}
    scores, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "other"))
    assert scores.keys() == again.keys() and {"sliced_w2", "energy_gap", "energy_evals"} < scores.keys()
    assert again == pytest.approx(scores, rel=1e-5, abs=1e-5)
