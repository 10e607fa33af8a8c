"""Scores of systems of identical particles against reference states, which are as good as samples from the target.

What turns, mirrors and relabels particles changes no energy. Energies and distances do not see it; distances between
states are also taken under the best of these moves.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dxmi_rl.evaluation.checks import array, check_pair, check_vector
from dxmi_rl.targets import ParticleTarget

STATES = 2000
"""Samples that are compared with as many reference states, as in the literature."""
ALIGNED_STATES = 100
"""The same for the distance under the best turn and labels, whose time grows with their square."""
BIN_WIDTH = 1.0
"""Of histograms, in nats and in units of length, as published (Yoon et al. 2025, arXiv 2502.13280)."""
ALL_LABELLINGS = 4
"""Up to this many particles all permutations are tried."""
RANDOM_TURNS, ROUNDS = 4, 4
"""Turns drawn at random that the search for the best one begins from, too, and its rounds from each."""


def particle_scores(target: ParticleTarget, x: Tensor, reference: Tensor, seed: int = 0) -> dict[str, float]:
    """Scores of samples x against reference states, coordinates ``[n, dim]`` each; lower is better.

    ``energy_w2`` [nats] and ``energy_tv`` compare energies, ``distance_tv`` the distances of all pairs of particles,
    in bins one nat or unit of length wide. ``w2`` is the 2-Wasserstein distance of states that are turned, mirrored
    and relabelled at random; ``w2_aligned`` that of the first 100 of either under the best turn, mirror image and
    labels of every pair. At most 2,000 of either count, and of both as many.

    Raises TypeError or ValueError for what are no two sets of states.
    """
    check_pair("x", x, "reference", reference)
    n = min(len(x), len(reference), STATES)
    x, reference = x[:n], reference[:n]
    generator = torch.Generator().manual_seed(seed)
    first, second = (random_symmetries(target.positions(y).cpu().double(), generator) for y in (x, reference))
    return energy_scores(target, x, reference) | {
        "distance_tv": histogram_tv(_distances(first, target), _distances(second, target)),
        "w2": wasserstein(torch.cdist(first.flatten(1), second.flatten(1)).square()),
        "w2_aligned": aligned_w2(first[:ALIGNED_STATES], second[:ALIGNED_STATES], seed),
    }


def energy_scores(target: ParticleTarget, x: Tensor, reference: Tensor) -> dict[str, float]:
    """``energy_w2`` and ``energy_tv`` of ``particle_scores``."""
    energies = target.energy(x.clone()), target.energy(reference.clone())
    return {"energy_w2": w2_of_values(*energies), "energy_tv": histogram_tv(*energies)}


def w2_of_values(x: Tensor, y: Tensor) -> float:
    """2-Wasserstein distance of two vectors of equally many values, in their units. Raises ValueError, TypeError."""
    check_vector("x", x)
    check_vector("y", y, size=len(x))
    return float((x.double().sort().values - y.double().sort().values).square().mean().sqrt())


def histogram_tv(x: Tensor, y: Tensor, width: float = BIN_WIDTH) -> float:
    """Total variation distance of the histograms of two vectors, in bins [k width, (k + 1) width): in [0, 1]."""
    check_vector("x", x)
    check_vector("y", y)
    shares: dict[float, float] = {}
    for values, sign in ((x, 1.0), (y, -1.0)):
        bins, counts = np.unique(np.floor(array(values) / width), return_counts=True)
        for bin_, count in zip(bins.tolist(), counts.tolist(), strict=True):
            shares[bin_] = shares.get(bin_, 0.0) + sign * count / len(values)
    return 0.5 * sum(map(abs, shares.values()))


def wasserstein(costs: Tensor) -> float:
    """Root of the least mean of ``costs`` ``[n, n]``, squared distances, over all ways to pair rows with columns."""
    from scipy.optimize import linear_sum_assignment

    matrix = array(costs)
    return math.sqrt(max(0.0, float(matrix[linear_sum_assignment(matrix)].mean())))


def random_symmetries(positions: Tensor, generator: torch.Generator) -> Tensor:
    """Every state of ``[n, N, d]`` turned or mirrored, and relabelled, at random."""
    n, particles, space = positions.shape
    order = torch.rand(n, particles, generator=generator).argsort(1)
    relabelled = positions.gather(1, order[..., None].expand_as(positions))
    return relabelled @ _random_turns(n, space, generator).to(positions)


def _random_turns(n: int, space: int, generator: torch.Generator) -> Tensor:
    """Uniform on the orthogonal group, mirror images as well: ``[n, d, d]`` in float64."""
    turns, upper = torch.linalg.qr(torch.randn(n, space, space, generator=generator, dtype=torch.float64))
    uniform: Tensor = turns * upper.diagonal(dim1=1, dim2=2).sign()[:, None]  # LAPACK's signs are no choice at random
    return uniform


def aligned_w2(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """2-Wasserstein distance of states ``[n, N, d]`` under ``aligned_distances``."""
    return wasserstein(aligned_distances(x, y, seed).square())


def aligned_distances(x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """min |x_i - y_j R| over turns and mirror images R and over labels of the particles, of all pairs: ``[n, m]``.

    Positions ``[n, N, d]`` and ``[m, N, d]`` have mean zero. The square is |x|^2 + |y|^2 - 2 |x^T P y|_*, the nuclear
    norm of the best labelling P: of all of them for up to four particles. For more, turns and labels are improved one
    after the other, from turns that lay principal axes on each other, in either direction, and from four random ones:
    an upper bound, the lowest that was found.
    """
    norms = x.square().sum((1, 2))[:, None] + y.square().sum((1, 2))
    exact = x.shape[1] <= ALL_LABELLINGS
    overlap = _best_of_all(x, y) if exact else _best_by_turns(x, y, torch.Generator().manual_seed(seed))
    return (norms - 2 * overlap).clamp_min(0.0).sqrt()


def _best_of_all(x: Tensor, y: Tensor) -> Tensor:
    best = x.new_zeros(len(x), len(y))
    for order in itertools.permutations(range(x.shape[1])):
        products = torch.einsum("ika,jkb->ijab", x, y[:, list(order)])
        best = torch.maximum(best, torch.linalg.svdvals(products).sum(-1))
    return best


def _best_by_turns(x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    n, m, space = len(x), len(y), x.shape[2]
    left = x[:, None].expand(n, m, *x.shape[1:]).flatten(0, 1).double()
    right = y.expand(n, *y.shape).flatten(0, 1).double()
    axes, others = (torch.linalg.svd(z.double(), full_matrices=False)[2] for z in (x, y))  # [., d, d], a row per axis
    starts = []
    for signs in itertools.product((-1.0, 1.0), repeat=space):
        mirrored = axes * axes.new_tensor(signs)[:, None]
        starts.append((others.mT @ mirrored[:, None]).flatten(0, 1))
    for _ in range(RANDOM_TURNS):
        starts.append(_random_turns(n * m, space, generator))
    best = left.new_zeros(n * m)
    for start in starts:
        turned = right @ start
        for _ in range(ROUNDS):
            labels = torch.from_numpy(_labels(array(left @ turned.mT)))
            turned = turned.gather(1, labels[..., None].expand_as(turned))
            u, values, v = torch.linalg.svd(turned.mT @ left)
            best = torch.maximum(best, values.sum(-1))
            turned = turned @ (u @ v)
    return best.view(n, m).to(x.dtype)


def _labels(overlaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """The labels of largest overlap for every ``[N, N]`` of a batch: ``[batch, N]``."""
    from scipy.optimize import linear_sum_assignment

    labels: NDArray[np.int64] = np.stack([linear_sum_assignment(overlap, maximize=True)[1] for overlap in overlaps])
    return labels


def _distances(positions: Tensor, target: ParticleTarget) -> Tensor:
    pairs = target.pairs.cpu()
    found: Tensor = (positions[:, pairs[0]] - positions[:, pairs[1]]).norm(dim=-1).flatten()
    return found
