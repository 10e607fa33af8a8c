"""Divergence: when a training run steps back, what ends it, and what is never written over the last good checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dxmi_rl.agents.checkpoint import saved_modules, set_training_state, training_state
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.utils.checks import DivergenceError, NonFiniteError
from dxmi_rl.utils.torch_tools import all_weights_finite

if TYPE_CHECKING:
    from dxmi_rl.agents.base import Agent

NO_DISTRIBUTION = re.compile("Expected (parameter|value argument) .* distribution ")
"""How torch refuses the parameters or values of a distribution, such as a standard deviation of 0 or infinity."""
SETBACKS = 5
"""A run that diverges more often ends."""
SETBACK_FACTOR = 0.5
"""What every learning rate is multiplied by at a step back."""


class GoodState:
    """The last training state of an agent that could go on, kept in memory; DivergenceError where none can."""

    def __init__(self, agent: Agent[Any]) -> None:
        self.agent = agent
        require_good(agent, samples=False)
        self.keep()

    def look(self, log: Mapping[str, float | Tensor], *, samples: bool) -> None:
        """Note the losses of an iteration, and keep a state that can go on; step back from one that cannot.

        ``samples`` are looked at, too, where the state will be saved.
        """
        try:
            note_losses(self.agent, log)
            require_good(self.agent, samples=samples)
        except (NonFiniteError, DivergenceError) as error:
            self.step_back(error)
        else:
            self.keep()

    def keep(self) -> None:
        """Take the present state."""
        self.tensors = {key: value.detach().clone() for key, value in training_state(self.agent).items()}

    def step_back(self, error: NonFiniteError | DivergenceError) -> None:
        """Return to the kept state, with lower learning rates from then on; after too many times raise ``error`` there.

        What was spent stays spent.
        """
        agent = self.agent
        set_training_state(agent, {key: value.clone() for key, value in self.tensors.items()})
        if agent.costs.setbacks >= SETBACKS:
            raise error
        agent.costs.setbacks += 1
        agent.log = {key: value for key, value in agent.log.items() if math.isfinite(value)}


def iterate(agent: Agent[Any]) -> dict[str, float | Tensor]:
    """``agent.iterate()``; what another library raises because the weights are gone, or torch because they make no
    distribution, becomes a DivergenceError, as does a learned energy that is not finite; another EnergyError says when
    it happened, also where it is the energy that led a policy which is told its gradient out of the finite numbers.
    """
    try:
        return _iterated(agent)
    except NonFiniteError as error:
        if agent.mdp.has_energy and not _learns_energy(agent):
            start = agent.mdp.reset(16, torch.Generator(agent.mdp.device).manual_seed(0))
            try:
                agent.mdp.energy.value_and_gradient(start)
            except EnergyError as reason:
                raise _stopped(agent, reason) from error
        raise
    except EnergyError as error:
        if _learns_energy(agent):
            raise _divergence(agent, "its energy", math.nan) from error
        raise _stopped(agent, error) from error
    except Exception as error:
        if _policy_is_finite(agent) and NO_DISTRIBUTION.match(str(error)) is None:
            raise
        raise _divergence(agent, "policy weights", math.nan) from error


def _learns_energy(agent: Agent[Any]) -> bool:
    return agent.mdp.energy.function in agent.modules().values()


def _stopped(agent: Agent[Any], error: EnergyError) -> EnergyError:
    """The error, with when it happened."""
    return EnergyError(f"{agent.name} on {agent.task.name!r} stopped at timestep {agent.costs.timesteps}: {error}")


def _iterated(agent: Agent[Any]) -> dict[str, float | Tensor]:
    try:
        return agent.iterate()
    finally:
        if agent.needs_gradient and agent.mdp.energy.differentiable is False:
            agent.require_energy()  # it was swapped for one without, whatever else came of it


def note_losses(agent: Agent[Any], log: Mapping[str, float | Tensor]) -> None:
    """Put the losses of an iteration into ``agent.log``; raises DivergenceError where one is not finite."""
    agent.log = {key: float(value.detach() if isinstance(value, Tensor) else value) for key, value in log.items()}
    bad = [key for key, value in agent.log.items() if not math.isfinite(value)]
    # A loss is from before its update: the weights may have gone first.
    if not _policy_is_finite(agent):
        agent.log["policy weights"] = math.nan
        bad.append("policy weights")
    if bad:
        raise _divergence(agent, bad[0], agent.log[bad[0]])


def require_good(agent: Agent[Any], samples: bool) -> None:
    """Raise DivergenceError for weights or optimizers that are not finite, NonFiniteError for such ``samples``."""
    for name, module in saved_modules(agent).items():
        if not all_weights_finite(module):
            raise _divergence(agent, f"a weight of {name}", math.nan)
    for name, optimizer in agent.all_optimizers().items():
        numbers = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]
        if not all(bool(torch.isfinite(value).all()) for value in numbers):
            raise _divergence(agent, f"the state of optimizer {name}", math.inf)
    if samples:
        agent.sample(16, seed=0)


def _policy_is_finite(agent: Agent[Any]) -> bool:
    """Whether its policy's weights are; one of your own without a density may have no policy."""
    policy = getattr(agent, "policy", None)
    return policy is None or all_weights_finite(policy)


def _divergence(agent: Agent[Any], name: str, value: float) -> DivergenceError:
    """The exception that ends the training of an agent."""
    return DivergenceError(
        f"{agent.name} on {agent.task.name!r} diverged at timestep {agent.costs.timesteps}: {name} is {value}. Lower "
        "the learning rates, or raise tau."
    )
