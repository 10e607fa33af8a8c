"""Linear continuation of exp, so that energies and gradients stay finite wherever a policy goes."""

from __future__ import annotations

import math

from torch import Tensor


def exp_below(x: Tensor, limit: float) -> Tensor:
    """exp(x) up to ``limit``, beyond it the tangent ``exp(limit) (1 + x - limit)``: same shape, once differentiable."""
    inside = x.clamp(max=limit)
    return inside.exp() + math.exp(limit) * (x - inside)
