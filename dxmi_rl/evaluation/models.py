"""What evaluate is given: the task of a model and the density of its policy, also of other libraries' models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from dxmi_rl.agents import Agent
from dxmi_rl.agents.wrapped.action_density import (
    ActionDensity,
    check_as_stock,
    sb3_density,
    told_coordinates,
    torchrl_density,
)
from dxmi_rl.rollout import Policy
from dxmi_rl.tasks import Task, make_task
from dxmi_rl.utils.checks import check_batch

DYNAMICS = ("target", "horizon", "schedule", "schedule_options", "base", "eta", "sigma_last")
"""What an action does, by the settings of a task."""


def resolve(
    model: Any, task: str | Task | None, policy: nn.Module | None, coordinates: str | None, horizon: int | None = None
) -> tuple[Task, Policy | None]:
    """The task that ``model`` is scored on, and its density over next states (None: it has none).

    Takes the arguments of ``evaluate``. Raises TypeError for another model, ValueError for a missing task or one that
    is not the model's.
    """
    named = task.name if isinstance(task, Task) else task
    if isinstance(model, Agent):
        if named is not None and named != model.task.name:
            raise ValueError(f"the agent was built on task {model.task.name!r}, not on {named!r}.")
        if isinstance(task, Task) and task is not model.task:
            _check_same(model.task, task if horizon is None else task.at(horizon))
        return model.task, model.density(policy) if model.has_density else None
    if isinstance(model, ActionDensity):
        if not isinstance(task, Task) or task.mdp is not model.mdp:
            raise ValueError(f"task must be the built Task whose mdp the ActionDensity was made on, got {named!r}.")
        if horizon not in (None, model.mdp.horizon):
            raise ValueError(f"horizon must be {model.mdp.horizon}, the ActionDensity's, got {horizon!r}.")
        return task, model
    library = _library(model)
    own, found = _environment(model)
    if own is not None and named is not None and named != own.name:
        raise ValueError(f"the model's environment is on task {own.name!r}, not on {named!r}.")
    if isinstance(task, Task) or (own is None and task is not None):
        built = make_task(task)
        if own is not None:
            _check_same(own, built, DYNAMICS)
    elif own is not None:
        built = own
    else:
        raise ValueError("task must name the task that a model of SB3 or TorchRL is scored on, got None.")
    coordinates = coordinates or found
    built = built if horizon is None else built.at(horizon)
    if library == "sb3":
        told = coordinates or told_coordinates(model.policy.action_space, built.target.plot_range)
        density = sb3_density(model.policy, built.mdp, told)
        check_as_stock(density)
        return built, density
    return built, torchrl_density(model, built.mdp, coordinates or "noise")


def sampled(agent: Agent[Any], n: int, seed: int) -> Tensor:
    """``agent.sample``; raises TypeError or ValueError for what are no n samples of its task."""
    x, mdp = agent.sample(n, seed=seed), agent.mdp
    check_batch(f"what {type(agent).__name__}.sample returns", x, mdp.event_shape, device=mdp.device, batch=n)
    return x


def _check_same(built: Task, given: Task, keys: Sequence[str] = ()) -> None:
    """Raises ValueError for a task of another configuration than the model's, or of others of these ``keys``: it would
    not be what the model was trained on.
    """
    own, other = built.fingerprint(), given.fingerprint()
    for key in keys or own.keys() | other.keys():
        if own.get(key) != other.get(key):
            raise ValueError(f"task must be the model's, with {key} = {own.get(key)}, got one with {other.get(key)}.")


def _library(model: Any) -> str:
    """Which library made the model, "sb3" or "torchrl"; raises TypeError for neither."""
    if hasattr(getattr(model, "policy", None), "observation_space"):
        return "sb3"
    if hasattr(model, "get_dist") and hasattr(model, "in_keys"):
        return "torchrl"
    raise TypeError(
        "model must be an agent, an algorithm of Stable-Baselines3 or a ProbabilisticActor of TorchRL, got "
        f"{type(model).__name__}."
    )


def _environment(model: Any) -> tuple[Task | None, str | None]:
    """Task and action coordinates of an SB3 model's environment, where it still has one and it is one of ours.

    Raises TypeError for observations or actions that a wrapper changes: the policy's are not the environment's then.
    """
    env = getattr(model, "env", None)
    if getattr(env, "norm_obs", False):  # SB3's wrappers pass on the attributes of what they wrap
        raise TypeError("a policy on VecNormalize's observations has no density here: use norm_obs=False.")
    for kind in (gym.ActionWrapper, gym.ObservationWrapper):
        if env is not None and any(env.env_is_wrapped(kind)):
            raise TypeError(
                f"a policy behind a gymnasium.{kind.__name__} has no density here: train it on the environment itself."
            )
    while env is not None and not isinstance(getattr(env, "task", None), Task):
        if hasattr(env, "remotes"):  # SubprocVecEnv: the task stays in its process
            return None, str(env.get_attr("coordinates")[0])
        env = env.venv if hasattr(env, "venv") else env.envs[0].unwrapped if hasattr(env, "envs") else None
    return (None, None) if env is None else (env.task, str(env.coordinates))


def beyond_box(density: ActionDensity, n: int, seed: int) -> float:
    """Fraction of action coordinates, over n episodes, that the training environment would have clipped."""
    assert density.bounds is not None
    if density.squashed is not None:
        return 0.0  # by construction; recovered from the next state, an action at the edge may round beyond it
    mdp, (low, high) = density.mdp, density.bounds
    generator = torch.Generator(mdp.device).manual_seed(seed + 5)
    x, beyond = mdp.reset(n, generator), torch.zeros((), device=mdp.device)
    for t in range(mdp.horizon):
        noise = torch.randn(x.shape, generator=generator, device=mdp.device)
        x_next, _ = density.transport(x, t, noise)
        action = mdp.action(x, t, x_next, density.coordinates).flatten(1)
        beyond += ((action < low) | (action > high)).float().mean()
        x = x_next
    return float(beyond) / mdp.horizon
