"""Detectors of the zoo: EnergyDetectors of tables that scikit-learn ships."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from dxmi_rl.anomaly import EnergyDetector
from dxmi_rl.anomaly.table_data import Rows, cancer, digit, split_inliers
from dxmi_rl.benchmark.machine import machine, versions
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import JSON
from dxmi_rl.zoo.pretrained import DETECTOR, AnyPath, checked_file, put

TABLES: dict[str, Callable[[], Rows]] = {"cancer": cancer} | {
    f"digit-{inlier}": functools.partial(digit, inlier) for inlier in range(10)
}
"""What detectors of the zoo are fitted to, by name."""
SPLIT_SEED = 0
EVALUATION = "the rows that it was not fitted to: the other half of the inliers, and all outliers"


def table_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to fit a detector to, rows to score, and which of these are outliers. Raises UnknownNameError."""
    if name not in TABLES:
        raise UnknownNameError("table", name, list(TABLES))
    rows, outlier = TABLES[name]()
    fitted, scored = split_inliers(outlier, SPLIT_SEED)
    return rows[fitted], rows[scored], outlier[scored]


def detector_scores(detector: EnergyDetector, table: str) -> dict[str, float]:
    """``auroc`` and ``average_precision`` of outliers among the rows of a table that it was not fitted to."""
    _, rows, outlier = table_of(table)
    scores = -detector.score_samples(rows)
    return {
        "auroc": float(roc_auc_score(outlier, scores)),
        "average_precision": float(average_precision_score(outlier, scores)),
    }


def add_pretrained_detector(
    detector: EnergyDetector, name: str, folder: AnyPath, *, table: str, command: str, seconds: float,
    licence: str | None = None,
) -> JSON:  # fmt: skip
    """Put a detector that was fitted to the first rows of ``table_of`` into a zoo. Returns its entry.

    ``seconds`` is how long that took, ``command`` and ``licence`` are as in ``add_pretrained``. Raises UnknownNameError
    for a table that is none of TABLES, NotFittedError before ``fit``, and ValueError for a name or weights that
    ``put`` refuses.
    """
    scores = detector_scores(detector, table)
    with tempfile.TemporaryDirectory() as temporary:
        weights = detector.save(Path(temporary) / "weights").read_bytes()
    entry: JSON = {
        "agent": DETECTOR, "task": table, "seed": detector.seed, "horizon": detector.horizon, "command": command,
        "licence": licence, "seconds": round(seconds, 1),
        "scores": {key: {"mean": value, "std": 0.0} for key, value in scores.items()}, "versions": versions(),
        "machine": machine(str(detector.device or "cpu")),
    }  # fmt: skip
    return put(Path(folder), name, entry, weights, EVALUATION, _picture(detector, table))


def load_pretrained_detector(
    name: str, *, folder: AnyPath | None = None, device: str | torch.device | None = None
) -> EnergyDetector:
    """A fitted detector of the zoo, such as ``"detector-cancer"``; ``folder`` as in ``load_pretrained``.

    Raises as ``load_pretrained``, and ValueError for the name of an agent.
    """
    file = checked_file(name, folder, detector=True)
    return EnergyDetector.load(file, device=None if device is None else str(device))


def _picture(detector: EnergyDetector, table: str) -> bytes:
    """Histograms of the energies of inliers and outliers, as a PNG file."""
    _, rows, outlier = table_of(table)
    energies = -detector.score_samples(rows)
    low, high = np.quantile(energies, [0.0, 0.99])
    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(low, high, 40)
    for kind, name, colour in ((False, "inliers", "#0072b2"), (True, "outliers", "#d55e00")):
        axes.hist(
            energies[outlier == kind],
            bins.tolist(),
            density=True,
            histtype="stepfilled",
            alpha=0.55,
            color=colour,
            label=name,
        )
    axes.axvline(-detector.offset_, color="black", linestyle="--", linewidth=1, label="limit of predict")
    axes.set(xlabel="energy [nats]", ylabel="density of rows", title=f"{table}: rows that were not fitted to")
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()
