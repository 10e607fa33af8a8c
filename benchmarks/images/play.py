"""One run of a row of benchmarks/images/images.py: its task, its game, resumed where it stopped, and its scores."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.run_cache import code_of, kept_result, run_file
from dxmi_rl import evaluation, make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.execution import set_execution
from dxmi_rl.agents.guidance import GuidedAgent
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion import PretrainingConfig, ReverseSampler, pretrained_denoiser
from dxmi_rl.evaluation.images import scored_images
from dxmi_rl.evaluation.sample_scores import auc
from dxmi_rl.irl import DxMI
from dxmi_rl.targets import ImageSet, make_target
from dxmi_rl.tasks import Task
from dxmi_rl.tasks.table import IMAGE_TAU
from dxmi_rl.utils.storage import save_tensors, write_json
from dxmi_rl.utils.torch_tools import seeded

FASTDPM: dict[str, Any] = {"agent": "ddpm", "changes": {"task.schedule": "var-quadratic"}}
SOLVERS: dict[str, dict[str, Any]] = {"ddpm": {}, "fastdpm": FASTDPM, "ddim": {}, "dpm-solver": {}, "edm-heun": {}}
BACKBONES: dict[str, PretrainingConfig | None] = {
    "default": None, "mlp": PretrainingConfig(width=512, depth=4, iterations=30_000),
    "bfloat16": PretrainingConfig(
        network="unet", iterations=8000, batch_size=64, channels=(64, 128), attention=False, patch=2,
        precision="bfloat16",
    ),
}  # fmt: skip
"""What is pretrained: the set's own network (a U-Net, but for digits), residual layers that see all pixels, or a U-Net
on patches of 2 x 2 pixels, trained and played in half precision."""
GUIDANCE = 0.1
"""Weight of the guided score."""
SHOWN = 64
EVALUATION_SEED = 900_000
SAMPLES = 2000
"""At most this many samples are scored."""
CODE = code_of(sys.modules[__name__])
"""Digest of this file."""


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
    validation: bool = False
    """On training images alone, some of them held back for the scores (``ImageSet.validation_split``)."""
    backbone: str = "default"
    """One of BACKBONES."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What differs from the recipe, by name: settings of DxMI, "agent." of its agent, "task." of the task."""

    def file(self, folder: Path) -> Path:
        """Where the result is, or will be; what is unfinished has other endings."""
        settings = dataclasses.asdict(self) | {"row": ""}
        return run_file(folder, settings, (DxMI, evaluation.image_scores, AGENTS[self.agent]), CODE)


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
        data = images_of(play) if play.validation else play.data
        task = make_task(data, device=device, horizon=play.horizon, **changes)
        if play.early:
            assert isinstance(task.mdp.base, ReverseSampler)
            task.mdp.base.denoiser = pretrained_denoiser(
                task.target, task.config.pretraining, device=task.device, early=True
            )
    return task


def images_of(play: Play) -> ImageSet:
    """The play's set of images."""
    found = make_target(play.data)
    assert isinstance(found, ImageSet)
    return found.validation_split() if play.validation else found


def build_game(play: Play, task: Task) -> DxMI:
    """DxMI as the play has it: the recipe, and its changes."""
    own = {key: value for key, value in play.changes.items() if not key.startswith(("agent.", "task."))}
    return DxMI(task, seed=play.seed, agent=play.agent, agent_settings=changes_of(play, "agent."), **own)


def changes_of(play: Play, prefix: str) -> dict[str, Any]:
    """The changes whose names begin so, without that."""
    return {key.removeprefix(prefix): value for key, value in play.changes.items() if key.startswith(prefix)}


def run(play: Play, folder: Path, device: str = "cpu", points: int = 5) -> dict[str, Any]:
    """The result of a play, from its file or played now: play, scores, curve, costs."""
    file = play.file(folder)
    own = dataclasses.asdict(play)  # the file may be of a play for a row of another name
    return kept_result(file, functools.partial(_play, play, file, device, points)) | {"play": own}


