"""Pictures of samples: points on the contours of an energy, pairs of coordinates, or a grid of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.mdp import DenoisingMDP, Energy
from dxmi_rl.targets import Target
from dxmi_rl.utils.checks import check_integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEPTH = 6.0
"""Contours are drawn up to this many nats above the lowest energy."""
MAX_IMAGES = 64
PAIRS = 4
"""Pairs of coordinates in one picture."""
GRID = 128


def is_image(event_shape: tuple[int, ...]) -> bool:
    """True for ``(1 or 3, height, width)``."""
    return len(event_shape) == 3 and event_shape[0] in (1, 3)


def is_renderable(target: Target) -> bool:
    """True for vectors of two coordinates or more, and images."""
    return (len(target.event_shape) == 1 and target.event_shape[0] >= 2) or is_image(target.event_shape)


def check_renderable(target: Target) -> None:
    """Raises ValueError unless the target has vectors of two coordinates or more, or images."""
    if not is_renderable(target):
        raise ValueError(
            f"only vectors of two coordinates or more and images can be drawn; {target.name!r} has event shape "
            f"{target.event_shape}: use render_mode=None."
        )


def render_samples(
    target: Target, x: Tensor, mdp: DenoisingMDP | None = None, *, t: int | None = None, size: int = 400
) -> np.ndarray:
    """A picture of samples ``x`` [batch, *event_shape]: uint8 ``[size, size, 3]``.

    With ``mdp`` the contours are those of its present energy; ``t`` is written above. Of more than two coordinates the
    picture has up to four pairs. Needs no display and leaves matplotlib's global state alone. Raises ValueError when
    the target cannot be drawn.
    """
    check_integer("size", size, minimum=100)
    check_renderable(target)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size / 100, size / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    energy = mdp.energy if mdp is not None and mdp.has_energy else None
    last = 0 if is_image(target.event_shape) else target.event_shape[0] - 2
    # An odd last coordinate is drawn with its neighbour.
    first = [min(start, last) for start in range(0, last + 2, 2)][:PAIRS]
    side = math.ceil(math.sqrt(len(first)))
    for pair, axes in enumerate(figure.subplots(math.ceil(len(first) / side), side, squeeze=False).flatten()):
        if pair < len(first):
            draw_samples(axes, target, x, energy, coordinates=(first[pair], first[pair] + 1))
        else:
            axes.set_axis_off()
    horizon = "" if mdp is None else f" of {mdp.horizon}"
    figure.suptitle(target.name if t is None else f"{target.name}, t = {t}{horizon}", fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_samples(
    axes: Axes, target: Target, x: Tensor, energy: Energy | None = None, *, coordinates: tuple[int, int] = (0, 1)
) -> None:
    """Draw samples ``x`` [batch, *event_shape] into matplotlib ``axes``.

    In the plane: points over filled contours of ``energy`` (the target's own by default, if it has one), blue where
    the energy is low. More: two ``coordinates``, numbered from 0, over exact samples in grey where the target has them.
    Images: a grid of the first 64. Raises ValueError when the target cannot be drawn, or has no such coordinates.
    """
    check_renderable(target)
    first, second = coordinates
    if not is_image(target.event_shape) and not 0 <= min(coordinates) < max(coordinates) < target.dim:
        raise ValueError(f"coordinates must be two from 0 to {target.dim - 1}, got {coordinates}.")
    x = x.detach()
    if is_image(target.event_shape):
        _draw_images(axes, x.cpu(), target.plot_range)
        return
    low, high = target.plot_range
    if target.event_shape == (2,):
        energy = target.energy if energy is None and target.has_energy else energy
        if energy is not None:
            _draw_energy(axes, energy, low, high, x)
    elif target.has_samples:
        exact = target.data(1000, torch.Generator(target.device).manual_seed(0)).cpu().numpy()
        axes.plot(exact[:, first], exact[:, second], "o", markersize=1.3, color="0.7", markeredgewidth=0.0)
    # One point alone is drawn large enough to be found at a glance.
    radius = 9.0 if len(x) == 1 else min(4.0, max(1.3, 90 / math.sqrt(max(1, len(x)))))
    points = x[:, list(coordinates)].cpu().numpy()
    # Vermilion on light blue: told apart by lightness and by hue in every common colour blindness.
    axes.plot(
        points[:, 0], points[:, 1], "o", markersize=radius, color="#D55E00", markeredgecolor="white",
        markeredgewidth=0.4 if radius > 3 else 0.0,
    )  # fmt: skip
    names = (f"$x_{{{first + 1}}}$", f"$x_{{{second + 1}}}$")
    axes.set(xlim=(low, high), ylim=(low, high), xlabel=names[0], ylabel=names[1], aspect="equal")


def _draw_energy(axes: Axes, energy: Energy, low: float, high: float, like: Tensor) -> None:
    line = torch.linspace(low, high, GRID, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        value = energy(torch.cartesian_prod(line, line)).view(GRID, GRID).T.cpu().numpy()
    finite = value[np.isfinite(value)]
    if finite.size == 0 or np.ptp(finite) == 0:
        return
    depth = min(DEPTH, float(np.ptp(finite)))
    height = np.nan_to_num(value - finite.min(), nan=np.inf).clip(max=depth)
    grid = line.cpu().numpy()
    # vmin keeps to the light half of the map, so that points stand out where the energy is low, too.
    levels = np.linspace(0, depth, 11)
    axes.contourf(grid, grid, height, levels=levels, cmap="Blues_r", vmin=-0.9 * depth, vmax=depth)


def _draw_images(axes: Axes, x: Tensor, plot_range: tuple[float, float]) -> None:
    low, high = plot_range
    x = ((x[:MAX_IMAGES] - low) / (high - low)).clamp(0, 1)
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    _, channels, height, width = x.shape
    # One pixel of white between the images.
    canvas = torch.ones(rows * (height + 1) - 1, columns * (width + 1) - 1, channels)
    for i, image in enumerate(x):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    axes.imshow(canvas.expand(-1, -1, 3).numpy(), interpolation="nearest")
    axes.set_axis_off()
