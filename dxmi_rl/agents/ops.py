"""What algorithms compute, as pure functions: rewards, returns, advantages, ratios, surrogates, divergences.

Tensors ``[T, n]`` are time-major: T steps of n episodes. Nothing in here knows an agent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.registry import UnknownNameError

LARGEST_LOG_RATIO = 20.0
"""Bound on log importance ratios, far beyond every clipping: an outlier in many dimensions would give infinity."""
OUTLIER, OUTLIER_SLOPE = 5.0, 0.1
"""A number this many median deviations from the median is an outlier: of normal ones less than one in a thousand. The
weight of the logarithm of what lies beyond."""
HIGH = 20.0
"""An energy this many median deviations above the median is high."""
MAX_WARMUP = 0.1
"""Largest part of a budget that goes into warming up."""
TRUSTED = 0.5
"""Smallest effective sample size of tempered weights, as a fraction of their number."""
BETAS_MIN = 1e-6
BETAS = torch.logspace(0, math.log10(BETAS_MIN), 61)
OBJECTIVES = ["soft", "terminal"]

Moments = tuple[Tensor, Tensor]
"""Mean and log standard deviation of Gaussians, one per row."""


def check_objective(objective: str) -> None:
    """Raise UnknownNameError for an objective that is not one of OBJECTIVES."""
    if objective not in OBJECTIVES:
        raise UnknownNameError("objective", objective, OBJECTIVES)


def temperature_of(objective: str, tau: float) -> float:
    """The weight of log pi in the rewards: tau for the objective "soft", 0 for "terminal".

    Raises UnknownNameError for another objective.
    """
    check_objective(objective)
    return tau if objective == "soft" else 0.0


@torch.no_grad()
def soft_rewards(mdp: DenoisingMDP, trajectory: Trajectory, temperature: float) -> Tensor:
    """r_t - temperature log pi_old(x_{t+1} | x_t): ``[T, n]``; at temperature 0 -E(x_T) alone.

    The sampled log pi stands for the entropy of docs/method.md: at the optimum the soft advantages vanish on every
    path. Raises EnergyError when a reward is not finite.
    """
    if temperature == 0:
        return terminal_rewards(mdp, trajectory)
    return mdp.rewards(trajectory) - temperature * trajectory.log_prob


@torch.no_grad()
def terminal_rewards(mdp: DenoisingMDP, trajectory: Trajectory) -> Tensor:
    """-E(x_T) in the last row, zeros before: ``[T, n]``. Raises EnergyError when not finite."""
    rewards = torch.zeros_like(trajectory.log_prob)
    rewards[-1] = -mdp.finite_energy(trajectory.final)
    return rewards


def returns_to_go(rewards: Tensor) -> Tensor:
    """sum_{k >= t} r_k for every t: ``[T, n]``."""
    return rewards.flip(0).cumsum(0).flip(0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages A_t = sum_k lambda^k delta_{t+k}, delta_t = r_t + V_{t+1} - V_t, V_T = 0, discount 1
    (Schulman et al. 2016, arXiv 1506.02438, equation 16), and the returns A_t + V_t that they imply: ``[T, n]`` each.
    """
    following = torch.cat([values[1:], torch.zeros_like(values[:1])])
    errors = rewards + following - values
    advantages, running = torch.empty_like(errors), torch.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        advantages[t] = running = errors[t] + gae_lambda * running
    return advantages, advantages + values


@torch.no_grad()
def td_lambda_returns(costs: Tensor, values: Tensor, td_lambda: float, ratios: Tensor | None = None) -> Tensor:
    """Soft TD(lambda) returns G_t of costs c_t ``[T, n]``: ``[T, n]``.

    G_t = V_t + d_t,  d_t = rho_t (c_t + V_{t+1} - V_t + lambda d_{t+1}),  d_T = 0
    with rho_t = min(1, pi / behaviour) (V-trace: Espeholt et al. 2018, arXiv 1802.01561, equation 1).

    Args:
        costs: c_t.
        values: V_0 .. V_T ``[T + 1, n]``; on-policy V_0 cancels, and V_1 .. V_T ``[T, n]`` are enough.
        td_lambda: lambda; 0 gives one-step targets, 1 whole returns.
        ratios: rho_t ``[T, n]``; None: on-policy, rho_t = 1, where G_t = c_t + (1 - lambda) V_{t+1} + lambda G_{t+1}.
    """
    horizon = len(costs)
    targets, following = torch.empty_like(costs), values[-1]
    for t in reversed(range(horizon)):
        value = values[t - horizon]
        targets[t] = costs[t] + value + td_lambda * (following - value)
        if ratios is not None:
            targets[t] = values[t].lerp(targets[t], ratios[t])
        following = targets[t]
    return targets


