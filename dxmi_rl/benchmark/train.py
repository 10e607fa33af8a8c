"""``dxmi-rl train``: one agent on one task, logged, and a checkpoint that the same command goes on from."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import tyro

from dxmi_rl.agents import AGENTS, Agent, load_agent, make_agent
from dxmi_rl.benchmark.logs import RunLogger
from dxmi_rl.benchmark.own_agents import OwnAgent, is_own_agent
from dxmi_rl.benchmark.own_tasks import named_task
from dxmi_rl.benchmark.protocol import check_settings
from dxmi_rl.costs import BUDGET_UNITS
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.tasks import Task, make_task
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import parsed_settings
from dxmi_rl.utils.torch_tools import seeded

Settings = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""NAME=VALUE words of an option, which may be given more than once."""


@dataclass(frozen=True)
class Train:
    """Train an agent on a task; log and checkpoint go to runs/<task>__<agent>__<seed>__<time>/."""

    agent: Annotated[str, tyro.conf.Positional]
    """Name of the agent (dxmi-rl list), module:Class or file.py:Class of your own, or a checkpoint of ours
    (.safetensors) to go on from, in a new folder."""
    task: str | None = None
    """Name of the task, 8gaussians by default; a checkpoint knows its own. Or one of your own, file.py:NAME, where NAME
    is an energy (with dim=... in task_set), a Target or a built Task; the file's code is run."""
    budget: float = 1_000_000
    """How much to train for; from a checkpoint, with what it has spent."""
    unit: str = "timesteps"
    """What the budget counts: timesteps (environment transitions), energy_evals or seconds."""
    seed: int = 0
    """The one seed; a checkpoint keeps its own."""
    device: str = "cpu"
    """Torch device."""
    config: str | None = None
    """plain: the agent's settings from before the search, in place of its defaults."""
    set: Settings = ()
    """Settings of the agent, such as policy.width=128 n_trajectories=512."""
    task_set: Settings = ()
    """Settings of the task, such as horizon=10 backward=learned energy=fixed."""
    points: int = 20
    """Points of the learning curve."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    tensorboard: bool = importlib.util.find_spec("tensorboard") is not None
    """Write TensorBoard logs; by default where it is installed."""
    track: bool = False
    """Track with Weights & Biases."""

    def __call__(self, command: str) -> int:
        """Train; the checkpoint is written during training, too."""
        check_integer("points", self.points)
        if self.unit not in BUDGET_UNITS:
            raise UnknownNameError("budget unit", self.unit, list(BUDGET_UNITS))
        if self.unit == "seconds":
            check_real("budget", self.budget, strict=True)
        else:
            check_integer("budget", _whole(self.budget))
        agent = self._loaded() if self.agent.endswith(".safetensors") else self._new()
        options = {
            "command": command, "task": self.task, "agent": self.agent, "budget": self.budget, "unit": self.unit,
            "config": self.config, "agent_settings": self._settings, "task_settings": self._task_settings,
        }  # fmt: skip
        with RunLogger(self.runs, agent, settings=options, tensorboard=self.tensorboard, track=self.track) as logger:
            noted = int(self.points * agent.spent(self.unit) / self.budget)
            noted += agent.spent(self.unit) > 0  # the point at which the checkpoint is was noted before it was written

            def note(agent: Agent[Any]) -> None:
                nonlocal noted
                if agent.spent(self.unit) >= noted * self.budget / self.points:
                    noted += 1
                    logger.log(agent, quick_scores(agent, seed=500_000 + noted))

            note(agent)
            if agent.trains:
                file = logger.folder / "checkpoint.safetensors"
                rest = _whole(self.budget - agent.spent(self.unit))
                amount: dict[str, Any] = {self.unit.replace("timesteps", "total_timesteps"): rest}
                amount |= {"checkpoint": file, "checkpoint_minutes": 1, "reset_num_timesteps": False}
                print(f"checkpoints and log: {logger.folder}")
                try:
                    with first_interrupt_noted() as interrupted:

                        def goes_on(agent: Agent[Any]) -> bool:
                            note(agent)
                            return not interrupted()

                        agent.learn(**amount, callback=goes_on, progress_bar=True)
                    if interrupted() and agent.spent(self.unit) < self.budget:
                        raise KeyboardInterrupt
                except KeyboardInterrupt:
                    print(f"\n{self._going_on(file, agent)}" if file.exists() else "\nThere is no checkpoint yet.")
                    raise
                print(f"checkpoint: {file}")
                if agent.costs.setbacks:
                    print(f"It diverged {agent.costs.setbacks} times, and went on with lower rates.")
            scores = quick_scores(agent)
        print("  ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        print(f"log: {logger.folder}")
        return 0

    def _going_on(self, file: Path, agent: Agent[Any]) -> str:
        """What trains the rest of this budget from a checkpoint."""
        if agent.name not in AGENTS:
            return f"{file} goes on with load of {type(agent).__name__}, and learn with the rest of the budget."
        words = ["dxmi-rl", "train", str(file), "--budget", str(_whole(self.budget)), "--unit", self.unit]
        if self.task is not None and agent.task.spec is None:  # a task of one's own
            words += ["--task", self.task, *(["--task-set", *chain(*self.task_set)] if self.task_set else [])]
        return f"This goes on:\n    {shlex.join(words)}"

    @property
    def _settings(self) -> dict[str, Any]:
        return parsed_settings("set", chain(*self.set))

    @property
    def _task_settings(self) -> dict[str, Any]:
        return parsed_settings("task_set", chain(*self.task_set))

    def _task(self, name: str) -> Task:
        with seeded(self.seed):
            return make_task(named_task(name), device=self.device, **self._task_settings)

    def _new(self) -> Agent[Any]:
        own = OwnAgent(self.agent) if is_own_agent(self.agent) else None
        if own is None:
            AGENTS[self.agent]  # a typo of the agent comes before the cost of the task
        elif not own.trains:
            raise ValueError(f"agent {self.agent!r} is trained already: dxmi-rl evaluate scores it.")
        elif self.config is not None:
            raise ValueError(f"config must be None for an agent of your own, got {self.config!r}.")
        check_settings(self.agent, self._settings)
        task = self._task("8gaussians" if self.task is None else self.task)
        if own is not None:
            return own.build(task, self.seed, **self._settings)
        return make_agent(self.agent, task, seed=self.seed, config=self.config, **self._settings)

    def _loaded(self) -> Agent[Any]:
        """The checkpoint's agent; the rest of the budget then trains as if it had not stopped."""
        given = {"seed": self.seed, "config": self.config, "set": self._settings}
        for name, value in given.items():
            if value:
                raise ValueError(f"{name} must not be given with a checkpoint, which has its own, got {value!r}.")
        if self.task is None and self.task_set:
            raise ValueError("task_set needs --task: the checkpoint's own task is as it was trained.")
        task = None if self.task is None else self._task(self.task)
        agent = load_agent(self.agent, task=task, device=self.device)
        if (spent := agent.spent(self.unit)) >= self.budget:
            raise ValueError(
                f"budget must be more than the {spent:,.10g} {self.unit} that the checkpoint has spent, got "
                f"{self.budget:,.10g}."
            )
        return agent


@contextlib.contextmanager
def first_interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is noted, so that an iteration can end, and the second interrupts. Gives whether there
    was one. Outside of the main thread, which gets no signals, nothing changes.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)
        print("\nstops after this iteration; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _whole(budget: float) -> float:
    """A whole number as an integer, as budgets of transitions are."""
    return int(budget) if budget == budget // 1 else budget
