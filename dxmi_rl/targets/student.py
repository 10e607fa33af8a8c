"""A mixture of Student-t densities with two degrees of freedom: exact energy and sampler, infinite variance."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.targets.base import Target
from dxmi_rl.targets.mixtures import check_means, means_50d


class StudentMixture(Target):
    """Equal mixture of K products of Student-t densities with two degrees of freedom and scale 1 per coordinate.

    ``E(x) = -log 1/K sum_k prod_i f(x_i - m_ki)``, ``f(t) = (1 + t^2 / 2)^(-3/2) / (2 sqrt(2))``, normalised, so
    log Z = 0. The variance is infinite: compare by MMD and quantiles, never by W2 or moments.

    ``means`` is ``[K, dim]``; ``scale`` a robust width of one coordinate (see Target). Raises ValueError for means of
    another shape or not finite.
    """

    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True
    heavy_tailed: ClassVar[bool] = True
    means: Tensor

    def __init__(self, means: Tensor, *, scale: float, plot_range: tuple[float, float]) -> None:
        means = check_means(means)
        super().__init__((means.shape[1],), scale=scale, smallest_scale=1.0, plot_range=plot_range, log_z=0.0)
        self.register_buffer("means", means)

    def _energy(self, x: Tensor) -> Tensor:
        distances = x[:, None, :] - self.means.to(x.dtype)
        log_density = -1.5 * torch.log1p(distances.square() / 2).sum(-1)
        constant = self.dim * 1.5 * math.log(2) + math.log(len(self.means))
        return constant - torch.logsumexp(log_density, dim=1)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        device, dtype = self.means.device, self.means.dtype
        components = torch.randint(len(self.means), (n,), generator=generator, device=device)
        normal = torch.randn(n, self.dim, generator=generator, device=device, dtype=dtype)
        # Half a chi-square variable with two degrees of freedom is exponential: t = z / sqrt(-log u).
        uniform = torch.rand(n, self.dim, generator=generator, device=device, dtype=dtype)
        return self.means[components] + normal * (-uniform.log()).rsqrt()


def mos10() -> StudentMixture:
    """Ten components with means uniform in [-10, 10]^2: ``(torch.rand(10, 2) - 0.5) * 20`` in float32 at seed 0."""
    uniform = torch.rand(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return StudentMixture((uniform - 0.5) * 20, scale=5.4817, plot_range=(-15.0, 15.0))


def mos10_50() -> StudentMixture:
    """Ten components with means uniform in [-10, 10]^50 (Blessing et al. 2024, arXiv 2406.07423).

    The means are those of the public code, ``jax.random.uniform(jax.random.PRNGKey(0), (10, 50), minval=-10,
    maxval=10)`` with jax 0.4.
    """
    return StudentMixture(means_50d("mos10"), scale=6.7068, plot_range=(-15.0, 15.0))
