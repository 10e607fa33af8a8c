"""One game of DxMI in the plane for benchmarks/game/dxmi_2d.py: how it starts, its curve, what its energy is worth."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.game.released import ReleasedGame, released_trainer
from benchmarks.run_cache import code_of, kept_result, run_file
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.evaluation import Grid, energy_quality, metrics
from dxmi_rl.irl import DxMI, DxMIConfig, equilibrium, recipe, train_energy
from dxmi_rl.targets import Target, make_target
from dxmi_rl.tasks import Task, make_task
from dxmi_rl.utils.checks import require
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.storage import save_tensors
from dxmi_rl.utils.torch_tools import seeded

STARTS: dict[str, dict[str, Any]] = {
    "good": {"schedule": "quadratic", "schedule_options": {}},
    "weak": {"schedule": "sigmoid", "schedule_options": {}},
    "task": {},
    "scratch": {"base": None, "schedule_options": {}},
}
"""What a start changes in the data task: the paper's good and weak noise schedules, the task's own, no pretraining."""
SAMPLES, POINTS, LATE = 10_000, 8, 0.75
"""Samples per score, points of a curve, and the part of the budget after which points are late."""
QUICK_PROJECTIONS = 200
"""Of sliced W2 early in a run."""
QUALITY_SAMPLES = 4000
"""Data and chains that score the energy at the end."""
CELLS, SHOWN = 81, 1000
"""Cells per side and samples that a history keeps of every point."""
HISTORY = ("timesteps", "sliced_w2_last", "auc_last")
"""What a history keeps of the curve."""
CHAIN_STEPS = 500
"""Steps of the chains that try a learned energy."""
EVALUATION_SEED = 700_000
HELD = 3
"""Number of points in a row below a level that count as having reached it."""
CODE = code_of(sys.modules[__name__])
"""Digest of this file."""


@dataclass(frozen=True)
class Play:
    """One run. ``method`` is "dxmi", "released" (the authors' trainer) or one of ``dxmi_rl.irl.ENERGY_TRAINERS`` (an
    energy without a sampler).
    """

    experiment: str
    label: str
    target: str
    start: str
    tau1: float
    seed: int
    budget: int
    """Transitions, or for an energy without a sampler iterations."""
    method: str = "dxmi"
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of DxMI or of ``train_energy`` that differ from the recipe, by name; "repository" of the released."""
    agent_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the inner agent that differ from the recipe, by name; the rates of the released trainer."""
    target_options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)
    """Changes of the task beside those of the start."""
    guidance: tuple[float, ...] = ()
    """Weights of value guidance to score at the end."""
    points: int = POINTS
    """Points of the curve."""
    keep: bool = False
    """Keep the trained game and its history, beside the result, for pictures."""

    def file(self, folder: Path) -> Path:
        """Where the result is, or will be: the same for plays that only their experiment and label tell apart."""
        settings = dataclasses.asdict(self) | {"experiment": None, "label": None}
        settings["settings"].pop("repository", None)  # its digest is among them: wherever the clone lies
        agent = AGENTS[self.settings.get("agent", "dxdp")]
        return run_file(folder, settings, (DxMI, energy_quality, train_energy, agent), CODE)


def make_task_of(play: Play, device: str = "cpu") -> Task:
    """The task of a play: its start's, its temperature, its own changes."""
    changes = STARTS[play.start] | {"tau": play.tau1 / 2} | play.task_options
    if play.target_options:
        changes["target_options"] = play.target_options
    if play.target == "8gaussians":
        name = "8gaussians-data"
    else:
        name = play.target
        if make_target(name).has_energy:  # as data: no exact denoiser, no energy
            changes |= {"denoiser": "learned", "reward": None, "backward": "learned"}
    with seeded(play.seed):
        return make_task(name, device=device, **changes)


def config_of(play: Play) -> DxMIConfig:
    """The recipe of 8 Gaussians, for all targets, with the play's changes."""
    agent = play.settings.get("agent", "dxdp")
    found = recipe("plane" if agent in ("dxdp", "dxdp-paper") else "plane-other-agents", agent)
    if play.settings.get("loss", found.loss) != found.loss:  # whose gamma is not the recipe's
        found = dataclasses.replace(found, gamma=None)
    return changed(found, play.settings | {"agent_settings": play.agent_settings}, "setting of a play")


def make_game(play: Play, device: str = "cpu") -> DxMI:
    """A game that has not begun."""
    return DxMI(make_task_of(play, device), seed=play.seed, config=config_of(play))


