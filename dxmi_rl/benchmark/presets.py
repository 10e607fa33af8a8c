"""Presets: what a comparison compares, in TOML files; those in ``presets/`` by name, your own by path."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.any_class import AnyClass
from dxmi_rl.agents.any_step import AnyStep
from dxmi_rl.agents.plain import plain_settings
from dxmi_rl.benchmark.own_agents import is_own_agent
from dxmi_rl.benchmark.protocol import Row, Sizes, check_rows, check_seeds
from dxmi_rl.irl import DxMI
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import JSON

T = TypeVar("T")

FOLDER = Path(__file__).with_name("presets")
GROUP_KEYS = [
    "tasks", "agents", "except", "label", "budget", "unit", "seeds", "fit", "particles", "task_settings",
    "agent_settings",
]  # fmt: skip
EVERY_AGENT = "*"


@dataclass(frozen=True)
class Preset:
    """Rows, and the seeds and evaluation sizes they have by default."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    sizes: Sizes = field(default_factory=Sizes)
    description: str = ""


def list_presets() -> list[str]:
    """Names of the presets that come with the package."""
    order = ["quick", "standard", "full"]
    return [*order, *sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem not in order)]


def load_preset(name: str | Path) -> Preset:
    """The preset of this name, or in the TOML file at this path (it ends in ".toml").

    A file holds ``description``, ``seeds``, a table ``[sizes]`` of Sizes' fields and ``[[group]]`` tables: ``tasks``
    and ``agents`` (lists; every pair is a row; "*" stands for all agents that are given an energy, without those that
    need a denoiser where the task has none), ``except`` (agents that are left out), ``budget`` and ``unit`` (of agents
    that train), ``seeds`` (where they are not the file's), ``fit`` and ``particles`` (as in Row; the
    label then says so), ``label`` (the agent's name by default; "{agent}" is replaced), ``task_settings`` and
    ``agent_settings``.

    An agent of your own ("file.py:Class", "module:Class") is imported here, to check it: loading a preset runs the code
    of the files that it names.

    Raises UnknownNameError for unknown names and keys, FileNotFoundError, ValueError for a file that is not sound.
    """
    if Path(name).suffix != ".toml":
        if name not in list_presets():
            raise UnknownNameError("preset", str(name), list_presets())
        name = FOLDER / f"{name}.toml"
    file = Path(name)
    if not file.is_file():
        raise FileNotFoundError(f"no preset at path {str(file)!r}.")
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"preset {str(file)!r} is not a TOML file: {error}") from error
    return read_preset(content, str(file))


def read_preset(content: JSON, source: str = "preset") -> Preset:
    """The preset that a file's content describes; raises as ``load_preset``, naming ``source``."""
    _check_keys(f"key of {source}", content, ["description", "seeds", "sizes", "group"])
    sizes = _typed(content, "sizes", dict, {}, source)
    _check_keys(f"size of {source}", sizes, [one.name for one in fields(Sizes)])
    rows: list[Row] = []
    for group in _typed(content, "group", list, [], source):
        if not isinstance(group, dict):
            raise ValueError(f"group of {source} must be tables [[group]], got {group!r}.")
        _check_keys(f"key of a group of {source}", group, GROUP_KEYS)
        rows += _rows_of_group(group, source)
    if not rows:
        raise ValueError(f"{source} must have at least one [[group]] with tasks and agents.")
    check_rows(rows)
    seeds = tuple(_typed(content, "seeds", list, list(Preset.seeds), source))
    return Preset(tuple(rows), seeds, Sizes(**sizes), _typed(content, "description", str, "", source))


def _typed(table: JSON, key: str, kind: type[T], default: T, source: str) -> T:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise ValueError(f"{key} of {source} must be a {kind.__name__}, got {value!r}.")
    return value


def _rows_of_group(group: JSON, source: str) -> list[Row]:
    for key in ("tasks", "agents"):
        names = group.get(key)
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"a group of {source} must have a list {key!r} of names, got {names!r}.")
    particles = group.get("particles")
    label = _typed(group, "label", str, "{agent}", source)
    label += "" if particles is None else f", chosen among {particles} chains"
    task_settings, agent_settings = (
        _typed(group, key, dict, {}, source) for key in ("task_settings", "agent_settings")
    )
    left_out = _typed(group, "except", list, [], source)
    for agent in left_out:
        if agent not in AGENTS and agent not in group["agents"]:
            raise UnknownNameError(f"agent of except of {source}", str(agent), AGENTS.names())
    seeds = check_seeds(_typed(group, "seeds", list, [], source)) if "seeds" in group else []
    rows = [
        make_row(
            task, agent, group.get("budget", 0), label=label, unit=group.get("unit", Row.unit), seeds=tuple(seeds),
            fit=_typed(group, "fit", bool, True, source), particles=particles, task_settings=task_settings,
            agent_settings=agent_settings,
        )
        for task in group["tasks"]
        for name in group["agents"]
        for agent in (given_energy(task, task_settings) if name == EVERY_AGENT else [name])
        if agent not in left_out
    ]  # fmt: skip
    if not rows:
        raise ValueError(f"a group of {source} has no agents left: except = {left_out}.")
    return rows


def make_row(
    task: str, agent: str, budget: float, *, label: str = "{agent}", config: str | None = None, **options: Any
) -> Row:
    """A row; the budget is 0 for an agent that does not train, and "{agent}" stands for its name in the label.

    ``config="plain"`` puts settings from before the search below ``agent_settings``, and its name into the label.
    Budgets in seconds become floats and whole ones of other units integers, so that equal budgets have equal keys.
    """
    if config is not None:
        if not is_own_agent(agent):
            AGENTS[agent]  # a typo of the agent comes before the config
        options["agent_settings"] = plain_settings(config, agent) | options.get("agent_settings", {})
        label = f"{label}, {config}"
    row = Row(label, task, agent, **options)
    name = agent if row.own is None else row.own.label
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        if row.unit == "seconds":
            budget = float(budget)
        elif math.isfinite(budget) and budget == int(budget):
            budget = int(budget)
    return replace(row, label=label.replace("{agent}", name), budget=budget if row.trains else 0)


def given_energy(task: str, task_settings: JSON | None = None) -> list[str]:
    """All agents that a task with a given energy is for.

    They are all but DxMI, which learns an energy of its own from data, AnyStep and AnyClass, which have one of them
    inside, and those that need a denoiser or a gradient of the energy where the task gives none.
    """
    names = [name for name in AGENTS.names() if name not in (DxMI.name, AnyStep.name, AnyClass.name)]
    rows = [Row(name, task, name, task_settings=task_settings or {}) for name in names]
    return [row.agent for row in rows if _fits(row)]


def _fits(row: Row) -> bool:
    kind = AGENTS[row.agent]
    return (row.has_denoiser or not kind.needs_denoiser) and (row.track != "energy" or not kind.needs_gradient)


def _check_keys(kind: str, table: JSON, known: list[str]) -> None:
    for key in table:
        if key not in known:
            raise UnknownNameError(kind, key, known)
