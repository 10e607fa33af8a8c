"""Linear continuation of exp, so that energies and gradients stay finite wherever a policy goes."""

from __future__ import annotations

from torch import Tensor


def exp_below(x: Tensor, limit: float) -> Tensor:
    """exp(x) up to ``limit``, beyond it the tangent ``exp(limit) (1 + x - limit)``: same shape, once differentiable."""
    inside = x.clamp(max=limit)
    # As a sum with exp(limit) (x - inside) the gradient of exp(x) would drown in exp(limit) - exp(limit).
    return inside.exp() * (1 + (x - inside))
