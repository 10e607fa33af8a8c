"""Rewards: their mean, and how far a sampler that follows one has left what the reward tilts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.agents.aims import has_base_density, kl_to_base
from dxmi_rl.networks.features import load_features
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.targets import RewardEnergy, Target, Tilted
from dxmi_rl.tasks import Task

CHAINS, QUICK_CHAINS = 10_000, 1000
"""Chains of ``kl_base``, at most, and on learning curves."""


def reward_scores(
    task: Task, target: Target, density: Policy | None, draw: Callable[[int], Tensor], scores: dict[str, float], *,
    samples: int, chains: int, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Scores of a sampler on a task with a reward, those that apply; none on others.

    Returns:
        ``kl_untilted``, KL(samples || p) in nats, on a Tilted target where ``scores`` have ``kl_marginal`` and log Z is
        known: kl_marginal + E[r] / beta - log Z. ``reward``, the mean of r over ``draw(samples)``, where a base sampler
        is tilted (Tilted targets give it themselves). ``kl_base``, as ``kl_to_base`` of the density gives it.
    """
    energy, mdp = task.mdp.energy.function, task.mdp
    found: dict[str, float] = {}
    if isinstance(energy, RewardEnergy):
        found["reward"] = _mean_reward(energy, draw(samples))
    elif not isinstance(target, Tilted):
        return {}
    elif "kl_marginal" in scores and target.log_z is not None:
        found["kl_untilted"] = scores["kl_marginal"] + scores["reward"] / target.beta - target.log_z
    if density is not None and has_base_density(mdp):
        generator = torch.Generator(mdp.device).manual_seed(seed)
        found["kl_base"] = kl_to_base(mdp, mdp.rollout(density, min(chains, CHAINS), generator))
    return found


def quick_reward_scores(task: Task, target: Target, final: Tensor, trajectory: Trajectory | None) -> dict[str, float]:
    """``reward`` and ``kl_base`` of one set of samples, and of the chains that made them, for learning curves."""
    energy = task.mdp.energy.function if len(task.labels) < 2 else None
    tilting = energy if isinstance(energy, RewardEnergy) else target.tilting if isinstance(target, Tilted) else None
    if tilting is None:
        return {}
    found = {"reward": _mean_reward(tilting, final)}
    if trajectory is not None and has_base_density(task.mdp):
        found["kl_base"] = kl_to_base(task.mdp, trajectory.select(slice(QUICK_CHAINS)))
    return found


def class_scores(
    model: Any, *, samples: int, chains: int, seed: int
) -> dict[str, float]:  # fmt: skip
    """Scores of an agent on several classes, means over them: ``class_accuracy``, the part of the samples that the
    target's classifier takes for their class, where it has one (that of digits is also the reward "digit-class", and
    then no witness); and of a reward ``reward`` and ``kl_base``.
    """
    found: dict[str, list[float]] = {}
    each = max(1, samples // len(model.task.labels))
    network: Any = load_features(model.task.target.features, model.mdp.device)
    for label in model.task.labels:
        part = model.of_class(label)
        x, energy = part.sample(each, seed=seed), part.mdp.energy.function
        if hasattr(network, "logits"):
            right = (network.logits(x).argmax(1) == label).double().mean()
            found.setdefault("class_accuracy", []).append(float(right))
        if isinstance(energy, RewardEnergy):
            found.setdefault("reward", []).append(_mean_reward(energy, x))
            paths = part.sample_trajectory(max(1, min(chains, CHAINS) // len(model.task.labels)), seed=seed)
            found.setdefault("kl_base", []).append(kl_to_base(part.mdp, paths))
    return {key: sum(values) / len(values) for key, values in found.items()}


def _mean_reward(energy: RewardEnergy, x: Tensor) -> float:
    with torch.no_grad():
        return float(energy.rewards(x).double().mean())
