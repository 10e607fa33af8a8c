"""Scenes: the target of a task beside every agent's samples, with the denoising paths that the page animates."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dxmi_rl.benchmark.report.charts import INK, Style, colour_name
from dxmi_rl.benchmark.report.content import Comparison, Line
from dxmi_rl.benchmark.report.formatting import show
from dxmi_rl.targets import Target, make_target
from dxmi_rl.tasks import TASKS
from dxmi_rl.utils.storage import JSON

DEPTH = 6.0
"""Nats above the lowest energy that the shading shows."""
GRID = 96
SEED = 20_240_626
"""Seed of the exact samples."""
EXACT_SAMPLES = 500
MAX_IMAGES = 64
PICTURE = 232
"""Pixels of the static pictures."""
SHADES = 12


@dataclass(frozen=True)
class Panel:
    """One picture of a scene: exact samples (one step) or the path of a run."""

    label: str
    caption: str
    style: Style | None
    shape: tuple[int, ...]
    """``[steps + 1, n, ...]``."""
    low: float
    high: float
    data: str
    """base64 of uint8 in that shape."""

    def values(self) -> NDArray[np.float64]:
        """The samples at the end, ``[n, ...]``."""
        size = math.prod(self.shape[1:])
        last = np.frombuffer(base64.b64decode(self.data), dtype=np.uint8)[-size:].reshape(self.shape[1:])
        return self.low + last.astype(np.float64) / 255 * (self.high - self.low)


@dataclass(frozen=True)
class Scene:
    """The pictures of one task, which share axes and the slider."""

    task: str
    kind: str
    """"points" or "images"."""
    low: float
    high: float
    horizon: int
    panels: list[Panel]
    grid: NDArray[np.uint8] | None
    """``[GRID, GRID]``, rows from the lowest x2: 255 at the lowest energy, 0 at DEPTH nats above it or more."""
    note: str

    def payload(self) -> JSON:
        """What the page's script draws from, JSON-able."""
        panels = [
            {"shape": panel.shape, "low": panel.low, "high": panel.high, "data": panel.data,
             "colour": None if panel.style is None else colour_name(panel.style.colour)}
            for panel in self.panels
        ]  # fmt: skip
        grid = None if self.grid is None else base64.b64encode(self.grid.tobytes()).decode()
        return {"kind": self.kind, "low": self.low, "high": self.high, "horizon": self.horizon, "size": GRID,
                "grid": grid, "panels": panels}  # fmt: skip

    def picture(self, panel: Panel) -> str:
        """The panel at the end of the path as a data URI of a small PNG, for print and pages without scripts."""
        values = panel.values()
        if self.kind == "images":
            return _images_png(values, self.low, self.high)
        return _points_png(values, self.low, self.high, self.grid, panel.style.colour if panel.style else INK)


def make_scene(comparison: Comparison, task: str, styles: dict[str, Style]) -> Scene | None:
    """The scene of a task; None when no run of it kept paths."""
    kept = [(line, run) for line in comparison.lines(task) if (run := median_run(comparison, line)) is not None]
    if not kept:
        return None
    first = kept[0][1]["paths"]
    kind = "images" if len(first["shape"]) == 5 else "points"
    target = _target(comparison, task)
    low, high = target.plot_range if target is not None else (first["low"], first["high"])
    panels = [] if target is None else _exact_panel(target, kind, first, low, high)
    for line, run in kept:
        paths = run["paths"]
        value = run["scores"].get(line.score)
        caption = f"seed {run['seed']}" + ("" if value is None else f", {line.score} {show(value)}")
        panels.append(
            Panel(line.label, caption, styles[line.label], tuple(paths["shape"]), paths["low"], paths["high"],
                  paths["data"])
        )  # fmt: skip
    coordinates = first.get("coordinates")
    note = ""
    if coordinates:
        names = " and ".join(f"x{index + 1}" for index in coordinates)
        note = f"Coordinates {names} of {comparison.tasks[task]['dim']}."
    grid = None
    if target is not None and target.has_energy and target.event_shape == (2,):
        grid = energy_grid(target)
    horizon = max(panel.shape[0] for panel in panels) - 1
    return Scene(task, kind, float(low), float(high), horizon, panels, grid, note)


