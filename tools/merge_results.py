"""Make one result file of several comparisons of one preset, which were run in parts.

    python tools/merge_results.py OUT.json FILE.json [FILE.json ...]

Runs of later files take the place of those with the same task, row and seed in earlier ones. Tables, intervals and
places are computed anew, as ``benchmarks/compare/compare.py`` does, with rows in the preset's order. A failed run is
kept as failed unless a later file has it finished. ``seconds`` are of training and scoring, summed over the runs, so
that a file may be merged again. Comparisons with agents of one's own are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dxmi_rl.benchmark.plan import Arguments, all_rows
from dxmi_rl.benchmark.presets import load_preset
from dxmi_rl.benchmark.results import SCHEMA, assemble, without_paths
from dxmi_rl.utils.storage import JSON, write_json

OF_THE_WHOLE = ("normalised", "command")
"""What a run's entry says about the comparison it stands in."""


@dataclass(frozen=True)
class MergeArguments:
    """Files."""

    out: Annotated[Path, tyro.conf.Positional]
    """What is written; its name without .json names the comparison. It may be one of the files."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """results.json of the parts, as compare.py writes them."""


def merge(name: str, parts: Sequence[JSON]) -> JSON:
    """Results of one comparison called ``name`` from those of its parts.

    Raises ValueError for parts of several presets, devices or schemas, or with rows that the preset does not have.
    """
    if not parts:
        raise ValueError("files must be at least one, got none.")
    for key in ("preset", "devices", "schema"):
        if len(found := {str(part[key]) for part in parts}) > 1:
            raise ValueError(f"files must agree in {key!r}, got {sorted(found)}.")
    if parts[0]["schema"] != SCHEMA:
        raise ValueError(f"files must be of schema {SCHEMA}, got {parts[0]['schema']}.")
    runs = {(run["task"], run["label"], run["seed"]): run for part in parts for run in (*part["failed"], *part["runs"])}
    preset = parts[0]["preset"]
    plan = load_preset(preset)
    rows, own_seeds = [], True
    for row in all_rows(Arguments(preset=preset), plan):
        if seeds := sorted(seed for task, label, seed in runs if (task, label) == (row.task, row.label)):
            own_seeds = own_seeds and set(seeds) <= set(row.seeds or plan.seeds)
            rows.append(replace(row, seeds=tuple(seeds)))
    if unknown := {run[:2] for run in runs} - {(row.task, row.label) for row in rows}:
        raise ValueError(f"preset {preset!r} has no rows {sorted(unknown)}.")
    in_order = sorted(runs.values(), key=lambda run: run["seed"])
    failed = [run for run in in_order if "error" in run]
    bare = [{k: v for k, v in run.items() if k not in OF_THE_WHOLE} for run in in_order if "error" not in run]
    seeds = sorted({seed for *_, seed in runs})
    command = f"python benchmarks/compare/compare.py --preset {preset}"
    header = {
        "name": name,
        "preset": preset,
        "command": f"{command} --name {name}" + ("" if own_seeds else f" --seeds {' '.join(map(str, seeds))}"),
        "devices": parts[0]["devices"],
        "seeds": seeds,
        "seconds": sum(run["costs"]["seconds"] + run["evaluation_seconds"] for run in bare),
    }
    found = assemble(rows, bare, failed, f"{command} --name {name}-again", header)
    return without_paths(found) | {"date": max(part["date"] for part in parts)}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; exit status 2 for bad input."""
    arguments = tyro.cli(MergeArguments, args=argv, description=__doc__)
    try:
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in arguments.files]
        write_json(arguments.out, merge(arguments.out.stem, parts))
    except (OSError, KeyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
