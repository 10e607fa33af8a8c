"""Results of one preset that were run in parts become one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from merge_results import main, merge

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "results" / "experiments"


def on_record() -> dict[str, Any]:
    """Results of two rows of two seeds each."""
    found = json.loads((EXPERIMENTS / "coordinate-wise.json").read_text(encoding="utf-8"))
    kept = [run for run in found["runs"] if run["label"] in ("ppo", "a2c") and run["seed"] < 2]
    return merge("one", [found | {"runs": kept}])


def part(results: dict[str, Any], *chosen: tuple[str, int]) -> dict[str, Any]:
    return results | {"runs": [run for run in results["runs"] if (run["label"], run["seed"]) in chosen]}


def test_parts_make_the_whole() -> None:
    whole = on_record()
    assert [(row["label"], row["seeds"], row["runs"]) for row in whole["summary"]] == [
        ("ppo", [0, 1], 2), ("a2c", [0, 1], 2),
    ]  # fmt: skip
    parts = [part(whole, ("a2c", 1), ("ppo", 0)), part(whole, ("a2c", 0)), part(whole, ("ppo", 1))]
    assert merge("one", parts) == merge("one", [*parts, *parts]) == whole
    assert whole["seconds"] == sum(run["costs"]["seconds"] + run["evaluation_seconds"] for run in whole["runs"])


def test_later_runs_take_the_place_of_earlier_ones() -> None:
    whole = on_record()
    newer = part(whole, ("ppo", 1))
    newer["runs"] = [newer["runs"][0] | {"scores": newer["runs"][0]["scores"] | {"sliced_w2": 99.0}}]
    found = merge("one", [whole, newer | {"date": "2099-01-01"}])
    assert [run["scores"]["sliced_w2"] for run in found["runs"] if run["label"] == "ppo"][1] == 99.0
    assert found["summary"][0]["scores"]["sliced_w2"]["iqm"] > 40 and found["date"] == "2099-01-01"


def test_a_failed_run_is_kept_until_it_is_finished() -> None:
    whole = on_record()
    failed = part(whole, ("a2c", 1))["runs"][0]
    failed = {key: failed[key] for key in ("key", "label", "task", "seed")} | {"error": "DivergenceError: loss is inf"}
    broken = part(whole, ("ppo", 0), ("ppo", 1), ("a2c", 0)) | {"failed": [failed]}
    found = merge("one", [broken])
    assert found["failed"] == [failed] and len(found["runs"]) == 3
    assert (found["summary"][1]["runs"], found["summary"][1]["diverged"]) == (1, 1)
    assert merge("one", [found, part(whole, ("a2c", 1))])["runs"] == whole["runs"]
    assert merge("one", [whole, broken]) == found


def test_what_does_not_belong_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = on_record()
    for other, message in (
        ({"preset": "tables"}, "agree in 'preset'"),
        ({"devices": ["cuda"]}, "agree in 'devices'"),
        ({"runs": [whole["runs"][0] | {"label": "nobody"}]}, "no rows .*nobody"),
    ):
        with pytest.raises(ValueError, match=message):
            merge("one", [whole, whole | other])
    with pytest.raises(ValueError, match="at least one"):
        merge("one", [])
    file = tmp_path / "broken.json"
    file.write_text("{", encoding="utf-8")
    assert main([str(tmp_path / "out.json"), str(file)]) == 2
    assert "error:" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
    file.write_text(json.dumps(whole), encoding="utf-8")
    assert main([str(tmp_path / "out.json"), str(file)]) == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["name"] == "out"
