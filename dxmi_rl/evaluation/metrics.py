"""Metrics on samples, log-weights and scores: pure functions that return Python numbers.

Nothing here knows agents or targets. Metrics on features of images are in ``feature_metrics``. Heavy packages are
imported inside the functions that need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import chdtri
from torch import Tensor, nn

from dxmi_rl.evaluation.checks import array, check_pair, check_vector
from dxmi_rl.utils.checks import check_integer, check_real

# Bandwidths of the MMD kernels over the median distance; each is twice the one before (``_kernel_sum`` relies on it).
MMD_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
BEYOND_MODE = math.exp(-4.5)
"""Part of a Gaussian mode that lies too far from it to count: beyond three standard deviations in the plane."""


# Samples against samples ----------------------------------------------------------------------------------------------


@torch.no_grad()
def sliced_w2(x: Tensor, y: Tensor, projections: int = 1000, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: root of the mean over random directions of the squared 1-D W2.

    Exact in each direction, for equal and unequal sizes; equal to POT's ``ot.sliced.sliced_wasserstein_distance``
    with p = 2 and the same directions, and about ten times faster because uniform weights need one coupling only.
    Costs O(projections (n log n + m log m)); directions are drawn on the CPU, so devices agree.

    Args:
        x: samples ``[n, d]``.
        y: samples ``[m, d]``, same device.
        projections: number of directions, uniform on the sphere.
        seed: seed of the directions; the global random state is untouched.

    Returns:
        A distance >= 0 in the units of x.

    Raises:
        TypeError, ValueError: for anything but two finite, non-empty floating matrices of equal width.

    Source: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures.
    """
    check_pair("x", x, "y", y)
    check_integer("projections", projections)
    generator = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(projections, x.shape[1], generator=generator), dim=1).to(x)
    i, j, mass = _uniform_coupling(len(x), len(y), x.device)
    total = 0.0
    for chunk in directions.split(100):  # bounds memory at 100 sorted copies of the samples
        left, right = _sorted(chunk @ x.T), _sorted(chunk @ y.to(x).T)
        if len(x) != len(y):
            left, right = left[:, i], right[:, j]
        total += float(((left - right).double().square() @ mass).sum())
    return math.sqrt(total / projections)


def _sorted(rows: Tensor) -> Tensor:
    """Each row in ascending order. On CPUs NumPy's sort is ten times as fast as PyTorch's."""
    if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(dim=1).values


