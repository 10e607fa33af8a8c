"""Feature maps of several layers of a network on one grid: what image detectors score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dxmi_rl.networks.features import Lite0Features, load_features
from dxmi_rl.utils.checks import check_integer, resolve_device

Network = str | Callable[[Tensor], Tensor | Sequence[Tensor]]
ROWS = 32
"""Images at a time."""


class FeatureMaps:
    """Features of every place of an image: maps of some layers, averaged over 3 x 3 places, on the finest one's grid.

    Without ``root`` that is what PatchCore scores (Roth et al. 2022, arXiv 2106.08265).

    Args:
        network: "lite0", EfficientNet-Lite0 of ImageNet (extra ``images``). Or a network of timm (what has
            ``forward_intermediates``; images are normalised as its ``pretrained_cfg`` says). Modules are moved to
            ``device`` and run in evaluation mode. Or any function of images
            ``[n, 3, height, width]`` in [-1, 1] that returns one map ``[n, channels, h, w]``, or a sequence of them.
        layers: indices of maps; of Lite0 0 to 4 have strides 2, 4, 8, 16 and 32.
        size: height and width that images are resized to first (bilinear, antialiased); None leaves them.
        root: take signed square roots of the averages, sign(f) |f|^(1/2), as a few large values would otherwise
            decide all distances (power normalisation: Perronnin et al. 2010).
        device: torch device, "cpu" by default.

    Raises UnknownNameError for another name, TypeError for what is no network, MissingExtraError.
    """

    def __init__(
        self, network: Network = "lite0", *, layers: Sequence[int] = (1, 2, 3), size: int | None = None,
        root: bool = True, device: str | torch.device | None = None,
    ) -> None:  # fmt: skip
        if isinstance(network, str):
            network = load_features(network, device)
        if not callable(network):
            raise TypeError(f"network must be 'lite0', a module or a function, got {network!r}.")
        if not layers:
            raise ValueError(f"layers must be one index or more, got {layers!r}.")
        self.network = network
        self.layers = [check_integer("layers", layer, minimum=0) for layer in layers]
        self.size = None if size is None else check_integer("size", size)
        self.root = root
        self.device = resolve_device(device)

    @torch.no_grad()
    def __call__(self, images: NDArray[np.generic] | Tensor) -> NDArray[np.float32]:
        """Maps ``[n, channels, h, w]`` of images ``[n, 1 or 3, height, width]``, uint8 or floating in [-1, 1].

        Raises TypeError or ValueError for other images, and for a network that returns no maps.
        """
        rows = as_numbers(images)
        if isinstance(self.network, nn.Module):
            self.network.to(self.device).eval()
        return np.concatenate([self._maps(part.to(self.device)).cpu().numpy() for part in rows.split(ROWS)])

    def _maps(self, x: Tensor) -> Tensor:
        maps = [nn.functional.avg_pool2d(layer, 3, 1, 1, count_include_pad=False) for layer in self.chosen_layers(x)]
        if self.root:
            maps = [layer.sign() * layer.abs().sqrt() for layer in maps]
        grid = max((tuple(layer.shape[2:]) for layer in maps), key=np.prod)
        return torch.cat([nn.functional.interpolate(layer, size=grid, mode="bilinear") for layer in maps], 1)

    def chosen_layers(self, x: Tensor) -> list[Tensor]:
        """The layers' maps as the network gives them, of images ``[n, 1 or 3, height, width]`` in [-1, 1]."""
        x = x.expand(-1, 3, -1, -1)
        if self.size is not None:
            x = nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        inner = self.network.net if isinstance(self.network, Lite0Features) else self.network
        if hasattr(inner, "forward_intermediates"):
            found = inner.forward_intermediates(_normalised(x, self.network), intermediates_only=True)
        else:
            found = self.network(x)
        layers = [found] if isinstance(found, Tensor) else list(found)
        if max(self.layers) >= len(layers):
            raise ValueError(f"layers must be below {len(layers)}, how many the network has, got {self.layers}.")
        chosen = [layers[index] for index in self.layers]
        for layer in chosen:
            if not isinstance(layer, Tensor) or layer.dim() != 4 or len(layer) != len(x):
                shape = list(layer.shape) if isinstance(layer, Tensor) else type(layer).__name__
                raise ValueError(f"network must return maps [{len(x)}, channels, h, w], got {shape}.")
        return chosen


def as_numbers(images: NDArray[np.generic] | Tensor) -> Tensor:
    """Images ``[n, 1 or 3, height, width]`` as numbers in [-1, 1].

    Raises TypeError for dtypes other than uint8 and floating ones, ValueError for other shapes and values.
    """
    rows = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    if rows.dim() != 4 or rows.shape[1] not in (1, 3) or 0 in rows.shape:
        raise ValueError(f"images must be [n, 1 or 3, height, width], got shape {list(rows.shape)}.")
    if rows.dtype == torch.uint8:
        return rows.float() / 127.5 - 1
    if not rows.dtype.is_floating_point:
        raise TypeError(f"images must be uint8, or floating in [-1, 1], got {rows.dtype}.")
    if not bool(rows.abs().max() <= 1.0001):  # also of NaN
        raise ValueError("floating images must have values in [-1, 1], got others or NaN.")
    return rows.float()


def _normalised(x: Tensor, network: object) -> Tensor:
    if isinstance(network, Lite0Features):
        return (127.5 * (x + 1) - 127) / 128
    config = getattr(network, "pretrained_cfg", {})
    mean, spread = (
        torch.tensor(config.get(key, default), device=x.device).view(-1, 1, 1)
        for key, default in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)))
    )
    return ((x + 1) / 2 - mean) / spread
