"""Images in few steps: DxMI, other agents in its game, and training-free samplers with the same number of calls.

    python benchmarks/images/images.py                                    8 x 8 digits, all rows, three seeds
    python benchmarks/images/images.py --ablations --seeds 0 1 2 3 4
    python benchmarks/images/images.py --data fashion-mnist-14 --rows "ddpm, T = 100" --seeds 0
    python benchmarks/images/images.py --data fashion-mnist-14 --rows "dxmi, T = 4" --seeds 0
    python benchmarks/images/images.py --data fashion-mnist-14 --backbone mlp --seeds 0

A command that is stopped goes on where it was when it is started again: pretraining, games (every 50 iterations) and
finished runs are kept. Rows:

    ddpm, ddim, dpm-solver, edm-heun      with 4, 10 and 100 calls of the denoiser, without training
    fastdpm                               the same, ddpm on the quadratic noise levels of arXiv 2106.00132
    ddpm, the game's levels               and ddim, dpm-solver, edm-heun: with 4 and 10 calls on the noise levels of
                                          games, where these have levels of their own
    ddpm of four fifths                   with 100 calls of the denoiser of four fifths of the pretraining
    dxmi                                  at T = 4 and 10, the task's recipe (dxmi_rl/irl/recipes) with DxDP inside;
                                          games on images that are no digits have a schedule of their own
    dxmi/path-wise, dxmi/ppo, and so on   other agents inside, at T = 4
    dxmi, tau = 0                         a GAN in all but name, at T = 4
    dxmi, look-ahead alone                V is the look-ahead, and the policy's gradient is not corrected along the
                                          path, at T = 4 and 10
    dxmi, learned values                  V is a network that learns all of it

``--ablations`` plays the recipe at T = 4 with the contrastive loss, with fixed sigmas, and with the paper's Brownian
kernel, whose variances follow the sampler (adaptive velocity) or do not.

Scores: Frechet and kernel distance, precision, recall, density and coverage of 2,000 samples, or as many as there are
training images (digits: 1,437), against the test images, on the features that the set names: a classifier of digits, or
EfficientNet-Lite0 ("FD-Lite0").
Distances compare within one set only. Games are scored with the averaged policy; ``fd_last`` is the last iterate's,
``fd_guided`` has value guidance (``GUIDANCE``) and ``fd_train`` is against as many training images. The floor is the
score of training images.

Keys of ``--json FILE``:

    command            the command line
    machine, versions    what it ran on
    floors             scores of training images against test images
    rows               per row: row, calls (of the denoiser, per sample), seeds, statistics {score: {iqm, median, ...}},
                       costs (means)
    runs               every run: play, scores, curve (fd_train while training), costs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.images.play import BACKBONES, SOLVERS, Play, build_task, images_of, run, samples_of
from benchmarks.run_cache import run_all
from benchmarks.scripts import command_line, header
from dxmi_rl import evaluation
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.results import score_statistics
from dxmi_rl.benchmark.tables import Table, compact, number, print_tables, statistics_text
from dxmi_rl.utils.checks import check_integer, resolve_device
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import write_json

DATA = ("digits", "mnist5k", "mnist5k-14", "fashion-mnist", "fashion-mnist-14", "emoji32")
"""Named tasks of images."""
INSIDE: dict[str, dict[str, Any]] = {
    "path-wise": {}, **{f"path-wise, K = {steps}": {"agent.path.last_steps": steps} for steps in (1, 2, 3)},
    "adjoint-matching": {}, "ppo": {}, "grpo": {}, "sft-pg": {},
}  # fmt: skip
"""Other agents inside, and what each changes: path-wise gradients flow through the last K steps, or through all."""
ON_LEVELS = ("ddpm", "ddim", "dpm-solver", "edm-heun")
"""Solvers that also run on the noise levels of games, where these have others."""
CALLS = (4, 10, 100)
STEPS = (4, 10)
LOW_LEVELS: dict[str, Any] = {
    "task.schedule": "karras", "task.schedule_options": {"level_max": 7.0, "level_min": 0.1, "rho": 7.0},
    "task.sigma_last": 0.003, "data_noise": 0.003,
}  # fmt: skip
"""Of games on images that are no digits: the last step starts at a lower level than the cosine schedule's, from where
the sampler can do away with faint noise, and adds less of its own."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "contrastive": {"loss": "contrastive"},
    "sigma fixed": {"agent.policy.sigma_fine_tuning_rate": 0.0},
    "adaptive velocity": {"task.backward": "brownian"},
    "constant velocity": {"task.backward": "brownian", "task.backward_options": {"rate": 1.0}},
}
EPISODES = {"digits": 75_000, "mnist5k": 56_250, "mnist5k-14": 56_250}
"""Of a game, whatever its horizon: as many iterations for both players. Other sets have OTHER_EPISODES."""
OTHER_EPISODES = 62_500
U_NET_EPISODES = 20_000
"""Of games of the backbone "bfloat16", with 64 trajectories per iteration: two hours of a core at T = 4."""
VALUES: dict[str, dict[str, Any]] = {
    "look-ahead alone": {"agent.lookahead_value": True, "agent.value_steps": 0, "agent.path_correction": False},
    "learned values": {"agent.lookahead_value": False, "agent.value_steps": 4, "agent.path_correction": False},
}
"""What V is in a game with DxDP, whatever the recipe has."""
SCORES = {
    "fd": "FD ↓", "fd_last": "FD ↓,\nlast iterate", "fd_train": "FD ↓,\ntraining images", "kd": "KD ↓",
    "fd_guided": "FD ↓,\nguided", "precision": "precision ↑", "recall": "recall ↑", "density": "density ↑",
    "coverage": "coverage ↑", "auc": "AUC ↑,\nnoise",
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    data: str = "digits"
    """Set of images: digits, mnist5k, fashion-mnist, these two with -14 (14 x 14 pixels), or emoji32."""
    backbone: str = "default"
    """Network of the denoiser: the set's own ("default"), "mlp", which trains ten times as fast as a U-Net, or
    "bfloat16": a U-Net on patches of 2 x 2 pixels, in half precision, for processors that multiply such matrices."""
    rows: tuple[str, ...] = ()
    """Which rows; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every row."""
    ablations: bool = False
    """The recipe at T = 4 and what is changed in it, instead of the rows."""
    validation: bool = False
    """Score on training images that are held back instead of test images: to choose settings."""
    budget: int | None = None
    """Transitions of a game; by default T times the set's ``EPISODES``."""
    points: int = 5
    """Distances on the way through a game, beside that of the start; each takes half a minute of a core."""
    jobs: int = 2
    """Runs at a time, one thread each."""
    device: str = "cpu"
    """Torch device."""
    folder: Path = Path("runs/images")
    """Where finished and unfinished runs are kept."""
    json: Path | None = None
    """File for the results."""
    pictures: Path | None = None
    """Folder for pictures."""


def all_plays(
    data: str, seeds: Sequence[int], budget: int | None = None, *, ablations: bool = False, backbone: str = "default",
    validation: bool = False,
) -> list[Play]:  # fmt: skip
    """Every row, or every ablation, with every seed. Raises UnknownNameError for an unknown set or backbone."""
    for key, value, known in (("data", data, DATA), ("backbone", backbone, BACKBONES)):
        if value not in known:
            raise UnknownNameError(key, value, list(known))
    own: dict[str, Any] = {} if data == "digits" else LOW_LEVELS
    if backbone == "bfloat16":
        own = own | {"agent.n_trajectories": 64}

    def transitions(steps: int) -> int:
        return budget or (U_NET_EPISODES if backbone == "bfloat16" else EPISODES.get(data, OTHER_EPISODES)) * steps

    game: dict[str, Any] = {"agent": "dxdp", "horizon": 4, "budget": transitions(4), "changes": own}
    if ablations:
        rows = [game | {"row": name, "changes": own | changes} for name, changes in ABLATIONS.items()]
    else:
        rows = [
            {"row": f"{solver}, T = {calls}", "agent": solver, "horizon": calls, "budget": 0} | own_way
            for solver, own_way in SOLVERS.items()
            for calls in CALLS
        ]
        rows.append(rows[2] | {"row": "ddpm of four fifths, T = 100", "early": True})
        if levels := {key: value for key, value in own.items() if key.startswith("task.")}:
            rows += [{"row": f"{solver}, the game's levels, T = {calls}", "agent": solver, "horizon": calls,
                      "budget": 0, "changes": levels} for solver in ON_LEVELS for calls in STEPS]  # fmt: skip
        for steps in STEPS:
            rows.append(game | {"row": f"dxmi, T = {steps}", "horizon": steps, "budget": transitions(steps)})
        rows += [
            game | {"row": f"dxmi/{name}, T = 4", "agent": name.partition(",")[0], "changes": own | changes}
            for name, changes in INSIDE.items()
        ]
        rows.append(game | {"row": "dxmi, tau = 0, T = 4", "tau": 0.0})
        rows += [
            game | {"row": f"dxmi, {name}, T = {steps}", "horizon": steps, "budget": transitions(steps),
                    "changes": own | changes}
            for name, changes in VALUES.items() for steps in STEPS
        ]  # fmt: skip
    return [
        Play(data=data, backbone=backbone, seed=seed, validation=validation, **row) for row in rows for seed in seeds
    ]


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting: statistics over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["play"]["row"], []).append(result)
    return [
        {
            "row": row,
            "calls": own[0]["costs"]["calls"],
            "seeds": [result["play"]["seed"] for result in own],
            "statistics": {
                key: score_statistics([result["scores"][key] for result in own]) for key in own[0]["scores"]
            },
            "costs": {key: sum(result["costs"][key] for result in own) / len(own) for key in ("timesteps", "seconds")},
        }
        for row, own in groups.items()
    ]


