"""Rewards: their mean, and how far a sampler that follows one has left what the reward tilts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dxmi_rl.diffusion import IdentitySampler
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy
from dxmi_rl.targets import RewardEnergy, Target, Tilted
from dxmi_rl.tasks import Task

CHAINS = 10_000
"""Chains of ``kl_base``."""


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
    energy = task.mdp.energy.function
    found: dict[str, float] = {}
    if isinstance(target, Tilted):
        if "kl_marginal" in scores and target.log_z is not None:
            found["kl_untilted"] = scores["kl_marginal"] + scores["reward"] / target.beta - target.log_z
    elif isinstance(energy, RewardEnergy):
        found["reward"] = float(energy.rewards(draw(samples)).double().mean())
    else:
        return {}
    if density is not None and not task.mdp.base.deterministic and not isinstance(task.mdp.base, IdentitySampler):
        found["kl_base"] = kl_to_base(task.mdp, density, chains=min(chains, CHAINS), seed=seed)
    return found


@torch.no_grad()
def kl_to_base(mdp: DenoisingMDP, density: Policy, *, chains: int = CHAINS, seed: int = 0) -> float:
    """KL of whole chains of a policy to those of the base sampler, in nats, from so many chains; at least that of x_T.

    The base sampler must have noise at every step.
    """
    base = mdp.base
    trajectory = mdp.rollout(density, chains, torch.Generator(mdp.device).manual_seed(seed))
    x, x_next, t = trajectory.transitions()
    log_base = gaussian_log_prob(x_next, base.mean(x, t), per_step(base.sigma, t, x).log())
    return float((trajectory.log_prob.flatten() - log_base).double().mean()) * mdp.horizon
