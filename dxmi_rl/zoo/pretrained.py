"""The zoo: trained agents in a folder, each with its weights, a card, a picture, its scores and a checksum."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from dxmi_rl.agents import load_agent
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.checkpoint import save_agent
from dxmi_rl.benchmark.machine import machine, versions
from dxmi_rl.envs.rendering import is_renderable, render_samples
from dxmi_rl.evaluation import evaluate
from dxmi_rl.evaluation.log_weights import UnreliableScoresWarning
from dxmi_rl.utils.checks import CheckpointError
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import JSON, write_atomically, write_json, write_text
from dxmi_rl.zoo.cards import card, overview

FORMAT = 1
INDEX, CARD = "index.json", "README.md"
MAX_BYTES = 1_000_000
"""Largest file of weights."""
SIZES: dict[str, Any] = {"samples": 5000, "draws": 2, "trajectories": 5000, "fit": False}
"""What one evaluation is of."""
SEEDS = (20_001, 20_002, 20_003, 20_004)
"""Seeds of the evaluations that a card has the mean and the standard deviation of."""
CHECK_SEED = 30_001
NAMED_DENOISERS = ("exact", "learned")
SHOWN = ("file", "sha256", "agent", "task", "seconds", "scores")
"""What every entry of an index has."""
CHECKED = ("kl_marginal", "kl_bound", "elbo", "sliced_w2", "modes", "mode_tv", "well_error", "fd", "auroc")
"""Scores that ``check_pretrained`` compares: those whose spread four evaluations tell."""
DETECTOR = "energy-detector"
"""What stands for the agent in a detector's entry."""

AnyPath = str | os.PathLike[str]


def zoo_folder(folder: AnyPath | None = None) -> Path:
    """``folder``, else ``$DXMI_RL_ZOO``, else ``zoo`` in the clone of the repository that the package is run from.

    Raises FileNotFoundError where there is none.
    """
    given = folder if folder is not None else os.environ.get("DXMI_RL_ZOO")
    found = Path(__file__).parents[2] / "zoo" if given is None else Path(given).expanduser()
    if not (found / INDEX).is_file():
        raise FileNotFoundError(
            f"no zoo in folder {str(found)!r}: it must hold {INDEX}. The zoo is the folder zoo/ of the repository, and "
            "no part of the installed package: set DXMI_RL_ZOO to a copy of it."
        )
    return found


def read_index(folder: Path) -> dict[str, JSON]:
    """The entries of a zoo by name. Raises CheckpointError for a damaged or foreign index."""
    file = folder / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        entries = index["agents"]
        if index["format"] != FORMAT or not isinstance(entries, dict):
            raise ValueError(f"its format is {index['format']!r}, and this version reads {FORMAT}")
        for name, entry in entries.items():
            named = isinstance(entry["file"], str) and Path(entry["file"]).name == entry["file"]
            if not (named and isinstance(entry["sha256"], str)):
                raise ValueError(f"its entry {name!r} must have a plain file name and a checksum")
            if lacking := [key for key in SHOWN if key not in entry]:
                raise ValueError(f"its entry {name!r} lacks {', '.join(lacking)}")
            numbers = [kept[part] for kept in entry["scores"].values() for part in ("mean", "std")]
            if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
                raise ValueError(f"its entry {name!r} must have scores that are finite numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{str(file)!r} is no index of a zoo: {error}.") from error
    found: dict[str, JSON] = entries
    return found


def list_pretrained(folder: AnyPath | None = None) -> list[str]:
    """Names that ``load_pretrained`` takes. Raises as ``zoo_folder`` and ``read_index``."""
    return sorted(read_index(zoo_folder(folder)))


def load_pretrained(
    name: str, *, folder: AnyPath | None = None, device: str | torch.device | None = None
) -> Agent[Any]:
    """A trained agent of the zoo, such as ``"dxdp-8gaussians"``; ``folder`` is where the zoo is, as in ``zoo_folder``.

    It samples and is scored like any agent, and ``learn`` trains its weights further with fresh optimizers, over a
    budget of its own.

    Raises UnknownNameError (with the near names), FileNotFoundError for a zoo or file that is not there,
    CheckpointError for a damaged or foreign file, and for one whose checksum is not the index's, ValueError for the
    name of a detector.
    """
    return load_agent(checked_file(name, folder, detector=False), device=device)


def checked_file(name: str, folder: AnyPath | None, *, detector: bool) -> Path:
    """The file of an agent or a detector of a zoo. Raises as ``load_pretrained``."""
    place = zoo_folder(folder)
    entries = read_index(place)
    if name not in entries:
        raise UnknownNameError("pretrained agent", name, sorted(entries))
    if (entries[name]["agent"] == DETECTOR) != detector:
        kind, other = ("an agent", "load_pretrained") if detector else ("a detector", "load_pretrained_detector")
        raise ValueError(f"{name!r} is {kind}: {other} loads it.")
    file: Path = place / entries[name]["file"]
    if not file.is_file():
        raise FileNotFoundError(f"the zoo in {str(place)!r} lacks file {file.name!r} of {name!r}.")
    if hashlib.sha256(file.read_bytes()).hexdigest() != entries[name]["sha256"]:
        raise CheckpointError(f"{str(file)!r} is not the file that {INDEX} has the checksum of: damaged, or another.")
    return file


