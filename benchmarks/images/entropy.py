"""What the temperature does to games of digits: to the energy as a density and as a detector, and to lost classes.

    python benchmarks/images/entropy.py --seeds 0 1 2 3 4 --json entropy.json --picture entropy.png

DxMI's recipe for digits, T = 4, at every temperature of ``--taus``, in nats per dimension (64 of them). Two games each:

    all         starts from the base sampler of all digits. Its averaged energy is asked:
                - AUC: test images against uniform noise, inverted and shuffled images, images shifted by two pixels
                  to the right, and printed letters; printed digits beside them, as letters differ in their fonts, too;
                - log-likelihood of test images with the game's noise, in nats per dimension: -E / tau - log Z, with Z
                  by annealed importance sampling (``annealed_importance_sampling``), at the game's tau and at the one
                  of ``FITTED`` at which as many training images have the highest;
                - calibration: mean energy of test images less that of samples of exp(-E / tau), in units of tau per
                  dimension, which is 0 where E is the energy of the data's density.
    few         starts from a base sampler whose denoiser saw a tenth of the images of the classes ``FEW``, and is
                played with all images: the part of its samples in these classes (the digits' classifier), the
                entropy of the shares of all ten classes, in nats, and the Frechet distance.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    timesteps                   of a game
    start                       what the samplers that games start from have: fd, and of "few" share and class_entropy
    data                        the same of test images: share, class_entropy, fd (of training images)
    runs                        per kind, seed and tau: .kind, .seed, .tau (per dimension), .seconds, .fd,
      of "all"                  .auc {noise, inverted, shuffled, shifted, letters, printed digits}, .fitted_tau,
                                .fitted_likelihood, .fitted_ess and, but at tau = 0, .likelihood, .ess, .calibration
      of "few"                  .share, .class_entropy
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.images import other_images
from benchmarks.images.play import EVALUATION_SEED, image_set, samples_of
from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import Agent, DxMI, make_agent, make_task
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion import pretrained_denoiser
from dxmi_rl.evaluation import annealed_importance_sampling, image_distance, metrics
from dxmi_rl.networks.features import load_features
from dxmi_rl.targets import ImageSet, make_target
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError

KINDS = ["all", "few"]
FEW = (5, 6, 7, 8, 9)
"""Classes of which the denoiser of "few" saw one image in ten."""
FITTED = (0.03, 0.1, 0.3, 1.0)
"""Temperatures per dimension at which every energy is also read as a density."""
CHAINS = 64


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    taus: tuple[float, ...] = (0.0, 0.003, 0.01, 0.03, 0.1)
    """Temperatures, in nats per dimension."""
    kinds: tuple[str, ...] = ("all", "few")
    """Which games, of KINDS."""
    timesteps: int = 150_000
    """Transitions of a game."""
    jobs: int = 2
    """Runs at a time, one thread each."""
    folder: Path = Path("runs/entropy")
    """Finished runs are kept here, and not repeated."""
    picture: Path | None = None
    """Draw AUC, likelihood and shares against tau into this PNG file."""


def few_of_five() -> ImageSet:
    """The digits with one training image in ten of the classes FEW."""
    whole = make_target("digits")
    assert isinstance(whole, ImageSet) and whole.train_labels is not None
    rare = torch.isin(whole.train_labels, torch.tensor(FEW))
    kept = ~rare | (rare.cumsum(0) % 10 == 0)
    parts = {"train_labels": whole.train_labels[kept], "test_labels": whole.test_labels}
    return ImageSet(
        whole.train_bytes[kept], whole.test_bytes, **parts, levels=whole.levels, scale=whole.scale,
        name="digits, few of five classes", features=whole.features,
    )  # fmt: skip


def build_task(kind: str, tau: float, device: str) -> Task:
    """The task of the digits; of "few" with the other denoiser."""
    task = make_task("digits", horizon=4, tau=tau / 64, device=device)
    if kind == "all":
        return task
    denoiser = pretrained_denoiser(few_of_five(), task.config.pretraining, device=task.device)
    return make_task("digits", horizon=4, tau=tau / 64, denoiser=denoiser, device=device)


def shares(x: Tensor) -> dict[str, float]:
    """Part of the classes FEW, and the entropy of the shares of all classes."""
    classes: Any = load_features("digits", x.device)
    part = classes.logits(x).argmax(1).bincount(minlength=10).double() / len(x)
    return {"share": float(part[list(FEW)].sum()), "class_entropy": float(torch.special.entr(part).sum())}


def samples_scores(agent: Agent[Any], kind: str, seed: int) -> dict[str, float]:
    """The Frechet distance of an agent's samples and, of "few", the shares of classes."""
    target = image_set(agent.task)
    x = agent.sample(samples_of(target), seed=EVALUATION_SEED + seed)
    return {"fd": image_distance(target, x), **(shares(x) if kind == "few" else {})}


