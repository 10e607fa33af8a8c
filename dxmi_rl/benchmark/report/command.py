"""``dxmi-rl report``: the pages of a comparison again, beside an earlier one, or one figure of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dxmi_rl.benchmark.report import load_results, write_report


@dataclass(frozen=True)
class Report:
    """Write report.html, report.md, report.tex and playground.html of a comparison again, or one figure of it."""

    results: Annotated[Path, tyro.conf.Positional]
    """Folder of the comparison (runs/NAME), or a results.json."""
    against: Path | None = None
    """An earlier comparison: the report says what changed since."""
    figure: str | None = None
    """Write this chart alone, such as curve-8gaussians-seconds; a wrong name lists all."""
    out: Path | None = None
    """Folder to write to, by default where the results are; of a figure the file, ending with .pdf, .png or .svg."""

    def __call__(self, command: str) -> int:
        """Write the files, and print where they are. Raises ValueError for results that are damaged inside, too."""
        try:
            return self._write()
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{str(self.results)!r} is damaged: {type(error).__name__}: {error}.") from error

    def _write(self) -> int:
        results = load_results(self.results)
        folder = self.results if self.results.is_dir() else self.results.parent
        if self.figure is not None:
            if self.against is not None:
                raise ValueError(f"against belongs to whole reports, and figure {self.figure!r} is one chart: give one")
            from dxmi_rl.benchmark.report.content import Comparison
            from dxmi_rl.benchmark.report.figures import write_figure

            file = self.out or folder / f"{self.figure}.pdf"
            print(write_figure(Comparison(results), self.figure, file))
            return 0
        before = None if self.against is None else load_results(self.against)
        print("\n".join(map(str, write_report(results, self.out or folder, before=before))))
        return 0
