"""What an agent aims at, beside what the task asks for, and how far it has left its base sampler."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from dxmi_rl.diffusion import IdentitySampler
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.targets import Tilted
from dxmi_rl.tasks import Task

if TYPE_CHECKING:
    from dxmi_rl.agents.base import Agent


def check_cases(agent: Agent[Any]) -> None:
    """Raises ValueError for a task with several horizons or classes, where the agent does not take them."""
    task, name = agent.task, agent.name
    if len(task.horizons) > 1 and not agent.takes_horizons:
        raise ValueError(f"agent {name!r} takes one horizon, got {task.horizons}: use AnyStep around it.")
    if len(task.labels) > 1 and not agent.takes_labels:
        raise ValueError(f"agent {name!r} takes one class, got label={task.labels}: use AnyClass around it.")


def require_policy(agent: Agent[Any]) -> None:
    """Raises TypeError for an agent that samples with a policy and has made none."""
    if agent.has_density and not hasattr(agent, "policy"):
        raise TypeError(f"_build of {type(agent).__name__} must set self.policy, and did not.")


def check_own_steps(name: str, mdp: DenoisingMDP) -> None:
    """Raises ValueError where agents are to stay near the base sampler, for one with other steps than its."""
    if not mdp.kernel.draws_backwards:
        raise ValueError(f"agent {name!r} does not start at the base sampler: backward must not be 'base'.")


def warn_of_density(name: str, task: Task) -> None:
    """Warn where an agent that tilts the base sampler by the whole energy is given the data's beside a reward."""
    if isinstance(task.target, Tilted) and not task.energy_replaced:
        warnings.warn(
            f"agent {name!r} aims at the base sampler tilted by the whole energy, which has the data's density beside "
            "the reward here: pass the reward with backward='base'.", stacklevel=5,
        )  # fmt: skip


@torch.no_grad()
def kl_to_base(mdp: DenoisingMDP, trajectory: Trajectory) -> float:
    """KL of whole chains of a policy to those of the base sampler, in nats, from some of them; at least that of x_T.

    The base sampler must have noise at every step.
    """
    base = mdp.base
    x, x_next, t = trajectory.transitions()
    log_base = gaussian_log_prob(x_next, base.mean(x, t), per_step(base.sigma, t, x).log())
    return float((trajectory.log_prob.flatten() - log_base).double().mean()) * mdp.horizon


def has_base_density(mdp: DenoisingMDP) -> bool:
    """Whether there is a base sampler with a density, from which ``kl_to_base`` can be taken."""
    return not (mdp.base.deterministic or isinstance(mdp.base, IdentitySampler))
