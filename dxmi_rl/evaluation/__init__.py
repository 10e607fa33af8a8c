"""Scores of samplers, of sets of images and of energies, with their floors."""

from dxmi_rl.evaluation.annealing import annealed_importance_sampling
from dxmi_rl.evaluation.energy_quality import Grid, energy_quality
from dxmi_rl.evaluation.evaluate import (
    evaluate,
    exact_floors,
    fit_kernel,
    image_distance,
    image_scores,
    quick_scores,
    tempered_log_z,
)

__all__ = [
    "Grid", "annealed_importance_sampling", "energy_quality", "evaluate", "exact_floors", "fit_kernel",
    "image_distance", "image_scores", "quick_scores", "tempered_log_z",
]  # fmt: skip