class Scorer:
    """Sliced W2 and AUC on draws of its own for every point."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target, self.seed = target, EVALUATION_SEED + 1000 * seed
        self.count = 0

    def fresh(self) -> torch.Generator:
        """A generator that no other score has used."""
        self.count += 1
        return torch.Generator(self.target.device).manual_seed(self.seed + self.count)

    def distance(self, samples: Tensor, projections: int = 1000) -> float:
        """Sliced W2 to as many data."""
        data = self.target.data(len(samples), self.fresh())
        return float(metrics.sliced_w2(samples, data, projections=projections, seed=self.count))

    def auc(self, energy: Any) -> float:
        """Data against uniform noise over the plotting range."""
        low, high = self.target.plot_range
        generator = self.fresh()
        data = self.target.data(SAMPLES, generator)
        noise = low + (high - low) * torch.rand(data.shape, generator=generator, device=data.device)
        with torch.no_grad():
            return metrics.auc(-energy(data), -energy(noise))


def run(play: Play, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """The result of a play, from its file or played now: play, scores, curve, reached, costs."""
    file = play.file(folder)
    own = dataclasses.asdict(play)  # the file may be of a play with another label
    return kept_result(file, functools.partial(_play, play, device, file)) | {"play": own}


def _play(play: Play, device: str, file: Path) -> dict[str, Any]:
    with one_thread():
        if play.method == "dxmi":
            result = _game(play, device, file)
        else:
            result = (_released if play.method == "released" else _energy_alone)(play, device)
    return {"play": dataclasses.asdict(play), **result}


def kept_files(file: Path) -> tuple[Path, Path]:
    """Where the trained game and its history are, for a result's file."""
    return file.with_suffix(".safetensors"), file.with_name(f"{file.stem}-history.safetensors")


def _game(play: Play, device: str, file: Path) -> dict[str, Any]:
    game = make_game(play, device)
    scorer = Scorer(game.task.target, play.seed)
    cells = Grid.over(game.task.target.plot_range, CELLS, game.task.target.device).x
    curve: list[dict[str, float]] = []
    history: list[tuple[Tensor, Tensor]] = []

    def note(_: Agent) -> None:
        if game.costs.timesteps < len(curve) * play.budget / play.points:
            return
        averaged = game.mdp.sample(game.policy, SAMPLES, scorer.fresh())
        point = {key: float(getattr(game.costs, key)) for key in ("timesteps", "seconds", "energy_evals")}
        late = play.keep or point["timesteps"] > LATE * play.budget
        point["sliced_w2"] = scorer.distance(averaged, 1000 if late else QUICK_PROJECTIONS)
        if late:
            last = game.mdp.sample(game.agent.policy, SAMPLES, scorer.fresh())
            point["sliced_w2_last"] = scorer.distance(last)
            point["auc"], point["auc_last"] = scorer.auc(game.average_energy), scorer.auc(game.energy)
        curve.append(point)
        if play.keep:
            with torch.no_grad():
                history.append((last[:SHOWN].cpu(), game.energy(cells).cpu()))

    note(game)
    game.learn(play.budget, callback=note)
    if play.keep:
        checkpoint, film = kept_files(file)
        samples, energy = map(torch.stack, zip(*history, strict=True))
        noted = {key: torch.tensor([float(point[key]) for point in curve]) for key in HISTORY}
        save_tensors(film, {"samples": samples, "energy": energy, **noted}, {"play": dataclasses.asdict(play)})
        game.save(checkpoint)
    scores = late_means(curve, play.budget) | quality(game.average_energy, game.task.target, play.seed, game.mdp.tau)
    if play.guidance:
        scores["sliced_w2_end"] = scorer.distance(game.sample(SAMPLES, seed=play.seed))
    scores |= {
        f"guided_{weight:g}": scorer.distance(game.sample(SAMPLES, seed=play.seed, guidance=weight))
        for weight in play.guidance
    }
    return {
        "scores": scores,
        "curve": curve,
        "reached": reached(curve, "sliced_w2", 0.1),
        "costs": dataclasses.asdict(game.costs),
    }


