"""Whether what is in a zoo still scores as its card says."""

from __future__ import annotations

import math

from dxmi_rl.zoo import pretrained
from dxmi_rl.zoo.detectors import detector_scores, load_pretrained_detector
from dxmi_rl.zoo.pretrained import (
    CHECK_SEED,
    CHECKED,
    DETECTOR,
    SEEDS,
    AnyPath,
    load_pretrained,
    read_index,
    zoo_folder,
)

TOLERANCE = 6.0
"""Standard deviations of the difference between a new evaluation and the card's mean, at which something is wrong."""


def check_pretrained(name: str, folder: AnyPath | None = None) -> list[str]:
    """Score an agent or detector of the zoo again, agents with another seed: what is wrong, in one line each.

    A score of CHECKED may be 6 sqrt(1 + 1/4) of the card's standard deviations and 0.1 % away from its mean of four
    evaluations; a detector's, which has no chance in it, 0.1 %. Raises as ``load_pretrained``.
    """
    entry = read_index(zoo_folder(folder)).get(name, {})
    if entry.get("agent") == DETECTOR:
        found = detector_scores(load_pretrained_detector(name, folder=folder), entry["task"])
    else:
        found = pretrained.evaluated(load_pretrained(name, folder=folder), CHECK_SEED, floors=False)
    wrong = []
    for key, kept in entry["scores"].items():
        if key in CHECKED:
            allowed = TOLERANCE * math.sqrt(1 + 1 / len(SEEDS)) * kept["std"] + 1e-3 * abs(kept["mean"])
            value = found.get(key)
            if value is None or not abs(value - kept["mean"]) <= allowed:  # NaN is wrong, too
                wrong.append(f"{name}: {key} is {value}, and its card has {kept['mean']:.4g} ± {allowed:.2g}")
    return wrong
