"""The flow literature's data sets in the plane (as in FFJORD, arXiv 1810.01367): samplers without a density."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from dxmi_rl.targets.base import Target


class Like(TypedDict):
    """Where random numbers come from, and what they are."""

    generator: torch.Generator | None
    device: torch.device
    dtype: torch.dtype


class Draw(Protocol):
    """``draw(n, generator=, device=, dtype=) -> [n, 2]``, independent rows."""

    def __call__(self, n: int, **like: Unpack[Like]) -> Tensor: ...


class PlanarSet(Target):
    """A data set in the plane that is drawn afresh, in no order; it has no energy of its own."""

    has_sampler: ClassVar[bool] = True

    def __init__(
        self, draw: Draw, *, scale: float, plot_range: tuple[float, float], smallest_scale: float | None = None
    ) -> None:
        super().__init__((2,), scale=scale, plot_range=plot_range, smallest_scale=smallest_scale)
        self.draw = draw

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.draw(n, generator=generator, device=self.device, dtype=self.anchor.dtype)


def _integers(high: int, n: int, like: Like) -> Tensor:
    return torch.randint(high, (n,), generator=like["generator"], device=like["device"])


def _checkerboard(n: int, **like: Unpack[Like]) -> Tensor:
    column = _integers(4, n, like)
    row = 2 * _integers(2, n, like) + column % 2
    return 2 * (torch.stack([column, row], 1) + torch.rand(n, 2, **like)) - 4


def _two_spirals(n: int, **like: Unpack[Like]) -> Tensor:
    angle = 3 * math.pi * torch.rand(n, **like).sqrt()
    sign = 1 - 2 * _integers(2, n, like)
    arm = torch.stack([-angle * angle.cos(), angle * angle.sin()], 1) + 0.5 * torch.rand(n, 2, **like)
    return sign[:, None] * arm / 3 + 0.1 * torch.randn(n, 2, **like)


def _rings(n: int, **like: Unpack[Like]) -> Tensor:
    radius = 0.75 * (1 + _integers(4, n, like))
    angle = 2 * math.pi * torch.rand(n, **like)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(n, 2, **like)


def _moons(n: int, **like: Unpack[Like]) -> Tensor:
    inner = _integers(2, n, like)
    sign = 1 - 2 * inner
    angle = math.pi * torch.rand(n, **like)
    moon = torch.stack([inner + sign * angle.cos(), 0.5 * inner + sign * angle.sin()], 1)
    return 2 * (moon + 0.1 * torch.randn(n, 2, **like)) - torch.tensor([1.0, 0.2], device=moon.device, dtype=moon.dtype)


def checkerboard() -> PlanarSet:
    """Uniform over 8 of the 4 x 4 cells of [-4, 4]^2, the lower left one among them."""
    return PlanarSet(_checkerboard, scale=4 / math.sqrt(3), plot_range=(-4.5, 4.5))


def two_spirals() -> PlanarSet:
    """Two arms that turn 540 degrees.

    ``+-[(-a cos a, a sin a) + u / 2] / 3 + 0.1 z`` with a = 3 pi sqrt(v); u, v uniform, z normal.
    """
    return PlanarSet(_two_spirals, scale=1.5973, smallest_scale=0.1, plot_range=(-4.0, 4.0))


def rings() -> PlanarSet:
    """Four circles of radius 0.75, 1.5, 2.25 and 3, equally likely, with normal noise of standard deviation 0.08."""
    scale = math.sqrt((0.75**2 + 1.5**2 + 2.25**2 + 3**2) / 8 + 0.08**2)
    return PlanarSet(_rings, scale=scale, smallest_scale=0.08, plot_range=(-4.0, 4.0))


def moons() -> PlanarSet:
    """Two half circles of radius 2 around (-1, -0.2) and (1, 0.8), noise 0.2: scikit-learn's moons, doubled, centred.

    The angle is uniform at random, not on scikit-learn's even grid.
    """
    variance_x, variance_y = 3.0, 2 - 16 / math.pi**2 + (4 / math.pi - 0.5) ** 2
    scale = math.sqrt((variance_x + variance_y) / 2 + 0.2**2)
    return PlanarSet(_moons, scale=scale, smallest_scale=0.2, plot_range=(-4.0, 4.0))