def _released(play: Play, device: str) -> dict[str, Any]:
    task = make_task_of(play, device)
    trainer = released_trainer(Path(play.settings["repository"]))
    game = ReleasedGame(trainer, task, play.seed, play.tau1, play.agent_settings)
    scorer = Scorer(task.target, play.seed)
    curve: list[dict[str, float]] = []
    with seeded(play.seed):  # their batches are drawn from torch's own generator
        while True:
            if game.timesteps >= len(curve) * play.budget / play.points:
                distance = scorer.distance(task.mdp.sample(game.sampler.net, SAMPLES, scorer.fresh()))
                auc = scorer.auc(game.energy)  # there are no averages
                scores = {"sliced_w2": distance, "sliced_w2_last": distance, "auc": auc, "auc_last": auc}
                curve.append(game.costs() | scores)
            if game.timesteps >= play.budget:
                break
            game.iterate()
    scores = late_means(curve, play.budget) | quality(game.energy, task.target, play.seed, task.mdp.tau)
    return {"scores": scores, "curve": curve, "reached": reached(curve, "sliced_w2", 0.1), "costs": game.costs()}


def late_means(curve: list[dict[str, float]], budget: int) -> dict[str, float]:
    """Means of the scores of a curve's late points."""
    late = [point for point in curve if point["timesteps"] > LATE * budget]
    return {f"{key}_late": sum(p[key] for p in late) / len(late) for key in late[0] if key[:3] in ("sli", "auc")}


def _energy_alone(play: Play, device: str) -> dict[str, Any]:
    target = make_target(play.target, **play.target_options).to(device)
    settings = {"energy": recipe("plane").energy} | play.settings  # the same network
    trained = train_energy(target, play.method, seed=play.seed, iterations=play.budget, **settings)
    scorer = Scorer(target, play.seed)
    scores = {"auc_late": scorer.auc(trained.energy), **quality(trained.energy, target, play.seed)}
    costs = {key: getattr(trained, key) for key in ("energy_evals", "energy_grad_evals", "seconds")}
    return {"scores": scores, "curve": [], "reached": None, "costs": costs}


def quality(energy: Any, target: Target, seed: int, tau: float = 1.0) -> dict[str, float]:
    """energy_quality; at tau = 0, where the energy is a critic only, on the scale that fits best: slope one."""
    if tau == 0:
        tau = energy_quality(energy, target, samples=QUALITY_SAMPLES, steps=1, seed=seed).get("energy_slope", 1.0)
        tau = max(tau, 1e-6)
    return energy_quality(energy, target, tau=tau, samples=QUALITY_SAMPLES, steps=CHAIN_STEPS, seed=seed)


def predicted(play: Play) -> dict[str, float]:
    """``predicted_slope`` of E / tau, and ``predicted_bias``, the sliced W2 of sampler and data, at the game's end with
    players that can do anything. Empty where there is no closed form: no game, tau = 0, no exact energy, gamma > 0 with
    NCE.
    """
    target, tau = make_target(play.target, **play.target_options), play.tau1 / 2
    if play.method != "dxmi" or not target.has_energy or tau == 0:
        return {}
    config = config_of(play)
    if config.anchor:
        return {"predicted_slope": 1.0, "predicted_bias": 0.0}
    low, high = target.plot_range
    grid = Grid.over((1.25 * low, 1.25 * high), points=100)
    log_data = grid.log_density(target.energy)
    try:
        end = equilibrium(log_data, grid.cell, tau=tau, loss=config.loss, gamma=config.gamma)
    except ValueError:
        return {}
    weights = log_data.exp() * grid.cell
    x = -log_data - (weights * -log_data).sum()
    policy = end.log_policy.exp() * grid.cell
    return {
        "predicted_slope": float((weights * x * end.energy / tau).sum() / (weights * x * x).sum()),
        "predicted_bias": weighted_sliced_w2(grid.x, policy / policy.sum(), weights / weights.sum()),
    }


def weighted_sliced_w2(x: Tensor, first: Tensor, second: Tensor, projections: int = 100) -> float:
    """Sliced W2 of two weightings ``[n]`` of the same points of the plane, without draws."""
    ot = require("ot", "dev")

    angles = math.pi * (torch.arange(projections) + 0.5) / projections
    directions = torch.stack([angles.cos(), angles.sin()])
    distance = ot.sliced_wasserstein_distance(
        x.double().numpy(), x.double().numpy(), first.numpy(), second.numpy(), projections=directions.double().numpy()
    )
    return float(distance)


def reached(curve: list[dict[str, float]], key: str, level: float) -> dict[str, float] | None:
    """Costs of the first point from which ``HELD`` in a row are below ``level``, or None."""
    for first in range(len(curve) - HELD + 1):
        if all(point[key] < level for point in curve[first : first + HELD]):
            return {cost: curve[first][cost] for cost in ("timesteps", "seconds", "energy_evals")}
    return None
