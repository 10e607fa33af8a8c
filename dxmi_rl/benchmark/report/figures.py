"""The charts of the page, one by one, as files for a paper."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dxmi_rl.benchmark.report.charts import kept_figures
from dxmi_rl.benchmark.report.content import Comparison
from dxmi_rl.benchmark.report.page import page
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import write_atomically

FORMATS = (".pdf", ".png", ".svg")
DPI = 300


def figures(comparison: Comparison) -> dict[str, Figure]:
    """The charts of the page by name, such as ``curve-8gaussians-energy_evals``."""
    with kept_figures() as found:
        page(comparison)
    return found


def write_figure(comparison: Comparison, name: str, file: Path) -> Path:
    """Write one chart, with a legend, in the format of the file's ending (FORMATS), atomically.

    Raises UnknownNameError, which lists the charts, and ValueError for another ending.
    """
    if file.suffix not in FORMATS:
        raise ValueError(f"out must end with {', '.join(FORMATS)} for a figure, got {str(file)!r}.")
    found = figures(comparison)
    if name not in found:
        raise UnknownNameError("figure", name, sorted(found))
    figure = found[name]
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = min(4, len(handles))
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.18 * -(-len(handles) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=7.5)
    FigureCanvasAgg(figure)
    metadata = {".pdf": {"CreationDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}[file.suffix]
    return write_atomically(file, lambda part: figure.savefig(part, format=file.suffix[1:], dpi=DPI, metadata=metadata))
