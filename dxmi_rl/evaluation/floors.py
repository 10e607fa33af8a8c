"""Floors: what exact samples score by the metrics of a target, measured once and cached on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from dxmi_rl.evaluation.sample_scores import Metric, auc, metrics_of
from dxmi_rl.targets import Target
from dxmi_rl.utils.storage import cached_tensors

FLOOR_PAIRS = 20
"""Pairs of exact sets that a floor is the mean of."""


def exact_floors(target: Target, samples: int = 10_000) -> dict[str, float]:
    """What exact samples score by all metrics of the target, such as ``sliced_w2``, ``mmd`` and ``modes``.

    Means over 20 pairs of independent exact sets of ``samples``, or of training batches against test rows, cached on
    disk; of images, training images against test images, as many as there are samples; of particles, reference
    states against others. Empty for a target that has none of these.
    """
    known = [metric for metric in metrics_of(target) if metric.has_floor(target)]
    floors: dict[str, float] = {}
    if any(metric.cached for metric in known):
        name = f"{target.name}-{target.digest()}"
        cached = [metric for metric in known if metric.cached]
        kinds = tuple(metric.floor_key(target) for metric in cached)
        floors |= _cached(name, kinds, samples, lambda: _measured(cached, target, samples))
    return floors | _measured([metric for metric in known if not metric.cached], target, samples)


def floors_of(scores: dict[str, float], target: Target, samples: int) -> dict[str, float]:
    """``<score>_floor`` of the scores that have one; that of ``auc`` is the exact energy's."""
    floors = exact_floors(target, samples)
    if "auc" in scores and target.has_energy and target.has_samples:
        floors["auc"] = auc(target.energy, target, samples, 0)
    return {f"{key}_floor": value for key, value in floors.items() if key in scores}


def _measured(known: list[Metric], target: Target, samples: int) -> dict[str, float]:
    generator = torch.Generator(target.device).manual_seed(2_000_003)  # one stream for all, in their order
    floors: dict[str, float] = {}
    for metric in known:
        floors |= metric.floor(target, samples, FLOOR_PAIRS, generator)
    return floors


@functools.cache
def _memory() -> dict[tuple[str, tuple[str, ...], int], dict[str, float]]:
    return {}


def _cached(
    name: str, kinds: tuple[str, ...], samples: int, measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    memory, place = _memory(), (name, kinds, samples)
    if place not in memory:
        key = {"target": name, "metrics": kinds, "samples": samples, "pairs": FLOOR_PAIRS, "version": 3}
        tensors = cached_tensors(
            "floor", key, lambda: {k: torch.tensor(v, dtype=torch.float64) for k, v in measure().items()}
        )
        memory[place] = {k: float(v) for k, v in tensors.items()}
    return memory[place]
