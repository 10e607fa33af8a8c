"""Images in few steps: DxMI, other agents in its game, and training-free samplers with the same number of calls.

    python benchmarks/images.py                                           8 x 8 digits, all rows, three seeds
    python benchmarks/images.py --ablations --seeds 0 1 2 3 4
    python benchmarks/images.py --data fashion-mnist-14 --rows "ddpm, T = 100" --seeds 0
    python benchmarks/images.py --data fashion-mnist-14 --rows "dxmi, T = 4" --seeds 0
    python benchmarks/images.py --data fashion-mnist-14 --backbone mlp --seeds 0

A command that is stopped goes on where it was when it is started again: pretraining, games (every 50 iterations) and
finished runs are kept. Rows:

    ddpm, ddim, dpm-solver, edm-heun      with 4, 10 and 100 calls of the denoiser, without training
    fastdpm                               the same, ddpm on the quadratic noise levels of arXiv 2106.00132
    ddpm of four fifths                   with 100 calls of the denoiser of four fifths of the pretraining
    dxmi                                  at T = 4 and 10, the recipe of dxmi_rl/irl/recipes.py with DxDP inside; games
                                          of "mlp" on images that are no digits have a schedule of their own
    dxmi/ppo, dxmi/grpo, dxmi/sft-pg      other agents inside, at T = 4
    dxmi, tau = 0                         a GAN in all but name, at T = 4

``--ablations`` plays the recipe at T = 4 with the contrastive loss, with fixed sigmas, and with the paper's Brownian
kernel, whose variances follow the sampler (adaptive velocity) or do not.

Scores: Frechet and kernel distance, precision, recall, density and coverage of 2,000 samples (digits: 5,000) against
the test images, on the features that the set names: a classifier of digits, or EfficientNet-Lite0 ("FD-Lite0").
Distances compare within one set only. Games are scored with the averaged policy; ``fd_last`` is the last iterate's,
``fd_guided`` has value guidance (``GUIDANCE``) and ``fd_train`` is against as many training images. The floor is the
score of training images.

Keys of ``--json FILE``:

    command            the command line
    machine, versions    what it ran on
    floors             scores of training images against test images
    rows               per row: row, calls (of the denoiser, per sample), seeds, statistics {score: {iqm, median, ...}},
                       costs (means)
    runs               every run: play, scores, curve (fd while training), costs
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dxmi_rl import evaluation, make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.guidance import Guiding
from dxmi_rl.benchmark.code import code_digest
from dxmi_rl.benchmark.machine import machine, versions
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.results import score_statistics
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.benchmark.tables import Table, compact, number, print_tables, statistics_text
from dxmi_rl.diffusion import PretrainingConfig, ReverseSampler, pretrained_denoiser
from dxmi_rl.irl import DxMI
from dxmi_rl.irl.recipe_files import recipe
from dxmi_rl.targets import ImageSet, make_target
from dxmi_rl.tasks import Task
from dxmi_rl.tasks.table import IMAGE_TAU
from dxmi_rl.utils.checks import check_integer, require, resolve_device
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import save_tensors, write_json
from dxmi_rl.utils.torch_tools import seeded

DATA = ("digits", "mnist5k", "mnist5k-14", "fashion-mnist", "fashion-mnist-14", "emoji32")
"""Named tasks of images."""
FASTDPM: dict[str, Any] = {"agent": "ddpm", "changes": {"task.schedule": "var-quadratic"}}
SOLVERS: dict[str, dict[str, Any]] = {"ddpm": {}, "fastdpm": FASTDPM, "ddim": {}, "dpm-solver": {}, "edm-heun": {}}
INSIDE = ("ppo", "grpo", "sft-pg")
CALLS = (4, 10, 100)
STEPS = (4, 10)
BACKBONES: dict[str, PretrainingConfig | None] = {
    "default": None, "mlp": PretrainingConfig(width=512, depth=4, iterations=30_000),
}  # fmt: skip
"""What is pretrained: the set's own network (a U-Net, but for digits), or residual layers that see all pixels."""
LOW_LEVELS: dict[str, Any] = {
    "task.schedule": "karras", "task.schedule_options": {"level_max": 7.0, "level_min": 0.1, "rho": 7.0},
    "task.sigma_last": 0.003, "data_noise": 0.003,
}  # fmt: skip
"""Of games with residual layers on images that are no digits: the last step starts at a lower level than the cosine
schedule's, from where the sampler can do away with faint noise, and adds less of its own."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "contrastive": {"loss": "contrastive"},
    "sigma fixed": {"agent.sigma_learning_rate": 0.0},
    "adaptive velocity": {"task.backward": "brownian"},
    "constant velocity": {"task.backward": "brownian", "task.backward_options": {"rate": 1.0}},
}
GUIDANCE = 0.1
"""Weight of the guided score."""
BUDGETS = {"digits": 600_000, "mnist5k": 75_000, "mnist5k-14": 75_000}
"""Of games on small sets, at every horizon; longer ones go astray (MNIST 5k: seen with "mlp" at 14 x 14)."""
EPISODES = 62_500
"""Of a game on other sets, whatever its horizon: as many iterations for both players."""
SHOWN = 64
EVALUATION_SEED = 900_000
SCORES = {
    "fd": "FD ↓", "fd_last": "FD ↓,\nlast iterate", "fd_train": "FD ↓,\ntraining images", "kd": "KD ↓",
    "fd_guided": "FD ↓,\nguided", "precision": "precision ↑", "recall": "recall ↑", "density": "density ↑",
    "coverage": "coverage ↑",
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    data: str = "digits"
    """Set of images: digits, mnist5k, fashion-mnist, these two with -14 (14 x 14 pixels), or emoji32."""
    backbone: str = "default"
    """Network of the denoiser: the set's own ("default"), or "mlp", which trains ten times as fast as a U-Net."""
    rows: tuple[str, ...] = ()
    """Which rows; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every row."""
    ablations: bool = False
    """The recipe at T = 4 and what is changed in it, instead of the rows."""
    budget: int | None = None
    """Transitions of a game; by default those of ``BUDGETS``, or 250,000 at T = 4 and 625,000 at T = 10."""
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


