"""Sets of rows with known outliers, for benchmarks/anomaly/tables.py: from packages that install offline."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dxmi_rl.anomaly.table_data import Rows, cancer, digit
from dxmi_rl.targets import MissingDataError
from dxmi_rl.utils.checks import require

MLBENCH = Path("/usr/lib/R/site-library/mlbench/data")
"""Where Debian's package r-cran-mlbench puts its sets."""
UCI = {
    "satellite": ("Satellite", "classes", ("damp grey soil", "cotton crop", "vegetation stubble")),
    "breastw": ("BreastCancer", "Class", ("malignant",)),
    "ionosphere": ("Ionosphere", "Class", ("bad",)),
    "pima": ("PimaIndiansDiabetes", "diabetes", ("pos",)),
    "glass": ("Glass", "Type", ("6",)),
}
"""Per set: its name in mlbench, the column of classes, and the classes that are outliers (as in ODDS)."""


def shuttle() -> Rows:
    """49,097 rows of 9 columns, 3,511 outliers: river's copy of ODDS' shuttle."""
    file = Path(require("river.datasets", "anomaly").__file__).parent / "shuttle.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = np.genfromtxt(lines, delimiter=",", skip_header=1)
    return table[:, :-1], table[:, -1] == 1


def uci(name: str, folder: Path = MLBENCH) -> Rows:
    """One of ``UCI``; rows with missing values are left out.

    Raises MissingDataError where mlbench is not, MissingExtraError without rdata.
    """
    rdata, pandas = require("rdata", "anomaly"), require("pandas", "anomaly")
    key, column, outliers = UCI[name]
    file = folder / f"{key}.rda"
    if not file.is_file():
        raise MissingDataError(
            f"{name!r} is not at {str(file)!r}. Get it with 'apt-get download r-cran-mlbench' and "
            "'dpkg-deb -x r-cran-mlbench*.deb FOLDER', and give --mlbench FOLDER/usr/lib/R/site-library/mlbench/data."
        )
    table = rdata.read_rda(file)[key]
    classes = table[column].astype(str).to_numpy()
    columns = table.drop(columns=[name for name in (column, "Id") if name in table])
    rows = columns.apply(lambda values: pandas.to_numeric(values.astype(str), errors="coerce")).to_numpy(np.float64)
    whole = np.isfinite(rows).all(1)
    return rows[whole], np.isin(classes[whole], outliers)


def all_sets(folder: Path = MLBENCH) -> dict[str, Callable[[], Rows]]:
    """Builders of every set by name."""
    return (
        {"shuttle": shuttle}
        | {name: lambda name=name: uci(name, folder) for name in UCI}
        | {"cancer": cancer}
        | {f"digit {inlier}": lambda inlier=inlier: digit(inlier) for inlier in range(10)}
    )
