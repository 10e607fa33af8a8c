"""Charts as inline SVG: text stays text, and all that is black follows the page's text colour."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from dxmi_rl.benchmark.pictures import COLOURS, MARKERS, PLAIN
from dxmi_rl.benchmark.report.aggregates import Aggregate
from dxmi_rl.benchmark.report.content import Comparison
from dxmi_rl.benchmark.statistics import Interval, curve_band, performance_profile

INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
LIGHTEN = 0.3
"""Share of white that colours gain on a dark page."""
Dash = str | tuple[int, tuple[float, ...]]
"""A line's pattern, as matplotlib takes it."""
DASHES: list[Dash] = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]
SETTINGS: dict[Any, object] = {
    "svg.fonttype": "none", "font.size": 8.5, "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "text.parse_math": False, "axes.facecolor": "none",
    "figure.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7,
    "grid.color": INK, "grid.alpha": 0.18, "grid.linewidth": 0.5, "axes.axisbelow": True,
}  # fmt: skip
AXES = {
    "timesteps": ("environment transitions", EngFormatter(sep=" ")),
    "energy_evals": ("energy evaluations", EngFormatter(sep=" ")),
    "seconds": ("training seconds", FuncFormatter(lambda value, _: f"{value:g}")),
}
LOG_RATIO = 8.0
"""Values that span a larger ratio are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Style:
    """How one agent looks in every chart."""

    index: int
    colour: str
    marker: str
    dash: Dash


def colour_name(colour: str) -> str:
    """The CSS variable of one of COLOURS, which has a value for light and for dark pages."""
    return f"--colour-{COLOURS.index(colour)}"


def palette_css() -> str:
    """The colours as CSS variables."""

    def declare(lighten: float) -> str:
        channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS]
        mixed = [[round(value + lighten * (255 - value)) for value in colour] for colour in channels]
        return "".join(f"--colour-{i}: #{r:02x}{g:02x}{b:02x}; " for i, (r, g, b) in enumerate(mixed))

    return f":root {{ {declare(0)}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {declare(LIGHTEN)}}} }}\n"


def make_styles(labels: Sequence[str]) -> dict[str, Style]:
    """A colour, a marker and a dash for every label; no two labels share colour and marker below 36."""
    styles = {}
    for index, label in enumerate(labels):
        turn = index // len(COLOURS)
        marker = MARKERS[(index + turn) % len(MARKERS)]
        styles[label] = Style(index, COLOURS[index % len(COLOURS)], marker, DASHES[turn % len(DASHES)])
    return styles


def swatches(styles: dict[str, Style]) -> str:
    """The line and marker of every style as SVG symbols, for ``swatch``."""
    symbols = []
    for style in styles.values():
        dash = "" if style.dash == "-" else f' stroke-dasharray="{" ".join(f"{2 * x:g}" for x in style.dash[1])}"'
        marker = MarkerStyle(style.marker)
        path = marker.get_path().transformed(marker.get_transform() + Affine2D().scale(9, -9).translate(18, 7))
        polygons = [np.asarray(polygon) for polygon in path.to_polygons()]
        points = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in polygon) + "Z" for polygon in polygons)
        colour = colour_name(style.colour)
        symbols.append(
            f'<symbol id="swatch-{style.index}" viewBox="0 0 36 14"><path d="M0 7H36" style="stroke: var({colour})" '
            f'stroke-width="2"{dash}/><path d="{points}" style="fill: var({colour})"/></symbol>'
        )
    return f'<svg width="0" height="0" class="hidden-symbols" aria-hidden="true">{"".join(symbols)}</svg>'


def swatch(style: Style) -> str:
    """The line and marker of an agent, for legends and tables."""
    return f'<svg class="swatch" aria-hidden="true"><use href="#swatch-{style.index}"/></svg>'


_kept: ContextVar[dict[str, Figure] | None] = ContextVar("figures", default=None)


@contextlib.contextmanager
def kept_figures() -> Iterator[dict[str, Figure]]:
    """All figures that ``svg`` draws meanwhile, by name."""
    found: dict[str, Figure] = {}
    token = _kept.set(found)
    try:
        yield found
    finally:
        _kept.reset(token)


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as inline SVG with an accessible name; its identifiers depend on ``name`` only."""
    if (kept := _kept.get()) is not None:
        kept[name.replace(" ", "-")] = figure
    file = io.StringIO()
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's own font lacks are the browser's
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    prefix = re.sub(r"\W", "-", name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = text.replace(INK, "currentColor")
    for colour in COLOURS:
        text = re.sub(f'{colour}(?=[;"])', f"var({colour_name(colour)})", text, flags=re.IGNORECASE)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"-?\d+\.\d{3,}(?=[^<>]*>)", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), text)
    text = re.sub(r"\s*\n\s*", " ", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="chart" role="img" {box[0]} aria-label="{escape(description)}">'
    return head + text[text.index(">") + 1 :].strip()


def shorten(label: str, length: int = 24) -> str:
    """A label that fits beside an axis."""
    return label if len(label) <= length else label[: length - 1] + "…"


def interval_chart(
    values: dict[str, tuple[float, Interval | None]],
    styles: dict[str, Style],
    title: str,
    name: str,
    lines: Iterable[float] = (),
) -> str:
    """One dot with its interval per label, best read from left to right."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(3.7, 0.75 + 0.27 * max(2, len(values))), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            axes.axvline(line, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for position, (label, (value, bounds)) in enumerate(values.items()):
            style = styles[label]
            if bounds is not None:
                axes.plot([bounds.low, bounds.high], [position] * 2, color=style.colour, linewidth=2.2, alpha=0.75)
            axes.plot([value], [position], style.marker, color=style.colour, markersize=6)
        axes.set_yticks(range(len(values)), [shorten(label) for label in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(title)
        spoken = "; ".join(f"{label} {value:.3g}" for label, (value, _) in values.items())
        return svg(figure, name, f"{title}: {spoken}")


# Learning curves ------------------------------------------------------------------------------------------------------


def curve_key(comparison: Comparison, task: str) -> str | None:
    """The quick score of the learning curves nearest to the ranking score."""
    score = comparison.tasks[task]["score"]
    points = [run["curve"][0] for run in comparison.runs if run["task"] == task and run["curve"]]
    plain = score.removesuffix("_fit").removesuffix("_late")
    order = [score, plain, "kl_bound", "elbo_tau", "elbo", "fd", "sliced_w2", "auc"]
    return next((key for key in order if any(key in point for point in points)), None)


@dataclass(frozen=True)
class _Curve:
    label: str
    costs: dict[str, NDArray[np.float64]]
    band: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _curves(comparison: Comparison, task: str, key: str) -> tuple[list[_Curve], dict[str, float]]:
    """Curves of agents that train, and the levels of those that do not."""
    curves, levels = [], {}
    for line in comparison.lines(task):
        runs = [[point for point in run["curve"] if _finite(point.get(key))] for run in
                comparison.runs_of(task, line.label)]  # fmt: skip
        trained = [run for run in runs if len(run) > 1]
        if trained:
            length = min(map(len, trained))
            costs = {
                cost: np.median([[float(point.get(cost) or 0) for point in run[:length]] for run in trained], axis=0)
                for cost in AXES
            }
            iqm, low, high = curve_band(np.array([[point[key] for point in run[:length]] for run in trained]))
            curves.append(_Curve(line.label, costs, (np.asarray(iqm), np.asarray(low), np.asarray(high))))
        elif any(runs):
            levels[line.label] = float(np.mean([run[0][key] for run in runs if run]))
    return curves, levels


def curve_charts(comparison: Comparison, task: str, styles: dict[str, Style]) -> tuple[list[str], str]:
    """Learning curves against transitions, energy evaluations and seconds, and what their caption has to say."""
    key = curve_key(comparison, task)
    if key is None:
        return [], ""
    curves, levels = _curves(comparison, task, key)
    if not curves:
        return [], ""
    entry = comparison.tasks[task]
    same = key == entry["score"] or (key, entry["score"]) == ("kl_bound", "kl_bound_fit")
    floor = entry["floor"] if same and _finite(entry["floor"]) else None
    if not levels and key == entry["score"] and _finite(entry["base"]):
        levels = {"": float(entry["base"])}
    values = np.concatenate([curve.band[0] for curve in curves] + [list(levels.values())])
    lowest, highest = float(values.min()), float(values.max())
    logarithmic = lowest > 0 and highest / lowest > LOG_RATIO
    caption = f"{key} while training: IQM over seeds and 95 % band"
    if key != entry["score"]:
        caption += f"; a quick relative of {entry['score']}, which ranks the agents"
    if key == "kl_bound":
        caption += "; measured with the kernel that each agent trains with"
    caption += "; logarithmic axis." if logarithmic else "."
    if levels:
        caption += " Dotted: agents that do not train, such as the base sampler."
    if floor is not None:
        drawn = floor > 0 or not logarithmic
        caption += " Dashed: exact sampler." if drawn else f" The exact sampler's {floor:g} lies below the axis."
    charts, cut = [], False
    for cost, (label, formatter) in AXES.items():
        with mpl.rc_context(SETTINGS):
            figure = Figure(figsize=(3.7, 2.7), layout="constrained")
            axes = figure.add_subplot()
            if floor is not None and (floor > 0 or not logarithmic):
                axes.axhline(floor, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            for name, level in levels.items():
                colour = styles[name].colour if name else INK
                axes.axhline(level, color=colour, linewidth=1.6, linestyle=(0, (1, 1.5)), label=name or "base sampler")
            for curve in curves:
                _draw_curve(axes, curve, cost, styles[curve.label])
            cut = _scale(axes, curves, [*levels.values(), *([] if floor is None else [floor])], logarithmic)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(formatter)
            axes.grid()
            axes.set(xlabel=label, ylabel=key)
            final = "; ".join(f"{curve.label} ends at {curve.band[0][-1]:.3g}" for curve in curves)
            charts.append(svg(figure, f"curve-{task}-{cost}", f"{key} of {task} against {label}: {final}"))
    return charts, caption + " What lies beyond the frame is cut." * cut


def _draw_curve(axes: Axes, curve: _Curve, cost: str, style: Style) -> None:
    x, (iqm, low, high) = curve.costs[cost], curve.band
    every = max(1, len(x) // 6)
    axes.fill_between(x, low, high, color=style.colour, alpha=0.17, linewidth=0)
    axes.plot(
        x, iqm, color=style.colour, linestyle=style.dash, linewidth=1.5, marker=style.marker, markersize=4.5,
        markevery=(style.index % every, every), label=curve.label,
    )  # fmt: skip


def _scale(axes: Axes, curves: Sequence[_Curve], levels: Sequence[float], logarithmic: bool) -> bool:
    """Axis and limits: all middle lines are seen whole, wide bands and the first points of a plunge may be cut.

    True when something is.
    """
    middle = np.concatenate([curve.band[0] for curve in curves] + [list(levels)])
    band = np.concatenate([part for curve in curves for part in curve.band[1:]] + [middle])
    if logarithmic:
        axes.set_yscale("log", nonpositive="clip")
        middle = middle[middle > 0]
        ratio = max(1.5, float(middle.max() / middle.min()) ** 0.2)
        low, high = max(band.min(), middle.min() / ratio) / 1.05, min(band.max(), middle.max() * ratio) * 1.05
        axes.set_ylim(low, high)
        if high / low < 12:  # decades alone would leave one or two labels
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" and high / low < 200 else "")
        )
        return bool(band.min() < low or band.max() > high)
    late = np.concatenate([part[len(part) // 5 :] for curve in curves for part in curve.band[:1]] + [list(levels)])
    if np.ptp(late) > 0 and np.ptp(middle) > 4 * np.ptp(late):  # they would squeeze all others into a line
        middle = late
    span = float(np.ptp(middle)) or 1.0
    low, high = max(band.min(), middle.min() - span / 3), min(band.max(), middle.max() + span / 3)
    axes.set_ylim(low - 0.04 * span, high + 0.04 * span)
    return bool(band.min() < low or band.max() > high)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# Performance profiles -------------------------------------------------------------------------------------------------


def profile_charts(aggregate: Aggregate, styles: dict[str, Style]) -> list[tuple[str, str]]:
    """Performance profiles over all tasks of a track and, where there are several, of each: (title, SVG)."""
    panels = [("all tasks", list(range(len(aggregate.tasks))))]
    if len(aggregate.tasks) > 1:
        panels += [(task, [index]) for index, task in enumerate(aggregate.tasks)]
    else:
        panels = [(aggregate.tasks[0], [0])]
    values = np.concatenate([x.ravel() for x in aggregate.scores.values()])
    low, high = max(-1.0, min(-0.1, float(values.min()))), min(2.0, max(1.05, float(values.max()) + 0.05))
    thresholds = np.linspace(low, high, 81)
    charts = []
    for title, columns in panels:
        with mpl.rc_context(SETTINGS):
            figure = Figure(figsize=(3.7, 2.5), layout="constrained")
            axes = figure.add_subplot()
            for label, scores in aggregate.scores.items():
                style = styles[label]
                fraction, below, above = performance_profile(scores[:, columns], thresholds)
                if columns == panels[0][1] and len(scores) > 1:
                    axes.fill_between(thresholds, below, above, color=style.colour, alpha=0.13, linewidth=0, step="mid")
                axes.step(
                    thresholds, fraction, where="mid", color=style.colour, linestyle=style.dash, linewidth=1.5,
                    marker=style.marker, markersize=4, markevery=(4 + 3 * style.index % 16, 16), label=label,
                )  # fmt: skip
            axes.set(xlabel="normalised score τ", ylabel="fraction of runs above τ", ylim=(-0.03, 1.03), title=title)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.title.set_fontsize(9)
            axes.grid()
            spoken = f"Performance profiles, {title}, track {aggregate.track}: {', '.join(aggregate.scores)}"
            charts.append((title, svg(figure, f"profile-{aggregate.track}-{title}", spoken)))
    return charts