@dataclass(frozen=True)
class Play:
    """One run of a row."""

    data: str
    row: str
    agent: str
    """A solver, or the agent inside DxMI."""
    horizon: int
    seed: int
    budget: int
    """Transitions; 0 for solvers."""
    tau: float | None = None
    """Temperature in nats; None: IMAGE_TAU per dimension."""
    early: bool = False
    """With the denoiser as it was after four fifths of its pretraining."""
    backbone: str = "default"
    """One of BACKBONES."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What differs from the recipe: settings of DxMI, "agent." of its agent, "task." of the task."""

    def file(self, folder: Path) -> Path:
        """Where the result is, or will be; what is unfinished has other endings."""
        code = code_digest(("dxmi_rl.irl.dxmi", "dxmi_rl.evaluation", AGENTS[self.agent].__module__))
        parts = dataclasses.asdict(self) | {"row": "", "code": code, "backbone": repr(BACKBONES[self.backbone])}
        return folder / f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}.json"


def all_plays(
    data: str, seeds: Sequence[int], budget: int | None = None, *, ablations: bool = False, backbone: str = "default"
) -> list[Play]:  # fmt: skip
    """Every row, or every ablation, with every seed. Raises UnknownNameError for an unknown set or backbone."""
    for key, value, known in (("data", data, DATA), ("backbone", backbone, BACKBONES)):
        if value not in known:
            raise UnknownNameError(key, value, list(known))
    own = LOW_LEVELS if backbone == "mlp" and data != "digits" else {}

    def transitions(steps: int) -> int:
        return budget or BUDGETS.get(data, EPISODES * steps)

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
        for steps in STEPS:
            rows.append(game | {"row": f"dxmi, T = {steps}", "horizon": steps, "budget": transitions(steps)})
        rows += [game | {"row": f"dxmi/{agent}, T = 4", "agent": agent} for agent in INSIDE]
        rows.append(game | {"row": "dxmi, tau = 0, T = 4", "tau": 0.0})
    return [Play(data=data, backbone=backbone, seed=seed, **row) for row in rows for seed in seeds]


def build_task(play: Play, device: str) -> Task:
    """The set's task with the play's horizon, temperature and changes."""
    changes = changes_of(play, "task.")
    if play.tau is not None:
        changes["tau"] = play.tau
    elif play.data == "digits":  # whose task has another
        changes["tau"] = IMAGE_TAU / make_target(play.data).dim
    if (pretraining := BACKBONES[play.backbone]) is not None:
        changes["pretraining"] = pretraining
    with seeded(play.seed):
        task = make_task(play.data, device=device, horizon=play.horizon, **changes)
        if play.early:
            assert isinstance(task.mdp.base, ReverseSampler)
            task.mdp.base.denoiser = pretrained_denoiser(
                task.target, task.config.pretraining, device=task.device, early=True
            )
    return task


def build_game(play: Play, task: Task) -> DxMI:
    """DxMI as the play has it: the recipe, and its changes."""
    own = {key: value for key, value in play.changes.items() if "." not in key}
    convolutional = task.config.pretraining.network == "unet"
    config = recipe(task.name, play.agent, own.get("loss"), images=True, convolutional=convolutional)
    settings = config.agent_settings | changes_of(play, "agent.")
    return DxMI(task, seed=play.seed, config=dataclasses.replace(config, **own, agent_settings=settings))


def changes_of(play: Play, prefix: str) -> dict[str, Any]:
    """The changes whose names begin so, without that."""
    return {key.removeprefix(prefix): value for key, value in play.changes.items() if key.startswith(prefix)}


