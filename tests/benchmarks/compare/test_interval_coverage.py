"""benchmarks/compare/interval_coverage.py: its keys, its page, and the true values that it counts with."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from benchmarks.compare import interval_coverage as coverage
from dxmi_rl.benchmark.statistics import interquartile_mean


@pytest.mark.slow
def test_coverage_writes_what_its_docstring_lists_and_rewrites_the_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{coverage.START}\nold\n{coverage.END}\nafter\n")
    arguments = ["--repeats", "2", "--resamples", "20", "--runs", "2", "10", "--json", str(tmp_path / "c.json")]
    assert coverage.main([*arguments, "--page", str(page)]) == 0
    everything = json.loads((tmp_path / "c.json").read_text())
    text = coverage.__doc__ or ""
    assert set(re.findall(r"^    ([a-z_]+)  ", text, re.M)) == set(everything)
    for name in ("interquartile_mean", "probability_of_improvement"):
        own = text[text.index(f"    {name} ") :].split("\n    probability_of_improvement")[0]
        listed = [key for line in re.findall(r"^      (\..*?)  ", own, re.M) for key in re.findall(r"\.(\w+)", line)]
        assert {key for entry in everything[name] for key in entry} == set(listed)
    assert everything["command"] in page.read_text() and " ".join(arguments) in everything["command"]
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert "old" not in page.read_text() and "| 10 |" in page.read_text()
    assert "lognormal" in capsys.readouterr().out


def test_coverage_knows_the_interquartile_mean_of_its_distributions():
    assert coverage.population_interquartile_mean("normal") == pytest.approx(0, abs=1e-9)
    for name, tasks in (("lognormal", 1), ("beta", 1), ("unequal tasks", 4)):
        scores = coverage.draw(name, (1, 100_000, tasks), np.random.default_rng(0))[0]
        assert coverage.population_interquartile_mean(name) == pytest.approx(interquartile_mean(scores), abs=0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--repeats", "0"],
        ["--runs", "1"],
        ["--runs"],
        ["--seeds", "-1"],
        ["--page", "/nowhere.md"],
        ["--page", __file__],
    ],
)
def test_coverage_refuses_bad_arguments(arguments, capsys):
    assert coverage.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
