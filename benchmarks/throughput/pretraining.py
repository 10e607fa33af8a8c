"""What a step of pretraining a denoiser of images costs: U-Nets, with and without patches, and MLPs, in two precisions.

    python benchmarks/throughput/pretraining.py --json pretraining.json

Each row trains on random bytes, 64 images of ``--size`` x ``--size`` pixels a step. Rows take turns, round after round,
in one process, so that what disturbs the machine meets all; the fastest step of each is taken, and its ratio to the
first row's.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    seeds, size                 what was asked for
    clock                       "CPU time" (of the one thread) or, on other devices, "wall clock"
    rows                        per row and precision: .network, .precision, .parameters, .milliseconds (of a step, the
                                least over rounds and seeds), .ratio (of the first row's milliseconds to these)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.scripts import command_line, header
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.diffusion.pretraining import _Cloning
from dxmi_rl.targets import ImageSet
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.storage import write_json

UNET = PretrainingConfig(network="unet", batch_size=64)
NETWORKS = {
    "U-Net (32, 64, 64)": UNET,
    "U-Net (32, 64, 64), no attention": replace(UNET, attention=False),
    "patches of 2 x 2, U-Net (32, 64)": replace(UNET, patch=2, channels=(32, 64)),
    "patches of 2 x 2, U-Net (64, 128)": replace(UNET, patch=2, channels=(64, 128)),
    "patches of 2 x 2, U-Net (64, 128), no attention": replace(UNET, patch=2, channels=(64, 128), attention=False),
    "MLP (4 blocks of 512)": PretrainingConfig(batch_size=64, width=512, depth=4),
}
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of networks and data."""
    rounds: int = 5
    """Steps of every row that are timed, after one that is not."""
    size: int = 28
    """Height and width of the images."""
    device: str = "cpu"
    """Torch device."""
    json: Path | None = None
    """Write everything to this file."""


def measure(seed: int, arguments: Arguments) -> list[dict[str, Any]]:
    """The least time of a step of every row."""
    device = resolve_device(arguments.device)
    generator = torch.Generator().manual_seed(seed)
    shape = (256, 1, arguments.size, arguments.size)
    images = ImageSet(*[torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in range(2)])
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    rows = []
    for name, config in NETWORKS.items():
        for precision in PRECISIONS:
            training = _Cloning(images, replace(config, precision=precision, seed=seed), device)
            count = sum(parameter.numel() for parameter in training.denoiser.parameters())
            rows.append((training, {"network": name, "precision": precision, "parameters": count, "milliseconds": []}))
    for step in range(arguments.rounds + 1):
        for training, row in rows:
            started = clock()
            float(training.step(step))  # waits for the device
            if step:
                row["milliseconds"].append(1000 * (clock() - started))
    return [row | {"milliseconds": min(row["milliseconds"])} for _, row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, write; exit status 2 for bad input."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("rounds", arguments.rounds)
        check_integer("size", arguments.size)
        check_seeds(arguments.seeds)
        with one_thread():
            repeats = [measure(seed, arguments) for seed in arguments.seeds]
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [
        alike[0] | {"milliseconds": min(row["milliseconds"] for row in alike)} for alike in zip(*repeats, strict=True)
    ]
    rows = [row | {"ratio": rows[0]["milliseconds"] / row["milliseconds"]} for row in rows]
    clock = "CPU time" if arguments.device == "cpu" else "wall clock"
    table = Table("network", "precision", "parameters", "ms a step", "times as fast", title=f"pretraining, {clock}")
    for row in rows:
        cells = [f"{row['parameters'] / 1e6:.2f} M", f"{row['milliseconds']:.0f}", f"{row['ratio']:.2f}"]
        table.add_row(row["network"], row["precision"], *cells)
    Console().print(table)
    if arguments.json is not None:
        own = {"seeds": list(arguments.seeds), "size": arguments.size, "clock": clock, "rows": rows}
        write_json(arguments.json, header(command_line(__file__, argv), arguments.device) | own)
    return 0


if __name__ == "__main__":
    sys.exit(main())
