"""Scripts of benchmarks/: how they start, their options and documented keys; files of results on record."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scripts import RESULTS, ROOT, command_line
from dxmi_rl.utils.storage import write_json

STUDIES = sorted(path.parent for path in (ROOT / "benchmarks").glob("*/__init__.py"))
SCRIPTS = sorted(
    file for study in STUDIES for file in study.glob("*.py") if '__name__ == "__main__"' in file.read_text("utf-8")
)
READERS = {"leaderboard": {"seeds", "device", "json"}, "race": {"seeds", "device"}}
"""Scripts that read results and run nothing, and the options that they have no use for."""
WITHOUT = READERS | {"interval_coverage": {"device"}}
START = """\
if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])
"""


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_script_has_the_same_start_and_options(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert START in file.read_text(encoding="utf-8")
    name = f"benchmarks/{file.parent.name}/{file.name}"
    script = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    wanted = {"seeds", "device", "json"} - WITHOUT.get(file.stem, set())
    assert wanted <= set(re.findall(r"--([a-z-]+)", capsys.readouterr().out))
    documented = sys.modules["dxmi_rl.benchmark.compare"] if file.stem == "compare" else script
    if file.stem != "leaderboard":
        assert "Keys of" in (documented.__doc__ or "")
    assert file.stem == "compare" or f"    python {name}" in (script.__doc__ or ""), "its docstring shows a command"
    assert command_line(str(file), ["--seeds", "0 1"]) == f"python {name} --seeds '0 1'"


@pytest.mark.slow
def test_a_script_is_started_as_a_file_from_anywhere(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for folder, file in ((ROOT, "benchmarks/compare/race.py"), (tmp_path, str(ROOT / "benchmarks/compare/race.py"))):
        command = [sys.executable, file, "--json", str(tmp_path / "race.json")]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        recorded = json.loads((tmp_path / "race.json").read_text(encoding="utf-8"))["command"]
        assert recorded == f"python benchmarks/compare/race.py --json {tmp_path / 'race.json'}"


def test_helpers_are_no_scripts_and_packages_are_not_installed() -> None:
    assert {file.stem for file in SCRIPTS} >= {"compare", "dxmi_2d", "images", "tables", "throughput", "tune"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'include = ["dxmi_rl*"]' in project


# Results on record ----------------------------------------------------------------------------------------------------


def parts(value: Any) -> list[Any]:
    """All values in a JSON document."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(part for own in inner for part in parts(own))]


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda file: str(file.relative_to(RESULTS)))
def test_results_on_record_are_compact_and_without_pictures(file: Path, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    assert write_json(tmp_path / "again.json", content).read_text(encoding="utf-8") == text, "written by write_json"
    everything = parts(content)
    assert not any("paths" in part for part in everything if isinstance(part, dict))
    assert max(len(part) for part in everything if isinstance(part, str)) < 2_000, "a picture in base64?"
    commands = [part["command"] for part in everything if isinstance(part, dict) and "command" in part]
    assert commands
    for command in commands:
        script = command.split()[1]
        assert command.startswith("python benchmarks/") and (ROOT / script).is_file(), command
