"""Scores of samplers, of sets of images and of energies, with their floors."""

from dxmi_rl.evaluation.annealing import annealed_importance_sampling
from dxmi_rl.evaluation.energy_quality import energy_quality
from dxmi_rl.evaluation.evaluate import evaluate, quick_scores
from dxmi_rl.evaluation.floors import exact_floors
from dxmi_rl.evaluation.grid import Grid
from dxmi_rl.evaluation.images import image_distance, image_scores
from dxmi_rl.evaluation.log_weights import fit_kernel, tempered_log_z
from dxmi_rl.evaluation.marginal import marginal_scores
from dxmi_rl.evaluation.particles import particle_scores
from dxmi_rl.evaluation.sample_scores import METRICS, Metric, SampleSets

__all__ = [
    "METRICS", "Grid", "Metric", "SampleSets", "annealed_importance_sampling", "energy_quality",
    "evaluate", "exact_floors", "fit_kernel", "image_distance", "image_scores", "marginal_scores",
    "particle_scores", "quick_scores", "tempered_log_z",
]  # fmt: skip
