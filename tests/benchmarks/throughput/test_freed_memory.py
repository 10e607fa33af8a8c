"""benchmarks/throughput/freed_memory.py: a row runs in both kinds of process, and its results' keys. No timings are
judged.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_cases import documented

from benchmarks.throughput import freed_memory


@pytest.mark.slow
def test_a_row_runs_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dxdp on 8gaussians"
    monkeypatch.setattr(freed_memory, "ROWS", {name: freed_memory.ROWS[name]})
    file = tmp_path / "freed_memory.json"
    assert freed_memory.main(["--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert set(results) == documented(freed_memory)
    (row,) = results["rows"]
    assert row["name"] == name and 0 <= row["kept"]["share"] < 1 and row["given_back"]["pages"] >= 0


def test_bad_input_is_named() -> None:
    assert freed_memory.main(["--device", "cuda"]) == 2 and freed_memory.main(["--seeds", "-1"]) == 2
