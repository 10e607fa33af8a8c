"""Isotropic Gaussian mixtures: exact energy, exact sampler, log Z = 0."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.targets.base import Modes, Target
from dxmi_rl.utils.checks import check_real
from dxmi_rl.utils.storage import load_tensors

PRODUCT_DIMENSIONS = 8
"""Up to here |x - m|^2 comes from a matrix product, which loses digits where |x|^2 is large."""
MEANS_50D = Path(__file__).parents[1] / "data" / "mixtures_50d.safetensors"
BLOCK = 65_536
"""Numbers in one temporary of a mixture on a CPU, 256 KiB in float32."""


class GaussianMixture(Target):
    """Mixture of K isotropic Gaussians with one standard deviation, equal weights unless ``weights`` are given.

    ``E(x) = -log sum_k w_k N(x; m_k, std^2 I)``, normalised, so log Z = 0. ``means`` is ``[K, dim]``; ``weights`` are K
    positive numbers, which are divided by their sum. Raises ValueError for means of another shape or not finite, for
    std <= 0 and for weights that are not K finite positive numbers.
    """

    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True
    task_kind: ClassVar[str | None] = "mixture"
    means: Tensor

    weights: Tensor
    """Mixture weights ``[K]``, summing to one."""

    def __init__(
        self, means: Tensor, std: float, *, plot_range: tuple[float, float], weights: Sequence[float] | None = None
    ) -> None:
        means, std = check_means(means), check_real("std", std, strict=True)
        count = len(means)
        shares = torch.full((count,), 1.0 / count) if weights is None else check_weights(weights, count)
        if weights is None:
            spread = means.var(0, correction=0)
        else:
            spread = (means - shares @ means).square().mul(shares[:, None]).sum(0)
        scale = float((spread.mean() + std**2).sqrt())
        super().__init__((means.shape[1],), scale=scale, smallest_scale=std, plot_range=plot_range, log_z=0.0)
        self.std, self.equal = std, weights is None
        self.register_buffer("means", means)
        self.register_buffer("weights", shares, persistent=False)

    @property
    def modes(self) -> Modes:
        """Its components."""
        return Modes(self.means, self.std, self.weights)

    def digest(self) -> str:
        """As every target's; weights of one's own count by themselves, as samples hardly see them."""
        found = super().digest()
        if self.equal:
            return found
        text = " ".join(f"{weight:.4e}" for weight in self.weights.tolist())
        return hashlib.sha256(f"{found} {text}".encode()).hexdigest()[:16]

    def log_weight_ratios(self, dtype: torch.dtype) -> Tensor | None:
        """log(K w_k), ``[K, 1]``, or None where all weights are equal."""
        return None if self.equal else (self.weights * len(self.weights)).log().to(dtype)[:, None]

    def _energy(self, x: Tensor) -> Tensor:
        return in_blocks(self._block_energy, len(self.means), x)

    def _block_energy(self, x: Tensor) -> Tensor:
        constant = self.dim / 2 * math.log(2 * math.pi * self.std**2) + math.log(len(self.means))
        # Components first, ``[K, batch]``, which is faster on a CPU; E = constant + |x|^2 / 2 std^2 - logsumexp(...).
        means, half = self.means.to(x.dtype), x.square().sum(1) / 2
        if self.dim > PRODUCT_DIMENSIONS:
            half, exponents = torch.zeros_like(half), -0.5 * (x - means[:, None]).square().sum(2) / self.std**2
        else:
            exponents = torch.addmm(-means.square().sum(1, keepdim=True) / 2, means, x.T) / self.std**2
        ratios = self.log_weight_ratios(x.dtype)
        if ratios is not None:
            exponents = exponents + ratios
        top = exponents.detach().amax(0)
        # Below e^-80 nothing changes the sum, and arithmetic on denormal numbers is twenty times slower.
        total = (exponents - top).clamp_min(-80.0).exp().sum(0)
        return constant + half / self.std**2 - top - total.log()

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.means.device
        if self.equal:
            modes = torch.randint(len(self.means), (n,), generator=generator, device=device)
        else:
            modes = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, device=device, dtype=self.means.dtype)
        return self.means[modes] + self.std * noise


def in_blocks(function: Callable[..., Tensor], components: int, *rows: Tensor) -> Tensor:
    """``function(*rows)``, on a CPU in blocks of rows whose ``[components, block]`` temporaries stay in its cache.

    Larger ones go back to the system after every operation, and asking for them again takes most of the time.
    """
    size = max(1, BLOCK // components)
    if rows[0].device.type != "cpu" or len(rows[0]) <= size or torch.compiler.is_compiling():
        return function(*rows)
    return torch.cat([function(*block) for block in zip(*(part.split(size) for part in rows), strict=True)])


def check_means(means: Tensor) -> Tensor:
    """Centres ``[K, dim]`` of a mixture in the default dtype; raises ValueError for others, NaN and infinities."""
    means = torch.as_tensor(means, dtype=torch.get_default_dtype())
    if means.dim() != 2 or means.numel() == 0:
        raise ValueError(f"means must have shape [components, dim], got {list(means.shape)}.")
    if not bool(means.isfinite().all()):
        raise ValueError("means must be finite.")
    return means


def check_weights(weights: Sequence[float], count: int) -> Tensor:
    """Weights ``[count]`` divided by their sum; raises ValueError unless they are so many finite positive numbers."""
    shares = torch.as_tensor(weights, dtype=torch.float64)
    if shares.shape != (count,) or not bool((shares.isfinite() & (shares > 0)).all()):
        raise ValueError(f"weights must be {count} finite positive numbers, got {weights!r}.")
    return (shares / shares.sum()).to(torch.get_default_dtype())


def eight_gaussians(*, weights: Sequence[float] | None = None) -> GaussianMixture:
    """Eight Gaussians on a circle of radius 4/1.414, std 0.5/1.414, equal weights (the DxMI paper's 2-D target).

    Args:
        weights: eight positive numbers, from the right counter-clockwise, in place of equal ones.
    """
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 4 / 1.414 * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(means, 0.5 / 1.414, plot_range=(-4.0, 4.0), weights=weights)


def gmm9() -> GaussianMixture:
    """Means {-5, 0, 5}^2 with standard deviation 0.5477222 (the diffusion-sampler literature's 9-mode grid)."""
    axis = torch.tensor([-5.0, 0.0, 5.0])
    return GaussianMixture(torch.cartesian_prod(axis, axis), 0.5477222, plot_range=(-8.0, 8.0))


def gmm25() -> GaussianMixture:
    """Means {-10, -5, 0, 5, 10}^2 with covariance 0.3 I (the diffusion-sampler literature's 25-mode grid)."""
    axis = torch.tensor([-10.0, -5.0, 0.0, 5.0, 10.0])
    return GaussianMixture(torch.cartesian_prod(axis, axis), math.sqrt(0.3), plot_range=(-13.0, 13.0))


def gmm40() -> GaussianMixture:
    """FAB's and iDEM's mixture (arXiv 2208.01893, 2402.06121): 40 means in [-40, 40]^2, std log(1 + e) = 1.3133.

    The means are those of ``torch.manual_seed(0); (torch.rand(40, 2) - 0.5) * 80`` in float32. A mixture that the
    literature also calls GMM40 has means from JAX's generator and std 1: its figures cannot be compared with ours.
    """
    uniform = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return GaussianMixture((uniform - 0.5) * 80, math.log1p(math.e), plot_range=(-48.0, 48.0))


def means_50d(name: str) -> Tensor:
    """Component means in 50 dimensions, float32, as JAX's generator draws them in the literature's public code."""
    return load_tensors(MEANS_50D)[0][name]


def gmm40_50() -> GaussianMixture:
    """Forty means uniform in [-40, 40]^50, std 1 (Blessing et al. 2024, arXiv 2406.07423).

    The means are those of the public code, ``40 jax.random.uniform(jax.random.PRNGKey(0), (40, 50), minval=-1,
    maxval=1)`` with jax 0.4.
    """
    return GaussianMixture(means_50d("gmm40"), 1.0, plot_range=(-48.0, 48.0))
