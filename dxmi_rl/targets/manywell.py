"""Independent double wells in 32, 64 and 128 dimensions: exact energy, exact sampler, exact log Z."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.targets.base import Target
from dxmi_rl.utils.checks import check_batch, check_integer

REACH = 3.5
"""The inverse CDF covers x1 in [-3.5, 3.5]: outside lies less than e^-80 of the mass."""


def well_log_density(x: Tensor) -> Tensor:
    """Unnormalised log density of x1: ``-x^4 + 6 x^2 + x / 2``, wells near -1.71 and 1.75."""
    return -x.pow(4) + 6 * x.square() + 0.5 * x


class ManyWell(Target):
    """``pairs`` independent pairs (x1, x2), x1 in a tilted double well and x2 standard normal (Noe et al. 2019; FAB).

    ``E(x) = sum over pairs of x1^4 - 6 x1^2 - x1 / 2 + x2^2 / 2``; coordinates are ordered x1, x2, x1, x2, ... Each
    well on the right holds 0.84431 of the mass, and there are 2^pairs modes. The integral over one x1 is
    11784.50927, so log Z = pairs (log 11784.50927 + log(2 pi) / 2): 164.695675, 329.391351 and 658.782701 for 16, 32
    and 64 pairs.

    The sampler draws x1 by its inverse CDF, interpolated between 14,001 nodes in float64.
    """

    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True
    nodes: Tensor
    cdf: Tensor

    def __init__(self, *, pairs: int = 16) -> None:
        self.pairs = check_integer("pairs", pairs)
        nodes = torch.linspace(-REACH, REACH, 14_001, dtype=torch.float64)
        density = well_log_density(nodes).exp()
        cells = (density[1:] + density[:-1]) / 2 * nodes.diff()
        integral = float(cells.sum())  # the trapezoid rule is exact to rounding: the density vanishes at both ends
        mean = float((density * nodes).sum() / density.sum())
        variance = float((density * nodes.square()).sum() / density.sum()) - mean**2
        super().__init__(
            (2 * pairs,),
            scale=math.sqrt((variance + 1) / 2),
            smallest_scale=0.2,  # curvature 12 x1^2 - 12 of the energy at the bottom of a well
            plot_range=(-3.0, 3.0),
            log_z=pairs * (math.log(integral) + 0.5 * math.log(2 * math.pi)),
        )
        self.register_buffer("nodes", nodes)
        cdf = torch.cat([cells.new_zeros(1), cells.cumsum(0)])
        self.register_buffer("cdf", cdf / cdf[-1])  # ends at 1 exactly, above every uniform number, in float32 too

    def _energy(self, x: Tensor) -> Tensor:
        pairs = x.view(-1, self.pairs, 2)
        return (0.5 * pairs[..., 1].square() - well_log_density(pairs[..., 0])).sum(1)

    def well_error(self, x: Tensor) -> float:
        """Largest distance, over the pairs, of the fraction of samples with x1 > 0 from the exact 0.84431.

        ``x`` is ``[n, 2 pairs]``; the range is [0, 0.85). All samples in one well of a pair give 0.156 (the right one)
        or 0.844. ESS does not see a lost left well, and bounds by 0.17 nats only.
        """
        fractions = (check_batch("x", x, self.event_shape)[:, ::2] > 0).double().mean(0)
        right = 1 - self.cdf[len(self.nodes) // 2]
        return float((fractions - right).abs().max())

    def own_scores(self, x: Tensor) -> dict[str, float]:
        """``well_error``."""
        return {"well_error": self.well_error(x)}

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        uniform = torch.rand(n, self.pairs, dtype=self.cdf.dtype, generator=generator, device=self.device)
        right = torch.searchsorted(self.cdf, uniform, right=True).clamp(1, len(self.cdf) - 1)
        left = right - 1
        fraction = (uniform - self.cdf[left]) / (self.cdf[right] - self.cdf[left])
        wells = self.nodes[left] + fraction * (self.nodes[right] - self.nodes[left])
        normal = torch.randn(n, self.pairs, dtype=self.anchor.dtype, generator=generator, device=self.device)
        return torch.stack([wells.to(normal.dtype), normal], dim=2).flatten(1)


def manywell32() -> ManyWell:
    """Sixteen independent double wells in 32 dimensions, the literature's size."""
    return ManyWell()


def manywell64() -> ManyWell:
    """Thirty-two independent double wells in 64 dimensions."""
    return ManyWell(pairs=32)


def manywell128() -> ManyWell:
    """Sixty-four independent double wells in 128 dimensions."""
    return ManyWell(pairs=64)
