"""One run: train an agent, follow its learning curve, score its last iterate and its best checkpoint."""

from __future__ import annotations

import base64
import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.checkpoint import set_training_state, training_state
from dxmi_rl.evaluation import evaluate, quick_scores
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.storage import JSON
from dxmi_rl.utils.torch_tools import seeded

if TYPE_CHECKING:
    from dxmi_rl.benchmark.protocol import Run

# This module is part of every run's key (dxmi_rl.benchmark.code): it holds what numbers depend on, and nothing else.

EVALUATION_SEED = 10_000
"""Run s is scored on seeds from 10,000 + 100 s on: the same for every agent, and none that training uses."""
CURVE_SEED = 500_000
"""Learning curves, which choose the best checkpoint, use other seeds: 500,000 + 100 s on."""
PATHS, IMAGE_PATHS = 300, 36
"""Whole denoising paths kept for the report."""
KEPT_IMAGES = 64
"""Images kept for the pictures."""
SELECTED_BY = {"kl_bound": "lower", "elbo_tau": "higher", "elbo": "higher", "fd": "lower", "sliced_w2": "lower"}
"""Quick scores that choose the best checkpoint, the first that applies, and which direction is better."""
LIKELIHOODS = ("kl_bound", "kl_bound_fit", "elbo", "elbo_tau")
"""Scores that mean something only where agents are given the energy."""
COSTS_OF_A_POINT = ("timesteps", "seconds", "energy_evals")
"""Costs noted with every point of a learning curve."""

Point = dict[str, float]
OnPoint = Callable[[Agent[Any], Point], None]
State = tuple[float, dict[str, Tensor]]  # progress, and tensors of the training state


def measure(run: Run, on_point: OnPoint = lambda agent, point: None, device: str | None = None) -> tuple[JSON, Tensor]:
    """Train and score one agent: its part of the JSON-able result and its samples ``[kept, *event_shape]``.

    ``on_point`` is called with every point of the learning curve; what it raises ends the run. ``device`` is which
    one of the kind that the run asks for.
    """
    row, sizes, seed = run.row, run.sizes, EVALUATION_SEED + 100 * run.seed
    device = run.device if device is None else device
    with seeded(run.seed):  # a learned kernel's weights are the task's, not the agent's
        task = make_task(row.task, device=device, **row.task_settings)
    agent = row.build(task, run.seed)
    curve, best_point, best_state = _train(agent, run, on_point)
    started = time.perf_counter()
    scores = _scores(agent, run, sizes.floors)
    chosen: JSON = {} if row.particles is None else {"particles": row.particles}
    kept = agent.sample(KEPT_IMAGES if len(task.event_shape) == 3 else sizes.kept, seed=seed, **chosen)
    result: JSON = {
        "scores": scores | late_means(curve, row.unit, row.budget),
        "best": {},
        "unaveraged": _unaveraged(agent, seed, sizes.samples),
        "sigma_ratios": sigma_ratios(agent, seed),
        "costs": asdict(agent.costs),
        "curve": curve,
        "paths": paths(agent, seed),
    }
    if agent.trains and sizes.best and best_point is not None:
        if best_state is not None:  # the last iterate otherwise, which has its scores
            progress, tensors = best_state
            agent.set_progress(progress)
            set_training_state(agent, tensors)
            scores = _scores(agent, run, floors=False)
        plain = {key: value for key, value in scores.items() if not key.endswith("_floor")}
        result["best"] = {"timesteps": curve[best_point]["timesteps"], "scores": plain}
    result["evaluation_seconds"] = time.perf_counter() - started
    return result, kept


def _scores(agent: Agent[Any], run: Run, floors: bool) -> dict[str, float]:
    sizes = run.sizes
    with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):  # tables mark what it warns of
        return evaluate(
            agent, seed=EVALUATION_SEED + 100 * run.seed, samples=sizes.samples, draws=sizes.draws,
            trajectories=sizes.trajectories, fit=run.fits, floors=floors,
            particles=run.row.particles,
        )  # fmt: skip


def _unaveraged(agent: Agent[Any], seed: int, samples: int) -> dict[str, float]:
    """Quick scores of the policy that an averaging agent (DxMI) trains; nothing for others."""
    inner = getattr(agent, "agent", None)
    return quick_scores(agent, seed=seed, samples=samples, policy=inner.policy) if isinstance(inner, Agent) else {}


def _train(agent: Agent[Any], run: Run, on_point: OnPoint) -> tuple[list[Point], int | None, State | None]:
    """Learn for the budget: the curve, the index of its best point, and the state there (None: the last one).

    The curve has a point before the first iteration and ``curve_points`` after; an agent that does not train has the
    first only. The best is chosen by quick scores on seeds that the final scores do not use.
    """
    row, points = run.row, list[Point]()
    best: int | None = None
    state: State | None = None

    def note(agent: Agent[Any]) -> None:
        nonlocal best, state
        costs = agent.costs
        if getattr(costs, row.unit) < len(points) * row.budget / run.sizes.curve_points:
            return
        # A draw of its own for every point, so that means over points average the evaluation's noise, too.
        seed = CURVE_SEED + 100 * run.seed + len(points)
        scores = quick_scores(agent, seed=seed, samples=run.sizes.samples)
        points.append({key: getattr(costs, key) for key in COSTS_OF_A_POINT} | scores)
        key = first_score(SELECTED_BY, list(scores), row.energy_given)
        if key is not None and (best is None or _better(SELECTED_BY[key], scores[key], points[best][key])):
            best = len(points) - 1
            state = agent.progress, {name: value.detach().clone() for name, value in training_state(agent).items()}
        on_point(agent, points[-1])

    note(agent)
    if agent.trains:
        budget: JSON = {"total_timesteps" if row.unit == "timesteps" else row.unit: row.budget}
        agent.learn(**budget, callback=note)
    return points, best, None if best == len(points) - 1 else state