def as_density(energy: Callable[[Tensor], Tensor], tau: float, center: Tensor, seed: int) -> Any:
    """The normaliser of exp(-E / tau), and samples."""
    return annealed_importance_sampling(
        energy, center.shape, scale=1.0, tau=tau, center=center, chains=CHAINS, seed=seed, device=center.device
    )


def energy_scores(game: DxMI, tau: float, seed: int) -> dict[str, Any]:
    """AUC, likelihood and calibration of the averaged energy; ``tau`` per dimension."""
    target = image_set(game.task)
    test, dim = target.test_images, target.dim
    energy, center = game.average_energy, target.train_images.mean(0)
    others = {name: other.to(test.device) for name, other in other_images.of_digits(test.cpu()).items()}
    generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)

    def noisy(x: Tensor) -> Tensor:
        return x + float(game.data_noise or 0.0) * torch.randn(x.shape, generator=generator).to(x.device)

    with torch.no_grad():
        at = energy(test)
        found: dict[str, Any] = {
            "auc": {name: metrics.auc(-at, -energy(other)) for name, other in others.items()},
        }
        train, held = energy(noisy(target.train_data(len(test)))), energy(noisy(test))

    def likelihood(values: Tensor, log_z: float, at_tau: float) -> float:
        return (-float(values.double().mean()) / at_tau - log_z) / dim

    fits = []
    for per_dim in FITTED:
        one = as_density(energy, per_dim / dim, center, seed)
        fits.append((likelihood(train, one.log_z, per_dim / dim), per_dim, one))
    _, best, one = max(fits, key=lambda fit: fit[0])
    found |= {"fitted_tau": best, "fitted_likelihood": likelihood(held, one.log_z, best / dim), "fitted_ess": one.ess}
    if tau > 0:
        one = next((own for _, per_dim, own in fits if per_dim == tau), None)
        one = one or as_density(energy, tau / dim, center, seed)
        with torch.no_grad():
            gap = float(held.double().mean() - energy(one.samples).double().mean())
        found |= {"likelihood": likelihood(held, one.log_z, tau / dim), "ess": one.ess, "calibration": gap / tau}
    return found


def measure(kind: str, tau: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Play one game and score it."""
    game = DxMI(build_task(kind, tau, arguments.device), seed=seed).learn(arguments.timesteps)
    found = {"kind": kind, "seed": seed, "tau": tau, "seconds": game.costs.seconds, **samples_scores(game, kind, seed)}
    return found | (energy_scores(game, tau, seed) if kind == "all" else {})


CODE = code_of(sys.modules[__name__], other_images)
"""Digest of this file, and of the images that it shows."""


def run(kind: str, tau: float, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    settings = {"kind": kind, "tau": tau, "seed": seed, "timesteps": arguments.timesteps, "device": arguments.device}
    with one_thread():
        file = run_file(arguments.folder, settings, [DxMI, ImageSet, annealed_importance_sampling], CODE)
        return kept_result(file, functools.partial(measure, kind, tau, seed, arguments))


def start_and_data(kinds: Sequence[str], seed: int, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the samplers that games start from have, and test images."""
    start = {
        kind: samples_scores(make_agent("base", build_task(kind, 0.0, device), seed=seed), kind, seed) for kind in kinds
    }
    target = image_set(build_task("all", 0.0, device))
    return start, {**shares(target.test_images), "fd": image_distance(target, target.train_images)}


ROWS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "FD ↓": lambda one: one["fd"],
    **{f"AUC ↑, {name}": functools.partial(lambda name, one: one["auc"][name], name)
       for name in ("noise", "inverted", "shuffled", "shifted", "letters", "printed digits")},
    "nats per dimension ↑": lambda one: one.get("likelihood"),
    "nats, tau fitted ↑": lambda one: one["fitted_likelihood"],
    "fitted tau": lambda one: one["fitted_tau"],
    "calibration": lambda one: one.get("calibration"),
}  # fmt: skip
"""Scores of the games "all"."""
FEW_ROWS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "FD ↓": lambda one: one["fd"],
    "share of few classes": lambda one: one["share"],
    "entropy of classes": lambda one: one["class_entropy"],
}


