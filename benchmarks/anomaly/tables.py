"""Outliers in tables: the energy of a DxMI game beside energies trained otherwise and pyod's detectors.

    python benchmarks/anomaly/tables.py --mlbench FOLDER/usr/lib/R/site-library/mlbench/data --seeds 0 1 2 3 4
    python benchmarks/anomaly/tables.py --sets cancer "digit 3" --methods energy knn
    python benchmarks/anomaly/tables.py --protocol all

Sets: shuttle, five of the UCI's (satellite, breastw, ionosphere, pima, glass), breast cancer, and ten tasks in which
one digit is normal and nine are not. Protocol "inliers" trains on a random half of the inliers and scores the other
half and all outliers; "all" trains on every row without labels and scores the same rows, but for sets most of whose
rows are outliers (the digits), of which it has as many at random as make a tenth of the rows. Every method gets
columns that are standardised alike (EnergyDetector's own way), and its library's defaults. Methods:

    energy                   EnergyDetector
    energy, start            the same before the game: what the denoiser takes out
    energy, tau = 0          the game without entropy
    energy, Langevin         the same network and start, trained by persistent Langevin chains
    energy, NCE              the same, against a Gaussian
    energy, 2 folds          the mean of two EnergyDetectors, each without a half of the rows; for "all"
    knn, lof, iforest, ocsvm, ecod, copod, deep-svdd, autoencoder      pyod's

A command that is stopped goes on where it was: finished fits are kept in ``--folder``. ``--pictures FOLDER`` draws the
mean ranks, and which of them Nemenyi's test over sets does not tell apart at 5 % (Demsar 2006).

Keys of ``--json FILE``:

    command              the command line
    machine, versions    what it ran on
    protocol             inliers or all
    methods              per method: auroc, average_precision, rank (of the AUROC among all methods), fit_seconds,
                         score_seconds (means over sets of means over seeds)
    sets                 per set: rows and outliers that are used, features, auroc {method: {iqm, ...}}
    runs                 every fit: set, method, seed, auroc, average_precision, fit_seconds, score_seconds, error
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.anomaly import data as sets_of_rows
from benchmarks.anomaly.data import MLBENCH, Rows, all_sets
from benchmarks.anomaly.energies import ENERGIES, FOLDED
from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import command_line, header
from dxmi_rl.agents import DxDP
from dxmi_rl.anomaly import EnergyDetector
from dxmi_rl.anomaly.detector import standardisation
from dxmi_rl.anomaly.table_data import split_inliers
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.results import score_statistics
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.benchmark.tables import Table, number, print_tables, statistics_text
from dxmi_rl.utils.checks import check_integer, require
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import write_json

PYOD = {
    "knn": ("knn", "KNN", ""), "lof": ("lof", "LOF", ""), "iforest": ("iforest", "IForest", "random_state"),
    "ocsvm": ("ocsvm", "OCSVM", ""), "ecod": ("ecod", "ECOD", ""), "copod": ("copod", "COPOD", ""),
    "deep-svdd": ("deep_svdd", "DeepSVDD", "random_state"),
    "autoencoder": ("auto_encoder", "AutoEncoder", "random_state"),
}  # fmt: skip
"""Module, class and the name of the seed, if there is one."""
ENERGIES = ENERGIES | FOLDED
METHODS = [*ENERGIES, *PYOD]
PROTOCOLS = ["inliers", "all"]


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    sets: tuple[str, ...] = ()
    """Which sets; all by default."""
    methods: tuple[str, ...] = ()
    """Which methods; all by default."""
    protocol: str = "inliers"
    """inliers, or all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of splits and methods."""
    mlbench: Path = MLBENCH
    """Folder of r-cran-mlbench's data."""
    jobs: int = 2
    """Sets and seeds at a time, one thread each."""
    device: str = "cpu"
    """Torch device of the energies."""
    folder: Path = Path("runs/anomaly")
    """Where finished fits are kept."""
    json: Path | None = None
    """File for the results."""
    pictures: Path | None = None
    """Folder for the picture of ranks."""


def default_methods(protocol: str) -> tuple[str, ...]:
    """All methods that are for the protocol."""
    return tuple(name for name in METHODS if protocol == "all" or name not in FOLDED)