def first_score(order: dict[str, str], scores: Sequence[str], energy_given: bool) -> str | None:
    """The first of ``order`` among ``scores``; likelihoods only where the energy is given, as data have none."""
    return next((key for key in order if key in scores and (energy_given or key not in LIKELIHOODS)), None)


def _better(direction: str, score: float, than: float) -> bool:
    return score < than if direction == "lower" else score > than


def late_means(curve: Sequence[Point], unit: str, budget: float) -> dict[str, float]:
    """Means over the last quarter of training, ``<score>_late``: what an oscillating game is judged by."""
    late = [point for point in curve if point[unit] > 0.75 * budget]
    keys = [key for key in (late[0] if late else {}) if key not in COSTS_OF_A_POINT]
    return {f"{key}_late": sum(point[key] for point in late) / len(late) for key in keys}


@torch.no_grad()
def sigma_ratios(agent: Agent[Any], seed: int, n: int = 1000) -> list[float]:
    """Geometric mean of the policy's sigma_t over its own states, over the base sampler's: one number per step.

    Empty for agents without a Gaussian over the next state (deterministic or squashed ones, and agents of your own
    without ``moments``) and for deterministic bases. Entropy that runs away shows here first.
    """
    sigma = agent.mdp.base.sigma
    if not (agent.has_density and bool((sigma > 0).all())):
        return []
    density = agent.density()
    if not hasattr(density, "moments") or getattr(density, "squashed", None) is not None:
        return []
    states = agent.sample_trajectory(n, seed=seed).x
    log_stds = [density.moments(x, t)[1].mean() for t, x in enumerate(states[:-1])]
    return [float((log_std - sigma[t].log()).exp()) for t, log_std in enumerate(log_stds)]


@torch.no_grad()
def paths(agent: Agent[Any], seed: int) -> JSON:
    """Denoising paths for the report: 300 of vectors (their first two coordinates), 36 of images.

    ``{"shape": [T + 1, n, ...], "low", "high", "coordinates", "data"}`` with ``data`` in base64; a value is low +
    byte / 255 (high - low), and what lies beyond is moved to the edge, outside of the plotting range. Agents without a
    density have one frame, their samples. To these come ``path_numbers``.
    """
    low, high = agent.task.target.plot_range
    image = len(agent.mdp.event_shape) == 3
    n = IMAGE_PATHS if image else PATHS
    trajectory = agent.sample_trajectory(n, seed=seed) if agent.has_density else None
    states = agent.sample(n, seed=seed)[None] if trajectory is None else trajectory.x
    numbers = path_numbers(agent, states, trajectory)
    if not image:
        margin = 0.1 * (high - low)
        low, high, states = low - margin, high + margin, states.flatten(2)[..., :2]
    quantised = ((states - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    return {
        "shape": list(quantised.shape),
        "low": low,
        "high": high,
        "coordinates": None if image or agent.mdp.event_shape == (2,) else [0, 1],
        "data": base64.b64encode(quantised.numpy().tobytes()).decode(),
    } | numbers


def path_numbers(agent: Agent[Any], states: Tensor, trajectory: Trajectory | None) -> JSON:
    """What is known of the states ``[T + 1, n, ...]`` of paths, each ``[T + 1, n]`` as base64 of little-endian float32.

    ``energy``, E of every state; ``value``, the soft return from there on that the agent expects (at the end: -E);
    ``log_weight``, log w of the path so far, -log p_0(x_0) + sum_s [log qb - log pi](x_s, x_{s+1}) and, at the end,
    -E(x_T) / tau (-E(x_T) for tau = 0). What an agent or a task lacks is left out.
    """
    mdp, numbers = agent.mdp, dict[str, Tensor]()
    if not mdp.has_energy:
        return {}
    numbers["energy"] = energy = torch.stack([mdp.energy(x) for x in states])
    if trajectory is not None:
        values = [value for t, x in enumerate(states[:-1]) if (value := agent.predict_values(x, t)) is not None]
        if values:
            numbers["value"] = torch.stack([*values, -energy[-1]])
        with contextlib.suppress(TypeError):  # episodes that start at noised data have no weights
            start = mdp.start_log_prob(states[0])
            x, x_next, t = trajectory.transitions()
            ratio = mdp.kernel.log_prob(x, x_next, t).view(mdp.horizon, -1) - trajectory.log_prob
            numbers["log_weight"] = torch.cat([-start[None], ratio]).cumsum(0)
            numbers["log_weight"][-1] -= energy[-1] / (mdp.tau or 1.0)
    return {
        key: base64.b64encode(number.cpu().numpy().astype("<f4").tobytes()).decode() for key, number in numbers.items()
    }
