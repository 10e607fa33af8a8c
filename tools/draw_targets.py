"""Draw the pictures of targets in docs/targets/: energy, exact samples or data, base sampler at T = 5, side by side.

    python tools/draw_targets.py                # all
    python tools/draw_targets.py moons rings    # these targets only

Seeds are fixed. Pictures of data sets need their denoisers, which are trained once (half a minute each on one core) and
kept in the cache. All other pictures take a minute together.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from docpages.references import cox_sample, double_precision, hamiltonian, lowest_energy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.diffusion import sample_base
from dxmi_rl.envs.rendering import draw_samples, is_image
from dxmi_rl.targets import Funnel, LennardJones, LogGaussianCox, ManyWell, ParticleTarget, Target, list_targets
from dxmi_rl.targets.cox import GRID, load_finpines
from dxmi_rl.tasks import Task, make_task, reference_target
from dxmi_rl.utils.registry import UnknownNameError

DOCS = Path(__file__).parents[1] / "docs"
HORIZON = 5
SAMPLES = 2000
SEED = 0
DEPTH = 10.0
"""Energies are drawn up to this many nats above the lowest of the picture."""
BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's

Panel = tuple[str, Callable[[Axes], None]]
"""A title and what draws it."""


def draw_picture(name: str, file: Path) -> None:
    """Write the picture of the target ``name``. Trains its denoiser when the cache has none."""
    task = make_task(name, horizon=HORIZON)
    target = reference_target(task.config)
    base = sample_base(task.mdp.base, SAMPLES, task.event_shape, torch.Generator().manual_seed(SEED))
    if isinstance(target, ParticleTarget):
        panels = _particle_panels(name, target, base, base_title(task))
    elif isinstance(target, LogGaussianCox):
        panels = _field_panels(name, base, base_title(task))
    elif is_image(target.event_shape):
        panels = [("test data", _images(target, target.test_data(SAMPLES))), (base_title(task), _images(target, base))]
    else:
        panels = _plane_panels(target, base, base_title(task))
    figure = Figure(figsize=(3.35 * len(panels) + 0.6 * (len(panels) > 2), 3.5), layout="compressed")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    FigureCanvasAgg(figure)
    for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes)
        axes.set_title(title, fontsize=9)
    save_figure(figure, file, dpi=100)


def base_title(task: Task) -> str:
    """What the base sampler's panel shows: from scratch, x_0 plus the noise of every step."""
    name = "from scratch: noise ladder" if task.config.base is None else f"base sampler: {task.config.base.upper()}"
    return f"{name} at T = {task.mdp.horizon}"


# The plane, and planes in higher dimensions ---------------------------------------------------------------------------


class _View(Target):
    """Two coordinates of a target, for ``draw_samples``."""

    def __init__(self, target: Target) -> None:
        super().__init__((2,), scale=target.scale, plot_range=target.plot_range)


def plane_energy(target: Target) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """An energy ``[n, 2] -> [n]`` of the first two coordinates and its name, or None where there is none to show."""
    if not target.has_energy:
        return None
    if target.dim == 2:
        return "energy", target.energy

    def rest_at_zero(x: Tensor) -> Tensor:
        return target.energy(torch.nn.functional.pad(x, (0, target.dim - 2)))

    if isinstance(target, ManyWell):  # the pairs are independent, and at 0 their energies are 0
        return "energy of one pair", rest_at_zero
    if isinstance(target, Funnel):  # the other coordinates integrate to sqrt(2 pi e^{x0}) each

        def marginal(x: Tensor) -> Tensor:
            return rest_at_zero(x) - (target.dim - 2) / 2 * (x[:, 0] + math.log(2 * math.pi))

        return "energy of the marginal of $x_0, x_1$", marginal
    return None


def _plane_panels(target: Target, base: Tensor, title: str) -> list[Panel]:
    shown = plane_energy(target)
    view = target if target.dim == 2 else _View(target)
    energy = None if shown is None else shown[1]
    first = 0 if isinstance(target, Funnel) else 1
    labels = {"xlabel": f"$x_{first}$", "ylabel": f"$x_{first + 1}$"}

    def points(x: Tensor) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            draw_samples(axes, view, x[:, :2], energy)
            axes.set(**labels)

        return draw

    def contours(axes: Axes) -> None:
        assert energy is not None
        draw_energy(axes, energy, target.plot_range)
        axes.set(**labels)

    panels: list[Panel] = [] if shown is None else [(shown[0], contours)]
    if target.has_sampler or target.has_data:
        exact = target.test_data(SAMPLES, torch.Generator().manual_seed(SEED + 1))
        name = "exact samples" if target.has_sampler else "test data"
        panels.append((name + _beyond(exact, target.plot_range), points(exact)))
    return [*panels, (title + _beyond(base, target.plot_range), points(base))]


def draw_energy(axes: Axes, energy: Callable[[Tensor], Tensor], plot_range: tuple[float, float]) -> None:
    """Filled contours with a colour bar, from the lowest energy to 10 nats above it."""
    line = torch.linspace(*plot_range, 201)
    with torch.no_grad():
        value = energy(torch.cartesian_prod(line, line)).view(201, 201).T.numpy()
    low = float(value.min())
    levels = np.linspace(low, low + DEPTH, 21)
    filled = axes.contourf(line.numpy(), line.numpy(), value, levels=levels, cmap="viridis_r", extend="max")
    axes.set(xlim=plot_range, ylim=plot_range, aspect="equal")
    ticks = np.arange(math.ceil(low), low + DEPTH, 2)
    bar = axes.figure.colorbar(filled, ax=axes, shrink=0.75, ticks=ticks, format="%.0f")
    bar.set_label("E(x) [nats]", fontsize=9)


