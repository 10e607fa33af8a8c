"""The report of a comparison: one self-contained HTML page, and its tables in Markdown and LaTeX."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dxmi_rl.benchmark.results import RULERS
from dxmi_rl.utils.storage import JSON, write_text

__all__ = ["check_results", "load_results", "write_report"]

TOP = ("name", "preset", "command", "devices", "seeds", "seconds", "date", "tasks", "summary", "runs", "failed")
TASK = ("dim", "horizon", "tau", "event_shape", "track", "energy", "score", "better", "base", "floor")
SUMMARY = (
    "task", "label", "agent", "track", "runs", "budget", "unit", "scores", "best", "normalised", "costs", "command"
)  # fmt: skip
RUN = (
    "key", "label", "task", "agent", "budget", "unit", "task_settings", "agent_settings", "seed", "scores",
    "normalised", "costs", "curve", "versions", "machine", "command",
)  # fmt: skip


def load_results(path: str | os.PathLike[str]) -> JSON:
    """Read the results of a comparison: a folder with ``results.json`` inside, or the JSON file itself.

    Denoising paths, which the report draws, come from the files of the runs in ``results/`` beside it, as far as these
    are there. Raises FileNotFoundError when there is none and ValueError when it is not JSON or of another schema than
    those in RULERS.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "results.json"
    if not file.is_file():
        raise FileNotFoundError(f"no results at {str(file)!r}: give the folder of a comparison or its results.json.")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}.") from error
    try:
        check_results(results)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error
    return {**results, "runs": [_with_paths(run, file.parent / "results") for run in results["runs"]]}


def _with_paths(run: JSON, folder: Path) -> JSON:
    """The run with the denoising paths of its own file, if that is there."""
    try:
        own = json.loads((folder / f"{run['key']}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return run
    return run | {"paths": own.get("paths") if isinstance(own, dict) else None}


def check_results(results: object) -> None:
    """Raises ValueError, naming what is missing, unless ``results`` has the form of a schema in RULERS."""
    if not isinstance(results, dict):
        raise ValueError(f"results must be a dict, got {type(results).__name__}.")
    if results.get("schema") not in list(RULERS):  # a list: what is read may not be hashable
        known = " or ".join(map(str, RULERS))
        raise ValueError(f"results must be of schema {known}, got schema {results.get('schema')!r}.")
    _check_keys("results", results, TOP)
    for kind in ("summary", "runs", "failed"):
        if not isinstance(results[kind], list):
            raise ValueError(f"{kind} of results must be a list, got {type(results[kind]).__name__}.")
    if not isinstance(results["tasks"], dict):
        raise ValueError(f"tasks of results must be a dict, got {type(results['tasks']).__name__}.")
    for name, task in results["tasks"].items():
        _check_keys(f"task {name!r}", task, TASK)
    for kind, keys in (("summary", SUMMARY), ("runs", RUN)):
        for index, entry in enumerate(results[kind]):
            _check_keys(f"{kind}[{index}]", entry, keys)
            if not isinstance(entry["scores"], dict):
                raise ValueError(f"scores of {kind}[{index}] must be a dict, got {entry['scores']!r}.")
            if not isinstance(entry["task"], str) or entry["task"] not in results["tasks"]:
                raise ValueError(f"task {entry['task']!r} of {kind}[{index}] is missing in tasks.")


def _check_keys(name: str, value: object, keys: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a dict, got {type(value).__name__}.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}.")


def write_report(results: JSON, folder: str | os.PathLike[str], *, before: JSON | None = None) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.tex`` and, where runs kept their paths, ``playground.html`` into
    ``folder``; their paths.

    Args:
        results: results of one comparison, as ``load_results`` returns them.
        folder: made if need be. Every file is replaced as a whole or not at all.
        before: results of an earlier comparison: the page and the Markdown say what changed since.

    Raises ValueError, naming what is missing, when ``results`` or ``before`` is of another schema.
    """
    check_results(results)
    if before is not None:
        check_results(before)
    from dxmi_rl.benchmark.report.content import Comparison
    from dxmi_rl.benchmark.report.page import page
    from dxmi_rl.benchmark.report.playground import playground
    from dxmi_rl.benchmark.report.text import latex, markdown

    comparison, earlier = Comparison(results), None if before is None else Comparison(before)
    texts = {"report.html": page(comparison, earlier), "report.md": markdown(comparison, earlier),
             "report.tex": latex(comparison)}  # fmt: skip
    if (played := playground(comparison)) is not None:
        texts["playground.html"] = played
    return [write_text(Path(folder) / name, text) for name, text in texts.items()]