def median_run(comparison: Comparison, line: Line) -> JSON | None:
    """The run with the median ranking score; where that one kept no paths, the nearest in rank that did."""
    runs = comparison.runs_of(line.task, line.label)
    ranked = sorted(runs, key=lambda run: (run["scores"].get(line.score) is None, run["scores"].get(line.score) or 0.0))
    middle = (len(ranked) - 1) // 2
    order = sorted(range(len(ranked)), key=lambda index: abs(index - middle))
    return next((ranked[index] for index in order if ranked[index].get("paths")), None)


def energy_grid(target: Target) -> NDArray[np.uint8] | None:
    """The energy over the plotting range, as ``Scene.grid`` has it; None where it is not finite or flat."""
    low, high = target.plot_range
    line = torch.linspace(low, high, GRID)
    with torch.no_grad():
        energy: NDArray[np.float64] = (
            target.energy(torch.cartesian_prod(line, line)).view(GRID, GRID).T.double().numpy()
        )
    finite = energy[np.isfinite(energy)]
    if finite.size == 0 or np.ptp(finite) == 0:
        return None
    height: NDArray[np.float64] = np.nan_to_num(energy - finite.min(), nan=np.inf).clip(max=DEPTH)
    return np.round(255 * (1 - height / DEPTH)).astype(np.uint8)


def _target(comparison: Comparison, task: str) -> Target | None:
    """The target of a task by its name; None for one that cannot be made here."""
    runs = [run for run in comparison.runs if run["task"] == task]
    settings = runs[0]["task_settings"] if runs else {}
    try:
        config = TASKS[task]
        name = settings.get("target", config.target)
        options = settings.get("target_options", config.target_options if name == config.target else {})
        return make_target(name, **options) if isinstance(name, str) else None
    except (ValueError, TypeError, ImportError):
        return None


def _exact_panel(target: Target, kind: str, paths: JSON, low: float, high: float) -> list[Panel]:
    """Exact samples, or test data, in the coordinates of the paths."""
    if not (target.has_sampler or target.has_data):
        return []
    generator = torch.Generator().manual_seed(SEED)
    number = min(EXACT_SAMPLES if kind == "points" else MAX_IMAGES, paths["shape"][1])
    x = target.test_data(number, generator)[:number].double().numpy()
    if kind == "points":
        x = x.reshape(len(x), -1)[:, list(paths.get("coordinates") or (0, 1))]
        inside = ((x >= low) & (x <= high)).all(axis=1)
        x = x[inside]
    if x.shape[1:] != tuple(paths["shape"][2:]):
        return []
    data = np.round(255 * ((x - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    label = "exact samples" if target.has_sampler else "test data"
    caption = "the aim" if target.has_sampler else "of the data set"
    return [Panel(label, caption, None, (1, *x.shape), low, high, base64.b64encode(data.tobytes()).decode())]


# Static pictures ------------------------------------------------------------------------------------------------------


def _png(indices: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> str:
    from PIL import Image  # a requirement of matplotlib

    image = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    image.putpalette([channel for colour in palette for channel in colour])
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _shades() -> list[tuple[int, int, int]]:
    """White where the energy is high to grey where it is low."""
    levels = [round(255 - 70 * i / (SHADES - 1)) for i in range(SHADES)]
    return [(level, level, level) for level in levels]


def _points_png(x: NDArray[np.float64], low: float, high: float, grid: NDArray[np.uint8] | None, colour: str) -> str:
    canvas = np.zeros((PICTURE, PICTURE), dtype=np.uint8)
    if grid is not None:
        index = np.arange(PICTURE) * GRID // PICTURE
        canvas[:] = (grid[np.ix_(index, index)].astype(int) * (SHADES - 1) // 255)[::-1]
    pixel = np.round((x - low) / (high - low) * (PICTURE - 1)).astype(int)
    pixel = pixel[((pixel >= 1) & (pixel < PICTURE - 1)).all(axis=1)]
    for dx, dy in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        canvas[PICTURE - 1 - pixel[:, 1] + dy, pixel[:, 0] + dx] = SHADES
    point = (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16))
    return _png(canvas, [*_shades(), point])


def _images_png(x: NDArray[np.float64], low: float, high: float) -> str:
    x = np.round(255 * ((x[:MAX_IMAGES] - low) / (high - low)).clip(0, 1)).astype(np.uint8)
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    height, width = x.shape[2:]
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), 255, dtype=np.uint8)
    for index, image in enumerate(x.mean(axis=1).astype(np.uint8)):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image
    scale = max(1, PICTURE // max(canvas.shape))
    return _png(canvas.repeat(scale, 0).repeat(scale, 1), [(i, i, i) for i in range(256)])
