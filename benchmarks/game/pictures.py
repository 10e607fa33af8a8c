"""Pictures for benchmarks/game/dxmi_2d.py: a finished game, its history as an animation, scores against temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dxmi_rl.agents import DxDP
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.envs.rendering import draw_samples
from dxmi_rl.evaluation import Grid
from dxmi_rl.irl import DxMI
from dxmi_rl.utils.storage import write_atomically

POINTS, PATHS, SHOWN = 161, 60, 2000
"""Cells per side of an energy's picture, trajectories and samples that are drawn."""
DEPTH = 10.0
"""Energies are drawn up to so many nats above the lowest."""
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's
STYLES = [(BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", ":")]
MILLISECONDS = 125
"""Of a frame."""


def draw_game(game: DxMI, file: Path, title: str) -> None:
    """Data, samples, trajectories, the learned energy and what it draws; below, the value function of every step."""
    target, horizon = game.task.target, game.mdp.horizon
    low, high = target.plot_range
    grid = Grid.over((low, high), POINTS, target.device)
    generator = torch.Generator(target.device).manual_seed(0)
    trajectory = game.sample_trajectory(SHOWN, seed=0)
    # At tau = 0 there is no temperature to draw with.
    unit = game.mdp.tau or float(game.average_energy(grid.x).detach().std())
    density = grid.log_density(game.average_energy, unit)
    values = isinstance(game.agent, DxDP)
    figure = Figure(figsize=(3.1 * max(5, horizon), 3.2 * (2 if values else 1) + 0.5), layout="compressed")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(2 if values else 1, max(5, horizon), squeeze=False)
    draw_samples(axes[0, 0], target, target.test_data(SHOWN, generator))
    axes[0, 0].set_title("data")
    draw_samples(axes[0, 1], target, trajectory.final)
    axes[0, 1].set_title(f"samples, T = {horizon}")
    draw_paths(axes[0, 2], trajectory.x[:, :PATHS], (low, high))
    axes[0, 2].set_title("their trajectories")
    image = draw_heat(axes[0, 3], (game.average_energy(grid.x) / unit).detach(), (low, high))
    axes[0, 3].set_title(r"learned energy $E / \tau$")
    figure.colorbar(image, ax=axes[0, 3], shrink=0.8, label="nats above the lowest")
    draw_samples(axes[0, 4], target, grid.sample(density, SHOWN, generator))
    axes[0, 4].set_title(r"draws of $\exp(-E / \tau)$")
    if values:
        assert isinstance(game.agent, DxDP)
        reach = float(trajectory.x[:-1].abs().quantile(0.995))
        square = (-max(reach, high), max(reach, high))
        wide = Grid.over(square, POINTS, target.device)
        for t in range(horizon):
            with torch.no_grad():
                value = game.agent.values(wide.x, t) / unit
            image = draw_heat(axes[1, t], value, square)
            axes[1, t].set_title(rf"$V_{t}(x_{t}) / \tau$")
        figure.colorbar(image, ax=axes[1, horizon - 1], shrink=0.8, label="nats above the lowest")
    for unused in axes.flat:
        if not unused.has_data():
            unused.set_axis_off()
    save_figure(figure, file)


def draw_heat(axes: Axes, value: Tensor, square: tuple[float, float]) -> Any:
    """An energy on the cells of ``Grid``: filled contours, which it returns, from its lowest to ``DEPTH`` above."""
    low, high = square
    side = math.isqrt(len(value))
    width = (high - low) / side
    axis = [low + width * (i + 0.5) for i in range(side)]
    height = (value - value.min()).view(side, side).T.cpu().numpy()
    levels = [DEPTH * i / 20 for i in range(21)]
    drawn = axes.contourf(axis, axis, height, levels=levels, cmap="viridis_r", extend="max")
    axes.set(xlim=square, ylim=square, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    return drawn


def draw_paths(axes: Axes, x: Tensor, square: tuple[float, float]) -> None:
    """Trajectories ``[T + 1, n, 2]`` as lines that end in points."""
    points = x.detach().cpu().numpy()
    axes.plot(points[:, :, 0], points[:, :, 1], "-", color=BLUE, linewidth=0.5, alpha=0.6)
    axes.plot(points[0, :, 0], points[0, :, 1], "o", color="#999999", markersize=2.5, label="$x_0$")
    axes.plot(points[-1, :, 0], points[-1, :, 1], "o", color=VERMILION, markersize=3, label="$x_T$")
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    axes.set(xlim=square, ylim=square, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")


def animate(frames: dict[str, Tensor], file: Path, square: tuple[float, float], tau: float, title: str) -> None:
    """The game as a GIF: last samples on the last energy, and both scores up to then.

    ``frames``: samples ``[F, n, 2]``, energy ``[F, cells]``; timesteps, sliced_w2_last and auc_last ``[F]``.
    """
    figure = Figure(figsize=(8.6, 4.2), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    other = right.twinx()
    steps, distance, auc = (frames[key].double().numpy() for key in ("timesteps", "sliced_w2_last", "auc_last"))

    def draw(index: int) -> None:
        left.clear()
        draw_heat(left, frames["energy"][index] / tau, square)
        x = frames["samples"][index].numpy()
        left.plot(x[:, 0], x[:, 1], "o", color=VERMILION, markersize=2, markeredgecolor="white", markeredgewidth=0.2)
        left.set(xlim=square, ylim=square)
        left.set_title(f"samples on the learned energy, {int(steps[index]):,} transitions", fontsize=9)
        for axes in (right, other):
            axes.clear()
        right.plot(steps[: index + 1], distance[: index + 1], "-o", color=BLUE, markersize=3)
        other.plot(steps[: index + 1], auc[: index + 1], "--s", color=VERMILION, markersize=3)
        right.set(xlim=(0, steps[-1] * 1.02), ylim=(0, 1.05 * distance.max()), xlabel="transitions")
        other.set(ylim=(0.4, 1))
        right.set_ylabel("sliced W2 (circles)", color=BLUE)
        other.yaxis.set_label_position("right")
        other.yaxis.tick_right()
        other.set_ylabel("AUC of the energy (squares)", color=VERMILION)
        right.set_title(title, fontsize=9)

    images = []
    for index in range(len(steps)):
        draw(index)
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("P", palette=Image.Palette.ADAPTIVE))
    first, rest = images[0], images[1:]
    options = {"save_all": True, "append_images": rest, "duration": MILLISECONDS, "loop": 0}
    write_atomically(file, lambda path: first.save(path, format="GIF", **options))


def draw_against_tau(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Sliced W2 and AUC, late means with 95 % intervals, against tau1 = tau2; a line per start."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    starts = list(dict.fromkeys(row["start"] for row in rows))
    taus = sorted({row["tau1"] for row in rows})
    for axes, key, name in zip(
        figure.subplots(1, 2), ("sliced_w2_late", "auc_late"), ("sliced W2 ↓", "AUC of the energy ↑"), strict=True
    ):
        for number, start in enumerate(starts):
            own = {row["tau1"]: row["statistics"][key] for row in rows if row["start"] == start}
            shift = 0.06 * (number - (len(starts) - 1) / 2)
            color, marker, line = STYLES[number % len(STYLES)]
            interval(axes, [taus.index(tau) + shift for tau in own], list(own.values()), color, marker, line, start)
        axes.set_xticks(range(len(taus)), [f"{tau:g}" for tau in taus])
        axes.set(xlabel=r"$\tau_1 = \tau_2$, per dimension", ylabel=name)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    figure.axes[0].legend(title="start")
    save_figure(figure, file)


def draw_guidance(row: dict[str, Any], weights: Sequence[float], file: Path) -> None:
    """Sliced W2 of the trained game against the weight lambda of value guidance."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    keys = ["sliced_w2_end", *(f"guided_{weight:g}" for weight in weights)]
    interval(axes, range(len(keys)), [row["statistics"][key] for key in keys], BLUE, "o", "-", None)
    axes.set_xticks(range(len(keys)), ["0", *(f"{weight:g}" for weight in weights)])
    axes.set(xlabel=r"weight $\lambda$ of value guidance", ylabel="sliced W2 ↓")
    axes.grid(alpha=0.3)
    save_figure(figure, file)


def draw_race(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Sliced W2 against seconds of training: a panel per start, a line per run, a colour per setting."""
    starts = list(dict.fromkeys(run["play"]["start"] for run in runs))
    labels = list(dict.fromkeys(run["play"]["label"] for run in runs))
    figure = Figure(figsize=(4.8 * len(starts), 3.6), layout="constrained")
    for axes, start in zip(figure.subplots(1, len(starts), squeeze=False)[0], starts, strict=True):
        for run in runs:
            if run["play"]["start"] == start:
                index = labels.index(run["play"]["label"])
                color, _, line = STYLES[index % len(STYLES)]
                first = not any(drawn.get_label() == labels[index] for drawn in axes.lines)
                axes.plot(
                    [point["seconds"] for point in run["curve"]],
                    [point["sliced_w2"] for point in run["curve"]],
                    line, color=color, linewidth=1, label=labels[index] if first else None,
                )  # fmt: skip
        axes.axhline(0.1, color="black", linewidth=0.8)
        axes.set(yscale="log", xlabel="seconds of training", ylabel="sliced W2 ↓", title=f"{start} start")
        axes.legend(fontsize=8)
    save_figure(figure, file)


def interval(
    axes: Axes, x: Any, statistics: Sequence[dict[str, Any]], color: str, marker: str, line: str, label: str | None
) -> None:
    """Interquartile means with their intervals where there are some."""
    middle = [entry["iqm"] for entry in statistics]
    below = [entry["iqm"] - entry.get("low", entry["iqm"]) for entry in statistics]
    above = [entry.get("high", entry["iqm"]) - entry["iqm"] for entry in statistics]
    axes.errorbar(
        list(x), middle, yerr=[below, above], color=color, marker=marker, linestyle=line, capsize=3, label=label
    )
