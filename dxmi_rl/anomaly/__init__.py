"""Anomaly detection with the energy of a DxMI game: in tables, and in images with the place of the anomaly."""

from dxmi_rl.anomaly.detector import EnergyDetector
from dxmi_rl.anomaly.feature_maps import FeatureMaps
from dxmi_rl.anomaly.image_data import AnomalyImages, elpv, mvtec, textures, visa
from dxmi_rl.anomaly.image_scores import per_region_overlap
from dxmi_rl.anomaly.images import ImageDetector
from dxmi_rl.anomaly.patches import OneGaussian, PaDiM, PatchCore

__all__ = [
    "AnomalyImages",
    "EnergyDetector",
    "FeatureMaps",
    "ImageDetector",
    "OneGaussian",
    "PaDiM",
    "PatchCore",
    "elpv",
    "mvtec",
    "per_region_overlap",
    "textures",
    "visa",
]
