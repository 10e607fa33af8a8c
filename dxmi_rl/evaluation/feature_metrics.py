"""Metrics on features of images: pure functions that return Python numbers.

Heavy packages are imported inside the functions that need them.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
from torch import Tensor

from dxmi_rl.evaluation.checks import array, check_pair
from dxmi_rl.utils.checks import check_integer, require


def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (FID, when they are Inception's).

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2), in float64 through symmetric eigenproblems, so singular
    covariances are fine. Biased upward for few samples: compare at equal sizes, against the exact floor.

    Args:
        features_x: ``[n, d]``, n >= 2.
        features_y: ``[m, d]``, m >= 2.

    Returns:
        A number >= 0 in squared units of the features.

    Raises:
        TypeError, ValueError: as ``sliced_w2``.

    Source: Heusel et al. 2017; Dowson and Landau 1982.
    """
    check_pair("features_x", features_x, "features_y", features_y, minimum=2)
    x, y = array(features_x), array(features_y)
    covariance_x, covariance_y = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(covariance_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # Eigenvalues of C_x C_y are those of this symmetric matrix, which eigvalsh keeps real where sqrtm may not.
    overlap = np.sqrt(np.linalg.eigvalsh(root @ covariance_y @ root).clip(min=0)).sum()
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    return max(float(shift + np.trace(covariance_x) + np.trace(covariance_y) - 2 * overlap), 0.0)


def kernel_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x . y / d + 1)^3 (KID, when the features are Inception's).

    Unlike the Frechet distance it has no bias for few samples; equal laws give about zero, on either side of it. All
    pairs are used, instead of subsets.

    Args:
        features_x: ``[n, d]``, n >= 2.
        features_y: ``[m, d]``, m >= 2.

    Raises:
        TypeError, ValueError: as ``sliced_w2``.

    Source: Binkowski et al. 2018, arXiv 1801.01401.
    """
    check_pair("features_x", features_x, "features_y", features_y, minimum=2)
    x, y = features_x.double(), features_y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        pairs = kernel(a, a)
        return (pairs.sum() - pairs.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def neighbour_scores(features_real: Tensor, features_fake: Tensor, k: int = 5) -> dict[str, float]:
    """Improved precision and recall, density and coverage, by the balls that reach to the k-th nearest neighbour.

    precision: part of the fake features in the ball of a real one (of its own set); recall: the same with the sets
    exchanged; density: in how many real balls a fake feature lies, over k; coverage: part of the real balls with a fake
    feature in them.

    Args:
        features_real: ``[n, d]``, n >= k + 2.
        features_fake: ``[m, d]``, m >= k + 2.
        k: which neighbour sets the radius of a ball.

    Returns:
        ``{"precision", "recall", "density", "coverage"}``, all in [0, 1] but density, which may exceed 1.

    Raises:
        MissingExtraError: without prdc (extra ``bench``).
        TypeError, ValueError: as ``sliced_w2``.

    Source: Kynkaanniemi et al. 2019; Naeem et al. 2020, whose implementation, prdc, it is.
    """
    k = check_integer("k", k)
    check_pair("features_real", features_real, "features_fake", features_fake, minimum=k + 2)
    prdc = require("prdc", "bench")
    with contextlib.redirect_stdout(io.StringIO()):  # prdc prints the sizes
        result = prdc.compute_prdc(array(features_real), array(features_fake), nearest_k=k)
    return {key: float(result[key]) for key in ("precision", "recall", "density", "coverage")}
