"""Denoisers D(x, alpha, s) = E[x_clean | x = alpha x_clean + s eps]: exact for mixtures, or an epsilon network.

alpha and s are one number each (floats: no work on the device) or tensors ``[batch]``.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.networks import MLP
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.targets.mixtures import in_blocks
from dxmi_rl.utils.checks import check_integer, check_real

Level = float | Tensor


def column(value: Level, x: Tensor) -> Level:
    """A number as it is, a tensor ``[batch]`` shaped to multiply ``x``."""
    return value.view(-1, *[1] * (x.dim() - 1)) if isinstance(value, Tensor) else value


class MixtureDenoiser(nn.Module):
    """The exact posterior mean under an isotropic Gaussian mixture.

    With component k, x ~ N(alpha m_k, (alpha^2 std^2 + s^2) I), so
    D = sum_k w_k(x) [m_k + alpha std^2 / (alpha^2 std^2 + s^2) (x - alpha m_k)], w_k the component posterior.
    """

    means: Tensor
    log_ratios: Tensor | None

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.register_buffer("means", mixture.means.clone())
        self.std = mixture.std
        self.register_buffer("log_ratios", mixture.log_weight_ratios(mixture.means.dtype), persistent=False)

    def forward(self, x: Tensor, alpha: Level, s: Level) -> Tensor:
        """``[batch, dim]``, and numbers or ``[batch]`` -> ``[batch, dim]``."""
        if isinstance(alpha, Tensor) and isinstance(s, Tensor):
            return in_blocks(self._block, len(self.means), x, alpha, s)
        return in_blocks(lambda rows: self._block(rows, alpha, s), len(self.means), x)

    def _block(self, x: Tensor, alpha: Level, s: Level) -> Tensor:
        variance = alpha**2 * self.std**2 + s**2
        # Components first, ``[K, batch]``: softmax over the first dimension is ten times faster on a CPU. What the
        # components share, |x|^2, is left out of the squares.
        products = torch.addmm(-0.5 * alpha * self.means.square().sum(1, keepdim=True), self.means, x.T)
        exponents = products.mul_(alpha / variance)
        if self.log_ratios is not None:
            exponents = exponents + self.log_ratios.to(x.dtype)
        # Weights below e^-80 change nothing, and arithmetic on denormal numbers is ten times slower.
        weights = torch.softmax(torch.maximum(exponents, exponents.detach().amax(0) - 80.0), dim=0)
        gain = column(alpha * self.std**2 / variance, x)
        posterior = (1 - gain * column(alpha, x)) * (weights.T @ self.means)
        return torch.add(posterior, x, alpha=gain) if isinstance(gain, float) else posterior + gain * x


class DenoiserMLP(nn.Module):
    """A trained denoiser with Karras et al.'s preconditioning (arXiv 2206.00364, table 1).

    With z = x / alpha, level l = s / alpha and the data's standard deviation c:
    D = c^2 / (l^2 + c^2) z + l c / sqrt(l^2 + c^2) F(z / sqrt(l^2 + c^2), log l); F sees a Fourier code of log l.
    With ``classes`` it also sees the class, one-hot (``row_classes``).
    """

    frequencies: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        scale: float,
        *,
        width: int,
        depth: int,
        residual: bool,
        fourier: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.classes = scale, classes
        self.label: int | None = None
        dim = math.prod(event_shape)
        self.register_buffer("frequencies", 2.0 ** torch.arange(-2, 2) * math.pi / 8)
        self.net = MLP(
            dim,
            dim,
            condition=1 + 2 * len(self.frequencies) + (classes or 0),
            width=width,
            depth=depth,
            residual=residual,
            fourier=fourier,
            zero=True,
        )

    def forward(self, x: Tensor, alpha: Level, s: Level, label: Tensor | int | None = None) -> Tensor:
        """``[batch, *event]``, and numbers or ``[batch]`` -> ``[batch, *event]``; ``label`` as ``row_classes``."""
        z = x / column(alpha, x)
        ratio = s / alpha
        level = ratio if isinstance(ratio, Tensor) else x.new_full((1,), ratio)
        log_level = level.log().reshape(-1, 1)
        angles = log_level * self.frequencies
        code = torch.cat([log_level / 4, angles.sin(), angles.cos()], dim=1).expand(len(x), -1)
        shown = row_classes(x, self.label if label is None else label, self.classes)
        if shown is not None:
            code = torch.cat([code, nn.functional.one_hot(shown, self.classes or 0).to(x.dtype)], dim=1)
        level = level.view(-1, *[1] * (x.dim() - 1))
        total = (level**2 + self.scale**2).sqrt()
        out: Tensor = self.net((z / total).flatten(1), code)
        return (self.scale / total) ** 2 * z + level * self.scale / total * out.view_as(x)


class FirstLevelDenoiser(nn.Module):
    """A denoiser with other weights at the largest noise level than at those below; both start as ``denoiser``.

    For several numbers of steps: one step must leap from noise to an image there, which no other level asks for, and
    with shared weights it spoils the small steps of longer chains.
    """

    def __init__(self, denoiser: nn.Module, largest: float) -> None:
        super().__init__()
        self.first, self.below, self.bound = copy.deepcopy(denoiser), denoiser, 0.999 * largest

    def forward(self, x: Tensor, alpha: Level, s: Level) -> Tensor:
        """``[batch, *event]``, and numbers or ``[batch]`` -> ``[batch, *event]``."""
        if not (isinstance(alpha, Tensor) and isinstance(s, Tensor)):
            found: Tensor = (self.first if s / alpha > self.bound else self.below)(x, alpha, s)
            return found
        at_first = s / alpha > self.bound
        parts = [(rows.nonzero()[:, 0], network) for rows, network in ((at_first, self.first), (~at_first, self.below))]
        # A network without rows is left out: a gradient of zero would let an optimizer's momentum move it.
        parts = [(rows, network) for rows, network in parts if len(rows)] or parts
        denoised = [network(x[rows], alpha[rows], s[rows]) for rows, network in parts]
        return torch.cat(denoised)[torch.cat([rows for rows, _ in parts]).argsort()]


def row_classes(x: Tensor, label: Tensor | int | None, classes: int | None) -> Tensor | None:
    """The class of every row ``[batch]`` for a network that knows ``classes`` of them; None where it knows none.

    ``label``: one class, or a LongTensor ``[batch]``. Raises ValueError for a class without ``classes``, and for none
    with them.
    """
    if (label is None) != (classes is None):
        raise ValueError(f"label must be a class if and only if there are any, got {label!r} of {classes}.")
    if label is None or isinstance(label, Tensor):
        return label
    chosen, count = check_integer("label", label, minimum=None), classes or 0
    if not 0 <= chosen < count:
        raise ValueError(f"label must be one of {count} classes, 0 to {count - 1}, got {label!r}.")
    return torch.full((len(x),), chosen, device=x.device)


class VelocityDenoiser(nn.Module):
    """A velocity network of rectified flow as a denoiser: v(x_u, u) = E[eps - x_clean], x_u = (1 - u) x_clean + u eps.

    A state at any alpha and s is one of the flow, x / (alpha + s), at u = s / (alpha + s); D = x_u - u v(x_u, u). So it
    serves every schedule.

    Args:
        net: (x ``[batch, *event]``, u ``[batch]``) -> ``[batch, *event]``.
        time_scale: what u is multiplied by for the network; 1000 where it is told a time of 0..1000, as in diffusers.
    """

    def __init__(self, net: nn.Module, *, time_scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.time_scale = net, check_real("time_scale", time_scale, strict=True)

    def forward(self, x: Tensor, alpha: Level, s: Level) -> Tensor:
        """``[batch, *event]``, and numbers or ``[batch]`` -> ``[batch, *event]``."""
        total = alpha + s
        point, u = x / column(total, x), _rows(s / total, x)
        velocity: Tensor = self.net(point, self.time_scale * u)
        return point - column(u, x) * velocity


class EDMDenoiser(nn.Module):
    """A network of EDM (Karras et al. 2022, arXiv 2206.00364) as a denoiser: D = net(x / alpha, sigma = s / alpha).

    Published checkpoints are pickles, which this package does not open: load the network with its authors' code.

    Args:
        net: (x ``[batch, *event]``, sigma ``[batch]``) -> x_clean; with a label, (x, sigma, classes) with one-hot
            classes ``[batch, label_dim]``, ``label_dim`` being the network's own.
        label: the class that it is told; None: none.
    """

    def __init__(self, net: nn.Module, *, label: int | None = None) -> None:
        super().__init__()
        self.net, self.label = net, None if label is None else check_integer("label", label, minimum=None)
        number: Any = getattr(net, "label_dim", 0)
        self.classes = classes = int(number or 0)
        if (label is None) != (classes == 0) or (label is not None and not 0 <= label < classes):
            raise ValueError(
                f"label must be a class of the network, of {classes}, or None where it has none, got {label!r}."
            )

    def forward(self, x: Tensor, alpha: Level, s: Level) -> Tensor:
        """``[batch, *event]``, and numbers or ``[batch]`` -> ``[batch, *event]``."""
        told = [x / column(alpha, x), _rows(s / alpha, x)]
        if self.label is not None:
            one_hot = x.new_zeros(len(x), self.classes)
            one_hot[:, self.label] = 1.0
            told.append(one_hot)
        found: Tensor = self.net(*told)
        return found.to(x.dtype)


def _rows(level: Level, x: Tensor) -> Tensor:
    """A number for every row: ``[batch]``."""
    return level.to(x.dtype).expand(len(x)) if isinstance(level, Tensor) else x.new_full((len(x),), level)