def table(rows: Sequence[dict[str, Any]], floors: dict[str, float], data: str) -> Table:
    """All rows, and what training images score."""
    keys = [key for key in SCORES if any(key in row["statistics"] for row in rows)]
    header = ["row", *(SCORES[key] for key in keys), "calls", "transitions", "seconds"]
    body = [["training images", *(number(floors[key]) if key in floors else "" for key in keys), "", "", ""]]
    for row in rows:
        cells = [statistics_text(row["statistics"].get(key)) for key in keys]
        trained = bool(row["costs"]["timesteps"])
        costs = [compact(row["costs"]["timesteps"]), number(row["costs"]["seconds"])] if trained else ["", ""]
        body.append([row["row"], *cells, str(row["calls"]), *costs])
    return Table(data, header, body, len(keys), "Interquartile means over seeds with 95 % intervals.")


def name_of(arguments: Arguments) -> str:
    """The set's name, the backbone where it is not the set's own, and whether these are ablations."""
    own = arguments.data if arguments.backbone == "default" else f"{arguments.data}-{arguments.backbone}"
    own = f"{own}-validation" if arguments.validation else own
    return f"{own}-ablations" if arguments.ablations else own


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print, write; 2 for arguments that are not allowed or images that are not there."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("jobs", arguments.jobs)
        check_integer("points", arguments.points)
        if arguments.budget is not None:
            check_integer("budget", arguments.budget)
        check_seeds(arguments.seeds)
        resolve_device(arguments.device)
        plays = all_plays(
            arguments.data, arguments.seeds, arguments.budget, ablations=arguments.ablations,
            backbone=arguments.backbone, validation=arguments.validation,
        )  # fmt: skip
        known = list(dict.fromkeys(play.row for play in plays))
        for row in arguments.rows:
            if row not in known:
                raise UnknownNameError("row", row, known)
        plays = [play for play in plays if not arguments.rows or play.row in arguments.rows]
        target = images_of(plays[0])
    except (ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    build_task(plays[0], arguments.device)  # pretrained once, not by every worker
    own = [(play, arguments.folder, arguments.device, arguments.points) for play in plays]
    results = run_all(run, own, arguments.jobs, "runs")
    rows = summarise(results)
    floors = evaluation.image_scores(target, target.train_data(samples_of(target)))
    print_tables([table(rows, floors, name_of(arguments))])
    if arguments.pictures is not None:
        from benchmarks.images.pictures import BEFORE, draw_all

        first = [play for play in plays if play.seed == arguments.seeds[0] and (play.budget or play.row in BEFORE)]
        shown = {play.row: play.file(arguments.folder) for play in first}
        calls = [] if arguments.ablations else rows  # all of which have four
        draw_all(shown, calls, target, arguments.pictures, name_of(arguments))
    if arguments.json is not None:
        content = header(command_line(__file__, argv), arguments.device)
        write_json(arguments.json, content | {"floors": floors, "rows": rows, "runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
