"""Log-densities of diagonal Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, diag exp(2 log_std)) summed over the event: ``[batch, *event] -> [batch]``; log_std broadcasts."""
    return standard_log_prob((x - mean) * torch.exp(-log_std), log_std)


def standard_log_prob(z: Tensor, log_std: Tensor | float) -> Tensor:
    """The same for z = (x - mean) / std, ``[batch, *event]``: the density of x, not of z."""
    rows = z.flatten(1)
    dim = rows.shape[1]
    # A product with a constant vector sums twice as fast as .sum(1), which is most of the cost of a step in the plane.
    log_density = torch.mv(rows.square(), rows.new_full((dim,), -0.5))
    if not isinstance(log_std, Tensor) or log_std.dim() == 0:
        return log_density - dim * (log_std + HALF_LOG_TWO_PI)
    return log_density - (log_std.expand_as(z).flatten(1).sum(1) + dim * HALF_LOG_TWO_PI)
