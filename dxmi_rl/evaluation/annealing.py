"""The normaliser of an energy without an exact one: annealed importance sampling with Hamiltonian moves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.smc import systematic
from dxmi_rl.utils.checks import NonFiniteError, check_batch, check_integer, check_real, resolve_device
from dxmi_rl.utils.torch_tools import evaluation_mode

GROUPS = 8
"""Groups of chains that are resampled apart; the standard error compares their estimates. Even: there are halves."""
TARGET_ACCEPTANCE = 0.75


class AnnealedEstimate(NamedTuple):
    """log Z and how far to trust it.

    Attributes:
        log_z: log of Z = integral of exp(-E(x) / tau) dx: the log of the mean weight of all chains.
        standard_error: of log_z, in nats: the std of eight groups' own log Z over sqrt(8). It is itself uncertain by a
            quarter, and it cannot know of modes that no chain has found: compare starts.
        ess: effective sample size of the last weights over chains, in (0, 1]; groups just resampled have equal ones.
        samples: ``[chains, *event_shape]``, approximately from exp(-E / tau) / Z, equally weighted, not independent.
        acceptance: mean acceptance probability of the moves.
        energy_grad_evals: gradients at single points: chains (1 + levels leapfrog_steps).
        levels: temperatures after the start.
    """

    log_z: float
    standard_error: float
    ess: float
    samples: Tensor
    acceptance: float
    energy_grad_evals: int
    levels: int


def annealed_importance_sampling(
    energy: Callable[[Tensor], Tensor],
    event_shape: Sequence[int],
    *,
    scale: float,
    tau: float = 1.0,
    center: float | Tensor = 0.0,
    chains: int = 512,
    cess: float = 0.98,
    leapfrog_steps: int = 8,
    resample: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> AnnealedEstimate:
    """Estimate log Z of exp(-E(x) / tau) by annealing from q = N(center, scale^2 I), and sample from it.

    The path is pi_b(x) ~ q(x)^(1 - b) exp(-b E(x) / tau), 0 = b_0 < ... < b_K = 1. At each level k, in turn,
    log w += (b_k - b_{k-1}) (-E(x) / tau - log q(x)); each eighth of the chains whose effective sample size is below
    half is resampled (systematically) and gets its mean weight; a Hamiltonian move leaves pi_{b_k} invariant.

    E[w] = Z exactly for levels and moves fixed in advance. Here b_k is where the conditional effective sample size
    (sum W u)^2 / sum W u^2 of the increments u falls to ``cess``; the step size (+-50 % between chains) follows the
    acceptance at earlier levels, in coordinates whitened by the covariance of the other half of the chains. What
    depends on averages over many chains or on other chains biases Z by less than its standard error in practice.

    Where E is NaN or infinite the density is taken as zero: proposals are rejected, chains that start there get no
    weight. Weights and random numbers are the CPU's; the device is waited for once per level.

    Args:
        energy: module or function ``[batch, *event_shape] -> [batch]``, differentiable in x; modules in eval mode.
        event_shape: shape of one x.
        scale: standard deviation of the start, which should cover the target.
        tau: temperature, in units of E.
        center: mean of the start: a number or a tensor ``event_shape``, such as the mean of the data.
        chains: a multiple of 8 of at least 16.
        cess: in (0, 1); a quarter of 1 - cess means twice as many levels.
        leapfrog_steps: gradients per move.
        resample: False is Neal's annealed importance sampling, without interaction through weights.
        seed: of everything random; the global random state is untouched.
        device: where the energy lives; None is the CPU.

    Raises:
        TypeError, ValueError: for arguments other than these and energies of another shape or without gradient.
        NonFiniteError: when E is finite at none of the starting points of an eighth of the chains.

    Sources: Neal 2001, Annealed importance sampling; Del Moral et al. 2006, Sequential Monte Carlo samplers; Zhou et
    al. 2016, Toward automatic model comparison; Buchholz et al. 2021, Adaptive tuning of HMC within SMC.
    """
    chains = check_integer("chains", chains, 2 * GROUPS)
    leapfrog_steps = check_integer("leapfrog_steps", leapfrog_steps)
    if chains % GROUPS:
        raise ValueError(f"chains must be a multiple of {GROUPS}, got {chains}.")
    if not 0 < check_real("cess", cess) < 1:
        raise ValueError(f"cess must lie in (0, 1), got {cess!r}.")
    device = resolve_device(device)
    path = _Path(energy, event_shape, scale, tau, center.to(device) if isinstance(center, Tensor) else center)
    generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=None))
    dim = math.prod(path.event_shape)
    normal = functools.partial(torch.randn, chains, dim, generator=generator)
    with evaluation_mode(energy):
        points = path.at(path.center + path.scale * normal().view(chains, *path.event_shape).to(device))
        log_ratio = path.log_ratio(points)
        log_w = torch.zeros(chains, dtype=torch.float64).masked_fill(~log_ratio.isfinite(), -math.inf)
        if not bool((log_w.view(GROUPS, -1) > -math.inf).any(1).all()):
            raise NonFiniteError("energy must be finite at the start, got NaN or infinity at all points of a group.")
        beta, step, acceptances = 0.0, dim**-0.25, list[float]()
        while beta < 1.0:
            beta, previous = _next_beta(beta, log_ratio, log_w, cess), beta
            ancestors, log_w = _resample(log_w + (beta - previous) * log_ratio, 0.5 if resample else 0.0, generator)
            points = _Points(*(value[ancestors.to(device)] for value in points))
            size = step * (0.5 + torch.rand(chains, 1, generator=generator)).to(device)
            noise = normal().to(device), torch.rand(chains, generator=generator).to(device)
            points, acceptance = _move(path, points, noise, beta, _width(points.x), size, leapfrog_steps)
            log_ratio = path.log_ratio(points)
            acceptances.append(float(acceptance))
            step *= math.exp(acceptances[-1] - TARGET_ACCEPTANCE)

    log_z = torch.logsumexp(log_w + dim * math.log(path.scale * math.sqrt(2 * math.pi)), 0) - math.log(chains)
    groups = torch.logsumexp(log_w.view(GROUPS, -1), 1)
    weights = torch.softmax(log_w, 0)
    return AnnealedEstimate(
        log_z=float(log_z),
        standard_error=float(groups.std()) / math.sqrt(GROUPS),
        ess=1 / (chains * float(weights.square().sum())),
        samples=points.x[systematic(weights[None], chains, generator)[0].to(device)],
        acceptance=sum(acceptances) / len(acceptances),
        energy_grad_evals=chains * (1 + len(acceptances) * leapfrog_steps),
        levels=len(acceptances),
    )


class _Points(NamedTuple):
    """Chains ``[n, *event_shape]`` with E / tau ``[n]`` and its gradient."""

    x: Tensor
    energy: Tensor
    gradient: Tensor


class _Path:
    """The densities exp(-b E / tau - (1 - b) |x - c|^2 / (2 s^2)) between the start and the target."""

    def __init__(
        self, energy: Callable[[Tensor], Tensor], event_shape: Sequence[int], scale: float, tau: float, center: object
    ) -> None:
        if not callable(energy):
            raise TypeError(f"energy must be a module or function, got {energy!r}.")
        if isinstance(event_shape, str) or not isinstance(event_shape, Sequence) or not event_shape:
            raise TypeError(f"event_shape must be a tuple of positive integers, got {event_shape!r}.")
        self.energy = energy
        self.event_shape = tuple(check_integer("every entry of event_shape", size) for size in event_shape)
        self.scale, self.tau = check_real("scale", scale, strict=True), check_real("tau", tau, strict=True)
        if isinstance(center, Tensor):
            self.center: float | Tensor = check_batch("center", center[None], self.event_shape)[0]
        else:
            self.center = check_real("center", center, -math.inf)

    def at(self, x: Tensor) -> _Points:
        """E / tau and its gradient at x; raises ValueError for an energy of another shape or without gradient."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self.energy(x.clone())  # one that works in place changes nothing here
            if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"energy must return a tensor of shape [{len(x)}], got {found}.")
            if not value.requires_grad:
                raise ValueError("energy must be differentiable in x, got a tensor without gradient.")
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return _Points(x.detach(), value.detach() / self.tau, gradient / self.tau)

    def start(self, x: Tensor) -> Tensor:
        """-log q(x) without its constant."""
        return 0.5 * ((x - self.center) / self.scale).square().flatten(1).sum(1)

    def log_ratio(self, points: _Points) -> Tensor:
        """-E / tau - log q without its constant, -inf where E is not finite: float64 on the CPU."""
        energy = points.energy.masked_fill(~points.energy.isfinite(), math.inf)
        return (self.start(points.x) - energy).cpu().double()

    def potential(self, points: _Points, beta: float) -> Tensor:
        return beta * points.energy + (1 - beta) * self.start(points.x)

    def slope(self, points: _Points, beta: float) -> Tensor:
        return beta * points.gradient + (1 - beta) * (points.x - self.center) / self.scale**2


