"""Losses of the energy-based model; E_data and E_pi are energies of data and of policy samples, ``[batch]`` each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from dxmi_rl.utils.checks import check_real
from dxmi_rl.utils.registry import Registry


def contrastive(energy_data: Tensor, energy_policy: Tensor) -> Tensor:
    """E_data[E] - E_pi[E] (DxMI, arXiv 2407.00626, equation 3).

    Needs gamma > 0, which makes it equation 11 and its optimum bounded: E* = (p_pi - p_data) / (2 gamma (p_pi +
    p_data)).
    """
    return energy_data.mean() - energy_policy.mean()


def nce(energy_data: Tensor, energy_policy: Tensor) -> Tensor:
    """E_data[softplus(E)] + E_pi[softplus(-E)]: noise-contrastive estimation (Gutmann and Hyvarinen 2010) with the
    sampler as the noise; at gamma = 0 its optimum is E* = log(p_pi / p_data).
    """
    return n2ce(energy_data, energy_policy, 1.0)


def n2ce(energy_data: Tensor, energy_policy: Tensor, noise_ratio: float) -> Tensor:
    """E_data[softplus(log M + E)] + M E_pi[softplus(-E - log M)], M = ``noise_ratio``: NCE with M times as much noise
    as data ("Noisier" NCE). The optimum is NCE's. The larger M, the more equally all data count, and the more the
    samples that look like data count.
    """
    shift = math.log(noise_ratio)
    return softplus(shift + energy_data).mean() + noise_ratio * softplus(-energy_policy - shift).mean()


@dataclass(frozen=True)
class EnergyLoss:
    """A loss, and what it takes where the settings leave ``gamma`` and ``noise_ratio`` open."""

    function: Callable[..., Tensor]
    gamma: float = 0.0
    """Weight of E_data[E^2] + E_pi[E^2]."""
    noise_ratio: float | None = None
    """M; None: the loss has none."""

    def __call__(
        self, energy_data: Tensor, energy_policy: Tensor, gamma: float | None = None, noise_ratio: float | None = None
    ) -> Tensor:
        """The loss with its regulariser gamma (E_data[E^2] + E_pi[E^2]). Raises ValueError as ``resolved``."""
        weight, ratio = self.resolved(gamma, noise_ratio)
        loss = self.function(energy_data, energy_policy, *([] if ratio is None else [ratio]))
        if weight == 0:
            return loss
        return loss + weight * (energy_data.square().mean() + energy_policy.square().mean())

    def resolved(self, gamma: float | None, noise_ratio: float | None) -> tuple[float, float | None]:
        """gamma and M with the loss's own in place of None.

        Raises ValueError for a negative gamma, an M that is not positive and an M for a loss without one.
        """
        if noise_ratio is not None:
            check_real("noise_ratio", noise_ratio, strict=True)
            if self.noise_ratio is None:
                raise ValueError(f"noise_ratio belongs to loss 'n2ce' alone: leave it None, got {noise_ratio!r}.")
        weight = self.gamma if gamma is None else check_real("gamma", gamma)
        return weight, self.noise_ratio if noise_ratio is None else noise_ratio


# Named here, as registrations do not count in the digest of a run's code.
CONTRASTIVE = EnergyLoss(contrastive, gamma=1.0)
NCE = EnergyLoss(nce)
N2CE = EnergyLoss(n2ce, noise_ratio=100.0)

ENERGY_LOSSES: Registry[EnergyLoss] = Registry("energy loss")
ENERGY_LOSSES.add("contrastive", CONTRASTIVE)
ENERGY_LOSSES.add("nce", NCE)
ENERGY_LOSSES.add("n2ce", N2CE)
