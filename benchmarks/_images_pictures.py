"""Pictures for benchmarks/images.py: samples beside their nearest training images, distances against calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.targets import ImageSet

SHOWN = 12
"""Images of a row."""
SEARCHED = 60_000
"""Training images among which the nearest is looked for."""
STYLES = {
    "ddpm": ("#0072B2", "o", "-"), "ddim": ("#E69F00", "s", "--"), "dpm-solver": ("#009E73", "^", ":"),
    "edm-heun": ("#CC79A7", "v", "-."), "dxmi": ("#D55E00", "*", "-"),
}  # fmt: skip
"""Okabe and Ito's colours."""
OTHER = ("black", "x", "")


def draw_grids(samples: Mapping[str, Tensor], target: ImageSet, file: Path) -> None:
    """A pair of lines per row, samples and below each the training image that is nearest to it; above them test images.

    ``samples``: ``[n, *event_shape]`` per row, drawn with the same seed.
    """
    train = target.train_data(SEARCHED).flatten(1)
    lines = [("test images", target.test_data(SHOWN))]
    for row, x in samples.items():
        shown = x[:SHOWN].to(train)
        nearest = train[torch.cdist(shown.flatten(1), train).argmin(1)].view_as(shown)
        lines += [(row, shown), ("nearest in training", nearest)]
    figure = Figure(figsize=(0.62 * SHOWN + 2.2, 0.64 * len(lines) + 0.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.01, hspace=0.0)  # type: ignore[union-attr, call-arg]
    for axes, (title, x) in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        _draw_line(axes, x)
        axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9 if title in samples else 7)
    save_figure(figure, file)


def _draw_line(axes: Axes, x: Tensor) -> None:
    strip = torch.cat([*x.cpu().clamp(-1, 1)], dim=2).permute(1, 2, 0) / 2 + 0.5
    axes.imshow(strip.expand(-1, -1, 3).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_calls(rows: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Frechet distance against denoiser calls, a line per method; other agents inside the game by name."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["row"].rsplit(", T = ", 1)[0], []).append(row)
    for method, own in methods.items():
        color, marker, line = STYLES.get(method, OTHER)
        middle = [row["statistics"]["fd"]["iqm"] for row in own]
        calls = [row["calls"] for row in own]
        if method in STYLES:
            axes.plot(calls, middle, color=color, marker=marker, linestyle=line, label=method)
        else:
            axes.plot(calls, middle, color=color, marker=marker, linestyle="")
            axes.annotate(method, (calls[0], middle[0]), xytext=(6, 0), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="denoiser calls per sample", ylabel="Frechet distance ↓", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_figure(figure, file)