def run(play: Play, folder: Path, device: str = "cpu", points: int = 5) -> Path:
    """Play it, unless its file is there; returns the file with the JSON result."""
    file = play.file(folder)
    if not file.exists():
        with one_thread():
            task = build_task(play, device)
            agent: Agent
            curve: list[dict[str, float]] = []
            if play.agent in SOLVERS:
                agent = make_agent(play.agent, task=task, seed=play.seed)
            else:
                agent, curve = _trained(play, task, file, points)
            scores = score(agent, play.seed)
            drawn = agent.sample(SHOWN, seed=play.seed)
        save_tensors(file.with_suffix(".samples.safetensors"), {"x": drawn}, {"row": play.row})
        costs = dataclasses.asdict(agent.costs) | {"calls": agent.denoiser_calls}
        write_json(file, {"play": dataclasses.asdict(play), "scores": scores, "curve": curve, "costs": costs})
    return file


def _trained(play: Play, task: Task, file: Path, points: int) -> tuple[DxMI, list[dict[str, float]]]:
    """The game at its end, begun or continued, and its curve."""
    checkpoint, noted = file.with_suffix(".safetensors"), file.with_suffix(".curve.json")
    curve: list[dict[str, float]] = []
    target = image_set(task)
    if checkpoint.is_file():
        game = DxMI.load(checkpoint, task=task)
        curve = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else []
        curve = [point for point in curve if point["timesteps"] <= game.num_timesteps]
    else:
        game = build_game(play, task)

    def note(_: Agent) -> None:
        if game.num_timesteps < len(curve) * play.budget / points:
            return
        costs = game.costs
        x = game.sample(samples_of(target), seed=EVALUATION_SEED + len(curve))
        fd = evaluation.image_distance(target, x)
        curve.append({"timesteps": costs.timesteps, "seconds": costs.seconds, "fd": fd})
        write_json(noted, curve)

    if not curve:
        note(game)
    if (left := play.budget - game.num_timesteps) > 0:
        game.learn(left, reset_num_timesteps=False, checkpoint=checkpoint, callback=note)
    return game, curve


def samples_of(target: ImageSet) -> int:
    """How many samples are scored."""
    return evaluation.images.FD_SAMPLES if target.features == "digits" else 2000


def score(agent: Agent, seed: int, samples: int | None = None) -> dict[str, float]:
    """Scores of an agent at its end."""
    target = image_set(agent.task)
    n = samples or samples_of(target)
    scores = evaluation.image_scores(target, agent.sample(n, seed=EVALUATION_SEED + 100 + seed), train=True)
    if isinstance(agent, DxMI):
        generator = torch.Generator(agent.mdp.device).manual_seed(EVALUATION_SEED + 200 + seed)
        last = agent.mdp.sample(agent.density(agent.agent.policy), n, generator)
        scores["fd_last"] = evaluation.image_distance(target, last)
        if isinstance(agent.agent, Guiding):
            guided = agent.sample(n, seed=EVALUATION_SEED + 100 + seed, guidance=GUIDANCE)
            scores["fd_guided"] = evaluation.image_distance(target, guided)
    return scores


def image_set(task: Task) -> ImageSet:
    """The task's target, which is one."""
    assert isinstance(task.target, ImageSet)
    return task.target


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
    return f"{own}-ablations" if arguments.ablations else own


def main(argv: Sequence[str] | None = None) -> int:
    """Play, print, write; 2 for arguments that are not allowed or images that are not there."""
    tyro = require("tyro", "bench")
    argv = list(sys.argv[1:] if argv is None else argv)
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
            backbone=arguments.backbone,
        )  # fmt: skip
        known = list(dict.fromkeys(play.row for play in plays))
        for row in arguments.rows:
            if row not in known:
                raise UnknownNameError("row", row, known)
        plays = [play for play in plays if not arguments.rows or play.row in arguments.rows]
        target = make_target(arguments.data)
        assert isinstance(target, ImageSet)
    except (ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from joblib import Parallel, delayed

    arguments.folder.mkdir(parents=True, exist_ok=True)
    build_task(plays[0], arguments.device)  # pretrained once, not by every worker
    work = Parallel(n_jobs=arguments.jobs, return_as="generator")(
        delayed(run)(play, arguments.folder, arguments.device, arguments.points) for play in plays
    )
    results = []
    with progress("runs", len(plays)) as advance:
        for play, file in zip(plays, work, strict=True):  # a run may have been made for a row of another name
            result = json.loads(Path(file).read_text(encoding="utf-8"))
            results.append(result | {"play": result["play"] | {"row": play.row}})
            advance(len(results))
    rows = summarise(results)
    floors = evaluation.image_scores(target, target.train_data(samples_of(target)))
    print_tables([table(rows, floors, name_of(arguments))])
    if arguments.pictures is not None:
        from _images_pictures import BEFORE, draw_all

        first = [play for play in plays if play.seed == arguments.seeds[0] and (play.budget or play.row in BEFORE)]
        shown = {play.row: play.file(arguments.folder) for play in first}
        calls = [] if arguments.ablations else rows  # all of which have four
        draw_all(shown, calls, target, arguments.pictures, name_of(arguments))
    if arguments.json is not None:
        command = shlex.join(["python", "benchmarks/images.py", *argv])
        content = {"command": command, "machine": machine(arguments.device), "versions": versions()}
        write_json(arguments.json, content | {"floors": floors, "rows": rows, "runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
