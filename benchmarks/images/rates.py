"""The policy's learning rate of every agent inside DxMI on images: the same search for all, without test images.

    python benchmarks/images/rates.py --seeds 0 --json rates.json
    python benchmarks/images/rates.py --data mnist5k-14 --backbone mlp --agents dxdp path-wise --rates 1e-5 3e-5

Every agent plays the game of ``images.py`` at T = 4 with each of ``--rates`` as its ``policy.fine_tuning_rate``, on
training images, some of which are held back for the scores (``ImageSet.validation_split``). All else is the recipe's.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    data, backbone              what was asked for
    runs                        one entry per agent, rate and seed
      .agent, .rate, .seed      of the run
      .fd, .fd_last             distance to the images held back, of the averaged policy and of the last iterate; null
                                for a game that diverged
      .timesteps, .seconds      of the game
    best                        {agent: rate}: the rate of the least mean ``fd``
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from rich.console import Console
from rich.table import Table

from benchmarks.images.images import INSIDE, all_plays
from benchmarks.images.play import Play, build_task
from benchmarks.images.play import run as play_game
from benchmarks.run_cache import run_all
from benchmarks.scripts import Study, carry_out
from dxmi_rl.utils.checks import DivergenceError, check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError

AGENTS = ("dxdp", *INSIDE)


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    data: str = "digits"
    """Set of images, as of images.py."""
    backbone: str = "default"
    """Network of the denoiser, as of images.py."""
    agents: tuple[str, ...] = AGENTS
    """Agents inside the game."""
    rates: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4)
    """Learning rates of the policy."""
    budget: int | None = None
    """Transitions of a game; by default as of images.py."""
    folder: Path = Path("runs/images")
    """Finished runs are kept here, and not repeated."""


def games(arguments: Arguments) -> dict[tuple[str, float, int], Play]:
    """The game of every agent, rate and seed."""
    rows = {f"dxmi/{name}, T = 4" if name in INSIDE else "dxmi, T = 4": name for name in arguments.agents}
    plays = all_plays(
        arguments.data, arguments.seeds, arguments.budget, backbone=arguments.backbone, validation=True
    )  # fmt: skip
    return {
        (rows[play.row], rate, play.seed): dataclasses.replace(
            play, row=f"{play.row}, rate {rate:g}", changes=play.changes | {"agent.policy.fine_tuning_rate": rate}
        )
        for play in plays if play.row in rows for rate in arguments.rates
    }  # fmt: skip


def run(play: Play, arguments: Arguments) -> dict[str, Any]:
    """Scores and costs of a game; a finished one is read. Without scores where it diverged."""
    try:
        found = play_game(play, arguments.folder, arguments.device, points=1)
    except DivergenceError:
        return {"fd": None, "fd_last": None, "timesteps": None, "seconds": None}
    scores = {key: found["scores"][key] for key in ("fd", "fd_last")}
    return scores | {key: found["costs"][key] for key in ("timesteps", "seconds")}


def mean(runs: Sequence[dict[str, Any]], agent: str, rate: float, key: str) -> float:
    """Mean over seeds of a score; infinite where one diverged."""
    values = [one[key] for one in runs if (one["agent"], one["rate"]) == (agent, rate)]
    return float("inf") if None in values else statistics.mean(values)


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A line per agent, a column per rate: the averaged policy's distance, and the last iterate's."""
    runs = found["runs"]
    rates = list(dict.fromkeys(one["rate"] for one in runs))
    table = Table("agent", *(f"{rate:g}" for rate in rates), title=f"{found['data']}, validation: FD (last iterate)")
    for agent, best in found["best"].items():
        cells = [f"{mean(runs, agent, rate, 'fd'):.3g} ({mean(runs, agent, rate, 'fd_last'):.3g})" for rate in rates]
        table.add_row(
            agent, *(f"[bold]{cell}[/]" if rate == best else cell for cell, rate in zip(cells, rates, strict=True))
        )
    console.print(table)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    for name in arguments.agents:
        if name not in AGENTS:
            raise UnknownNameError("agents", name, AGENTS)
    for rate in arguments.rates:
        check_real("rates", rate, strict=True)
    if arguments.budget is not None:
        check_integer("budget", arguments.budget)
    wanted = games(arguments)
    build_task(next(iter(wanted.values())), arguments.device)  # pretrained once, not by every worker
    results = run_all(run, [(play, arguments) for play in wanted.values()], arguments.jobs, "games")
    runs = [
        {"agent": agent, "rate": rate, "seed": seed} | result
        for (agent, rate, seed), result in zip(wanted, results, strict=True)
    ]
    best = {
        agent: min(arguments.rates, key=lambda rate, agent=agent: mean(runs, agent, rate, "fd"))
        for agent in arguments.agents
    }
    return {"data": arguments.data, "backbone": arguments.backbone, "runs": runs, "best": best}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs)


if __name__ == "__main__":
    sys.exit(main())