def add_pretrained(
    agent: Agent[Any], name: str, folder: AnyPath, *, command: str, licence: str | None = None
) -> JSON:  # fmt: skip
    """Put a trained agent into a zoo, which is made if need be: weights, card, picture, scores. Returns its entry.

    ``command`` is what trains it again, ``licence`` what the card says of its use. One that has the name is replaced
    when all that the new one needs is there, and not before.

    Raises ValueError for a name that is no plain file name, a task that a file cannot name (of objects of yours, or
    with a denoiser in a file of yours), and weights of more than MAX_BYTES.
    """
    task = agent.task
    if task.spec is None or (isinstance(task.config.denoiser, str) and task.config.denoiser not in NAMED_DENOISERS):
        raise ValueError(f"task {task.name!r} must be one that a file can name: it holds objects or files of yours.")
    with tempfile.TemporaryDirectory() as temporary:
        weights = save_agent(agent, Path(temporary) / "weights", weights_only=True).read_bytes()
    _check_place(name, weights)  # before it is scored
    costs = agent.costs
    entry: JSON = {
        "agent": agent.name, "task": task.name, "seed": agent.seed, "horizon": agent.mdp.horizon, "command": command,
        "licence": licence, "timesteps": costs.timesteps, "energy_evals": costs.energy_evals,
        "gradient_steps": costs.gradient_steps, "seconds": round(costs.seconds, 1), "scores": card_scores(agent),
        "versions": versions(), "machine": machine(str(agent.mdp.device)),
    }  # fmt: skip
    evaluation = f"{len(SEEDS)} evaluations: `evaluate(agent, {', '.join(f'{k}={v}' for k, v in SIZES.items())})`"
    return put(Path(folder), name, entry, weights, evaluation, _picture(agent) if is_renderable(task.target) else None)


def put(place: Path, name: str, entry: JSON, weights: bytes, evaluation: str, picture: bytes | None) -> JSON:
    """Write weights, card, picture, index and page of something new; its whole entry.

    ``evaluation`` says what its scores are over. Raises ValueError for a name that is no plain file name, and weights
    of more than MAX_BYTES.
    """
    _check_place(name, weights)
    file = place / f"{name}.safetensors"
    entry = {"file": file.name, "sha256": hashlib.sha256(weights).hexdigest()} | entry
    if picture is not None:
        write_atomically(place / f"{name}.png", lambda path: _write_bytes(path, picture))
    write_atomically(file, lambda path: _write_bytes(path, weights))
    write_text(place / f"{name}.md", card(name, entry, evaluation, picture=picture is not None))
    others = read_index(place) if (place / INDEX).is_file() else {}  # only now: scoring takes a while
    entries = dict(sorted((others | {name: entry}).items()))
    write_json(place / INDEX, {"format": FORMAT, "agents": entries})
    write_text(place / CARD, overview(entries, CHECKED))
    return entry


def _check_place(name: str, weights: bytes) -> None:
    if Path(name).name != name or name.lower() in ("", "..", "index", "readme"):
        raise ValueError(f"name must be a plain file name other than index and readme, got {name!r}.")
    if len(weights) > MAX_BYTES:
        raise ValueError(f"weights of {name!r} must have at most {MAX_BYTES:,} bytes, got {len(weights):,}.")


def _picture(agent: Agent[Any]) -> bytes:
    """Samples, as a PNG file."""
    from PIL import Image

    x = agent.sample(2000, seed=CHECK_SEED)
    stream = io.BytesIO()
    Image.fromarray(render_samples(agent.task.target, x, agent.mdp)).save(stream, format="png", optimize=True)
    return stream.getvalue()


def card_scores(agent: Agent[Any]) -> JSON:
    """``{score: {"mean", "std", "floor"}}`` over evaluations with SEEDS; a floor where exact samples have one."""
    runs = [evaluated(agent, seed, floors=seed == SEEDS[0]) for seed in SEEDS]
    scores: JSON = {}
    for key in runs[0]:
        if key.endswith(("_floor", "_se", "_bias", "_calls")) or not all(key in run for run in runs):
            continue
        values = [run[key] for run in runs]
        scores[key] = {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
        if f"{key}_floor" in runs[0]:
            scores[key]["floor"] = runs[0][f"{key}_floor"]
    return scores


def evaluated(agent: Agent[Any], seed: int, *, floors: bool) -> dict[str, float]:
    """Scores of one evaluation."""
    with warnings.catch_warnings(action="ignore", category=UnreliableScoresWarning):  # the card has the ess
        return evaluate(agent, seed=seed, floors=floors, **SIZES)


def _write_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
