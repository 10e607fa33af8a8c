"""Energy-based models E(x): a perceptron, a convolutional network, a denoiser."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dxmi_rl.networks.conv import ConvEncoder
from dxmi_rl.networks.mlp import MLP

POWER_ITERATIONS = 3
"""Of spectral norms per update: with one, Adam's steps are ahead of the estimate."""


class EnergyNetwork(nn.Module):
    """An energy-based model E_phi of x / ``scale``: ``[batch, *event] -> [batch]``.

    With ``spectral_norm`` every layer is divided by its largest singular value; ``train()`` mode improves the
    estimate of it in each call, ``eval()`` mode keeps it.

    Attributes:
        limits: (low, high) that x is clipped to first, or None. Beyond them the energy has no slope.
    """

    limits: tuple[float, float] | None = None

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def seen(self, x: Tensor) -> Tensor:
        """What the energy sees of x."""
        return x if self.limits is None else x.clamp(*self.limits)

    def bound_slopes(self) -> None:
        """Give every layer spectral norm one, of a convolution that of its kernel as a matrix."""
        for layer in [module for module in self.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]:
            nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=POWER_ITERATIONS)


class EnergyMLP(EnergyNetwork):
    """An MLP on flattened events. Raises ValueError for ``spectral_norm`` with ``residual``, whose norms have gains
    that it does not bound.
    """

    def __init__(
        self, dim: int, scale: float, *, width: int = 128, depth: int = 3, fourier: int = 0, residual: bool = False,
        spectral_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(scale)
        # 1.8: data have mean square one in these units, and a mode at the rim not much more.
        self.mlp = MLP(dim, 1, width=width, depth=depth, fourier=fourier, fade=1.8, residual=residual)
        if spectral_norm and residual:
            raise ValueError("spectral_norm must be False for residual blocks: the gains of their norms have no bound.")
        if spectral_norm:
            self.bound_slopes()

    def forward(self, x: Tensor) -> Tensor:
        energy: Tensor = self.mlp(self.seen(x).flatten(1) / self.scale)
        return energy.squeeze(-1)


class EnergyConv(EnergyNetwork):
    """A ConvEncoder of images. With ``spectral_norm`` the slope is held down, not bounded by one: blocks add up."""

    def __init__(
        self, event_shape: tuple[int, ...], scale: float, *, width: int, depth: int, spectral_norm: bool = False
    ) -> None:  # fmt: skip
        super().__init__(scale)
        self.net = ConvEncoder(event_shape, 1, width=width, depth=depth)
        if spectral_norm:
            self.bound_slopes()

    def forward(self, x: Tensor) -> Tensor:
        energy: Tensor = self.net(self.seen(x) / self.scale)
        return energy.squeeze(-1)


class EnergyDenoiser(EnergyNetwork):
    """What a denoiser D takes out of x that has no noise: sum_k g_k |x - D(x, l_k)|^2 / (d c^2) + b, at few levels l_k.

    D is small on the data that it was trained on, so the energy is low there before it is trained: an autoencoder's
    reconstruction error (as in Yoon et al. 2021, arXiv 2105.05735), with D for autoencoder. D, the gains g and b
    (start: 0) are trained; copies of D are taken.

    Args:
        denoiser: D(x, alpha, s), such as the base sampler's.
        scale: c, the data's standard deviation.
        levels: l_k / c.
        power: p; the gains start at (l_k / c)^-p. 0: all levels count alike, and the noisiest say most, as what they
            take out is largest; 2: each in units of its own noise, so that faint noise in x counts.
    """

    levels: Tensor

    def __init__(
        self, denoiser: nn.Module, scale: float, *, levels: Sequence[float] = (0.5, 1.0, 2.0), power: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__(scale)
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(True)
        _attend_plainly(self.denoiser)
        self.register_buffer("levels", scale * torch.tensor(levels))
        self.log_gain = nn.Parameter(-power * torch.tensor(levels).log())
        self.bias = nn.Parameter(torch.zeros(()))

    def of_case(self, label: int) -> EnergyDenoiser:
        """This energy, with the same weights, where D is told a class."""
        view = copy.copy(self)
        view._modules = dict(self._modules)
        denoiser: Any = copy.copy(self.denoiser)
        denoiser.label = label
        view.denoiser = denoiser
        return view

    def forward(self, x: Tensor) -> Tensor:
        n, copies = len(x), len(self.levels)
        rows = self.seen(x).repeat(copies, *[1] * (x.dim() - 1))
        level = self.levels.to(x.dtype).repeat_interleave(n)
        denoised: Tensor = self.denoiser(rows, torch.ones_like(level), level)
        errors = ((rows - denoised) / self.scale).flatten(1)
        return self.log_gain.exp() @ errors.square().mean(1).view(copies, n) + self.bias


class EnergyPerHorizon(EnergyNetwork):
    """One energy for each of several numbers of steps, copies of ``energy`` at first; E(x) is their mean.

    The samples of one step have coarse faults, and an energy that sees them overlooks the fine ones of many steps.
    """

    def __init__(self, energy: EnergyNetwork, horizons: Sequence[int]) -> None:
        super().__init__(energy.scale)
        self.limits = energy.limits
        self.parts = nn.ModuleDict({str(horizon): copy.deepcopy(energy) for horizon in horizons})

    def of_case(self, horizon: int) -> EnergyNetwork:
        """The energy of a number of steps; of one between, that of the next larger number."""
        found = self.parts[str(min(one for one in map(int, self.parts) if one >= horizon))]
        return cast(EnergyNetwork, found)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([energy(x) for energy in self.parts.values()]).mean(0)


def _attend_plainly(module: nn.Module) -> None:
    """Make diffusers' attention one that can be differentiated twice, for gradient penalties; fused kernels cannot."""
    for part in module.modules():
        set_processor: Any = getattr(part, "set_processor", None)
        if set_processor is not None:
            from diffusers.models.attention_processor import AttnProcessor

            set_processor(AttnProcessor())
