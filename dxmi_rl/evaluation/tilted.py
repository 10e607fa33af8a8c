"""How far a sampler that follows a reward has left the density that the reward tilts."""

from __future__ import annotations

import torch

from dxmi_rl.diffusion import IdentitySampler
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy
from dxmi_rl.targets import Tilted

CHAINS = 10_000
"""Chains of ``kl_base``."""


def tilted_scores(
    mdp: DenoisingMDP, density: Policy | None, target: Tilted, scores: dict[str, float], *, chains: int, seed: int
) -> dict[str, float]:
    """Divergences of a sampler from what it started from, in nats; those that apply.

    Returns:
        ``kl_untilted``, KL(samples || p), where ``kl_marginal`` and log Z are known: it is kl_marginal +
        E[r] / beta - log Z. ``kl_base``, KL of whole chains to the base sampler's, which bounds that of the samples
        from above; none from scratch, nor for a deterministic base sampler or a model without a density.
    """
    found: dict[str, float] = {}
    if "kl_marginal" in scores and target.log_z is not None:
        found["kl_untilted"] = scores["kl_marginal"] + scores["reward"] / target.beta - target.log_z
    base = mdp.base
    if density is not None and not base.deterministic and not isinstance(base, IdentitySampler):
        generator = torch.Generator(mdp.device).manual_seed(seed)
        trajectory = mdp.rollout(density, min(chains, CHAINS), generator)
        x, x_next, t = trajectory.transitions()
        log_base = gaussian_log_prob(x_next, base.mean(x, t), per_step(base.sigma, t, x).log())
        ratio = trajectory.log_prob.flatten() - log_base
        found["kl_base"] = float(ratio.double().mean()) * mdp.horizon
    return found
