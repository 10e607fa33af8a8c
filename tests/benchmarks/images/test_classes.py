"""benchmarks/images/classes.py: a small run has all keys and a picture, and is not repeated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.images import classes


@pytest.mark.slow
def test_a_small_run_writes_what_its_docstring_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classes, "SAMPLES", 80)
    monkeypatch.setattr(classes, "LABELS", (2, 7))
    file, picture = tmp_path / "all.json", tmp_path / "all.png"
    places = ["--json", str(file), "--picture", str(picture), "--folder", str(tmp_path / "runs")]
    arguments = ["--seeds", "0", "--timesteps", "1000", "--kinds", *classes.KINDS, *places]
    assert classes.main(arguments) == 0
    everything = json.loads(file.read_text(encoding="utf-8"))
    text = str(classes.__doc__).split("Keys of", 1)[1]
    listed = {key for line in re.findall(r"^    ([a-z][a-z_, ]*?)  ", text, re.M) for key in line.split(", ")}
    assert listed == set(everything)
    runs = everything["runs"]
    assert [(run["kind"], run["label"]) for run in runs] == [(kind, label) for kind in classes.KINDS
                                                             for label in (2, 7)]  # fmt: skip
    for run in runs:
        assert run["class_accuracy"] > 0.9 and run["fd"] > 0
        assert run["timesteps"] == {"base": 0, "one game": 1024, "ten games": 512, "ten long games": 1024}[run["kind"]]
    assert len(everything["exact"]) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "FD per class" in re.sub(r"[^A-Za-z ]+ *", "", capsys.readouterr().out.replace("\n", " "))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert classes.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert classes.main(["--timesteps", "0"]) == 2
    assert "timesteps must" in capsys.readouterr().err
    assert classes.main(["--kinds", "ten game"]) == 2
    assert "Did you mean 'ten games'" in capsys.readouterr().err