def _width(x: Tensor) -> Tensor:
    """Triangular roots ``[2, d, d]`` of each half's covariance, for the other half; shrunk where chains are few.

    A chain's move then does not depend on the chain itself, which would bias Z visibly.
    """
    halves = x.flatten(1).view(2, len(x) // 2, -1).flip(0)
    deviation = halves - halves.mean(1, keepdim=True)
    covariance = deviation.mT @ deviation / deviation.shape[1]
    chains, dim = deviation.shape[1:]
    variances = covariance.diagonal(dim1=1, dim2=2) + 1e-30  # chains may all be at one point
    root: Tensor = torch.linalg.cholesky((chains * covariance + dim * variances.diag_embed()) / (chains + dim))
    return root


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """``[n, d]`` times ``[2, d, d]``, one matrix for each half of the rows."""
    return (rows.view(2, len(rows) // 2, -1) @ matrices).view(rows.shape)


def _leapfrog(
    path: _Path, points: _Points, momentum: Tensor, beta: float, width: Tensor, size: Tensor, steps: int
) -> tuple[_Points, Tensor]:
    """``steps`` leapfrog steps of ``size`` in the coordinates z of x = width z; the momentum ``[n, d]`` is z's."""

    def kick(points: _Points) -> Tensor:
        return size * _times(path.slope(points, beta).flatten(1), width)

    momentum = momentum - 0.5 * kick(points)
    for step in range(1, steps + 1):
        points = path.at(points.x + _times(size * momentum, width.mT).view_as(points.x))
        momentum = momentum - (1.0 if step < steps else 0.5) * kick(points)
    return points, momentum


def _move(
    path: _Path, points: _Points, noise: tuple[Tensor, Tensor], beta: float, width: Tensor, size: Tensor, steps: int
) -> tuple[_Points, Tensor]:
    """One Hamiltonian move per chain from (momentum, uniform) ``noise``: (points, mean acceptance probability)."""
    momentum, uniform = noise
    proposal, end = _leapfrog(path, points, momentum, beta, width, size, steps)
    kinetic = 0.5 * (momentum.square() - end.square()).sum(1)
    chance = (path.potential(points, beta) - path.potential(proposal, beta) + kinetic).exp().clamp(max=1.0)
    chance = torch.where(proposal.energy.isfinite() & chance.isfinite(), chance, 0.0)
    pairs = zip(proposal, points, strict=True)
    accept = uniform < chance
    return _Points(*(torch.where(accept.view(-1, *[1] * (y.dim() - 1)), y, x) for y, x in pairs)), chance.mean()


def _next_beta(beta: float, log_ratio: Tensor, log_w: Tensor, cess: float) -> float:
    """The level at which the conditional ESS of the increments falls to ``cess``, or 1; by bisection."""
    weights = torch.softmax(log_w.view(GROUPS, -1), 1).flatten() / GROUPS
    w, ratio = weights[weights > 0].numpy(), log_ratio[weights > 0].numpy()
    ratio = ratio - ratio.max()
    low, high, trial = 0.0, 1.0 - beta, 1.0 - beta
    for _ in range(50):
        increments = np.exp(trial * ratio)
        below = np.square(w @ increments) < cess * (w @ np.square(increments))
        low, high = (low, trial) if below else (trial, high)
        trial = (low + high) / 2
    return 1.0 if high == 1.0 - beta else beta + high  # exactly: sums of differences need not be


def _resample(log_w: Tensor, threshold: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ancestors and log-weights ``[chains]``; resamples the groups whose ESS is below ``threshold``."""
    groups = log_w.view(GROUPS, -1)
    size, weights = groups.shape[1], torch.softmax(groups, 1)
    low = (1 / weights.square().sum(1) < threshold * size)[:, None]
    own = torch.arange(size).expand_as(groups)
    ancestors = torch.where(low, systematic(weights, size, generator), own) + size * torch.arange(GROUPS)[:, None]
    mean = torch.logsumexp(groups, 1, keepdim=True) - math.log(size)
    return ancestors.flatten(), torch.where(low, mean, groups).flatten()
