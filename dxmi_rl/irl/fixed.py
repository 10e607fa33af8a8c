"""``energy="fixed"``: an energy of a data set, trained once by one recipe and cached, the same for every algorithm."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from dxmi_rl.irl.dxmi import DxMI
from dxmi_rl.irl.recipes import recipe
from dxmi_rl.networks import EnergyMLP
from dxmi_rl.storage import cached_tensors
from dxmi_rl.tasks import TASKS, Task

FIXED_TIMESTEPS = 500_000
FIXED_SEED = 0


def fixed_energy(task: Task) -> nn.Module:
    """The energy that DxMI learns on the named task with its recipe, seed 0 and 500,000 transitions; minutes, once.

    It depends on the task's name only: two tasks that differ in horizon or kernel get the same reward. Raises
    ValueError for a task of your own objects, whose data no cache key can name.
    """
    if task.spec is None:
        raise ValueError(f"energy 'fixed' needs a named task, and {task.name!r} is made of your own objects.")
    config = recipe(task.name)
    key = {
        "task": task.name,
        "task_config": repr(TASKS[task.name]),
        "version": 1,
        "timesteps": FIXED_TIMESTEPS,
        "seed": FIXED_SEED,
        "config": dataclasses.asdict(config),
    }

    def train() -> dict[str, Tensor]:
        dxmi = DxMI(task.name, seed=FIXED_SEED, config=config)
        return dxmi.learn(FIXED_TIMESTEPS, progress_bar=True).average_energy.state_dict()

    tensors = cached_tensors("energy", key, train)
    energy = EnergyMLP(
        task.mdp.dim,
        task.target.scale,
        width=config.energy_width,
        depth=config.energy_depth,
        fourier=config.energy_fourier,
        residual=config.energy_residual,
    )
    energy.load_state_dict(tensors)
    return energy.requires_grad_(False).eval()
