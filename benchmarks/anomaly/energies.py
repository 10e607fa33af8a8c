"""Energies of benchmarks/anomaly/tables.py and benchmarks/anomaly/images.py: settings of EnergyDetector."""

from __future__ import annotations

from typing import Any

ENERGIES: dict[str, dict[str, Any]] = {
    "energy": {},
    "energy, start": {"epochs": 0},
    "energy, tau = 0": {"tau": 0.0},
    "energy, Langevin": {"training": "persistent"},
    "energy, NCE": {"training": "gaussian-noise"},
}
FOLDED: dict[str, dict[str, Any]] = {"energy, 2 folds": {"folds": 2}}
"""For rows to train on that hold outliers."""
