"""A detector of scikit-learn as one of pyod's."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike
from pyod.models.base import BaseDetector
from sklearn.base import clone

from dxmi_rl.anomaly.columns import Array


class ScoringDetector(Protocol):
    """What is asked of the detector, such as EnergyDetector."""

    contamination: float

    def fit(self, X: ArrayLike, y: object = None) -> object:
        """Learn from rows ``[rows, features]``."""

    def score_samples(self, X: ArrayLike) -> Array:
        """Scores of rows, ``[rows]``, larger for normal ones."""


class PyodEnergyDetector(BaseDetector):  # type: ignore[misc]  # a class without types
    """``decision_function`` is minus the detector's score, larger for outliers; labels and thresholds are pyod's.

    Args:
        detector: an EnergyDetector, or what has its ``fit`` and ``score_samples``; ``fit`` trains a copy of it, and one
            that was fitted scores at once.
    """

    def __init__(self, detector: ScoringDetector) -> None:
        super().__init__(contamination=detector.contamination)
        self.detector = detector
        self.detector_ = detector

    def fit(self, X: Array, y: object = None) -> Self:
        """Learn from rows ``[rows, features]``."""
        self._set_n_classes(y)
        self.detector_ = clone(self.detector).fit(X)
        self.decision_scores_ = self.decision_function(X)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Array) -> Array:
        """Energies of rows, up to a constant: ``[rows]``. Raises NotFittedError before ``fit``."""
        return -np.asarray(self.detector_.score_samples(X))
