"""RunLogger: one training run as a CSV file, TensorBoard scalars and a Weights & Biases run, under the same keys."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import re
import time as clock
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

import dxmi_rl
from dxmi_rl.agents import Agent
from dxmi_rl.utils.checks import check_integer, require
from dxmi_rl.utils.storage import JSON, write_atomically, write_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLogger:
    """Writes the log of one run to ``root / "<task>__<agent>__<seed>__<time>"``, CleanRL's name for it.

        with RunLogger(Path("runs"), agent, settings={}) as logger:
            agent.learn(100_000, callback=logger)

    As a callback it logs the costs and ``agent.log`` whenever the agent has noted new losses (every 50 iterations and
    at the end); ``log`` also takes scores. Keys are ``charts/<score or cost>``, ``charts/SPS`` (transitions per second
    of training) and ``losses/<loss>``, and the step is the number of transitions:

    - ``config.json``: task, agent, seed, settings, the agent's config, versions.
    - ``progress.csv``: a row per call with ``timesteps`` and the keys. Cells are empty where a row has no such key, and
      ``nan`` or ``inf`` where the value is. A row is in the file when ``log`` returns; a new key rewrites it.
    - TensorBoard events, with the settings as the text "hyperparameters", flushed with each row; without values that
      are not finite, which no curve can show.
    - a Weights & Biases run of the folder's name, without such values; ``WANDB_MODE=offline`` keeps it in the folder.

    Args:
        root: folder of all runs.
        agent: the agent whose run it is.
        settings: what else defines the run; values that JSON does not know become text.
        tensorboard: write TensorBoard events (extra "bench").
        track: track the run with Weights & Biases (extra "track").
        project: its project there.
        name: stands for the agent in the folder's name; None: the agent's own name.
        time: unix seconds of the name, now by default; the next free second where the folder exists.

    Raises MissingExtraError for a missing package and TypeError or ValueError for a bad ``time``, before anything is
    written.
    """

    def __init__(
        self,
        root: Path,
        agent: Agent[Any],
        *,
        settings: Mapping[str, object],
        tensorboard: bool = True,
        track: bool = False,
        project: str = "dxmi_rl",
        name: str | None = None,
        time: int | None = None,
    ) -> None:
        if tensorboard:
            require("tensorboard", "bench")
        wandb = require("wandb", "track") if track else None
        second = int(clock.time()) if time is None else check_integer("time", time, minimum=0)
        self._closed = False
        self._writer: SummaryWriter | None = None
        self._run: Any = None  # wandb's
        self._rows: list[dict[str, float]] = []
        self._columns: list[str] = []
        self._logged: dict[str, float] | None = None
        self.folder = _new_folder(root, [agent.task.name, name or agent.name, str(agent.seed)], second)
        config = {
            "task": agent.task.name,
            "agent": agent.name,
            "seed": agent.seed,
            "time": int(self.folder.name.rsplit("__", 1)[1]),
            "settings": _plain(settings),
            "config": _plain(agent.config),
            "versions": _versions(),
        }
        write_json(self.folder / "config.json", config)
        try:
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder))
                self._writer.add_text("hyperparameters", _table(config))
                self._writer.flush()
            if wandb is not None:
                # A run of its own, as one process may log several; it is not to end up in the user's current folder.
                self._run = wandb.init(
                    project=project, name=self.folder.name, dir=str(self.folder), config=config, reinit="create_new"
                )
                self._run.define_metric("*", step_metric="timesteps")
        except BaseException:
            self.close(failed=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def __call__(self, agent: Agent[Any]) -> None:
        """Callback of ``Agent.learn``: log the losses when the agent has noted new ones."""
        if agent.log and agent.log is not self._logged:
            self.log(agent)

    def log(self, agent: Agent[Any], scores: Mapping[str, float] | None = None) -> None:
        """Log the agent's costs and last losses, and ``scores`` such as ``quick_scores`` gives, at its timesteps.

        A score that has the name of a cost is left out.

        Raises ValueError after ``close``, and TypeError for a score that is no number.
        """
        if self._closed:
            raise ValueError(f"the log {str(self.folder)!r} is closed.")
        self._logged = agent.log
        costs = asdict(agent.costs)
        timesteps = costs.pop("timesteps")
        if agent.costs.seconds > 0:
            costs["SPS"] = timesteps / agent.costs.seconds
        charts = {key: value for key, value in (scores or {}).items() if key != "timesteps"} | costs
        values = {f"charts/{key}": value for key, value in charts.items()}
        values |= {f"losses/{key}": value for key, value in agent.log.items()}
        for key, value in values.items():
            if not isinstance(value, (int, float, np.integer, np.floating)):
                raise TypeError(f"{key} must be a number, got {value!r}.")
        self._write_row({"timesteps": timesteps, **values})
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        if self._writer is not None:
            for key, value in finite.items():
                self._writer.add_scalar(key, value, timesteps)
            self._writer.flush()
        if self._run is not None:
            self._run.log({"timesteps": timesteps, **finite})

    def close(self, *, failed: bool = False) -> None:
        """End the log; calls after the first do nothing. ``failed`` marks the Weights & Biases run as such."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    def _write_row(self, row: dict[str, float]) -> None:
        new = [key for key in row if key not in self._columns]
        self._columns += new
        self._rows.append(row)
        file = self.folder / "progress.csv"
        if new:  # readers see the old table or the new one, never half of it
            text = _csv([dict(zip(self._columns, self._columns, strict=True)), *self._rows], self._columns)
            write_atomically(file, lambda path: _write(path, text, "w"))
        else:
            _write(file, _csv([row], self._columns), "a")


def _new_folder(root: Path, words: list[str], second: int) -> Path:
    # Names of tasks and agents may hold slashes; a made folder belongs to this process alone.
    name = "__".join(re.sub(r"[^\w.,=+-]", "-", word) for word in words)
    while True:
        folder = Path(root) / f"{name}__{second}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.exists():  # a file is in the way of root
                raise
            second += 1


def _csv(rows: list[JSON], columns: list[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write(path: str | os.PathLike[str], text: str, mode: str) -> None:
    with open(path, mode, encoding="utf-8", newline="") as file:
        file.write(text)


def _plain(value: object) -> object:
    """``value`` as JSON can hold it; what it cannot becomes text."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _versions() -> dict[str, str]:
    return {
        "dxmi_rl": dxmi_rl.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _table(config: JSON) -> str:
    """The hyperparameters as a Markdown table, nested ones as ``config.n_trajectories``."""
    lines = ["|param|value|", "|-|-|"]
    for key, value in config.items():
        entries = {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
        for name, entry in entries.items():
            cell = str(entry).replace("|", "\\|").replace("\n", " ")
            lines.append(f"|{name}|{cell}|")
    return "\n".join(lines)
