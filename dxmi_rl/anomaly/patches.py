"""Detectors of anomalous places by distance: PatchCore, PaDiM, and one Gaussian for all places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dxmi_rl.utils.checks import check_integer, check_real

Array = NDArray[np.floating]


class PlaceDetector(BaseEstimator, ABC):  # type: ignore[misc]  # a class without types
    """What ``ImageDetector`` asks of a detector: ``fit(maps)`` and ``score_maps(maps)``, as of EnergyDetector.

    Maps are ``[images, channels, height, width]``; scores ``[images, height, width]`` are larger for normal places.
    """

    n_features_in_: int
    memorises: ClassVar[bool] = False
    """Training places are known by heart, so that their scores say little about those of others."""

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn what is normal from feature maps. Raises ValueError for other shapes and values that are not finite."""
        maps = _checked(X)
        self.n_features_in_ = maps.shape[1]
        self._fit(maps)
        return self

    def score_maps(self, X: ArrayLike) -> Array:
        """Minus the distance of every place. Raises ValueError for maps that do not go with those of ``fit``."""
        check_is_fitted(self, "n_features_in_")
        maps = _checked(X)
        if maps.shape[1] != self.n_features_in_:
            raise ValueError(f"X must have {self.n_features_in_} channels as in fit, got {maps.shape[1]}.")
        return -self._distances(maps)

    @abstractmethod
    def _fit(self, maps: Array) -> None:
        """Learn from checked maps."""

    @abstractmethod
    def _distances(self, maps: Array) -> Array:
        """Distances of all places of checked maps: ``[images, height, width]``."""


class PatchCore(PlaceDetector):
    """Distance to the nearest feature of a memory bank (Roth et al. 2022, arXiv 2106.08265).

    The bank is a coreset of all training places: greedily the place farthest from those taken, distances measured in
    a random projection.

    Args:
        coreset: part of the places that is kept, in (0, 1]; 1 keeps all.
        projected: dimensions of the random projection.
        seed: of projection and first place.
    """

    memorises = True

    def __init__(self, *, coreset: float = 0.1, projected: int = 64, seed: int = 0) -> None:
        self.coreset = coreset
        self.projected = projected
        self.seed = seed

    def _fit(self, maps: Array) -> None:
        if not 0 < check_real("coreset", self.coreset) <= 1:
            raise ValueError(f"coreset must lie in (0, 1], got {self.coreset}.")
        check_integer("projected", self.projected)
        rows = _places(maps)
        count = max(1, round(self.coreset * len(rows)))
        if count < len(rows):
            rows = rows[self._spread_out(rows, count)]
        self.bank_ = rows

    def _spread_out(self, rows: Array, count: int) -> Array:
        """Indices of ``count`` rows: each is the farthest from those before it."""
        generator = np.random.default_rng(check_integer("seed", self.seed, minimum=0))
        near = rows
        if self.projected < rows.shape[1]:
            near = rows @ generator.standard_normal((rows.shape[1], self.projected)).astype(rows.dtype)
        squares = np.einsum("nd,nd->n", near, near)
        taken = [int(generator.integers(len(rows)))]
        distance = np.full(len(rows), np.inf)
        for _ in range(count - 1):
            last = taken[-1]
            np.minimum(distance, squares - 2 * near @ near[last] + squares[last], out=distance)
            taken.append(int(distance.argmax()))
        return np.array(taken)

    def _distances(self, maps: Array) -> Array:
        from sklearn.metrics import pairwise_distances_argmin_min

        distances: Array = pairwise_distances_argmin_min(_places(maps), self.bank_)[1]
        return distances.reshape(len(maps), *maps.shape[2:])


class PaDiM(PlaceDetector):
    """Mahalanobis distance to a Gaussian of every place (Defard et al. 2021, arXiv 2011.08785).

    Images must be as large as those of ``fit``: every place has a mean and a covariance of its own, the sample's plus
    ``shrinkage`` times the identity.

    Args:
        shrinkage: the paper's epsilon, > 0.
        channels: so many, drawn at random as in the paper, are used; None takes all.
        seed: of the draw.
    """

    def __init__(self, *, shrinkage: float = 0.01, channels: int | None = 100, seed: int = 0) -> None:
        self.shrinkage = shrinkage
        self.channels = channels
        self.seed = seed

    def _fit(self, maps: Array) -> None:
        check_real("shrinkage", self.shrinkage, strict=True)
        _, channels, height, width = maps.shape
        count = channels if self.channels is None else min(channels, check_integer("channels", self.channels))
        generator = np.random.default_rng(check_integer("seed", self.seed, minimum=0))
        self.chosen_ = np.sort(generator.permutation(channels)[:count])
        rows = _by_place(maps[:, self.chosen_])
        self.mean_ = rows.mean(1, keepdims=True)
        centred = rows - self.mean_
        covariance = centred.transpose(0, 2, 1) @ centred / max(len(maps) - 1, 1)
        self.precision_ = np.linalg.inv(covariance + self.shrinkage * np.eye(count))
        self.grid_ = (height, width)

    def _distances(self, maps: Array) -> Array:
        if maps.shape[2:] != self.grid_:
            raise ValueError(f"X must have maps of {self.grid_} places as in fit, got {maps.shape[2:]}.")
        centred = _by_place(maps[:, self.chosen_]) - self.mean_
        squared: Array = np.einsum("pnc,pnc->pn", centred @ self.precision_, centred)
        return np.sqrt(np.maximum(squared, 0)).T.reshape(len(maps), *self.grid_)


class OneGaussian(PlaceDetector):
    """Mahalanobis distance to one Gaussian of all places: PaDiM for images in which no place is special.

    Args:
        shrinkage: times the mean variance of a channel is added to the diagonal of the covariance, > 0.
    """

    def __init__(self, *, shrinkage: float = 0.01) -> None:
        self.shrinkage = shrinkage

    def _fit(self, maps: Array) -> None:
        check_real("shrinkage", self.shrinkage, strict=True)
        rows = _places(maps)
        self.mean_ = rows.mean(0)
        covariance = np.cov(rows.T).reshape(rows.shape[1], rows.shape[1])
        typical = np.trace(covariance) / len(covariance)
        if not typical > 0:
            raise ValueError("X must not be copies of one feature: its variance is 0.")
        self.precision_ = np.linalg.inv(covariance + self.shrinkage * typical * np.eye(len(covariance)))

    def _distances(self, maps: Array) -> Array:
        centred = _places(maps) - self.mean_
        squared: Array = np.einsum("nc,nc->n", centred @ self.precision_, centred)
        return np.sqrt(np.maximum(squared, 0)).reshape(len(maps), *maps.shape[2:])


def _checked(X: ArrayLike) -> Array:
    maps = np.asarray(X)
    if maps.ndim != 4 or 0 in maps.shape or maps.dtype.kind != "f":
        shape = "floating feature maps [images, channels, height, width]"
        raise ValueError(f"X must be {shape}, got {maps.dtype} of shape {list(maps.shape)}.")
    if not np.isfinite(maps).all():
        raise ValueError("X must be finite, got NaN or infinite values.")
    return maps


def _places(maps: Array) -> Array:
    """Features of all places: ``[images * height * width, channels]``."""
    return np.ascontiguousarray(np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]))


def _by_place(maps: Array) -> Array:
    """Features place by place: ``[height * width, images, channels]``."""
    return np.moveaxis(maps.reshape(*maps.shape[:2], -1), -1, 0).astype(np.float64)
