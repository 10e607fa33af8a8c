"""Blocks of the agents' pages: docstrings, snippets, settings, and results of benchmarks/results/standard.json."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from docpages.docstrings import markdown, settings_table, table
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.benchmark.report import load_results
from dxmi_rl.benchmark.results import RULERS
from dxmi_rl.benchmark.tables import compact, count_seeds, number
from dxmi_rl.irl import DxMIConfig, list_recipes
from dxmi_rl.irl.recipe_files import recipe
from dxmi_rl.utils.settings import flat_settings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMON_MODULES = ("base",)
"""Their classes are shared by all agents, and their docstrings say nothing of one."""
COSTS = ("energy_evals", "energy_grad_evals", "policy_draws", "denoiser_calls", "seconds")
ARROWS = {"lower": "↓", "higher": "↑"}

NEW_PAGE = """\
# {name}

<!-- method -->
<!-- end -->

## When to use it

To be written: what it is for, what it costs.

## Example

```python
import dxmi_rl

task = dxmi_rl.make_task("8gaussians", backward="learned")
agent = dxmi_rl.make_agent("{name}", task, seed=0)
agent.learn(2_000_000, progress_bar=True)
x = agent.sample(10_000)
scores = dxmi_rl.evaluate(agent)
```

The same from the command line:

    dxmi-rl train {name} --task 8gaussians --budget 2000000 --task-set backward=learned

## Settings

<!-- settings -->
<!-- end -->

## Results

<!-- results -->
<!-- end -->
"""


def blocks(name: str) -> dict[str, str]:
    """Block -> Markdown of the page of the agent ``name``; raises UnknownNameError for another name."""
    return {"method": method(AGENTS[name]), "settings": settings(name), "results": results(name)}


def method(kind: type[Agent]) -> str:
    """The docstrings of the agent's module, of its class and of the classes of its family."""
    family = [
        cls for cls in kind.__mro__
        if issubclass(cls, Agent) and cls.__module__.rpartition(".")[2] not in COMMON_MODULES and cls.__doc__
    ]  # fmt: skip
    source = kind.__module__.replace(".", "/") + ".py"
    note = " The soft return and the kernels: [the method in one page](../method.md)." if kind.trains else ""
    end = f"Source: [{source}](../../{source}).{note} All agents: [index](index.md)."
    return "\n\n".join([markdown(sys.modules[kind.__module__]), *map(markdown, family), end])


# Settings -------------------------------------------------------------------------------------------------------------


def search_record() -> dict[str, dict[str, Any]]:
    """Agent -> how its settings were searched: trials, budget, seeds, task, score, default, best."""
    found: dict[str, dict[str, Any]] = json.loads((RESULTS / "tuning.json").read_text(encoding="utf-8"))
    return found


def settings_that_run(name: str) -> Any:
    """The Config of an agent that is given none; DxMI takes the recipe of its task."""
    kind = AGENTS[name]
    return kind.Config() if name == "dxmi" else kind("8gaussians").config


def settings(name: str) -> str:
    """The table of settings, and how they were found."""
    found = search_record().get(name)
    if name == "dxmi":
        text = (
            "`DxMI(task)` starts from a recipe, which says every setting of the game, of the energy and of the agent "
            "inside: a TOML file in [dxmi_rl/irl/recipes](../../dxmi_rl/irl/recipes). `print(agent)` names the one it "
            "took, `recipe=` chooses another. An agent inside that the file has no table for keeps its own defaults. "
            "`agent_settings` are all settings of the agent inside; single ones are changed by "
            '`agent_settings={"policy": {"width": 64}}`. The defaults here are those of `DxMIConfig()`, without a '
            "recipe. Settings that a recipe changes:\n\n" + recipes_table()
        )
    elif found is None:
        text = "The defaults were not tuned."
    else:
        before, after = (number(found[key]) if found[key] is not None else "diverged" for key in ("default", "best"))
        text = (
            f"The settings that were searched are those of the best of {found['trials']} trials of "
            f"{found['budget']:,} transitions on {count_seeds([found['seeds']])} of {found['task']['name']}, as for "
            "every agent ([tuning](../tuning.md)): "
            f"`{found['score']}` {before} before the search, {after} after it."
        )
        defaults = flat_settings(AGENTS[name].Config())
        if changed := [key for key, value in found["settings"].items() if defaults[key] != value]:
            names = ", ".join(f"`{key}`" for key in changed)
            text += f" Changed by hand since: {names}."
    return f"{text}\n\n{settings_table(settings_that_run(name), left_out=('agent_settings',))}"


