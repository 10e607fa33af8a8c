"""Divergence: what ends a training run, and what is never written over the last good checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dxmi_rl.agents.checkpoint import saved_modules
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.utils.checks import DivergenceError, NonFiniteError
from dxmi_rl.utils.torch_tools import all_weights_finite

if TYPE_CHECKING:
    from dxmi_rl.agents.base import Agent


def iterate(agent: Agent[Any]) -> dict[str, float | Tensor]:
    """``agent.iterate()``; what another library raises because the weights are gone becomes a DivergenceError."""
    try:
        return agent.iterate()
    except (NonFiniteError, EnergyError):
        raise
    except Exception as error:
        if all_weights_finite(agent.policy):
            raise
        raise _divergence(agent, "policy weights", math.nan) from error


def note_losses(agent: Agent[Any], log: Mapping[str, float | Tensor]) -> None:
    """Put the losses of an iteration into ``agent.log``; raises DivergenceError where one is not finite."""
    agent.log = {key: float(value.detach() if isinstance(value, Tensor) else value) for key, value in log.items()}
    bad = [key for key, value in agent.log.items() if not math.isfinite(value)]
    # A loss is from before its update: the weights may have gone first.
    if not all_weights_finite(agent.policy):
        agent.log["policy weights"] = math.nan
        bad.append("policy weights")
    if bad:
        raise _divergence(agent, bad[0], agent.log[bad[0]])


def save_good_state(agent: Agent[Any], path: str | os.PathLike[str]) -> Path:
    """``agent.save`` for a state that can go on: finite weights and optimizers, and samples that are finite.

    Raises DivergenceError, or NonFiniteError for samples, and then leaves the file alone.
    """
    for name, module in saved_modules(agent).items():
        if not all_weights_finite(module):
            raise _divergence(agent, f"a weight of {name}", math.nan)
    for name, optimizer in agent.all_optimizers().items():
        numbers = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        if not all(bool(torch.isfinite(value).all()) for value in numbers):
            raise _divergence(agent, f"the state of optimizer {name}", math.inf)
    agent.sample(16, seed=0)
    return agent.save(path)


def _divergence(agent: Agent[Any], name: str, value: float) -> DivergenceError:
    """The exception that ends the training of an agent."""
    return DivergenceError(
        f"{agent.name} on {agent.task.name!r} diverged at timestep {agent.costs.timesteps}: {name} is {value}. Lower "
        "the learning rates, or raise tau."
    )
