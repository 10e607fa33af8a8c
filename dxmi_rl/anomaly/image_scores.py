"""Scores of anomaly maps against masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dxmi_rl.utils.checks import check_real

LARGEST_FPR = 0.3


def per_region_overlap(masks: ArrayLike, maps: ArrayLike, *, largest_fpr: float = LARGEST_FPR) -> float:
    """AUPRO (Bergmann et al. 2020): area under the mean overlap with anomalous regions over the false-positive rate.

    Regions are connected anomalous pixels (diagonal neighbours too). At every threshold the overlap is the part of a
    region that scores above it, averaged over all regions, so that small defects count as much as large ones. The area
    up to ``largest_fpr`` is divided by it: 1 is perfect, ``largest_fpr`` / 2 chance.

    Args:
        masks: which pixels are anomalous, ``[images, height, width]``.
        maps: their scores, larger for anomalies, likewise.
        largest_fpr: in (0, 1].

    Raises ValueError for other shapes, scores that are not finite, masks without anomalous or without normal pixels.
    """
    from scipy.ndimage import label

    marked, scores = np.asarray(masks, bool), np.asarray(maps, np.float64)
    if marked.ndim != 3 or marked.shape != scores.shape:
        raise ValueError(f"masks and maps must be [images, height, width], got {marked.shape} and {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("maps must be finite, got NaN or infinite values.")
    if not 0 < check_real("largest_fpr", largest_fpr) <= 1:
        raise ValueError(f"largest_fpr must lie in (0, 1], got {largest_fpr}.")
    if marked.all() or not marked.any():
        raise ValueError(f"masks must have anomalous and normal pixels, got {int(marked.sum())} of {marked.size}.")
    # Every pixel of a region weighs one over the region's size: their sum above a threshold is the overlap.
    gain, regions = np.zeros(marked.shape), 0
    for image, own in zip(marked, gain, strict=True):
        numbered, found = label(image, np.ones((3, 3)))
        own[image] = (1 / np.maximum(np.bincount(numbered.ravel()), 1))[numbered[image]]
        regions += found
    order = np.argsort(-scores, axis=None, kind="stable")
    last = np.append(np.diff(scores.ravel()[order]) != 0, True)  # equal scores pass a threshold together
    overlap = np.append(0, np.cumsum(gain.ravel()[order])[last] / regions)
    rate = np.append(0, np.cumsum(~marked.ravel()[order])[last] / (~marked).sum())
    inside = rate <= largest_fpr
    x, y = rate[inside], overlap[inside]
    if x[-1] < largest_fpr:
        x, y = np.append(x, largest_fpr), np.append(y, np.interp(largest_fpr, rate, overlap))
    return float(np.trapezoid(y, x) / largest_fpr)
