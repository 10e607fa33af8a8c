"""Tasks: a target, a horizon, a base sampler and a backward kernel make a DenoisingMDP."""

from dxmi_rl.tasks.build import ENERGIES, TargetLike, list_tasks, make_task
from dxmi_rl.tasks.config import TaskConfig
from dxmi_rl.tasks.parts import reference_target
from dxmi_rl.tasks.table import DEFAULTS, TASKS
from dxmi_rl.tasks.task import Task

__all__ = [
    "DEFAULTS", "ENERGIES", "TASKS", "TargetLike", "Task", "TaskConfig", "list_tasks", "make_task", "reference_target",
]  # fmt: skip
