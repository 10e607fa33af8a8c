"""Pictures of a comparison: samples over the energy, and learning curves against three kinds of cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from dxmi_rl.benchmark.measure import EVALUATION_SEED
from dxmi_rl.benchmark.protocol import Row, Run
from dxmi_rl.benchmark.results import Result, results_of, rows_by_task
from dxmi_rl.benchmark.tables import main_score, number
from dxmi_rl.envs.rendering import MAX_IMAGES, draw_samples, is_image, is_renderable
from dxmi_rl.utils.storage import JSON, load_tensors, write_atomically

# Okabe and Ito's colours without yellow and black; the markers tell lines apart without any.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
COLUMNS = 6
"""Panels side by side."""
NAMES = {
    "kl_bound": "KL bound [nats]",
    "elbo": "ELBO [nats]",
    "elbo_tau": "ELBO of exp(-E / tau) [nats]",
    "fd": "Fréchet distance of features",
    "sliced_w2": "sliced W2 distance",
}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
AXES = {
    "timesteps": ("environment transitions", EngFormatter()),
    "energy_evals": ("energy evaluations", EngFormatter()),
    "seconds": ("training time [s]", PLAIN),
}


def save_figure(figure: Figure, file: Path, dpi: int = 90) -> None:
    """Write a PNG atomically and without matplotlib's name and version: the same picture is the same file."""
    write_atomically(file, lambda part: figure.savefig(part, format="png", dpi=dpi, metadata={"Software": None}))


def draw_pictures(rows: Sequence[Row], runs: Sequence[Run], results: Sequence[Result], folder: Path) -> list[str]:
    """Write ``samples_<task>.png`` and ``curves_<task>.png`` where there is something to show; their names."""
    files = {}
    for task, own in rows_by_task(rows).items():
        finished = [result for row in own for result in results_of(row, results)]
        if not finished:
            continue
        if is_renderable(own[0].target):
            files[f"samples_{task}.png"] = _samples_figure(own, runs, results, folder / "results")
        key = main_score(own[0], finished)
        if key is not None and any(result["curve"] for result in finished):
            files[f"curves_{task}.png"] = _curves_figure(own, results, key)
    for name, figure in files.items():
        FigureCanvasAgg(figure)

        def save(file: Path, figure: Figure = figure) -> None:
            figure.savefig(file, format="png", dpi=110)

        write_atomically(folder / name, save)
    return list(files)


# Samples --------------------------------------------------------------------------------------------------------------


def _samples_figure(rows: Sequence[Row], runs: Sequence[Run], results: Sequence[Result], folder: Path) -> Figure:
    target = rows[0].target
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    panels: list[tuple[str, Tensor]] = []
    for row in rows:
        own = results_of(row, results)
        if own:
            panels.append(_median_panel(row, own, runs, folder))
    if target.has_samples:
        number_drawn = max(len(x) for _, x in panels)
        name = "test data" if target.has_data else "exact samples"
        exact = target.test_data(number_drawn, generator)
        panels.insert(0, (name, exact[: MAX_IMAGES if is_image(target.event_shape) else None]))
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.5 * columns + 0.3, 3.1 * lines), layout="compressed")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, (title, x) in zip(axes, panels, strict=False):
        draw_samples(ax, target, x)
        ax.set_title(title, fontsize=9)
        if not is_image(target.event_shape):
            ax.label_outer()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def _median_panel(row: Row, own: Sequence[Result], runs: Sequence[Run], folder: Path) -> tuple[str, Tensor]:
    key = "kl_bound_fit" if "kl_bound_fit" in own[0]["scores"] else main_score(row, own)
    if not all(key in result["scores"] for result in own):
        key = None
    ordered = sorted(own, key=lambda result: result["scores"][key] if key else result["seed"])
    median = ordered[(len(ordered) - 1) // 2]
    run = next(run for run in runs if run.key == median["key"])
    score = f"\n{key} {number(median['scores'][key])}, seed {median['seed']}" if key else ""
    return row.label + score, load_tensors(run.samples_file(folder))[0]["x"]


# Curves ---------------------------------------------------------------------------------------------------------------


def _curves_figure(rows: Sequence[Row], results: Sequence[Result], key: str) -> Figure:
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    axes = figure.subplots(1, len(AXES), sharey=True)
    figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr, call-arg]
    lowest = math.inf
    for ax, (cost, (label, formatter)) in zip(axes, AXES.items(), strict=True):
        for index, row in enumerate(rows):
            own = results_of(row, results)
            style: JSON = {"color": COLOURS[index % len(COLOURS)], "label": row.label}
            lowest = min(lowest, _draw_row(ax, own, cost, key, marker_of(index), style))
        floors = [result["scores"][f"{key}_floor"] for result in results if f"{key}_floor" in result["scores"]
                  and result["task"] == rows[0].task]  # fmt: skip
        if floors:
            ax.axhline(floors[0], color="black", linestyle="--", linewidth=1.2, label="exact samples (floor)")
            lowest = min(lowest, floors[0])
        ax.set_xlabel(label)
        ax.xaxis.set_major_formatter(formatter)
        ax.locator_params(axis="x", nbins=5)
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
        ax.set_xlim(left=0)
        ax.margins(x=0.04)
    if lowest > 0:
        axes[0].set_yscale("log")
        low, high = axes[0].get_ylim()
        if high / low < 6:  # decades and their minor ticks would leave one or two labels
            axes[0].yaxis.set_major_locator(MaxNLocator(6))
            axes[0].yaxis.set_minor_locator(NullLocator())
        axes[0].yaxis.set_major_formatter(PLAIN)
        axes[0].yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if leading_digit(value) in (2, 5) else "")
        )
    axes[0].set_ylabel(NAMES[key])
    own_kernels = " (each agent with its own kernel)" if key == "kl_bound" else ""
    counts = {len(results_of(row, results)) for row in rows} - {0}
    text = f"{'up to ' * (len(counts) > 1)}{max(counts)} seed{'s' * (max(counts) > 1)}"
    figure.suptitle(f"{rows[0].task}{own_kernels}: median and range over {text}", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return figure


def marker_of(index: int) -> str:
    """A marker that, with the colour of the same row, no other of 36 rows has."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def leading_digit(value: float) -> int:
    """First significant digit of a positive number."""
    return int(f"{value:.0e}"[0])


def _draw_row(ax: Axes, own: Sequence[Result], cost: str, key: str, marker: str, style: JSON) -> float:
    """The curve of one row, or a level for an agent that does not train, or nothing without that score; the lowest
    value drawn.
    """
    curves = [result["curve"] for result in own if len(result["curve"]) > 1]
    curves = [curve for curve in curves if all(key in point for point in curve)]
    if not curves:
        levels = [result["curve"][0][key] for result in own if key in result["curve"][0]]
        if not levels:
            return math.inf
        ax.axhline(float(np.median(levels)), linestyle=":", linewidth=1.6, **style)
        return float(min(levels))
    length = min(map(len, curves))
    x = np.median([[point[cost] for point in curve[:length]] for curve in curves], axis=0)
    y = np.array([[point[key] for point in curve[:length]] for curve in curves])
    ax.plot(x, np.median(y, axis=0), marker=marker, markersize=4, linewidth=1.4, clip_on=False, zorder=3, **style)
    ax.fill_between(x, y.min(0), y.max(0), color=style["color"], alpha=0.18, linewidth=0)
    return float(y.min())
