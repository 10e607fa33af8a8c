"""What it saves that training keeps the memory of freed tensors (``dxmi_rl.utils.torch_tools.keep_freed_memory``).

    python benchmarks/throughput/freed_memory.py --seeds 0 1 2 --json freed_memory.json

Every row trains in a fresh process that keeps it, and in one that gives it back to the system as glibc does by itself,
in turn; from scratch or on random images, so nothing is pretrained or loaded. What is reported is the part of the CPU
time that is the system's, which hardly depends on what else runs on the machine. Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    seeds                       what was asked for
    rows                        per row: .name; .given_back and .kept, each with .share (of the CPU time, the system's)
                                and .pages (that the system handed out in an iteration), medians over seeds
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.scripts import command_line, header
from dxmi_rl import make_agent, make_task
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.costs import counting
from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.diffusion.pretraining import _Cloning
from dxmi_rl.targets import ImageSet
from dxmi_rl.utils.storage import write_json
from dxmi_rl.utils.torch_tools import keep_freed_memory

ROOT = Path(__file__).parents[2]
COORDINATES = {"coordinate_width": 32}
SMALL_ROLLOUTS: dict[str, Any] = {"n_trajectories": 32, "energy_model": False, "warmup_iterations": 0}


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of networks and data."""
    device: str = "cpu"
    """Only cpu: on a GPU torch keeps its memory itself."""
    json: Path | None = None
    """Write everything to this file."""


def agent_on(task: str, settings: dict[str, Any], **task_settings: Any) -> Callable[[int], Callable[[], object]]:
    """An iteration of DxDP on a task, by seed."""

    def build(seed: int) -> Callable[[], object]:
        agent = make_agent("dxdp", make_task(task, backward="learned", **task_settings), seed=seed, **settings)

        def iteration() -> None:
            with counting(agent.costs):
                agent.iterate()

        return iteration

    return build


def pretraining(size: int) -> Callable[[int], Callable[[], object]]:
    """A step of a U-Net on random RGB images, by seed."""

    def build(seed: int) -> Callable[[], object]:
        generator = torch.Generator().manual_seed(seed)
        images = [torch.randint(256, (256, 3, size, size), generator=generator, dtype=torch.uint8) for _ in range(2)]
        config = PretrainingConfig(network="unet", batch_size=64, channels=(64, 128), attention=False, patch=2)
        training = _Cloning(ImageSet(*images), config, torch.device("cpu"))
        return lambda: training.step(0)

    return build


ROWS = {
    "dxdp on 8gaussians": (agent_on("8gaussians", {"warmup_iterations": 0}, base=None), 6),
    "dxdp on manywell32, T = 10, coordinate by coordinate": (
        agent_on(
            "manywell32", SMALL_ROLLOUTS | {"policy": COORDINATES, "value": COORDINATES}, horizon=10,
            backward_options=COORDINATES,
        ),
        6,
    ),
    "U-Net on 64 images of 3 x 32 x 32": (pretraining(32), 10),
}  # fmt: skip
"""What is built from a seed, and how often it is run for one measurement, after one run that is not measured."""


def measure(name: str, seed: int, keep: bool) -> dict[str, float]:
    """The system's share of the CPU time of a row, and its pages, in this process."""
    build, count = ROWS[name]
    if keep:
        keep_freed_memory()
    with one_thread():
        run = build(seed)
        run()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(count):
            run()
        after = resource.getrusage(resource.RUSAGE_SELF)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        return {"share": system / (user + system), "pages": (after.ru_minflt - before.ru_minflt) / count}


def in_fresh_process(name: str, seed: int, keep: bool) -> dict[str, float]:
    """``measure`` in a process of its own."""
    call = f"measure({name!r}, {seed}, {keep})"
    code = f"import json; from benchmarks.throughput.freed_memory import measure; print(json.dumps({call}))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; exit status 2 for bad input."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_seeds(arguments.seeds)
        if arguments.device != "cpu":
            raise ValueError(f"device must be 'cpu', got {arguments.device!r}.")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("an iteration of", "system's, given back", "kept", "pages, given back", "kept")
    rows = []
    for name in ROWS:
        pairs = [[in_fresh_process(name, seed, keep) for keep in (False, True)] for seed in arguments.seeds]
        back, kept = (
            {key: statistics.median(run[key] for run in runs) for key in runs[0]} for runs in zip(*pairs, strict=True)
        )
        rows.append({"name": name, "given_back": back, "kept": kept})
        shares, pages = (
            [f"{one[key]:{form}}" for one in (back, kept)] for key, form in (("share", ".1%"), ("pages", ",.0f"))
        )
        table.add_row(name, *shares, *pages)
    Console().print(table)
    if arguments.json is not None:
        own = {"seeds": list(arguments.seeds), "rows": rows}
        write_json(arguments.json, header(command_line(__file__, argv), arguments.device) | own)
    return 0


if __name__ == "__main__":
    sys.exit(main())