def _play(play: Play, file: Path, device: str, points: int) -> dict[str, Any]:
    with one_thread():
        task = build_task(play, device)
        agent: Agent
        curve: list[dict[str, Any]] = []
        if play.agent in SOLVERS:
            agent = make_agent(play.agent, task=task, seed=play.seed)
            set_execution(agent, precision=precision_of(play))
        else:
            agent, curve = _trained(play, task, file, points)
        scores = score(agent, play.seed)
        drawn = agent.sample(SHOWN, seed=play.seed)
    save_tensors(file.with_suffix(".samples.safetensors"), {"x": drawn}, {"row": play.row})
    costs = dataclasses.asdict(agent.costs) | {"calls": agent.denoiser_calls}
    return {"play": dataclasses.asdict(play), "scores": scores, "curve": curve, "costs": costs}


def begin_or_continue(checkpoint: Path, task: Task, begin: Callable[[], DxMI]) -> tuple[DxMI, list[dict[str, Any]]]:
    """The game of the checkpoint and its curve up to there, or a new one; the curve lies in ``curve_file``."""
    if not checkpoint.is_file():
        return begin(), []
    game, noted = DxMI.load(checkpoint, task=task), curve_file(checkpoint)
    curve = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else []
    return game, [point for point in curve if point["timesteps"] <= game.num_timesteps]


def curve_file(checkpoint: Path) -> Path:
    """Where the curve of an unfinished game lies: distances while training."""
    return checkpoint.with_suffix(".curve.json")


def _trained(play: Play, task: Task, file: Path, points: int) -> tuple[DxMI, list[dict[str, Any]]]:
    """The game at its end, begun or continued, and its curve."""
    checkpoint, target = file.with_suffix(".safetensors"), image_set(task)
    game, curve = begin_or_continue(checkpoint, task, functools.partial(build_game, play, task))
    set_execution(game, precision=precision_of(play))

    def note(_: Agent) -> None:
        if game.num_timesteps < len(curve) * play.budget / points:
            return
        costs = game.costs
        x = game.sample(samples_of(target), seed=EVALUATION_SEED + len(curve))
        fd = evaluation.image_distance(target, x, train=True)  # test images are seen once, at the end
        curve.append({"timesteps": costs.timesteps, "seconds": costs.seconds, "fd_train": fd})
        write_json(curve_file(checkpoint), curve)

    if not curve:
        note(game)
    if (left := play.budget - game.num_timesteps) > 0:
        game.learn(left, reset_num_timesteps=False, checkpoint=checkpoint, callback=note)
    return game, curve


def precision_of(play: Play) -> str:
    """How its networks compute, after its pretraining too."""
    pretraining = BACKBONES[play.backbone]
    return "float32" if pretraining is None else pretraining.precision


def samples_of(target: ImageSet) -> int:
    """Number of samples that are scored: 2,000, or as many as there are training images."""
    return scored_images(target, SAMPLES)


def score(agent: Agent, seed: int, samples: int | None = None) -> dict[str, float]:
    """Scores of an agent at its end."""
    target = image_set(agent.task)
    n = samples or samples_of(target)
    scores = evaluation.image_scores(target, agent.sample(n, seed=EVALUATION_SEED + 100 + seed), train=True)
    if isinstance(agent, DxMI):
        scores["auc"] = auc(agent.score, target, n, seed)
        generator = torch.Generator(agent.mdp.device).manual_seed(EVALUATION_SEED + 200 + seed)
        last = agent.mdp.sample(agent.density(agent.agent.policy), n, generator)
        scores["fd_last"] = evaluation.image_distance(target, last)
        if isinstance(agent.agent, GuidedAgent):
            guided = agent.sample(n, seed=EVALUATION_SEED + 100 + seed, guidance=GUIDANCE)
            scores["fd_guided"] = evaluation.image_distance(target, guided)
    return scores


def image_set(task: Task) -> ImageSet:
    """The task's target, which is one."""
    assert isinstance(task.target, ImageSet)
    return task.target
