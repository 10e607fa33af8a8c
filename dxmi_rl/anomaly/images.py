"""ImageDetector: anomalous images, and where in them, by the energy of every place of their feature maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from dxmi_rl.anomaly.detector import EnergyDetector
from dxmi_rl.anomaly.feature_maps import FeatureMaps, Network
from dxmi_rl.utils.checks import CheckpointError, check_real
from dxmi_rl.utils.storage import load_tensors, save_tensors

Array = NDArray[np.floating]
Images = NDArray[np.generic] | Tensor
PLACE_MEAN = "place_mean"
"""Its name in a file."""


class MapDetector(Protocol):
    """What scores the places of feature maps ``[n, channels, height, width]``."""

    def fit(self, X: Array) -> object:
        """Learn what is normal."""

    def score_maps(self, X: Array) -> Array:
        """The score of every place, ``[n, height, width]``, larger for normal ones."""


class ImageDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # classes without types
    """Anomalous images, and where they are, from normal ones alone.

    ``fit`` takes feature maps of some layers of a network that was trained elsewhere, on one grid, and fits a detector
    to the features of all places; by default that is EnergyDetector, whitened: one energy for all places. The scores of
    places, less what each place scores in the mean of the training images, interpolated to the size of the image and
    smoothed a little, are its map, and a high quantile of the map's energies is the energy of the image.

    Images are arrays or tensors ``[n, 1 or 3, height, width]`` of one size, uint8 or floating in [-1, 1]. Scores have
    scikit-learn's sign: the larger, the more normal; ``predict`` gives 1 and -1.

    Args:
        detector: what scores places: ``fit(maps)`` and ``score_maps(maps)``, larger for normal ones, such as
            EnergyDetector, PatchCore, PaDiM; a copy of it is fitted. None: EnergyDetector(whitening=True).
        network: "lite0", or a network or function of your own (``FeatureMaps``).
        layers: its maps that are used.
        size: height and width that images are resized to before the network; None leaves them.
        root: take signed square roots of features (``FeatureMaps``).
        position: weight of two more channels that say where a place is, -1 to 1 across the image, in standard
            deviations of a feature; for images that are aligned. 0: none. Detectors that scale features themselves, as
            EnergyDetector does, see no difference between two weights.
        place_mean: take off every place's mean score over the training images, as places near the edge of an image are
            less normal than others, whatever they show. What all training images show at one place is normal there.
            None: True, but for detectors that know the training places by heart, as PatchCore does.
        smoothing: standard deviation of the map's Gaussian filter, in parts of the image's height.
        quantile: of a map's energies that scores the image; 1 is the largest.
        contamination: part of the training images that ``predict`` calls outliers, in (0, 0.5].
        device: torch device of the network, "cpu" by default (the detector has its own).

    Attributes:
        detector_: the fitted detector of places.
        shape_: ``(channels, height, width)`` of the training images.
        place_mean_: what is taken off, ``[h, w]`` on the grid of the maps; 0 without ``place_mean``.
        offset_: ``decision_function`` is ``score_samples`` less this.

    Raises TypeError or ValueError for other images, NaN among them, other sizes than in ``fit``, settings that are not
    allowed; and what network and detector raise.
    """

    def __init__(
        self, detector: MapDetector | None = None, *, network: Network = "lite0", layers: Sequence[int] = (1, 2, 3),
        size: int | None = 256, root: bool = True, position: float = 0.0, place_mean: bool | None = None,
        smoothing: float = 1 / 64, quantile: float = 0.98, contamination: float = 0.1, device: str | None = None,
    ) -> None:  # fmt: skip
        self.detector = detector
        self.network = network
        self.layers = layers
        self.size = size
        self.root = root
        self.position = position
        self.place_mean = place_mean
        self.smoothing = smoothing
        self.quantile = quantile
        self.contamination = contamination
        self.device = device

    def fit(self, X: Images, y: object = None) -> Self:
        """Learn what is normal from normal images, two or more."""
        check_real("smoothing", self.smoothing)
        check_real("position", self.position)
        for key in ("quantile", "contamination"):
            largest = 0.5 if key == "contamination" else 1
            if not 0 < check_real(key, getattr(self, key)) <= largest:
                raise ValueError(f"{key} must lie in (0, {largest}], got {getattr(self, key)}.")
        maps = self._feature_maps()(X)
        if len(maps) < 2:
            raise ValueError(f"X must be two images or more, got {len(maps)}.")
        self.shape_ = tuple(int(length) for length in X.shape[1:])
        self.spread_ = float(maps.std(axis=(0, 2, 3)).mean())
        self.detector_ = EnergyDetector(whitening=True) if self.detector is None else clone(self.detector)
        maps = self._placed(maps)
        self.detector_.fit(maps)
        scores = np.ascontiguousarray(self.detector_.score_maps(maps), np.float64)
        self.place_mean_ = np.zeros(scores.shape[1:])
        if self.place_mean or (self.place_mean is None and not getattr(self.detector_, "memorises", False)):
            self.place_mean_ = scores.mean(0)
            # An image that is in the mean itself is too near it.
            scores = self.place_mean_ + (scores - self.place_mean_) * len(scores) / (len(scores) - 1)
        self.offset_ = float(np.quantile(self._summarised(self._whole(scores)), self.contamination))
        return self

    def score_maps(self, X: Images) -> Array:
        """The score of every pixel, ``[n, height, width]``, larger for normal ones."""
        check_is_fitted(self, "detector_")
        maps = self._feature_maps()(X)
        if tuple(X.shape[1:]) != self.shape_:
            raise ValueError(f"X must be images of shape {list(self.shape_)} as in fit, got {list(X.shape[1:])}.")
        return self._whole(self.detector_.score_maps(self._placed(maps)))

    def score_samples(self, X: Images) -> Array:
        """The score of every image, ``[n]``."""
        return self._summarised(self.score_maps(X))

    def decision_function(self, X: Images) -> Array:
        """``score_samples`` less ``offset_``: negative for anomalous images."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Images) -> NDArray[np.int64]:
        """1 for normal images, -1 for anomalous ones: ``[n]``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    # -- files -------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write settings and the energy as one safetensors file, atomically; a network of your own is not in it.

        Raises NotFittedError before ``fit``, TypeError when places are scored by something else than EnergyDetector.
        """
        check_is_fitted(self, "detector_")
        if not isinstance(self.detector_, EnergyDetector):
            raise TypeError(f"detector must be an EnergyDetector to be saved, got {type(self.detector_).__name__}.")
        tensors, inner = self.detector_.state()
        tensors = tensors | {PLACE_MEAN: torch.from_numpy(self.place_mean_)}
        settings = self.get_params(deep=False) | {"layers": list(self.layers)}
        del settings["detector"]
        if not isinstance(self.network, str):
            settings["network"] = None
        learned = {"shape_": list(self.shape_), "spread_": self.spread_, "offset_": self.offset_}
        return save_tensors(
            path, tensors, {"detector": "image", "settings": settings, "learned": learned, "energy": inner}
        )  # fmt: skip

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, network: Network | None = None, device: str | None = None
    ) -> Self:  # fmt: skip
        """What ``save`` wrote; ``network`` is needed where it was one of your own.

        Raises FileNotFoundError, CheckpointError for a damaged or foreign file, ValueError without that network.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("detector") != "image":
            raise CheckpointError(f"{str(path)!r} does not hold a detector that ImageDetector.save wrote.")
        try:
            # Files without it are from before there were roots.
            settings = {"root": False} | metadata["settings"] | {"device": device}
            learned = metadata["learned"]
            place_mean = tensors.pop(PLACE_MEAN, torch.zeros(1)).double().numpy()  # 0 in files that have none
            energy = EnergyDetector.from_state(tensors, metadata["energy"], device)
            shape, spread, offset = tuple(learned["shape_"]), learned["spread_"], learned["offset_"]
            found = cls(clone(energy), **settings)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{str(path)!r} is a damaged detector: {error}") from error
        if network is not None:
            found.network = network
        elif found.network is None:
            raise ValueError(
                f"network must be given for {str(path)!r}: it was one of your own, which is not in the file."
            )
        found.detector_, found.shape_, found.spread_, found.offset_ = energy, shape, spread, offset
        found.place_mean_ = place_mean
        return found

    # -- inside ------------------------------------------------------------------------------------------------

    def _feature_maps(self) -> FeatureMaps:
        return FeatureMaps(
            self.network, layers=self.layers, size=self.size, root=self.root, device=self.device
        )  # fmt: skip

    def _placed(self, maps: Array) -> Array:
        """Maps, with the channels of the position."""
        if not self.position:
            return maps
        scale = self.position * self.spread_
        ramps = np.meshgrid(*(scale * np.linspace(-1, 1, length) for length in maps.shape[2:]), indexing="ij")
        places = np.broadcast_to(np.stack(ramps), (len(maps), 2, *maps.shape[2:]))
        return np.concatenate([maps, places.astype(maps.dtype)], 1)

    def _whole(self, scores: Array) -> Array:
        """Scores of places, less their means, at the size of the image, smoothed."""
        from scipy.ndimage import gaussian_filter

        places = torch.from_numpy(np.ascontiguousarray(scores - self.place_mean_, np.float64))[:, None]
        size = self.shape_[1:]
        pixels = nn.functional.interpolate(places, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
        sigma = self.smoothing * size[0]
        return gaussian_filter(pixels, (0, sigma, sigma)) if sigma else pixels

    def _summarised(self, maps: Array) -> Array:
        return np.quantile(maps.reshape(len(maps), -1), 1 - self.quantile, axis=1)
