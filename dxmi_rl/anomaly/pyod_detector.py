"""An EnergyDetector as one of pyod's detectors."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from pyod.models.base import BaseDetector
from sklearn.base import clone

from dxmi_rl.anomaly.detector import Array, EnergyDetector


class PyodEnergyDetector(BaseDetector):
    """``decision_function`` is the energy, larger for outliers; labels, thresholds and probabilities are pyod's.

    Args:
        detector: an EnergyDetector; ``fit`` trains a copy of it, and one that was fitted scores at once.
    """

    def __init__(self, detector: EnergyDetector) -> None:
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

    def decision_function(self, X: Array) -> Any:
        """Energies of rows, up to a constant: ``[rows]``. Raises NotFittedError before ``fit``."""
        return -np.asarray(self.detector_.score_samples(X))