def values_of(runs: Sequence[dict[str, Any]], kind: str, tau: float, read: Callable[..., float | None]) -> list[float]:
    """One score of all seeds; empty where a temperature has none."""
    found = [read(one) for one in runs if one["kind"] == kind and one["tau"] == tau]
    return [value for value in found if value is not None]


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A table per kind, with a column per temperature: medians over seeds, and their range."""
    for kind, rows in (("all", ROWS), ("few", FEW_ROWS)):
        taus = list(dict.fromkeys(one["tau"] for one in found["runs"] if one["kind"] == kind))
        if not taus:
            continue
        table = Table("", "start", "data", *(f"tau {tau:g}" for tau in taus), title=f"digits: {kind}", show_lines=True)
        for name, read in rows.items():
            known = [_known(read, found["start"][kind]), _known(read, found["data"])]
            table.add_row(name, *known, *(_range(values_of(found["runs"], kind, tau, read)) for tau in taus))
        console.print(table)


def _known(read: Callable[[dict[str, Any]], float | None], own: dict[str, Any]) -> str:
    """What a sampler that is not trained has, where it has this score."""
    try:
        value = read(own)
    except KeyError:
        return ""
    return "" if value is None else f"{value:.3g}"


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.3g}\n[{min(values):.3g}, {max(values):.3g}]"


def draw(found: dict[str, Any], file: Path) -> None:
    """AUC, likelihood, and shares of few classes against tau: medians with ranges over seeds."""
    runs = found["runs"]
    taus = sorted({one["tau"] for one in runs})
    places = np.arange(len(taus))
    figure = Figure(figsize=(12.6, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)

    def line(axis: Any, kind: str, read: Callable[..., float | None], shift: float, **style: Any) -> None:
        points = [(place, values) for place, tau in zip(places, taus, strict=True)
                  if (values := values_of(runs, kind, tau, read))]  # fmt: skip
        if points:
            middle = [statistics.median(values) for _, values in points]
            reach = [[m - min(v) for m, (_, v) in zip(middle, points, strict=True)],
                     [max(v) - m for m, (_, v) in zip(middle, points, strict=True)]]  # fmt: skip
            axis.errorbar([place + shift for place, _ in points], middle, yerr=reach, capsize=3, **style)

    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito's
    names = ("noise", "inverted", "shuffled", "shifted", "letters", "printed digits")
    for index, (name, colour, marker) in enumerate(zip(names, colours, "osD^vx", strict=True)):
        line(panels[0], "all", ROWS[f"AUC ↑, {name}"], 0.05 * (index - 2.5), label=name, color=colour, marker=marker)
    panels[0].set(ylabel="AUC against test digits ↑", title="The energy as a detector")
    line(panels[1], "all", ROWS["nats per dimension ↑"], -0.05, label="at the game's tau", color=colours[0], marker="o")
    line(panels[1], "all", ROWS["nats, tau fitted ↑"], 0.05, label="tau fitted", color=colours[1], marker="s")
    panels[1].set(ylabel="log-likelihood, nats per dimension ↑", title="The energy as a density")
    line(panels[2], "few", FEW_ROWS["share of few classes"], 0.0, label="games", color=colours[0], marker="o")
    if "few" in found["start"]:
        panels[2].axhline(found["start"]["few"]["share"], color=colours[4], linestyle=":", label="start")
    panels[2].axhline(found["data"]["share"], color="black", linestyle="--", label="data")
    panels[2].set(ylabel="share of the five classes", title="Start with a tenth of five classes", ylim=(0, None))
    for axis in panels:
        axis.set(xticks=places, xticklabels=[f"{tau:g}" for tau in taus], xlabel="tau, nats per dimension")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    check_integer("timesteps", arguments.timesteps)
    for tau in arguments.taus:
        check_real("taus", tau)
    for kind in arguments.kinds:
        if kind not in KINDS:
            raise UnknownNameError("kinds", kind, KINDS)
    start, data = start_and_data(arguments.kinds, arguments.seeds[0], arguments.device)
    wanted = [(kind, tau, seed, arguments) for seed in arguments.seeds for kind in arguments.kinds
              for tau in arguments.taus]  # fmt: skip
    runs = run_all(run, wanted, arguments.jobs, "games")
    return {"timesteps": arguments.timesteps, "start": start, "data": data, "runs": runs}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