def _beyond(x: Tensor, plot_range: tuple[float, float]) -> str:
    low, high = plot_range
    outside = float(((x[:, :2] < low) | (x[:, :2] > high)).any(1).double().mean())
    return f"\n{100 * outside:.0f} % beyond the axes" if outside >= 0.005 else ""


# Particles ------------------------------------------------------------------------------------------------------------


def _particle_panels(name: str, target: ParticleTarget, base: Tensor, title: str) -> list[Panel]:
    with double_precision():
        double = reference_target(make_task(name).config)
        assert isinstance(double, ParticleTarget)
        lowest, _ = lowest_energy(double)
        sets = [*_reference_states(double), (title, base.double())]
        distances = [(label, _distances(double, x)) for label, x in sets]
        heights = [(label, double.energy(x) - lowest) for label, x in sets]
    reach = float(torch.quantile(distances[0][1], 0.999)) * 1.15
    rungs = np.geomspace(0.3, float(heights[-1][1].max()), 50)

    def pair(axes: Axes) -> None:
        r = torch.linspace(0.02, 1, 500)[:, None] * reach
        value = target._pair_energy(r).numpy()
        axes.plot(r[:, 0].numpy(), value, color=BLUE, linewidth=1.6)
        low = float(value.min())
        axes.set(xlabel="distance r of the pair", ylabel="energy of one pair [nats]", xlim=(0, reach))
        axes.set_ylim(low - 1, low + 3 * DEPTH)
        if isinstance(target, LennardJones) and target.linear_below is not None:
            axes.axvline(target.linear_below, color="black", linestyle=":", linewidth=1)
            axes.text(0.25, 0.93, f"dotted: below {target.linear_below:g} it\ngoes on linearly", fontsize=8, va="top",
                      transform=axes.transAxes)  # fmt: skip

    return [
        ("energy of one pair", pair),
        ("distances of all pairs", _histogram(distances, np.linspace(0, reach, 50), "interparticle distance r")),
        ("energies", _histogram(heights, rungs, "E(x) - min E [nats]", log=True)),
    ]


def _reference_states(target: ParticleTarget) -> list[tuple[str, Tensor]]:
    """Reference states, or where there are none those of 24 short chains from the lowest energy."""
    if target.reference is not None:
        return [("reference states", target.reference_states())]
    noise = torch.randn(24, target.dim, generator=torch.Generator().manual_seed(1))
    start = lowest_energy(target)[1] + (target.smallest_scale or 0.0) * noise
    return [("Hamiltonian Monte Carlo", hamiltonian(target.energy, start, steps=300, leapfrogs=20, step_size=0.01))]


def _distances(target: ParticleTarget, x: Tensor) -> Tensor:
    positions = target.positions(x)
    return (positions[:, target.pairs[0]] - positions[:, target.pairs[1]]).norm(dim=-1).flatten()


def _histogram(
    sets: list[tuple[str, Tensor]], edges: np.ndarray, label: str, *, log: bool = False
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        fractions = [np.histogram(values.numpy(), edges)[0] / len(values) for _, values in sets]
        for (name, _), height, colour, line in zip(sets, fractions, (BLUE, VERMILION), ("-", "--"), strict=True):
            axes.stairs(height, edges, color=colour, linestyle=line, linewidth=1.6, label=name)
        # Room for the legend above the highest bin.
        axes.set(xlabel=label, ylabel="fraction per bin", ylim=(0, 1.25 * np.max(fractions)))
        axes.set(xlim=(edges[0], edges[-1]), xscale="log" if log else "linear")
        axes.legend(fontsize=7, frameon=False, loc="upper right")

    return draw


# Fields and images ----------------------------------------------------------------------------------------------------


def _field_panels(name: str, base: Tensor, title: str) -> list[Panel]:
    with double_precision():
        double = reference_target(make_task(name).config)
        lowest, mode = lowest_energy(double)
        assert isinstance(double, LogGaussianCox)
        reference = cox_sample(double)
        energies = [lowest, *(float(double.energy(x[None].double())) for x in (reference, base[0]))]
    names = ["lowest energy", "Hamiltonian Monte Carlo", title]
    fields = [mode, reference, base[0]]

    def field(x: Tensor, last: bool) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            low, high = double.plot_range
            shown = axes.imshow(x.view(GRID, GRID).T.numpy(), origin="lower", extent=(0, 1, 0, 1), vmin=low, vmax=high)
            column, row = load_finpines().T.numpy()
            axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.plot(column, row, "o", color="white", markeredgecolor="black", markeredgewidth=0.5, markersize=2.8)
            if last:
                axes.figure.colorbar(shown, ax=axes, shrink=0.75).set_label(
                    "log intensity, less its prior mean", fontsize=9
                )

        return draw

    return [
        (f"{label}\nE = {energy:,.0f} nats", field(x, index == len(fields) - 1))
        for index, (label, x, energy) in enumerate(zip(names, fields, energies, strict=True))
    ]


def _images(target: Target, x: Tensor) -> Callable[[Axes], None]:
    return lambda axes: draw_samples(axes, target, x)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="target", help="targets to draw; all")
    parser.add_argument("--output", type=Path, default=DOCS / "targets", help="folder of the pictures")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in list_targets():
            parser.error(str(UnknownNameError("target", name, list_targets())))
    torch.set_num_threads(1)  # the order of float sums depends on the number of threads
    for name in options.names or list_targets():
        start, file = time.perf_counter(), options.output / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(name, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB, {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
