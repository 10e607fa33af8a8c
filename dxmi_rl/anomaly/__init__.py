"""Anomaly detection with the energy of a DxMI game."""

from dxmi_rl.anomaly.detector import EnergyDetector

__all__ = ["EnergyDetector"]