def less_mean_of_others(values: Tensor) -> Tensor:
    """Every entry of ``[T, n]`` minus the mean of the other n - 1 of its row, n / (n - 1) (v - mean v), for n >= 2.

    A baseline that holds an entry's own value would shrink the gradient.
    """
    n = values.shape[1]
    return n / (n - 1) * (values - values.mean(1, keepdim=True))


def importance_ratio(log_prob: Tensor, behaviour_log_prob: Tensor) -> Tensor:
    """pi / behaviour from the two log-probabilities, ``[batch]`` each, at most exp(LARGEST_LOG_RATIO)."""
    return (log_prob - behaviour_log_prob).clamp(max=LARGEST_LOG_RATIO).exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's loss -E[min(rho A, clip(rho, 1 - eps, 1 + eps) A)] (Schulman et al. 2017, arXiv 1707.06347, equation 7)."""
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def clipped_loss(x_next: Tensor, new: Moments, old: Moments, advantages: Tensor, clip_range: float) -> Tensor:
    """``clipped_surrogate`` of steps to ``x_next`` by Gaussian policies with these moments, a number."""
    # Both log-probabilities by the same arithmetic, so that equal moments give exactly 1.
    ratio = importance_ratio(gaussian_log_prob(x_next, *new), gaussian_log_prob(x_next, *old))
    return clipped_surrogate(ratio, advantages, clip_range)


def gaussian_kl(new: Moments, old: Moments) -> Tensor:
    """KL(new || old) of diagonal Gaussians, in nats: ``[batch]``."""
    change = new[1] - old[1]
    shift = (new[0] - old[0]) * torch.exp(-old[1])
    return 0.5 * (torch.expm1(2 * change) - 2 * change + shift.square()).flatten(1).sum(1)


def compress_outliers(values: Tensor) -> Tensor:
    """``[..., n]``, beyond OUTLIER median deviations from the median over n only as OUTLIER_SLOPE of the logarithm.

    As targets of squared losses: the gradient is then nearly that of Huber's loss, in which no single path decides. But
    where all paths through a region are outliers, bad ones are still told from worse ones.
    """
    median = values.median(dim=-1, keepdim=True).values
    limit = OUTLIER * deviation(values, median).clamp_min(1e-30)
    excess = ((values - median).abs() - limit).clamp_min(0.0)
    far = limit + OUTLIER_SLOPE * limit * torch.log1p(excess / limit)
    return torch.where(excess > 0, median + (values - median).sign() * far, values)


def compressed(energy: Tensor) -> Tensor:
    """E ``[n]`` where it is not far above the batch's median, and beyond HIGH median deviations only as its logarithm.

    A walk that starts far from a target meets energies of any size, which a network of values cannot learn. At the
    optimum hardly any is changed: of exponentially distributed ones 3 in 100,000.
    """
    median = energy.median()
    limit = HIGH * deviation(energy, median).clamp_min(1e-30)
    excess = (energy - median - limit).clamp_min(0.0)
    return energy - excess + limit * torch.log1p(excess / limit)


def deviation(values: Tensor, median: Tensor) -> Tensor:
    """Median absolute deviation of ``[..., n]``, or the mean one where half of the values are equal: ``[..., 1]``."""
    distance = (values - median).abs()
    middle = distance.median(dim=-1, keepdim=True).values
    return torch.where(middle > 0, middle, distance.mean(dim=-1, keepdim=True))


@torch.no_grad()
def tempering(log_weights: Tensor) -> Tensor:
    """The largest beta of BETAS for which weights w^beta have an effective sample size of TRUSTED n: ``[..., 1]``.

    ``log_weights`` are ``[..., n]``. A path measure tilted by w^beta is as far as n paths can lead without a few of
    them deciding alone. ESS = (sum w^beta)^2 / sum w^(2 beta), as in adaptive tempering of sequential Monte Carlo.
    """
    betas = BETAS.to(log_weights)
    tempered = betas[:, None] * log_weights[..., None, :]
    ess = 2 * tempered.logsumexp(-1) - (2 * tempered).logsumexp(-1)
    enough = ess >= math.log(TRUSTED * log_weights.shape[-1])
    return torch.where(enough, betas, BETAS_MIN).amax(-1, keepdim=True)


def due(step: int, count: int, steps: int) -> bool:
    """Whether an event falls on this step, when ``count`` events are spread evenly over ``steps`` steps.

    The first event falls on step 0; ``count`` is at most ``steps``.
    """
    return -(-step * count // steps) < -(-(step + 1) * count // steps)
