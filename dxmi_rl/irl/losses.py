"""Losses of the energy-based model; E_data and E_pi are energies of data and of policy samples, ``[batch]`` each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dxmi_rl.registry import Registry


def contrastive(energy_data: Tensor, energy_policy: Tensor, gamma: float) -> Tensor:
    """E_data[E] - E_pi[E] + gamma (E_data[E^2] + E_pi[E^2]) (DxMI, arXiv 2407.00626, equations 3 and 11).

    Its optimum is bounded: E* = (p_pi - p_data) / (2 gamma (p_pi + p_data)).
    """
    drift = energy_data.mean() - energy_policy.mean()
    return drift + gamma * (energy_data.square().mean() + energy_policy.square().mean())


ENERGY_LOSSES: Registry[Callable[[Tensor, Tensor, float], Tensor]] = Registry("energy loss")
ENERGY_LOSSES.add("contrastive", contrastive)
