"""benchmarks/throughput/pretraining.py: every row runs, and its results' keys. No timings are judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_cases import documented

from benchmarks.throughput import pretraining


@pytest.mark.slow
def test_every_network_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    file = tmp_path / "pretraining.json"
    assert pretraining.main(["--rounds", "1", "--size", "8", "--json", str(file)]) == 0
    results = json.loads(file.read_text(encoding="utf-8"))
    assert set(results) == documented(pretraining)
    assert [(row["network"], row["precision"]) for row in results["rows"]] == [
        (network, precision) for network in pretraining.NETWORKS for precision in pretraining.PRECISIONS
    ]
    assert results["rows"][0]["ratio"] == 1 and all(row["milliseconds"] > 0 for row in results["rows"])
    assert "times as fast" in capsys.readouterr().out
    assert pretraining.main(["--rounds", "0"]) == 2 and pretraining.main(["--size", "7"]) == 2
