"""Rewards: their mean, and how far a sampler that follows one has left what the reward tilts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dxmi_rl.diffusion import IdentitySampler
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
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
    if density is not None and _has_base(mdp):
        generator = torch.Generator(mdp.device).manual_seed(seed)
        found["kl_base"] = kl_to_base(mdp, mdp.rollout(density, min(chains, CHAINS), generator))
    return found


def quick_reward_scores(task: Task, target: Target, final: Tensor, trajectory: Trajectory | None) -> dict[str, float]:
    """``reward`` and ``kl_base`` of one set of samples, and of the chains that made them, for learning curves."""
    energy = task.mdp.energy.function
    tilting = energy if isinstance(energy, RewardEnergy) else target.tilting if isinstance(target, Tilted) else None
    if tilting is None:
        return {}
    found = {"reward": _mean_reward(tilting, final)}
    if trajectory is not None and _has_base(task.mdp):
        found["kl_base"] = kl_to_base(task.mdp, trajectory.select(slice(QUICK_CHAINS)))
    return found


@torch.no_grad()
def kl_to_base(mdp: DenoisingMDP, trajectory: Trajectory) -> float:
    """KL of whole chains of a policy to those of the base sampler, in nats, from some of them; at least that of x_T.

    The base sampler must have noise at every step.
    """
    base = mdp.base
    x, x_next, t = trajectory.transitions()
    log_base = gaussian_log_prob(x_next, base.mean(x, t), per_step(base.sigma, t, x).log())
    return float((trajectory.log_prob.flatten() - log_base).double().mean()) * mdp.horizon


def _has_base(mdp: DenoisingMDP) -> bool:
    """Whether there is a base sampler with a density."""
    return not (mdp.base.deterministic or isinstance(mdp.base, IdentitySampler))


def _mean_reward(energy: RewardEnergy, x: Tensor) -> float:
    with torch.no_grad():
        return float(energy.rewards(x).double().mean())