def split(outlier: np.ndarray, protocol: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of rows to train on and to score."""
    if protocol == "all":
        random, inliers, outliers = np.random.default_rng(seed), np.flatnonzero(~outlier), np.flatnonzero(outlier)
        if len(outliers) > len(inliers):
            outliers = random.permutation(outliers)[: len(inliers) // 9]
        rows = np.sort(np.concatenate([inliers, outliers]))
        return rows, rows
    return split_inliers(outlier, seed)


def make_method(
    name: str, features: int, seed: int, device: str
) -> tuple[Any, Callable[[Any, np.ndarray], np.ndarray]]:
    """An unfitted detector, and how it scores rows, larger for outliers."""
    if name in ENERGIES:
        detector = EnergyDetector(seed=seed, device=device, **ENERGIES[name])
        return detector, lambda fitted, rows: -fitted.score_samples(rows)
    module, kind, seeded = PYOD[name]
    settings: dict[str, Any] = {seeded: seed} if seeded else {}
    if module in ("deep_svdd", "auto_encoder"):
        settings["verbose"] = 0
    if kind == "DeepSVDD":
        settings["n_features"] = features
    made = getattr(require(f"pyod.models.{module}", "anomaly"), kind)(**settings)
    return made, lambda fitted, rows: fitted.decision_function(rows)


def result_file(folder: Path, name: str, method: str, protocol: str, seed: int, device: str) -> Path:
    """Where the result of a fit is, or will be."""
    settings: dict[str, Any] = {"set": name, "method": method, "protocol": protocol, "seed": seed}
    if method in ENERGIES:
        return run_file(folder, settings | {"energy": ENERGIES[method], "device": device}, (EnergyDetector, DxDP), CODE)
    settings |= {"detector": PYOD[method], "pyod": version("pyod"), "scaling": inspect.getsource(standardisation)}
    return run_file(folder, settings, code=CODE)


def run(
    name: str, data: Rows, methods: Sequence[str], protocol: str, seed: int, device: str, folder: Path
) -> list[dict[str, Any]]:  # fmt: skip
    """Fit and score every method once on one set, unless its file is there."""
    rows, outlier = data
    train, test = split(outlier, protocol, seed)
    mean, scale = standardisation(rows[train])
    standardised, found = (rows - mean) / scale, []
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in methods:
            x = rows if method in ENERGIES else standardised  # an energy standardises rows itself
            file = result_file(folder, name, method, protocol, seed, device)
            fit_it = functools.partial(fit, method, x, outlier, train, test, seed, device)
            result: dict[str, Any] = {"set": name, "method": method, "seed": seed, "error": None}
            try:
                found.append(result | kept_result(file, fit_it))
            except (ValueError, RuntimeError) as error:  # which the next call tries again
                found.append(result | {"error": str(error)})
    return found


def fit(
    method: str, x: np.ndarray, outlier: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int, device: str
) -> dict[str, float]:  # fmt: skip
    """Seconds and scores of one method."""
    detector, score = make_method(method, x.shape[1], seed, device)
    started = time.perf_counter()
    silent = io.StringIO()  # for pyod's bars
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        detector.fit(x[train])
    fitted = time.perf_counter()
    scores = score(detector, x[test])
    return {
        "fit_seconds": fitted - started,
        "score_seconds": time.perf_counter() - fitted,
        "auroc": float(roc_auc_score(outlier[test], scores)),
        "average_precision": float(average_precision_score(outlier[test], scores)),
    }


CODE = code_of(split, make_method, fit, sets_of_rows)
"""Digest of what a result depends on in this folder."""


def summarise(
    runs: Sequence[dict[str, Any]], sets: Sequence[str], methods: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Per method its means over sets of means over seeds, and its mean rank; a run that failed counts as chance."""
    means = {
        key: np.array([
            [
                np.mean([run.get(key, chance) for run in runs if run["set"] == name and run["method"] == method])
                for method in methods
            ]
            for name in sets
        ])
        for key, chance in (("auroc", 0.5), ("average_precision", 0.0), ("fit_seconds", 0.0), ("score_seconds", 0.0))
    }  # fmt: skip
    ranks = np.array([rankdata(-row) for row in means["auroc"]])
    return {
        method: {key: float(values[:, index].mean()) for key, values in means.items()}
        | {"rank": float(ranks[:, index].mean())}
        for index, method in enumerate(methods)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print, write; 2 for arguments that are not allowed or data that are not there."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("jobs", arguments.jobs)
        check_seeds(arguments.seeds)
        if arguments.protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", arguments.protocol, PROTOCOLS)
        known = all_sets(arguments.mlbench)
        sets, methods = arguments.sets or tuple(known), arguments.methods or default_methods(arguments.protocol)
        for kind, names, allowed in (("set", sets, list(known)), ("method", methods, METHODS)):
            for name in names:
                if name not in allowed:
                    raise UnknownNameError(kind, name, allowed)
        data = {name: known[name]() for name in sets}
    except (ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    own = [
        (name, data[name], methods, arguments.protocol, seed, arguments.device, arguments.folder)
        for seed in arguments.seeds
        for name in sets
    ]
    runs = [result for found in run_all(run, own, arguments.jobs, "sets and seeds") for result in found]
    runs.sort(key=lambda run: (sets.index(run["set"]), methods.index(run["method"]), run["seed"]))
    for result in runs:
        if result["error"]:
            print(f"{result['method']} on {result['set']}, seed {result['seed']}: {result['error']}", file=sys.stderr)
    by_method = summarise(runs, sets, methods)
    by_set = describe(runs, data, methods, arguments.protocol)
    print_tables([set_table(by_set, methods, arguments.protocol), method_table(by_method)])
    if arguments.pictures is not None:
        draw_ranks(runs, arguments.pictures / f"anomaly_ranks_{arguments.protocol}.png", arguments.protocol)
    if arguments.json is not None:
        content = header(command_line(__file__, argv), arguments.device) | {"protocol": arguments.protocol}
        write_json(arguments.json, content | {"methods": by_method, "sets": by_set, "runs": runs})
    return 0


def describe(
    runs: Sequence[dict[str, Any]], data: dict[str, Rows], methods: Sequence[str], protocol: str
) -> dict[str, Any]:
    """Size and scores of every set, as far as it is used."""
    used = {name: np.union1d(*split(outlier, protocol, 0)) for name, (_, outlier) in data.items()}
    return {
        name: {
            "rows": len(used[name]),
            "features": rows.shape[1],
            "outliers": int(outlier[used[name]].sum()),
            "auroc": {
                method: score_statistics(
                    [run.get("auroc", 0.5) for run in runs if run["set"] == name and run["method"] == method]
                )
                for method in methods
            },
        }
        for name, (rows, outlier) in data.items()
    }


def draw_ranks(runs: Sequence[dict[str, Any]], file: Path, protocol: str) -> None:
    """Mean ranks of the AUROC over sets, with bars over methods that Nemenyi's test at 5 % does not tell apart.

    Raises MissingExtraError.
    """
    tests = require("scikit_posthocs", "anomaly")
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from dxmi_rl.benchmark.pictures import save_figure

    scores = DataFrame(runs).assign(auroc=lambda frame: frame.get("auroc", 0.5)).fillna({"auroc": 0.5})
    table = scores.pivot_table(values="auroc", index="set", columns="method")
    ranks = table.rank(axis=1, ascending=False).mean()
    figure = Figure(figsize=(8, 0.24 * len(ranks) + 1.2), layout="constrained")
    ax = figure.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests.critical_difference_diagram(
            ranks, tests.posthoc_nemenyi_friedman(table), ax=ax, label_fmt_left="{label}  {rank:.1f} ",
            label_fmt_right=" {rank:.1f}  {label}", color_palette=["black"] * len(ranks),
            elbow_props={"linewidth": 0.7},
        )  # fmt: skip
    ax.set_title(f"Mean rank of the AUROC on {len(table)} sets, trained on {protocol} (1 is best)", fontsize=11, pad=18)
    save_figure(figure, file, dpi=110)


def set_table(sets: dict[str, Any], methods: Sequence[str], protocol: str) -> Table:
    """AUROC of every method on every set."""
    body = [
        [name, str(found["rows"]), *(statistics_text(found["auroc"][method]) for method in methods)]
        for name, found in sets.items()
    ]
    header = ["set", "rows", *(method.replace(", ", ",\n") for method in methods)]
    note = "Interquartile means of the AUROC over seeds with 95 % intervals."
    return Table(f"outliers, trained on {protocol}", header, body, len(methods), note)


def method_table(methods: dict[str, dict[str, float]]) -> Table:
    """Means over sets."""
    keys = {"auroc": "AUROC ↑", "rank": "rank ↓", "average_precision": "average\nprecision ↑"}
    keys |= {"fit_seconds": "seconds\nto fit", "score_seconds": "seconds\nto score"}
    ordered = sorted(methods, key=lambda name: methods[name]["rank"])
    body = [[name, *(number(methods[name][key]) for key in keys)] for name in ordered]
    return Table("means over sets", ["method", *keys.values()], body, 0, "Ranks are of the AUROC among all methods.")


if __name__ == "__main__":
    sys.exit(main())
