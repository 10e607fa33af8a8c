"""Denoisers D(x, alpha, s) = E[x_clean | x = alpha x_clean + s eps]: exact for mixtures, or an epsilon network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dxmi_rl.networks import MLP
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.targets.mixtures import squared_distances


def _column(value: Tensor, x: Tensor) -> Tensor:
    """A scalar or ``[batch]`` tensor, shaped to multiply ``x``."""
    return value if value.dim() == 0 else value.view(-1, *[1] * (x.dim() - 1))


class MixtureDenoiser(nn.Module):
    """The exact posterior mean under an isotropic Gaussian mixture.

    With component k, x ~ N(alpha m_k, (alpha^2 std^2 + s^2) I), so
    D = sum_k w_k(x) [m_k + alpha std^2 / (alpha^2 std^2 + s^2) (x - alpha m_k)], w_k the component posterior.
    """

    means: Tensor

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.register_buffer("means", mixture.means.clone())
        self.std = mixture.std

    def forward(self, x: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        """``[batch, dim]`` and scalars or ``[batch]`` -> ``[batch, dim]``."""
        alpha, s = _column(alpha, x), _column(s, x)
        variance = alpha**2 * self.std**2 + s**2
        # Dividing by alpha keeps the centres fixed while x moves.
        weights = torch.softmax(-squared_distances(x / alpha, self.means) * alpha**2 / (2 * variance), dim=1)
        gain = alpha * self.std**2 / variance
        return gain * x + (1 - gain * alpha) * (weights @ self.means)


class DenoiserMLP(nn.Module):
    """A trained denoiser with Karras et al.'s preconditioning (arXiv 2206.00364, table 1).

    With z = x / alpha, level l = s / alpha and the data's standard deviation c:
    D = c^2 / (l^2 + c^2) z + l c / sqrt(l^2 + c^2) F(z / sqrt(l^2 + c^2), log l); F sees a Fourier code of log l.
    """

    frequencies: Tensor

    def __init__(self, event_shape: tuple[int, ...], scale: float, *, width: int, depth: int, residual: bool) -> None:
        super().__init__()
        self.scale = scale
        dim = math.prod(event_shape)
        self.register_buffer("frequencies", 2.0 ** torch.arange(-2, 2) * math.pi / 8)
        self.net = MLP(
            dim, dim, condition=1 + 2 * len(self.frequencies), width=width, depth=depth, residual=residual, zero=True
        )

    def forward(self, x: Tensor, alpha: Tensor, s: Tensor) -> Tensor:
        """``[batch, *event]`` and scalars or ``[batch]`` -> ``[batch, *event]``."""
        level, z = s / alpha, x / _column(alpha, x)
        log_level = level.log().reshape(-1, 1)
        angles = log_level * self.frequencies
        code = torch.cat([log_level / 4, angles.sin(), angles.cos()], dim=1).expand(len(x), -1)
        level = _column(level, x)
        total = (level**2 + self.scale**2).sqrt()
        out = self.net((z / total).flatten(1), code).view_as(x)
        return (self.scale / total) ** 2 * z + level * self.scale / total * out