def _uniform_coupling(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Monotone coupling of n and m equal atoms: indices ``[k]`` into each and masses ``[k]`` that sum to one."""
    # Edges i/n and j/m in units of 1/(n m): integers, so that no breakpoint is lost to rounding.
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    mass = edges.diff().double() / (n * m)
    return (edges[:-1] // m).to(device), (edges[:-1] // n).to(device), mass.to(device)


@torch.no_grad()
def mmd(x: Tensor, y: Tensor) -> float:
    """Maximum mean discrepancy, the root of the unbiased estimate of MMD^2 clipped at zero.

    The kernel is the mean of five Gaussian kernels exp(-r^2 / (2 s^2)), s = (1/4, 1/2, 1, 2, 4) times the median
    distance between the first 2,000 rows of ``y`` (so y is the reference, and the metric is not symmetric). All pairs
    are used, in blocks: 10,000 points against 10,000 take about a second on one core and little memory. Two sets of
    the same law give exactly 0 about half of the time, because the unbiased estimate is then negative.

    Args:
        x: samples ``[n, d]``, n >= 2.
        y: reference samples ``[m, d]``, m >= 2, same device.

    Returns:
        A number in [0, sqrt(2)], without units.

    Raises:
        TypeError, ValueError: as ``sliced_w2``, or when the median distance within y is zero.

    Source: Gretton et al. 2012, A kernel two-sample test, eq. (3).
    """
    check_pair("x", x, "y", y, minimum=2)
    y = y.to(x)
    bandwidth = float(nn.functional.pdist(y[:2000]).median())
    if bandwidth == 0.0:
        raise ValueError("y must not be mostly copies of one point: the median distance between its rows is 0.")
    n, m = len(x), len(y)
    within_x = _kernel_sum(x, x, bandwidth, same=True) / (n * (n - 1))
    within_y = _kernel_sum(y, y, bandwidth, same=True) / (m * (m - 1))
    between = _kernel_sum(x, y, bandwidth) / (n * m)
    return math.sqrt(max(within_x + within_y - 2 * between, 0.0))


def _kernel_sum(x: Tensor, y: Tensor, bandwidth: float, *, same: bool = False, block: int = 64) -> float:
    """Sum of the mixture kernel over all pairs ``x[i], y[j]``, without i = j when ``same``."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    widest = MMD_BANDWIDTHS[-1] * bandwidth
    for start in range(0, len(x), block):  # small blocks stay in the cache: four times as fast as blocks of 1,000
        rows = x[start : start + block]
        kernel = torch.cdist(rows, y).square_().mul_(-1 / (2 * widest**2)).exp_()
        if same:
            index = torch.arange(len(rows), device=x.device)
            kernel[index, start + index] = 0.0
        total += kernel.sum(dim=1).double().sum()
        for _ in MMD_BANDWIDTHS[1:]:  # half the bandwidth is the fourth power: one exp serves all five kernels
            kernel.square_().square_()
            total += kernel.sum(dim=1).double().sum()
    return float(total) / len(MMD_BANDWIDTHS)


@torch.no_grad()
def quantile_error(x: Tensor, y: Tensor) -> float:
    """Mean absolute difference of the 1 %, 2 %, ..., 99 % quantiles of every coordinate; needs no moments.

    Args:
        x, y: samples ``[n, d]`` and ``[m, d]``.

    Raises TypeError or ValueError for other shapes, dtypes or non-finite samples.
    """
    check_pair("x", x, "y", y)
    levels = np.linspace(0.01, 0.99, 99)
    first, second = (np.quantile(samples.double().cpu().numpy(), levels, axis=0) for samples in (x, y))
    return float(np.abs(first - second).mean())


def mode_statistics(
    x: Tensor, centers: Tensor, std: float | Tensor, weights: Tensor | None = None, radius: float | None = None
) -> dict[str, float]:
    """Count the covered modes and compare their frequencies with their weights.

    A sample belongs to its nearest centre. Mode k is covered when the fraction of all samples that belong to it and
    lie within ``radius`` standard deviations of it is at least min(0.01, w_k / 4). ``mode_tv`` is the total variation
    0.5 sum_k |fraction_k - w_k| over all samples, however far they lie.

    Args:
        x: samples ``[n, d]``.
        centers: mode centres ``[k, d]``.
        std: standard deviation (or scale) of one coordinate within a mode, a number or ``[k]``.
        weights: mode weights ``[k]``, positive and summing to one; None for equal ones.
        radius: in units of ``std``; None: what holds 98.9 % of a Gaussian in d dimensions, 3 in the plane.

    Returns:
        ``{"modes": int in 0..k, "mode_tv": float in [0, 1)}``.

    Raises:
        TypeError, ValueError: for shapes that do not match, non-finite values, std <= 0 or weights that do not sum to
            one.
    """
    check_pair("x", x, "centers", centers)
    if radius is None:
        radius = math.sqrt(chdtri(x.shape[1], BEYOND_MODE))
    check_real("radius", radius, strict=True)
    count = len(centers)
    if weights is None:
        weights = torch.full((count,), 1.0 / count)
    check_vector("weights", weights, size=count)
    weights = weights.to(x.device, torch.float64)
    if float(weights.min()) <= 0 or abs(float(weights.sum()) - 1) > 1e-4:
        raise ValueError("weights must be positive and sum to one.")
    deviations = torch.as_tensor(std, dtype=torch.float64, device=x.device)
    if deviations.dim() > 1 or deviations.numel() not in (1, count) or not float(deviations.min()) > 0:
        raise ValueError(f"std must be a positive number or {count} of them, got {std!r}.")
    distance, nearest = torch.cdist(x.double(), centers.to(x).double()).min(dim=1)
    fractions = torch.bincount(nearest, minlength=count).double() / len(x)
    close = distance <= radius * deviations.expand(count)[nearest]
    covered = torch.bincount(nearest[close], minlength=count).double() / len(x) >= (weights / 4).clamp(max=0.01)
    return {"modes": int(covered.sum()), "mode_tv": 0.5 * float((fractions - weights).abs().sum())}


def exact_floor(
    metric: Callable[[Tensor, Tensor], float],
    sample: Callable[[int, torch.Generator | None], Tensor],
    n: int,
    pairs: int = 20,
    generator: torch.Generator | None = None,
) -> float:
    """Mean of ``metric`` over pairs of independent sets of ``n`` exact samples: what a perfect sampler would score.

    Args:
        metric: a function of two sample sets, such as ``sliced_w2``.
        sample: ``sample(n, generator) -> [n, d]``, such as ``target.sample``.
        n: size of each set.
        pairs: number of pairs.
        generator: passed to ``sample``.

    Raises:
        TypeError, ValueError: when n or pairs is not a positive integer.
    """
    n, pairs = check_integer("n", n), check_integer("pairs", pairs)
    return float(np.mean([metric(sample(n, generator), sample(n, generator)) for _ in range(pairs)]))


# Log-weights ----------------------------------------------------------------------------------------------------------


def log_weight_statistics(log_w: Tensor) -> dict[str, float]:
    """ELBO, importance-weighted log Z and effective sample size of log-weights of trajectories of the policy.

    Args:
        log_w: ``[n]`` in nats, log of target times backward kernels over the policy's trajectory density.

    Returns:
        ``{"elbo", "log_z", "ess"}``: mean log w; log mean w; (sum w)^2 / (n sum w^2), a fraction in (0, 1].
        Computed in float64. Always elbo <= log_z; log_z is not to be trusted when ess is below 0.1.

    Raises:
        TypeError, ValueError: for anything but a finite, non-empty floating vector.
    """
    log_w = check_vector("log_w", log_w).double()
    log_sum = torch.logsumexp(log_w, 0)
    return {
        "elbo": float(log_w.mean()),
        "log_z": float(log_sum) - math.log(len(log_w)),
        "ess": min(1.0, float((2 * log_sum - torch.logsumexp(2 * log_w, 0)).exp()) / len(log_w)),
    }


def log_weight_errors(log_w: Tensor) -> dict[str, float]:
    """Standard errors of ``log_weight_statistics``: ``{"elbo_se", "log_z_se"}`` in nats.

    ``elbo_se`` is also the standard error of ``eubo`` when given its weights. ``log_z_se`` is the delta method's
    std(w) / (mean(w) sqrt(n)), far too small when the effective sample size is below 0.1.

    Args:
        log_w: ``[n]`` in nats, n >= 2.

    Raises:
        TypeError, ValueError: for anything but a finite floating vector of two or more values.
    """
    log_w = check_vector("log_w", log_w, minimum=2).double()
    ess = log_weight_statistics(log_w)["ess"]
    return {
        "elbo_se": float(log_w.std()) / math.sqrt(len(log_w)),
        "log_z_se": math.sqrt((1 / ess - 1) / (len(log_w) - 1)),
    }


def eubo(log_w_from_target: Tensor) -> float:
    """Evidence upper bound: the mean of log-weights ``[n]`` of chains that start at exact samples and run backward.

    EUBO >= log Z >= ELBO in expectation; it grows when modes are lost. Raises TypeError or ValueError as
    ``log_weight_statistics``. Source: Blessing et al. 2024, Beyond ELBOs.
    """
    return float(check_vector("log_w_from_target", log_w_from_target).double().mean())


# Scores ------------------------------------------------------------------------------------------------------------


def auc(scores_positive: Tensor, scores_negative: Tensor) -> float:
    """Area under the ROC curve in [0, 1]: the chance that a positive scores higher than a negative, ties counting half.

    Args:
        scores_positive: ``[n]``.
        scores_negative: ``[m]``.

    Raises:
        TypeError, ValueError: for anything but two finite, non-empty floating vectors.
    """
    from sklearn.metrics import roc_auc_score

    positive = array(check_vector("scores_positive", scores_positive))
    negative = array(check_vector("scores_negative", scores_negative))
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))
