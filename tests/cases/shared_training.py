"""Five iterations of a game on a U-Net in double precision, on one or several processes; writes its losses as JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

from dxmi_rl import DxMI, make_task  # noqa: E402
from dxmi_rl.agents.execution import is_main_process, set_execution  # noqa: E402
from dxmi_rl.targets import ImageSet  # noqa: E402


def main(file: Path, agent: str) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    patches = {"iterations": 3, "batch_size": 8, "channels": [8, 8], "attention": False, "patch": 2}
    task = make_task(ImageSet(rows[:40], rows[40:], name="tiny"), horizon=2, pretraining=patches)
    few = {"value_steps": 4, "policy_steps": 4, "kernel_steps": 4, "warmup_value_steps": 8}
    game = DxMI(task, agent=agent, agent_settings={"n_trajectories": 7, **few})
    execution = set_execution(game, rows_at_a_time=5, share=True)
    losses: list[dict[str, float]] = []
    iterate = game.iterate

    def noted(*arguments: object) -> dict[str, float | torch.Tensor]:
        log = iterate()
        losses.append({key: float(value) for key, value in log.items()})
        return log

    game.iterate = noted  # type: ignore[method-assign]
    game.learn(5 * game.timesteps_per_iteration)
    content = {"processes": execution.processes, "losses": losses, "x": game.sample(3, seed=0).flatten().tolist()}
    if is_main_process():
        file.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
