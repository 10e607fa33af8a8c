"""Rewards r(x) with an exact answer: what tilts a Gaussian mixture into a Gaussian mixture, and one that deceives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dxmi_rl.targets.mixtures import GaussianMixture
from dxmi_rl.utils.checks import check_real


class QuadraticReward(nn.Module):
    """r(x) = constant + b . x - x^T A x / 2, ``[batch, d] -> [batch]``.

    Args:
        linear: b, d numbers.
        curvature: A, a symmetric d x d matrix; None: 0, a linear reward.
        constant: a number.

    Raises ValueError for other shapes, numbers that are not finite and an A that is not symmetric.
    """

    linear: Tensor
    curvature: Tensor

    def __init__(
        self, linear: Sequence[float] | Tensor, curvature: Sequence[Sequence[float]] | Tensor | None = None,
        constant: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        b = torch.as_tensor(linear, dtype=torch.float64)
        if b.dim() != 1 or not len(b) or not bool(b.isfinite().all()):
            raise ValueError(f"linear must be finite numbers [d], got {linear!r}.")
        a = b.new_zeros(len(b), len(b)) if curvature is None else torch.as_tensor(curvature, dtype=torch.float64)
        if a.shape != (len(b), len(b)) or not bool(a.isfinite().all()) or not torch.allclose(a, a.T):
            raise ValueError(f"curvature must be a symmetric matrix [{len(b)}, {len(b)}], got {curvature!r}.")
        self.constant = check_real("constant", constant, minimum=-math.inf)
        self.register_buffer("linear", b)
        self.register_buffer("curvature", a)

    @classmethod
    def near(cls, point: Sequence[float], width: float = 1.0) -> QuadraticReward:
        """r(x) = -|x - point|^2 / (2 width^2)."""
        matrix = torch.eye(len(point), dtype=torch.float64).tolist()
        return cls.measurement(matrix, point, width)

    @classmethod
    def measurement(cls, matrix: Sequence[Sequence[float]], value: Sequence[float], noise: float) -> QuadraticReward:
        """The log-likelihood of a linear measurement, r(x) = -|value - H x|^2 / (2 noise^2), H = ``matrix`` [m, d].

        At beta = 1 the tilted density is the posterior given the measurement: inpainting, where H picks coordinates.
        """
        variance = check_real("noise", noise, strict=True) ** 2
        h, y = (torch.as_tensor(part, dtype=torch.float64) for part in (matrix, value))
        if h.dim() != 2 or y.shape != h.shape[:1]:
            raise ValueError(f"matrix and value must be [m, d] and [m], got {list(h.shape)} and {list(y.shape)}.")
        return cls(h.T @ y / variance, h.T @ h / variance, -float(y @ y) / (2 * variance))

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        if x.dim() != 2 or x.shape[1] != len(self.linear):
            raise ValueError(f"the reward is of states [{len(self.linear)}], got {list(x.shape[1:])}.")
        linear, curvature = self.linear.to(x.dtype), self.curvature.to(x.dtype)
        return x @ linear - (x @ curvature * x).sum(1) / 2 + self.constant


class WithinData(nn.Module):
    """A reward that a proxy agrees with near the data and not beyond: r(x) - strength max(0, u - radius)^2 / 2.

    u is the distance of x to the nearest mean of the mixture, in its standard deviations.
    """

    def __init__(
        self, reward: nn.Module, mixture: GaussianMixture, *, radius: float = 3.0, strength: float = 1.0
    ) -> None:
        super().__init__()
        self.reward, self.mixture = reward, mixture
        self.radius = check_real("radius", radius)
        self.strength = check_real("strength", strength)

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        distance = torch.cdist(x, self.mixture.means.to(x.dtype)).min(1).values / self.mixture.std
        beyond = (distance - self.radius).clamp_min(0.0)
        reward: Tensor = self.reward(x)
        return reward - self.strength * beyond.square() / 2
