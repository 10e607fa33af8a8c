"""Tables with known outliers that scikit-learn ships, and how their rows are split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

Rows = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Rows ``[n, features]``, and which of them are outliers."""


def cancer() -> Rows:
    """569 rows of 30 columns, 212 malignant ones are outliers: scikit-learn's breast cancer."""
    rows, classes = load_breast_cancer(return_X_y=True)
    return rows, classes == 0


def digit(inlier: int) -> Rows:
    """1,797 digits of 8 x 8; all but one digit are outliers."""
    rows, classes = load_digits(return_X_y=True)
    return rows, classes != inlier


def split_inliers(outlier: NDArray[np.bool_], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of a random half of the inliers, to fit a detector to, and of all other rows, to score."""
    inliers = np.random.default_rng(seed).permutation(np.flatnonzero(~outlier))
    half = len(inliers) // 2
    return inliers[:half], np.concatenate([inliers[half:], np.flatnonzero(outlier)])
