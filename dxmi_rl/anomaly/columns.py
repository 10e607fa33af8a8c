"""Columns of tables on one scale: standardised, and uncorrelated where that is asked for."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOOR = 0.3
"""Columns are divided by their standard deviation, or this part of the root mean square of all, if that is larger: a
column that hardly varies would otherwise drown the others."""
SMALL = 0.1
"""Columns that vary, but by less than this part of what they are divided by, are warned of: their units may differ."""
SHRINKAGE = 0.01
"""Part of the mean variance of a direction that whitening adds to all of them."""


def standardisation(rows: Array) -> tuple[Array, Array]:
    """Means of columns, and what their deviations are divided by: ``[features]`` each (``FLOOR``).

    Raises ValueError for rows that are all the same.
    """
    spread = rows.std(0)
    typical = float(np.sqrt(np.mean(spread**2)))
    if not typical > 0:
        raise ValueError("X must not be copies of one row: its standard deviation is 0.")
    return rows.mean(0), np.maximum(spread, FLOOR * typical)


def warn_of_small(rows: Array, scale: Array) -> None:
    """Warn of columns that hardly count once they are divided by ``scale``."""
    spread = rows.std(0)
    small = np.flatnonzero((spread > 0) & (spread < SMALL * scale))
    if len(small):
        warnings.warn(
            f"columns {small[:5].tolist()}{' and more' if len(small) > 5 else ''} of X vary little beside the others, "
            "and hardly count: where columns have units of their own, divide them by their standard deviations first "
            "(scikit-learn's StandardScaler).",
            stacklevel=3,
        )


def whitener(rows: Array) -> Array:
    """What centred rows ``[rows, features]`` are multiplied with to be uncorrelated: ``[features, features]``.

    Raises ValueError for no more rows than features, as new rows would leave their span.
    """
    if len(rows) <= rows.shape[1]:
        raise ValueError(f"whitening needs more rows than features, got {len(rows)} of {rows.shape[1]}.")
    variances, directions = np.linalg.eigh(rows.T @ rows / len(rows))
    scaled: Array = directions / np.sqrt(variances.clip(0) + SHRINKAGE * variances.mean())
    return scaled
