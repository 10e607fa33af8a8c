"""Pictures for benchmarks/images/images.py: samples beside their nearest training images, distances against calls."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter, ScalarFormatter
from torch import Tensor

from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.targets import ImageSet
from dxmi_rl.utils.storage import load_tensors

SHOWN = 12
"""Images of a row."""
TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
SEARCHED = 60_000
"""Training images among which the nearest is looked for."""
STYLES = {
    "ddpm": ("#0072B2", "o", "-"), "fastdpm": ("#882255", "h", "--"),
    "ddim": ("#E69F00", "s", "--"), "dpm-solver": ("#009E73", "^", ":"), "edm-heun": ("#CC79A7", "v", "-."),
    "dxmi": ("#D55E00", "*", "-"), "dxmi, tau = 0": ("#D55E00", "|", ""),
    "dxmi/path-wise": ("#332288", "<", ""), "dxmi/path-wise, K = 1": ("#332288", "1", ""),
    "dxmi/path-wise, K = 2": ("#332288", "2", ""), "dxmi/path-wise, K = 3": ("#332288", "3", ""),
    "dxmi/adjoint-matching": ("#999933", ">", ""),
    "dxmi/ppo": ("#56B4E9", "P", ""), "dxmi/grpo": ("black", "x", ""), "dxmi/sft-pg": ("#777777", "D", ""),
}  # fmt: skip
"""Okabe and Ito's colours, and Tol's wine, indigo and olive."""
BEFORE = ("ddpm, T = 4", "ddpm, T = 10", "ddpm, T = 100", "ddim, T = 4")
"""Rows of untrained samplers that grids show."""


def draw_all(
    files: Mapping[str, Path], rows: Sequence[dict[str, Any]], target: ImageSet, folder: Path, name: str
) -> None:
    """Grids of the samples beside each row's result ``files``, and distances against calls, if there are ``rows``."""
    samples = {row: load_tensors(file.with_suffix(".samples.safetensors"))[0]["x"] for row, file in files.items()}
    draw_grids(samples, target, folder / f"images_{name}.png")
    if rows:
        draw_calls(rows, folder / f"images_{name}_calls.png", name)


def draw_grids(samples: Mapping[str, Tensor], target: ImageSet, file: Path) -> None:
    """Test images, samples of ``BEFORE``, and of every other row with the training image nearest to each sample.

    ``samples``: ``[n, *event_shape]`` per row, drawn with the same seed.
    """
    train = target.train_data(SEARCHED).flatten(1)
    lines = [("test images", target.test_data(SHOWN))]
    for row, x in samples.items():
        shown = x[:SHOWN].to(train)
        if row in BEFORE:
            lines.append((row, shown))
        else:
            nearest = train[torch.cdist(shown.flatten(1), train).argmin(1)].view_as(shown)
            lines += [(row, shown), ("nearest in training", nearest)]
    figure = Figure(figsize=(0.62 * SHOWN + 2.8, 0.64 * len(lines) + 0.2), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.01, hspace=0.0)  # type: ignore[union-attr, call-arg]
    for axes, (title, x) in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        _draw_line(axes, x)
        axes.set_ylabel(textwrap.fill(title, 20), rotation=0, ha="right", va="center", fontsize=7)
    save_figure(figure, file)


def _draw_line(axes: Axes, x: Tensor) -> None:
    framed = torch.nn.functional.pad(x.cpu().clamp(-1, 1) / 2 + 0.5, (0, 1, 0, 1), value=0.6)  # a grey line between
    strip = torch.cat([*framed], dim=2).permute(1, 2, 0)
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
    for method, (color, marker, line) in STYLES.items():
        own = methods.get(method, [])
        middle = [row["statistics"]["fd"]["iqm"] for row in own]
        calls = [row["calls"] for row in own]
        if own:
            axes.plot(calls, middle, color=color, marker=marker, markersize=8, linestyle=line or "none", label=method)
    axes.set(xscale="log", yscale="log", xlabel="denoiser calls per sample", ylabel="Frechet distance ↓", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xticks([4, 10, 100])
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_figure(figure, file)
