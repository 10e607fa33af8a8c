"""Tasks: a target, a horizon, a base sampler and a backward kernel make a DenoisingMDP."""

from dxmi_rl.tasks.build import ENERGIES, TargetLike, Task, list_tasks, make_task, reference_target
from dxmi_rl.tasks.config import TaskConfig
from dxmi_rl.tasks.table import TASKS

__all__ = [
    "ENERGIES", "TASKS", "TargetLike", "Task", "TaskConfig", "list_tasks", "make_task", "reference_target",
]  # fmt: skip
