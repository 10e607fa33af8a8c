"""Synthetic results of a comparison, as ``compare.py`` would write them."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np

from dxmi_rl.benchmark.results import diverged, normalised_score, summarise_best, summarise_runs

TASKS: dict[str, dict[str, Any]] = {
    "8gaussians": dict(dim=2, horizon=5, tau=1.0, event_shape=[2], track="fine-tune", energy="target",
                       score="kl_bound_fit", better="lower", base=2.0, floor=0.0, quick="kl_bound"),
    "gmm25": dict(dim=2, horizon=5, tau=1.0, event_shape=[2], track="fine-tune", energy="target",
                  score="kl_bound_fit", better="lower", base=4.0, floor=0.0, quick="kl_bound"),
    "digits": dict(dim=64, horizon=4, tau=0.1 / 64, event_shape=[1, 8, 8], track="fine-tune", energy="fixed",
                   score="elbo_tau", better="higher", base=-90.0, floor=None, quick="elbo_tau"),
    "manywell32": dict(dim=32, horizon=5, tau=1.0, event_shape=[32], track="sample", energy="target",
                       score="kl_bound_fit", better="lower", base=40.0, floor=0.0, quick="kl_bound"),
}  # fmt: skip


SKILL = {"base": 0.0, "dxdp": 0.93, "ppo": 0.9, "sb3-ppo": 0.6}


SCALE = {"8gaussians": 4.0, "gmm25": 13.0, "digits": 1.0, "manywell32": 3.0}


def make_results(
    agents: dict[str, float] = SKILL, seeds: int = 5, tasks: tuple[str, ...] = tuple(TASKS), paths: bool = True
) -> dict[str, Any]:
    """A comparison as ``compare.py`` would write it; a label's skill is its normalised score, about."""
    generator = np.random.default_rng(0)
    runs = []
    for task in tasks:
        for label, skill in agents.items():
            runs += [_run(task, label, skill, seed, generator, paths) for seed in range(seeds)]
    entries = {name: {k: v for k, v in TASKS[name].items() if k != "quick"} for name in tasks}
    results = {
        "schema": 3, "name": "synthetic", "preset": "standard", "command": "dxmi-rl compare --preset standard",
        "devices": ["cpu"], "seeds": list(range(seeds)), "seconds": 5400.0, "date": "2026-01-31T12:00:00+00:00",
        "tasks": entries, "summary": [], "runs": runs, "failed": [],
    }  # fmt: skip
    return summarise(results)


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Write normalised scores and the summary anew from the runs."""
    for run in results["runs"]:
        run["normalised"] = normalised_score(run, results["tasks"][run["task"]])
    rows = dict.fromkeys((run["task"], run["label"]) for run in results["runs"])
    results["summary"] = [_summary(results, *row) for row in rows]
    return results


def _run(
    task: str, label: str, skill: float, seed: int, generator: np.random.Generator, paths: bool
) -> dict[str, Any]:  # fmt: skip
    entry, trains = TASKS[task], label != "base"
    exact = entry["floor"] if entry["floor"] is not None else -20.0
    value = entry["base"] + (skill + 0.015 * generator.normal()) * (exact - entry["base"])
    points = np.linspace(0, 1, 21 if trains else 1)
    curve = []
    for point in points:
        reached = entry["base"] + skill * (1 - np.exp(-5 * point)) * (exact - entry["base"])
        spent = {"timesteps": int(4e6 * point), "seconds": 128 * point, "energy_evals": int(8e5 * point)}
        quick = {entry["quick"]: float(reached + 0.01 * abs(generator.normal())), "sliced_w2": 0.3 - 0.2 * skill}
        curve.append(spent | quick)
    scores = {entry["score"]: float(value), "sliced_w2": float(0.3 - 0.2 * skill + 0.01 * abs(generator.normal())),
              "sliced_w2_floor": 0.048, "ess": float(0.5 * skill), "denoiser_calls": 5.0}  # fmt: skip
    normalised = None if entry["floor"] is None else (value - entry["base"]) / (entry["floor"] - entry["base"])
    costs = {"timesteps": 4e6 * trains, "seconds": (128.0 + seed) * trains, "policy_draws": 4e6 * trains,
             "energy_evals": 8e5 * trains, "energy_grad_evals": 0.0, "denoiser_calls": 2e7}  # fmt: skip
    return {
        "key": hashlib.sha256(f"{task} {label} {seed}".encode()).hexdigest()[:16],
        "code": "c0de", "label": label, "task": task,
        "agent": label, "budget": 4_000_000 * trains, "unit": "timesteps", "task_settings": {},
        "agent_settings": {"iterations": 4} if trains else {}, "seed": seed, "device": "cpu", "sizes": {},
        "scores": scores, "best": {"timesteps": 3_000_000, "scores": {entry["quick"]: value}} if trains else {},
        "unaveraged": {}, "normalised": normalised, "sigma_ratios": [1.0] * entry["horizon"],
        "costs": costs if trains else dict.fromkeys(costs, 0.0), "curve": curve,
        "paths": _paths(task, skill, generator) if paths else None, "evaluation_seconds": 20.0,
        "versions": {"dxmi_rl": "0.2.0", "source": "abc", "torch": "2.13", "numpy": "2.3", "python": "3.12"},
        "machine": {"system": "Linux", "processor": "Xeon <R> & co", "cores": 2, "gpu": None},
        "command": f"dxmi-rl run --task {task} --agent {label} --seed {seed}",
    }  # fmt: skip


def _paths(task: str, skill: float, generator: np.random.Generator) -> dict[str, Any]:
    """Straight lines from noise to modes, with errors that shrink with skill."""
    image, high, horizon = task == "digits", SCALE[task], TASKS[task]["horizon"]
    shape = (64, 1, 8, 8) if image else (400, 2)
    start = high / 3 * generator.normal(size=shape)
    if image:
        end = np.tanh(3 * generator.normal(size=shape)) * skill
    elif task == "8gaussians":
        angle = generator.integers(8, size=400) * np.pi / 4
        end = 2.83 * np.stack([np.cos(angle), np.sin(angle)], 1)
    elif task == "gmm25":
        end = 5.0 * generator.integers(-2, 3, size=shape)
    else:
        end = np.stack([1.73 * generator.choice([-1, 1], size=400), np.zeros(400)], 1)
    end = end + (0.02 + 0.3 * (1 - skill)) * high * generator.normal(size=shape) * (0.0 if image else 1.0)
    part = np.linspace(0, 1, horizon + 1).reshape(-1, *[1] * len(shape))
    steps = (1 - part) * start + part * end
    low, top = float(steps.min()), float(steps.max())
    data = np.round(255 * (steps - low) / (top - low)).astype(np.uint8)
    energy = np.square(steps - end).reshape(*steps.shape[:2], -1).sum(-1)
    numbers = {"energy": energy} | ({} if image else {"value": -2 * energy, "log_weight": 1.0 - energy})
    floats = {key: base64.b64encode(value.astype("<f4").tobytes()).decode() for key, value in numbers.items()}
    return {"shape": list(steps.shape), "low": low, "high": top, "data": base64.b64encode(data.tobytes()).decode(),
            "coordinates": [0, 1] if task == "manywell32" else None, **floats}  # fmt: skip


def _summary(results: dict[str, Any], task: str, label: str) -> dict[str, Any]:
    runs = [run for run in results["runs"] if (run["task"], run["label"]) == (task, label)]
    row = {"task": task, "label": label}
    found = summarise_runs(row, results["runs"], results["failed"], results["tasks"][task])
    lost = len(diverged(results["failed"], task, label))
    return {
        **row, **found, "agent": runs[0]["agent"], "track": results["tasks"][task]["track"],
        "runs": len(runs), "diverged": lost, "budget": runs[0]["budget"], "unit": "timesteps",
        "best": summarise_best(runs),
        "command": f"dxmi-rl compare --tasks {task} --agents {label}",
    }  # fmt: skip
