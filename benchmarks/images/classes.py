"""One game for all classes of digits beside ten games for one class each.

    python benchmarks/images/classes.py --seeds 0 1 2 3 4 --json classes.json --picture classes.png

One denoiser, told the class, is what all start from. The one game (DxMI on "digits-classes") has ``--timesteps``
transitions, each of the ten a tenth of them, and with ``--kinds "ten long games"`` each all of them. All are scored per
class: with 36 test images of each class the distances are large, also those of training images.

Keys of ``--json FILE``:

    command, machine, versions  as in all studies
    timesteps                   what was asked for
    exact                       one entry per class: training images of it
      .label, .fd               against its test images
    runs                        one entry per kind of ``--kinds``, seed and class
      .kind, .seed, .label      of the run
      .timesteps, .seconds      of the game that the class was trained in
      .fd, .class_accuracy, .recall   of the samples of the class, against its test images
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.run_cache import code_of, kept_result, run_all, run_file
from benchmarks.scripts import Study, carry_out
from dxmi_rl import Agent, DxMI, evaluate, make_agent, make_task
from dxmi_rl.benchmark.pictures import save_figure
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.evaluation import image_distance
from dxmi_rl.networks.features import load_features
from dxmi_rl.targets import ImageSet
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.registry import UnknownNameError

KINDS = ["base", "one game", "ten games", "ten long games"]
LABELS = tuple(range(10))
SAMPLES = 500
"""Of every class."""


@dataclass(frozen=True)
class Arguments(Study):
    """What the command line sets."""

    kinds: tuple[str, ...] = ("base", "one game", "ten games")
    """What is scored, of KINDS; "ten long games" takes ten times as long as "ten games"."""
    timesteps: int = 320_000
    """Transitions of the one game, of the ten together, and of each of the ten long ones."""
    folder: Path = Path("runs/classes")
    """Finished runs are kept here, and not repeated."""
    picture: Path | None = None
    """Draw samples of every class into this PNG file."""


def trained(kind: str, label: int, seed: int, arguments: Arguments) -> Agent[Any]:
    """The sampler of one class; of the one game that of all."""
    if kind.startswith("ten"):
        game = DxMI(make_task("digits", label=label, device=arguments.device), seed=seed)
        return game.learn(arguments.timesteps // (len(LABELS) if kind == "ten games" else 1))
    task = make_task("digits-classes", device=arguments.device)
    agent = make_agent("base" if kind == "base" else "dxmi", task, seed=seed)
    return agent if kind == "base" else agent.learn(arguments.timesteps)


def scores_of(agent: Agent[Any], label: int, seed: int) -> dict[str, Any]:
    """Those of one class, with a few samples."""
    found = evaluate(agent, samples=SAMPLES, seed=seed, floors=False)
    x = agent.sample(SAMPLES, seed=seed)
    right = (classifier(agent.task.target).logits(x).argmax(1) == label).double().mean()
    costs = {"timesteps": agent.costs.timesteps, "seconds": agent.costs.seconds}
    return {"label": label, **costs, "fd": found["fd"], "recall": found["recall"], "class_accuracy": float(right)}


def classifier(target: Any) -> Any:
    """That of the digits, whose features the distances use."""
    return load_features("digits", target.device)


def measure(kind: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """The scores of all classes, and images of each."""
    rows, pictures = list[dict[str, Any]](), list[Tensor]()
    whole: Any = None if kind.startswith("ten") else trained(kind, 0, seed, arguments)
    for label in LABELS:
        agent = trained(kind, label, seed, arguments) if whole is None else whole.of_class(label)
        rows.append({"kind": kind, "seed": seed, **scores_of(agent, label, seed)})
        pictures.append(agent.sample(10, seed=seed).cpu())
    return {"rows": rows, "pictures": torch.stack(pictures).mul(1000).round().int().tolist()}


CODE = code_of(sys.modules[__name__])
"""Digest of this file."""


def run(kind: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """``measure`` on one thread; a finished run is read."""
    settings = {"kind": kind, "seed": seed, "timesteps": arguments.timesteps, "device": arguments.device}
    with one_thread():
        file = run_file(arguments.folder, settings, [DxMI, ImageSet, evaluate], CODE)
        return kept_result(file, lambda: measure(kind, seed, arguments))


def exact() -> list[dict[str, Any]]:
    """Training images of every class against its test images."""
    rows = list[dict[str, Any]]()
    whole = make_task("digits").target
    assert isinstance(whole, ImageSet)
    for label in LABELS:
        target = whole.of_class(label)
        rows.append({"label": label, "fd": image_distance(target, target.train_images)})
    return rows


def print_runs(found: dict[str, Any], console: Console) -> None:
    """A table: means over classes, of every seed and their median."""
    runs, known = found["runs"], found["exact"]
    table = Table("", "FD per class, mean", "class accuracy", "smallest", "recall", "seconds", title="digits")
    table.add_row("training images", f"{statistics.mean(one['fd'] for one in known):.1f}", "", "", "", "")
    for kind in dict.fromkeys(one["kind"] for one in runs):
        own = [one for one in runs if one["kind"] == kind]
        means = {
            key: [statistics.mean(one[key] for one in own if one["seed"] == seed)
                  for seed in dict.fromkeys(one["seed"] for one in own)]
            for key in ("fd", "class_accuracy", "recall", "seconds")
        }  # fmt: skip
        cells = [f"{statistics.median(means[key]):.3g} [{min(means[key]):.3g}, {max(means[key]):.3g}]"
                 for key in ("fd", "class_accuracy")]  # fmt: skip
        least = min(one["class_accuracy"] for one in own)
        seconds = statistics.median(means["seconds"]) * (len(LABELS) if kind.startswith("ten") else 1)
        table.add_row(kind, *cells, f"{least:.3g}", f"{statistics.median(means['recall']):.3g}", f"{seconds:.0f}")
    console.print(table)


def draw(found: dict[str, Any], file: Path) -> None:
    """Ten samples of every class, of the first seed of each kind."""
    shown = found["pictures"]
    kinds = [kind for kind in KINDS if kind in shown]
    figure = Figure(figsize=(3.6 * len(kinds), 3.9), layout="constrained")
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        images = torch.tensor(shown[kind]).squeeze(2)  # [class, 10, 8, 8]
        axis.imshow(images.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), cmap="gray", vmin=-1000, vmax=1000)
        axis.set(xticks=[], yticks=[], title=kind)
    FigureCanvasAgg(figure)
    save_figure(figure, file, dpi=110)


def study(arguments: Arguments) -> dict[str, Any]:
    """All runs: the content of ``--json FILE``. Raises ValueError for bad input."""
    check_integer("timesteps", arguments.timesteps)
    for kind in arguments.kinds:
        if kind not in KINDS:
            raise UnknownNameError("kinds", kind, KINDS)
    wanted = [(kind, seed, arguments) for seed in arguments.seeds for kind in arguments.kinds]
    found = run_all(run, wanted, arguments.jobs, "games")
    runs = [row for one in found for row in one["rows"]]
    shown = {one["rows"][0]["kind"]: one["pictures"] for one in reversed(found)}
    return {"timesteps": arguments.timesteps, "exact": exact(), "runs": runs, "pictures": shown}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, 2 for bad input."""
    return carry_out(Arguments, argv, study, print_runs, draw)


if __name__ == "__main__":
    sys.exit(main())
