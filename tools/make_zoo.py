"""Train the agents of the zoo and write them into zoo/.

    python tools/make_zoo.py                            # all that are missing: about an hour of one core
    python tools/make_zoo.py --names dxdp-8gaussians    # one again

They are the rows of the leaderboard's preset, "standard", on TASKS, with its budgets and seed 0: the agents of this
package, but for those of ELSEWHERE; GAMES; and detectors of DETECTED.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # started as a file: imports are from the root of the repository, too
    sys.path.append(str(Path(__file__).parents[1]))

from make_shipped import SMALL

from dxmi_rl.anomaly import EnergyDetector
from dxmi_rl.benchmark.presets import load_preset
from dxmi_rl.benchmark.protocol import Row
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.checks import DivergenceError, NonFiniteError
from dxmi_rl.utils.storage import JSON
from dxmi_rl.utils.torch_tools import seeded
from dxmi_rl.zoo import add_pretrained, add_pretrained_detector
from dxmi_rl.zoo.detectors import table_of
from dxmi_rl.zoo.pretrained import INDEX, read_index

ZOO = Path(__file__).parents[1] / "zoo"
TASKS = ("8gaussians", "gmm25", "manywell32")
ELSEWHERE = ("awm", "diffusion-nft", "draft", "rwr")
"""Agents that are for fine-tuning toward a reward."""
GAMES = [
    Row(
        "dxmi", "digits", "dxmi", budget=300_000,
        task_settings=SMALL, agent_settings={"agent_settings": {"value": {"width": 80}}},
    )
]  # fmt: skip
"""Games of DxMI, with networks that are small enough for a file of the zoo: those of the task's defaults have 8 MB."""
DETECTED = ("cancer", "digit-0", "digit-8")
"""Tables of detectors."""
SEED = 0


def rows() -> dict[str, Row]:
    """The rows of the zoo by the name of their agent there."""
    chosen = [row for row in load_preset("standard").rows if row.task in TASKS and row.trains]
    own = [row for row in chosen if not row.agent.startswith(("sb3-", "torchrl-")) and row.agent not in ELSEWHERE]
    return {f"{row.agent}-{row.task}": row for row in [*own, *GAMES]}


def make(name: str, what: Row | str, folder: Path) -> JSON:
    """Train the agent of a row, or fit a detector to a table, and put it into the zoo: its entry."""
    command = f"python tools/make_zoo.py --names {name}"
    if isinstance(what, str):
        started, detector = time.perf_counter(), EnergyDetector(seed=SEED)
        detector.fit(table_of(what)[0])
        seconds = time.perf_counter() - started
        return add_pretrained_detector(
            detector, name, folder, table=what, command=command, seconds=seconds, licence="MIT"
        )
    agent = what.build(make_task(what.task, **what.task_settings), SEED)
    agent.learn(int(what.budget), progress_bar=True)
    return add_pretrained(agent, name, folder, command=command, licence="MIT")


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, or named; exit status 1 where an agent diverged."""
    known: dict[str, Row | str] = {**rows(), **{f"detector-{table}": table for table in DETECTED}}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=known, metavar="NAME", help="train these, also where they are")
    parser.add_argument("--folder", type=Path, default=ZOO, help="the zoo; zoo/ of this clone by default")
    asked = parser.parse_args(argv)
    there = read_index(asked.folder) if (asked.folder / INDEX).is_file() else {}
    failed = 0
    for name in asked.names or [name for name in known if name not in there]:
        with one_thread(), seeded(SEED):
            try:
                entry = make(name, known[name], asked.folder)
            except (DivergenceError, NonFiniteError, ValueError) as error:
                failed += 1
                print(f"{name}: left out, {type(error).__name__}: {error}", flush=True)
                continue
        size = (asked.folder / entry["file"]).stat().st_size
        print(f"{name}: {entry['seconds']:.0f} s, {size / 1000:.0f} kB", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
