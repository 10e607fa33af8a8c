"""Pictures for benchmarks/anomaly/images.py: images, masks and maps side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dxmi_rl.benchmark.pictures import save_figure

COLOURS = "cividis"
"""A map of colours that reads the same with every kind of colour vision."""


def draw_maps(name: str, kept: Mapping[str, Mapping[str, Tensor]], file: Path) -> None:
    """A column per test image: the image, its mask if there are any, and the map of every method that has one.

    ``kept``: per method ``images`` ``[n, channels, height, width]``, ``masks`` and ``maps`` ``[n, height, width]``.
    Colours of a method go from its lowest score in this picture to the one that a hundredth is above. What is marked is
    outlined in maps.
    """
    first = next(iter(kept.values()))
    images, masks = first["images"].numpy(), first["masks"].numpy() if "masks" in first else None
    maps = {method: own["maps"].numpy() for method, own in kept.items() if "maps" in own}
    lines = ["image", *(["mask"] if masks is not None else []), *maps]
    figure = Figure(figsize=(1.35 * len(images) + 1.5, 1.4 * len(lines) + 0.4), layout="constrained")
    axes = figure.subplots(len(lines), len(images), squeeze=False)
    for row, line in zip(axes, lines, strict=True):
        row[0].set_ylabel(line, rotation=0, ha="right", va="center", fontsize=10)
        for index, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            if line == "image":
                shown = np.broadcast_to(images[index], (3, *images.shape[2:]))
                ax.imshow(shown.transpose(1, 2, 0), interpolation="nearest")
            elif line == "mask" and masks is not None:
                ax.imshow(masks[index], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                _draw_map(ax, maps[line], index, masks)
    figure.suptitle(f"{name}: yellow is anomalous", fontsize=11)
    save_figure(figure, file, dpi=100)


def _draw_map(ax: Axes, maps: np.ndarray, index: int, masks: np.ndarray | None) -> None:
    ax.imshow(maps[index], cmap=COLOURS, vmin=maps.min(), vmax=np.quantile(maps, 0.99), interpolation="nearest")
    if masks is not None and masks[index].any():
        ax.contour(masks[index], levels=[0.5], colors="white", linewidths=0.8)