def recipes_table() -> str:
    """The settings of the game and its energy in which a recipe of DxMI differs from its Config, a column each."""
    names = list_recipes()
    defaults, *found = (flat_settings(config) for config in (DxMIConfig(), *map(recipe, names)))
    keys = [key for key in defaults if not key.startswith(("recipe", "agent"))]
    rows = [[f"`{key}`", *(f"`{one[key]}`" for one in found)] for key in keys if {str(one[key]) for one in found}
            != {str(defaults[key])}]  # fmt: skip
    return table(["setting", *(f"`{name}`" for name in names)], rows)


# Results --------------------------------------------------------------------------------------------------------------


@functools.cache
def standard() -> dict[str, Any]:
    """The results of the standard preset."""
    return load_results(RESULTS / "standard.json")


def results(name: str) -> str:
    """The agent's rows: rank, score with interval, what bounds do not see, and costs; and the commands."""
    rows = [row for row in standard()["summary"] if row["agent"] == name]
    if not rows:
        more = " Results of DxMI: [results](../results.md#8-gaussians-from-data)." if name == "dxmi" else ""
        return f"Not in the [leaderboard](../leaderboard.md).{more}"
    header = (
        "task", "rank", "score", "modes", "EUBO", "sliced W2", "exact sampler", "base sampler", "transitions",
        "energy evaluations", "with gradients", "policy draws", "denoiser calls", "seconds", "runs",
    )  # fmt: skip
    again = shlex.split(rows[0]["command"])
    at = again.index("--tasks")
    return "\n\n".join([
        "Interquartile means over seeds with 95 % intervals; costs of training are means. Rank, exact sampler and base "
        f"sampler refer to the score. The fitted kernel is {RULERS[standard()['schema']]}. All agents side by side: "
        "[leaderboard](../leaderboard.md).",
        table(header, [_result(row) for row in rows]),
        f"Command: `{standard()['command']}`. This agent alone: `{shlex.join(again[:at] + again[at + 2 :])}`.",
    ])  # fmt: skip


def _result(row: dict[str, Any]) -> list[str]:
    task, scores, costs = standard()["tasks"][row["task"]], row["scores"], row["costs"]
    title = row["task"] if row["label"] == row["agent"] else f"{row['task']}, {row['label']}"
    title += "" if task["energy"] == "target" else f", {task['energy']} energy"
    key = task["score"]
    score = f"`{key}` {ARROWS[task['better']]} {interval_text(scores[key])}" if key in scores else ""
    others = [number(scores[other]["iqm"]) if other in scores else "" for other in ("modes", "eubo", "sliced_w2")]
    known = ["" if task[other] is None else number(task[other]) for other in ("floor", "base")]
    spent = [compact(costs[cost]) if cost in costs else "" for cost in COSTS]  # all runs failed
    runs = f"{row['runs']} of {_seeds(row)}" + (f", {row['diverged']} diverged" if row["diverged"] else "")
    return [title, rank(row), score, *others, *known, compact(row["budget"]), *spent, runs]


def _seeds(row: dict[str, Any]) -> int:
    """Number of seeds of a row: its own, or those of the comparison."""
    return len(row.get("seeds", standard()["seeds"]))


def rank(row: dict[str, Any]) -> str:
    """Place of a row among the rows of its task all of whose runs finished or diverged: ``2 of 9``, or nothing."""
    task = standard()["tasks"][row["task"]]
    same = [
        other for other in standard()["summary"]
        if other["task"] == row["task"] and task["score"] in other["scores"]
        and other["runs"] + other["diverged"] == _seeds(other)
    ]  # fmt: skip
    sign = 1 if task["better"] == "lower" else -1
    same.sort(key=lambda other: sign * other["scores"][task["score"]]["iqm"])
    return f"{same.index(row) + 1} of {len(same)}" if row in same else ""


def interval_text(statistics: dict[str, Any]) -> str:
    """``0.18 [0.17, 0.2]``."""
    text = number(statistics["iqm"])
    return f"{text} [{number(statistics['low'])}, {number(statistics['high'])}]" if "low" in statistics else text
