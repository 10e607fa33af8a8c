"""Isotropic Gaussian mixtures in the plane: exact energy, exact sampler, log Z = 0."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.targets.base import Target


class GaussianMixture(Target):
    """Mixture of K isotropic Gaussians with one standard deviation and equal weights.

    ``E(x) = -log sum_k N(x; m_k, std^2 I) / K``, normalised, so log Z = 0.
    """

    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True
    means: Tensor

    def __init__(self, means: Tensor, std: float, *, plot_range: tuple[float, float]) -> None:
        means = torch.as_tensor(means, dtype=torch.get_default_dtype())
        scale = float((means.var(0, correction=0).mean() + std**2).sqrt())
        super().__init__((means.shape[1],), scale=scale, smallest_scale=std, plot_range=plot_range, log_z=0.0)
        self.std = std
        self.register_buffer("means", means)

    @property
    def weights(self) -> Tensor:
        """Mixture weights ``[K]``, summing to one."""
        return torch.full((len(self.means),), 1.0 / len(self.means), device=self.means.device)

    def _energy(self, x: Tensor) -> Tensor:
        constant = self.dim / 2 * math.log(2 * math.pi * self.std**2) + math.log(len(self.means))
        return constant - torch.logsumexp(-squared_distances(x, self.means) / (2 * self.std**2), dim=1)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.means.device
        modes = torch.randint(len(self.means), (n,), generator=generator, device=device)
        noise = torch.randn(n, self.dim, generator=generator, device=device, dtype=self.means.dtype)
        return self.means[modes] + self.std * noise


def squared_distances(x: Tensor, centers: Tensor) -> Tensor:
    """Squared Euclidean distances ``[batch, dim], [K, dim] -> [batch, K]``, differentiable and without cancellation."""
    return (x[:, None, :] - centers[None, :, :]).square().sum(-1)


def eight_gaussians() -> GaussianMixture:
    """Eight Gaussians on a circle of radius 4/1.414, std 0.5/1.414, equal weights (the DxMI paper's 2-D target)."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 4 / 1.414 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(means, 0.5 / 1.414, plot_range=(-4.0, 4.0))


def gmm25() -> GaussianMixture:
    """Means {-10, -5, 0, 5, 10}^2 with covariance 0.3 I (the diffusion-sampler literature's 25-mode grid)."""
    axis = torch.tensor([-10.0, -5.0, 0.0, 5.0, 10.0])
    return GaussianMixture(torch.cartesian_prod(axis, axis), math.sqrt(0.3), plot_range=(-13.0, 13.0))
