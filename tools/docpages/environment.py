"""Blocks of the environment's page: DenoiseEnv's docstring, and the tables of a task's settings."""

from __future__ import annotations

import inspect

import gymnasium as gym

from docpages.docstrings import linked, settings_table, summary, table
from dxmi_rl.diffusion.kernels import KERNELS
from dxmi_rl.diffusion.schedules import SCHEDULES
from dxmi_rl.envs import ENV_ID, DenoiseEnv
from dxmi_rl.envs.episodes import DEFAULT_TASK
from dxmi_rl.tasks import TaskConfig


def blocks() -> dict[str, str]:
    """Block -> Markdown of the page of ``DxMIDenoise-v0``."""
    kernels = [(f"`{name}`", summary(KERNELS[name])) for name in KERNELS]
    return {
        "docstring": linked(inspect.getdoc(DenoiseEnv) or ""),
        "spaces": spaces(),
        "defaults": defaults(),
        "task": settings_table(TaskConfig),
        "schedules": schedules(),
        "kernels": table(("kernel", "definition"), kernels),
    }


def spaces() -> str:
    """Action and observation space of the default task."""
    env = gym.make(ENV_ID)
    return table(
        ("", "default task"),
        [("Action space", f"`{env.action_space}`"), ("Observation space", f"`{env.observation_space}`")],
    )


def defaults() -> str:
    """Arguments of DenoiseEnv with their defaults."""
    own = inspect.signature(DenoiseEnv).parameters.values()
    known = {entry.name: entry.default for entry in own if entry.default is not entry.empty} | {"task": DEFAULT_TASK}
    return "Defaults: `" + ", ".join(f"{name}={value!r}" for name, value in known.items()) + "`."


def schedules() -> str:
    """Names, options and summaries of all schedules."""
    rows = []
    for name in SCHEDULES:
        parameters = inspect.signature(SCHEDULES[name]).parameters.values()
        options = [f"`{entry.name}={entry.default!r}`" for entry in parameters if entry.kind is entry.KEYWORD_ONLY]
        rows.append((f"`{name}`", ", ".join(options) or "-", summary(SCHEDULES[name])))
    return table(("schedule", "options", "definition"), rows)
