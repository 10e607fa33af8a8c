"""The divergence of the samples themselves, without a bound: the density of x_T as a mixture over states x_{T-1}."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Policy
from dxmi_rl.targets import Target

STATES, POINTS = 20_000, 10_000
"""States x_{T-1} that the density is a mean over, and points that the divergences are means over."""
PAIRS = 4_000_000
"""Pairs of points and states at a time, which bounds the memory."""
UNRESOLVED = 0.1
"""A larger bias, in nats or as a part of the divergence, makes it no score."""
NEGLIGIBLE = -80.0
"""Terms of a mixture that are this much below the largest one, in nats, do not count."""


def has_marginal(target: Target, policy: Policy) -> bool:
    """Whether ``marginal_scores`` are defined: in the plane, for a target with exact samples and a known log Z, and a
    policy whose steps are Gaussians or squashed ones, as other densities would be asked for every pair on its own.
    """
    known = target.dim == 2 and target.has_sampler and target.has_energy and target.log_z is not None
    return known and (isinstance(policy, ActionDensity) or not hasattr(policy, "transport"))


@torch.no_grad()
def marginal_scores(
    mdp: DenoisingMDP, policy: Policy, target: Target, *, seed: int = 0, states: int = STATES, points: int = POINTS
) -> dict[str, float]:
    """KL divergences of the samples' own density p(x_T) and the target's, in nats, both ways.

    p(x_T) is the mean of pi(x_T | x_{T-1}) over ``states`` states x_{T-1} of the policy, so no backward kernel is
    needed. The samples of the reverse divergence come from other episodes than these states.

    Returns:
        ``kl_marginal``, KL(samples || target), which ``kl_bound`` and ``kl_bound_fit`` bound from above, and
        ``kl_marginal_forward``, KL(target || samples), which sees modes that are lost; each with ``..._se``, its
        standard error over the points, and ``..._bias``, an estimate of the error that the finite number of states
        leaves, the value with half of the states minus the value with all: the first is too low (negative), the second
        too high. It is not taken off. Squashed policies get a quarter of the states, and no forward divergence where
        they cannot reach every point.

    Raises ValueError where ``has_marginal`` is False.
    """
    if not has_marginal(target, policy):
        raise ValueError(
            f"target must be in the plane, with samples and log Z, and steps of the policy Gaussians, got "
            f"{target.name!r} and {type(policy).__name__}."
        )
    if _squashed(policy) is not None:
        states = max(2, states // 4)  # ten times the work per pair
    last = mdp.horizon - 1
    generator = torch.Generator(mdp.device).manual_seed(seed)
    log_density = _last_step(mdp, policy, mdp.rollout(policy, states, generator).x[last], last)
    samples = mdp.sample(policy, points, generator)
    exact = target.sample(points, generator)
    scores: dict[str, float] = {}
    for name, x, sign in (("kl_marginal", samples, 1.0), ("kl_marginal_forward", exact, -1.0)):
        log_target = -target.energy(x.clone()).double() - float(target.log_z or 0.0)
        whole, halves = _mixture(log_density, x, states)
        if not bool(whole.isfinite().all()):  # a squashed policy cannot reach all points
            continue
        ratio = sign * (whole - log_target)
        by_halves = sign * (halves - log_target).mean()
        scores[name] = float(ratio.mean())
        scores[f"{name}_se"] = float(ratio.std()) / math.sqrt(points)
        scores[f"{name}_bias"] = float(by_halves - ratio.mean())
    return scores


def resolved_scores(scores: dict[str, float]) -> dict[str, float]:
    """``marginal_scores`` without a divergence whose bias is above UNRESOLVED, in nats or as a part of it; warns.

    Where the last step has so little noise that the states' Gaussians do not overlap, the density between them is
    not seen: KL(samples || target) is then far too low, and by more than the bias that is estimated.
    """
    found = dict(scores)
    for key in ("kl_marginal", "kl_marginal_forward"):
        bias, value = scores.get(f"{key}_bias", 0.0), scores.get(key, 0.0)
        too_low = value < -3 * scores.get(f"{key}_se", 0.0) - UNRESOLVED
        if too_low or not abs(bias) <= UNRESOLVED * max(1.0, abs(value)):
            found = {name: value for name, value in found.items() if name not in (key, f"{key}_se", f"{key}_bias")}
            warnings.warn(
                f"{key} is left out: its bias is about {bias:.2g} nats, as the noise of the last step is too small for "
                f"{STATES:,} states.", UnreliableScoresWarning, stacklevel=3,
            )  # fmt: skip
    return found


def _squashed(policy: Any) -> Any:
    """How a policy of another library squashes its actions; None where it does not."""
    return policy.squashed if isinstance(policy, ActionDensity) else None


def _mixture(log_density: Callable[[Tensor], Tensor], x: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """log p at points ``[n]``: with all states, and with either half of them, ``[2, n]``; float64."""
    half = states // 2
    parts = []
    for rows in x.split(max(1, PAIRS // states)):
        both = []
        for pairs in log_density(rows).split([half, states - half], 1):
            largest = pairs.max(1).values
            # In float32, and without the tiniest terms: exp of numbers that underflow takes ten times as long.
            terms = pairs.sub_(largest[:, None]).float().clamp_(min=NEGLIGIBLE).exp_()
            both.append(terms.sum(1).double().log() + largest)
        parts.append(torch.stack(both))
    sums = torch.cat(parts, 1)
    counts = torch.tensor([half, states - half], dtype=torch.float64, device=x.device)
    return sums.logsumexp(0) - math.log(states), sums - counts.log()[:, None]


def _last_step(mdp: DenoisingMDP, policy: Any, states: Tensor, t: int) -> Callable[[Tensor], Tensor]:
    """log pi(y | x) of every point y ``[m, d]`` and state x ``[n, d]``: ``[m, n]``, float64."""
    if _squashed(policy) is not None:
        pairs = policy.squashed_pairs(states, t)
        return lambda y: pairs(y).double()
    mean, log_std = (part.expand_as(states).flatten(1).double() for part in policy.moments(states, t))
    precision = torch.exp(-2 * log_std)
    constant = -0.5 * (mean.square() * precision).sum(1) - log_std.sum(1) - mean.shape[1] / 2 * math.log(2 * math.pi)
    factors = torch.cat([-0.5 * precision, mean * precision, constant[:, None]], 1).T.contiguous()

    def log_density(y: Tensor) -> Tensor:  # the square multiplied out: one matrix product for all pairs
        points = y.flatten(1).double()
        return torch.cat([points.square(), points, torch.ones_like(points[:, :1])], 1) @ factors

    return log_density
