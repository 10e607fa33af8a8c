"""Small agents for tests, and their states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dxmi_rl import make_agent, make_task
from dxmi_rl.agents import AGENTS, Agent
from dxmi_rl.agents.plain import has_plain_settings, plain_settings
from dxmi_rl.tasks import Task
from dxmi_rl.utils.settings import changed, setting_names
from dxmi_rl.utils.torch_tools import seeded

BATCH = 32
PRETRAINING = {"iterations": 50, "batch_size": 64, "width": 16}
SMALL = {
    "n_trajectories": BATCH, "policy.width": 16, "policy.depth": 2, "value.width": 16, "value.depth": 2, "width": 16,
    "warmup_iterations": 2, "warmup_value_steps": 2, "gradient_steps": 2, "batch_size": 40,
}  # fmt: skip
SMALL_ENERGY = {"energy.width": 16, "energy.depth": 2}


def task_for(name: str, **changes: Any) -> Task:
    """A task on which the agent works: the learned kernel, so that it has a state to keep as well."""
    with seeded(0):  # the kernel's network
        if name == "dxmi":
            return make_task("8gaussians-data", pretraining=PRETRAINING, **changes)
        return make_task("8gaussians", **{"backward": "learned", **changes})


def small(name: str, task: Any = None, seed: int = 0, **settings: Any) -> Agent[Any]:
    """The agent with those of the small settings that it has."""
    task = task_for(name) if task is None else task
    kind = settings.get("policy.kind", settings.get("policy", {}).get("kind", "auto"))
    images = isinstance(task, Task) and len(task.event_shape) == 3
    tuned = kind == "fine-tuned" or (kind == "auto" and images)
    chosen = small_settings(name, tuned)
    if name == "dxmi":
        chosen |= SMALL_ENERGY | {"agent_settings": small_settings(settings.get("agent", "dxdp"), tuned)}
    elif name in ("any-step", "any-class"):
        inside = changed(plain_config("dxdp"), small_settings("dxdp", tuned), "setting")
        chosen["config"] = AGENTS[name].Config(agent="dxdp", agent_settings=inside)
    else:
        chosen["config"] = plain_config(name)
    return make_agent(name, task, seed=seed, **{**chosen, **settings})


def train(agent: Agent[Any], iterations: int, **options: Any) -> Agent[Any]:
    """Train for this number of iterations; solvers, which have none, are asked for one transition."""
    return agent.learn(max(1, iterations * agent.timesteps_per_iteration), **options)


def plain_config(name: str) -> Any:
    """The agent's Config with plain settings, so that a new search of the defaults moves no test."""
    settings = plain_settings("plain", name) if has_plain_settings(name) else {}
    return changed(AGENTS[name].Config(), settings, "setting")


def plain_agent(name: str, task: Any, **settings: Any) -> Agent[Any]:
    """The agent with plain settings beside ``settings``."""
    return make_agent(name, task, config=plain_config(name), **settings)


def small_settings(name: str, fine_tuned: bool = False) -> dict[str, Any]:
    """Those of SMALL that the agent has; a fine-tuned network has its own size."""
    known = set(setting_names(AGENTS[name].Config()))
    chosen = {key: value for key, value in SMALL.items() if key in known}
    return {key: value for key, value in chosen.items() if not (fine_tuned and key.startswith("policy."))}


def state(agent: Agent[Any]) -> dict[str, Tensor]:
    """All tensors of the agent's modules, copied."""
    return {
        f"{name}.{key}": value.clone()
        for name, module in agent.modules().items()
        for key, value in module.state_dict().items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def skip_without_extra(name: str) -> None:
    """Skip when the agent's library is not installed."""
    if name.startswith("sb3"):
        pytest.importorskip("stable_baselines3")
    if name.startswith("torchrl"):
        pytest.importorskip("torchrl")
