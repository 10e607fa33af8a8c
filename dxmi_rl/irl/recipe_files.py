"""Recipes: all settings of DxMI for a kind of task and an agent, as TOML files; found on the tasks themselves.

A file has the game's settings, a table ``energy`` and a table ``agents.NAME`` with all settings of each agent that the
recipe is for; "none" stands for None. A new recipe is one file here, and one line of ``recipe_for`` if a task is to
take it by itself.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dxmi_rl.agents import AGENTS
from dxmi_rl.irl.config import DxMIConfig, EnergyConfig
from dxmi_rl.targets import DataTarget
from dxmi_rl.tasks import Task
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import changed

FOLDER = Path(__file__).with_name("recipes")
FINE_TASKS = ("checkerboard", "2spirals", "rings", "moons", "gmm25")
"""Tasks of the plane with finer structure than 8 Gaussians."""
SMALL_IMAGES = ("digits",)
"""Image tasks that take the recipe of small sets."""


def list_recipes() -> list[str]:
    """Names of all recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


@functools.cache
def _read(name: str) -> dict[str, Any]:
    if name not in list_recipes():
        raise UnknownNameError("recipe", name, list_recipes())
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with None where it says "none"."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else None if value == "none" else value
        for key, value in table.items()
    }


def recipe(name: str, agent: str = "dxdp") -> DxMIConfig:
    """The settings of a recipe with an agent inside; an agent that it has no table for keeps its own defaults.

    Raises UnknownNameError for an unknown recipe or agent.
    """
    content = _without_none(_read(name))
    tables = content.pop("agents")
    settings = changed(AGENTS[agent].Config(), tables.get(agent, {}), f"setting of {agent!r} in recipe {name!r}")
    start = DxMIConfig(recipe=name, agent=agent, agent_settings=settings)
    return changed(start, content, f"setting of recipe {name!r}")


def recipe_for(task: Task, agent: str = "dxdp", settings: Mapping[str, Any] | None = None) -> str:
    """The name of the recipe that ``DxMI(task, agent=agent, **settings)`` takes.

    A choice of the energy's network in ``settings`` rules out an energy that starts as the denoiser.
    """
    plain = getattr(task.mdp.base, "denoiser", None) is None or _chooses_network(settings or {})
    if len(task.event_shape) != 3:
        if agent not in ("dxdp", "dxdp-paper"):
            return "plane-other-agents"
        if isinstance(task.target, DataTarget) and not plain:
            return "tables"
        return "plane-fine" if task.name in FINE_TASKS else "plane"
    if plain:
        return "images-small"
    return "digits" if task.name in (*SMALL_IMAGES, "digits-classes") else "images"


def _chooses_network(settings: Mapping[str, Any]) -> bool:
    """Whether settings of the energy ask for a network that is not the denoiser."""
    of_denoiser = {"denoiser", "levels", "level_power", "clip"}
    inside = settings.get("energy", {})
    values = dict(inside) if isinstance(inside, Mapping) else vars(inside)
    values |= {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("energy.")}
    if "denoiser" in values:
        return not values["denoiser"]
    return bool({field.name for field in fields(EnergyConfig)} & values.keys() - of_denoiser)
