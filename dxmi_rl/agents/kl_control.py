"""Callbacks of ``learn`` that watch how far a sampler has left its base sampler: stop there, or steer beta."""

from __future__ import annotations

import math
from typing import Any

from dxmi_rl.agents.aims import has_base_density, kl_to_base
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.dxdp import DxDP
from dxmi_rl.agents.shared import SharedAgents
from dxmi_rl.targets import RewardEnergy
from dxmi_rl.utils.checks import NonFiniteError, check_real

CHAINS = 256
"""Chains that one look at the divergence draws; they ask for no energy."""
RATE = 0.1
"""Largest change of log beta per iteration."""


class StopAtKL:
    """Ends ``learn`` when KL(chains || base sampler's chains) has reached ``max_kl`` nats.

        agent.learn(100_000, callback=StopAtKL(2.0))

    It works with every agent that has a density, also with those that aim at the largest reward and that no beta holds.
    It looks after every iteration, at CHAINS chains of its own, so the agent's random numbers stay as they are.

    Attributes:
        kl: the divergence at the last look, in nats; None before the first.

    Raises ValueError for max_kl <= 0, and in use for an agent without a density or a task without a base
    sampler that has one.
    """

    def __init__(self, max_kl: float) -> None:
        self.max_kl = check_real("max_kl", max_kl, strict=True)
        self.kl: float | None = None

    def __call__(self, agent: Agent[Any]) -> bool:
        """Called by ``learn`` after each iteration: False stops."""
        self.kl = _look(agent)
        return not self.kl >= self.max_kl  # where it is NaN, learn steps back


class AdaptiveBeta:
    """Steers the task's beta so that KL(chains || base sampler's chains) comes to ``target_kl`` nats and stays there.

        task = make_task("8gaussians", reward=r, backward="base")
        control = AdaptiveBeta(2.0)
        agent = make_agent("ppo", task).learn(100_000, callback=control)
        control.beta  # that of the end

    After every iteration log beta changes by RATE clip(log(KL / target_kl), -1, 1), from the divergence of CHAINS
    chains of its own: a proportional controller, as of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2). The
    reward's energy -r / beta changes in place: the task keeps the last beta, and a checkpoint holds it. DxDP's kept
    energies follow; its gradient targets of the last rollouts, a few iterations old, do not.

    Attributes:
        beta: strength of the pull to the base sampler, in units of the reward; None before the first iteration.
        kl: the divergence at the last look, in nats; None before the first.

    Raises ValueError for target_kl <= 0, and in use for a task whose energy is not a reward that tilts its base
    sampler, one with several classes, or an agent that aims at the largest reward, which no beta holds.
    """

    def __init__(self, target_kl: float) -> None:
        self.target_kl = check_real("target_kl", target_kl, strict=True)
        self.beta: float | None = None
        self.kl: float | None = None

    def __call__(self, agent: Agent[Any]) -> None:
        """Called by ``learn`` after each iteration."""
        energy = agent.mdp.energy.function
        if not isinstance(energy, RewardEnergy) or len(agent.task.labels) > 1:
            raise ValueError(
                "AdaptiveBeta needs a task with a reward and backward='base', and one class, got task "
                f"{agent.task.name!r} with backward={agent.task.config.backward!r} and label={agent.task.config.label}."
            )
        if not all(_held(part) for part in _parts(agent)):
            raise ValueError(f"agent {agent.name!r} aims at the largest reward, and no beta holds it: use StopAtKL.")
        self.kl = _look(agent)
        if math.isnan(self.kl):  # learn steps back
            return
        error = math.log(max(self.kl, 1e-12) / self.target_kl)
        self.beta = energy.beta * math.exp(RATE * min(1.0, max(-1.0, error)))
        for part in _parts(agent):
            _scale_energies(part, energy.beta / self.beta)
        energy.beta = self.beta


def _parts(agent: Agent[Any]) -> list[Agent[Any]]:
    """The agents inside one that holds several, or itself."""
    return list(agent.agents.values()) if isinstance(agent, SharedAgents) else [agent]


def _held(agent: Agent[Any]) -> bool:
    return agent.held_by_beta and getattr(agent.config, "objective", "soft") != "terminal"


def _look(agent: Agent[Any]) -> float:
    """The divergence, NaN where the chains have left the finite numbers."""
    if not (agent.has_density and has_base_density(agent.mdp)):
        raise ValueError(f"agent {agent.name!r} on task {agent.task.name!r} has no divergence from a base sampler.")
    try:
        chains = agent.sample_trajectory(CHAINS, seed=agent.costs.timesteps)
    except NonFiniteError:
        return math.nan
    return kl_to_base(agent.mdp, chains)


def _scale_energies(agent: Agent[Any], factor: float) -> None:
    """Energies that an agent keeps were asked for at another beta."""
    if isinstance(agent, DxDP):
        kept, model = agent.memory.trajectories, agent.energy_model
        if kept is not None and kept.energy is not None:
            kept.energy = factor * kept.energy
        if model is not None:
            model.energy, model.gradient = factor * model.energy, factor * model.gradient
