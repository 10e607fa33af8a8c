"""``energy="fixed"``: an energy of a data set, trained once by one recipe and cached, the same for every algorithm."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dxmi_rl.irl.config import DxMIConfig, make_energy
from dxmi_rl.irl.dxmi import DxMI
from dxmi_rl.irl.recipe_files import SMALL_IMAGES, recipe
from dxmi_rl.targets import ImageSet
from dxmi_rl.tasks import TASKS, Task
from dxmi_rl.utils.storage import cached_tensors

FIXED_TIMESTEPS = 500_000
FIXED_SEED = 0


class ConfinedEnergy(nn.Module):
    """E(clip(x)) + tau |x - clip(x)|^2 / (2 s^2): a learned energy, continued beyond the box where it was trained.

    Beyond the box the network may fall without limit. A policy trained on it finds that region, and exp(-E / tau) then
    has no normaliser and the task no solution. The box is ``plot_range`` widened by c / 2 on each side,
    s = c / 10, with c the data's standard deviation.
    """

    def __init__(self, energy: nn.Module, plot_range: tuple[float, float], scale: float, tau: float) -> None:
        super().__init__()
        self.energy = energy
        self.low, self.high = plot_range[0] - scale / 2, plot_range[1] + scale / 2
        self.stiffness = tau / (scale / 10) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, *event_shape] -> [batch]``."""
        inside = x.clamp(self.low, self.high)
        energy: Tensor = self.energy(inside)
        return energy + 0.5 * self.stiffness * (x - inside).square().flatten(1).sum(1)


def fixed_recipe(task: str) -> DxMIConfig:
    """The settings that the energy of this task is made with; a change of them changes all results on it."""
    return recipe("fixed-digits" if task in SMALL_IMAGES else "plane")


def fixed_energy(task: Task) -> nn.Module:
    """The energy that DxMI learns on the named task (``fixed_recipe``) in 500,000 transitions, seed 0; minutes, once.

    It depends on the task's name only: two tasks that differ in horizon or kernel get the same reward. It is confined
    (``ConfinedEnergy``). Raises ValueError for a task of your own objects, whose data no cache key can name, and for
    images without a recipe for it.
    """
    if task.spec is None:
        raise ValueError(f"energy 'fixed' needs a named task, and {task.name!r} is made of your own objects.")
    if isinstance(task.target, ImageSet) and task.name not in SMALL_IMAGES:
        raise ValueError(f"energy 'fixed' has no recipe for task {task.name!r}; of images it has {list(SMALL_IMAGES)}.")
    if task.config.label is not None:
        raise ValueError(f"energy 'fixed' is that of all classes: label must be None, got {task.config.label!r}.")
    if task.config.target_options != TASKS[task.name].target_options:
        own = task.config.target_options
        raise ValueError(f"energy 'fixed' is that of {task.name!r} as it is: target_options must be empty, got {own}.")
    config = fixed_recipe(task.name)
    key = {
        "task": task.name,
        "task_config": repr(TASKS[task.name]),
        "version": 2,
        "timesteps": FIXED_TIMESTEPS,
        "seed": FIXED_SEED,
        "config": dataclasses.asdict(config),
    }

    def train() -> dict[str, Tensor]:
        dxmi = DxMI(task.name, seed=FIXED_SEED, config=config)
        return dxmi.learn(FIXED_TIMESTEPS, progress_bar=True).average_energy.state_dict()

    tensors = cached_tensors("energy", key, train)
    with torch.random.fork_rng(devices=[]):
        energy = make_energy(task.target, config.energy)
    energy.load_state_dict(tensors)
    confined = ConfinedEnergy(energy, task.target.plot_range, task.target.scale, TASKS[task.name].tau)
    return confined.requires_grad_(False).eval()
