"""Where the game of DxMI ends, with players that can do anything: the optimum that learned ones are checked against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl.irl.losses import ENERGY_LOSSES
from dxmi_rl.utils.checks import check_real

HALVINGS = 60
"""Of an interval that holds the answer; float64 has no more digits."""


@dataclass(frozen=True)
class Equilibrium:
    """``energy`` and ``log_policy``, log p_pi, at the points of the data's log density, ``[n]`` each, float64."""

    energy: Tensor
    log_policy: Tensor


def equilibrium(
    log_density: Tensor, cell: float, *, tau: float, loss: str = "contrastive", gamma: float | None = None
) -> Equilibrium:
    """The energy and the sampler that are each the best answer to the other, on a grid.

    ``log_density``, log p_data ``[n]``, holds at points that each stand for a volume of ``cell`` and together for all
    of the mass. The energy minimises the loss, so that with u = log(p_pi / p_data)

        contrastive, gamma > 0:    E = tanh(u / 2) / (2 gamma) = (p_pi - p_data) / (2 gamma (p_pi + p_data))
        nce, n2ce, gamma = 0:      E = u

    and the sampler maximises -E_pi[E] + tau H, so that p_pi is proportional to exp(-E / tau). With NCE p_pi is
    proportional to p_data^(1 / (1 + tau)); the contrastive loss agrees with exponent 1 / (1 + 4 gamma tau) to first
    order in u. With an ``anchor`` (DxMIConfig) none of this is needed: p_pi = p_data and E = -tau log p_data + c.

    Raises ValueError for a log density that is not a finite vector, or whose mass is off one by more than a hundredth,
    for tau <= 0 (pi would be anything on the data's support), for a contrastive loss with gamma = 0, where p_pi =
    p_data, and for other losses with gamma > 0, whose energy has no closed form.
    """
    check_real("tau", tau, strict=True)
    check_real("cell", cell, strict=True)
    chosen = ENERGY_LOSSES[loss]
    weight = chosen.gamma if gamma is None else check_real("gamma", gamma)
    if (loss == "contrastive") != (weight > 0):
        raise ValueError(
            f"gamma must be > 0 for loss 'contrastive' and 0 for the others here, got {weight} ({loss!r})."
        )
    log_data = log_density.double()
    if log_data.dim() != 1 or not bool(log_data.isfinite().all()):
        raise ValueError(f"log_density must be a finite vector, got shape {list(log_data.shape)} (drop empty points).")
    mass = float(log_data.exp().sum()) * cell
    if abs(mass - 1) > 0.01:
        raise ValueError(f"log_density must have mass 1 over the cells, got {mass:g}: is cell = {cell:g} right?")

    def energy(u: Tensor) -> Tensor:
        return (u / 2).tanh() / (2 * weight) if weight else u

    def ratio(log_z: float) -> Tensor:
        """u with u + log p_data + E(u) / tau + log Z = 0, whose left side grows with u: by halving."""
        wanted = -(log_data + log_z)
        reach = torch.full_like(wanted, 1 / (2 * weight * tau)) if weight else wanted.abs()  # |E| / tau is no larger
        low, high = wanted - reach, wanted + reach
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = middle + energy(middle) / tau > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def log_mass(u: Tensor) -> float:
        return float(torch.logsumexp(log_data + u, 0)) + math.log(cell)

    # The larger Z, the less mass; densities lie within e^+-1e4 of the volume's inverse.
    low, high = -1e4, 1e4
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if log_mass(ratio(middle)) > 0 else (low, middle)
    u = ratio((low + high) / 2)
    return Equilibrium(energy(u), log_data + u)
