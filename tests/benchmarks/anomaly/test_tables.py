"""benchmarks/anomaly/tables.py: sets, methods, ranks and keys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyod")
from benchmarks.anomaly import data
from benchmarks.anomaly import tables as script
from dxmi_rl.targets import MissingDataError


@pytest.mark.slow
def test_a_small_run_gives_tables_keys_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scikit_posthocs")
    file = tmp_path / "results.json"
    command = ["--sets", "cancer", "digit 1", "--methods", "knn", "ecod", "iforest", "--seeds", "0", "1", "--jobs", "1"]
    command += ["--folder", str(tmp_path / "runs"), "--pictures", str(tmp_path)]
    assert script.main([*command, "--json", str(file)]) == 0
    assert (tmp_path / "anomaly_ranks_inliers.png").stat().st_size > 10_000
    found = json.loads(file.read_text(encoding="utf-8"))
    assert script.__doc__ is not None
    for key in found:
        assert f"    {key}" in script.__doc__ or f", {key} " in script.__doc__
    assert len(found["runs"]) == 12 and not any(run["error"] for run in found["runs"])
    assert found["sets"]["cancer"]["outliers"] == 212 and found["sets"]["digit 1"]["rows"] == 1797
    assert found["methods"]["knn"]["auroc"] > 0.9 > found["methods"]["ecod"]["auroc"]
    assert sum(method["rank"] for method in found["methods"].values()) == pytest.approx(6)
    printed = capsys.readouterr().out
    assert "means over sets" in printed and "digit 1" in printed


def test_a_stopped_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, methods = data.cancer(), ["ecod", "knn"]
    first = script.run("cancer", rows, methods[:1], "inliers", 0, "cpu", tmp_path)
    made: list[str] = []
    make = script.make_method
    monkeypatch.setattr(script, "make_method", lambda name, *rest: made.append(name) or make(name, *rest))
    again = script.run("cancer", rows, methods, "inliers", 0, "cpu", tmp_path)
    assert made == ["knn"] and again[:1] == first
    script.run("cancer", rows, methods, "all", 0, "cpu", tmp_path)
    script.run("cancer", rows, methods, "inliers", 1, "cpu", tmp_path)
    assert made == ["knn", *methods, *methods], "another protocol or seed is another fit"


@pytest.mark.slow
def test_energies_are_among_the_methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick = {"pretraining_iterations": 10, "width": 8, "max_iterations": 2}
    monkeypatch.setattr(script, "ENERGIES", {name: quick | own for name, own in script.ENERGIES.items()})
    rows = data.cancer()
    found = script.run("cancer", rows, list(script.ENERGIES), "all", 0, "cpu", tmp_path)
    assert [run["error"] for run in found] == [None] * 6
    assert set(script.default_methods("all")) - set(script.default_methods("inliers")) == {"energy, 2 folds"}
    assert all(0 < run["auroc"] <= 1 for run in found)


def test_training_rows_are_half_of_the_inliers() -> None:
    outlier = np.arange(10) >= 6
    train, test = script.split(outlier, "inliers", 0)
    assert len(train) == 3 and not outlier[train].any()
    assert sorted([*train, *test]) == list(range(10)) and outlier[test].sum() == 4
    assert [part.tolist() for part in script.split(outlier, "all", 0)] == [list(range(10))] * 2
    train, test = script.split(np.arange(100) >= 18, "all", 1)
    assert train.tolist() == test.tolist() and len(train) == 20, "where outliers are most rows, a tenth of outliers"
    assert (
        set(range(18)) < set(train.tolist())
        and train.tolist() != script.split(np.arange(100) >= 18, "all", 2)[0].tolist()
    )


def test_a_method_that_fails_counts_as_chance() -> None:
    runs = [{"set": "a", "method": "one", "error": "no"}, {"set": "a", "method": "two", "auroc": 0.4, "error": None}]
    found = script.summarise(runs, ["a"], ["one", "two"])
    assert (found["one"]["auroc"], found["one"]["rank"], found["two"]["rank"]) == (0.5, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sets", "shutle"], "Did you mean 'shuttle'"),
        (["--methods", "knnn"], "Did you mean 'knn'"),
        (["--protocol", "some"], "protocol"),
        (["--sets", "glass", "--mlbench", "/nowhere"], "apt-get download r-cran-mlbench"),
    ],
)
def test_errors_are_said(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(arguments) == 2
    assert text in capsys.readouterr().err


def test_missing_sets_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="dpkg-deb"):
        data.uci("pima", tmp_path)
