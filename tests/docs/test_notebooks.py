"""notebooks/: they run from top to bottom in a kernel of their own, and what is stored of them is small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("stable_baselines3")

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LARGEST = 100_000
"""Bytes of a notebook with its outputs."""


def test_there_are_three() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["environment", "images_and_anomalies", "own_energy_and_agent"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_is_stored(file: Path) -> None:
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert file.stat().st_size < LARGEST
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run once, from the top"
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds and kinds & {"display_data", "stream"}
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for link in (part.split(")")[0] for part in cell.source.split("](")[1:]):
                assert (file.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs_from_top_to_bottom(file: Path, tmp_path: Path) -> None:
    """With budgets as short as those of the pages: what they print is stored, and not looked at here."""
    book = nbformat.read(file, as_version=4)
    for cell in book.cells:
        cell.source = re.sub(r"\.learn\(([\d_]+)\)", r".learn(min(\1, 2_000))", cell.source)
    assert any("2_000" in cell.source for cell in book.cells)
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
