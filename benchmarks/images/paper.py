"""The paper's games of images: CIFAR-10, ImageNet 64 x 64 and LSUN bedrooms in 4 or 10 steps, for a GPU machine.

    python benchmarks/images/paper.py --dry-run                   what every preset takes; one iteration of CIFAR-10
    python benchmarks/images/paper.py --presets cifar10-t10 --data folder-of-cifar-10-batches-py
        --denoiser ddpm-cifar10-32 --device cuda --precision bfloat16
    python benchmarks/images/paper.py --presets imagenet64-t4 --data imagenet64.npz --label 207
        --denoiser edm_imagenet64_ema.pt --device cuda --precision bfloat16
    torchrun --nproc_per_node 8 benchmarks/images/paper.py --presets lsun-bedroom-t4 --data bedrooms.npy
        --denoiser edm_bedroom256_ema.pt --device cuda --precision bfloat16 --rows-at-a-time 8

Settings are those of the released configurations (dxmi_rl/irl/paper.py). What differs: value and energy are two
networks (one there), ImageNet is played one class at a time (``--label``; all together there), no running cost is left
out, CIFAR-10 at T = 4 starts from a DDPM (a DDGAN there), and LSUN without its scale of the kernel's sigmas. V counts
in units of tau1 (Adam's steps move it a tenth as far as there), and gradients are clipped at 0.1 for the policy, at 10
for V, not for the energy.

Backbones of ImageNet and LSUN are the paper's, EDM networks of github.com/openai/consistency_models
(edm_imagenet64_ema.pt, edm_bedroom256_ema.pt), read as they are. That of CIFAR-10 is a DDPMPipeline, such as
google/ddpm-cifar10-32, the paper's at T = 10. EDM's own networks of CIFAR-10 are not read: their files are pickles with
code, and diffusers' UNet2DModel cannot be their network, a SongUNet.

CIFAR-10 (0.14 GiB) is kept in the device's memory. Other images stay on disk, and batches are read from there:
3 million bedrooms of LSUN are 550 GiB. docs/images.md says how to prepare them.

A command that is stopped goes on where it was when it is started again (at most ``KEPT_MINUTES`` before). Beside a game
lie its curve, its last samples and a picture of them.

The dry run counts parameters, memory and arithmetic of networks at full size on torch's meta device, and plays one
iteration of the CIFAR-10 presets with random images, an untrained backbone and ``--n-trajectories`` (2). Hours on an
H100 assume ``--utilisation`` of its 989 TFLOP/s in bfloat16 and leave out scoring.

Keys of ``--json FILE``:

    command              the command line
    machine, versions    what it ran on
    costs                {preset: {networks: {denoiser, energy, value: {parameters, flops, saved_bytes}}, state_bytes,
                         iteration_flops, training_flops, hours}}
    dry_runs             {preset: {n_trajectories, seconds, losses}} of one iteration
    runs                 per seed: seed, iterations, label, features and samples (what it was scored with), scores (as
                         in benchmarks/images/images.py), curve, costs
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import torch

from benchmarks.images.play import (
    EVALUATION_SEED,
    SHOWN,
    begin_or_continue,
    curve_file,
    image_set,
    samples_of,
    score,
)
from benchmarks.scripts import command_line, header
from dxmi_rl import evaluation
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.execution import is_main_process, own_device, set_execution
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.tables import Table, compact, number, print_tables
from dxmi_rl.irl.paper import PAPER_PRESETS, PaperPreset, PresetCost, make_game, preset_cost
from dxmi_rl.networks.features import load_features
from dxmi_rl.targets import ImageSet, cifar10, load_images
from dxmi_rl.utils.checks import check_integer, check_real, require
from dxmi_rl.utils.storage import save_tensors, write_atomically, write_json
from dxmi_rl.utils.torch_tools import seeded

H100_FLOPS = 989e12
"""Dense bfloat16 FLOP a second of an H100 SXM (NVIDIA's data sheet)."""
FEW = 2
"""Trajectories of a dry run."""
POINTS = 20
"""Scores while training."""
KEPT_MINUTES = 10.0
"""At most so much of a game is lost when it is stopped, beside an iteration."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    presets: tuple[str, ...] = ()
    """Which games: cifar10-t10, cifar10-t4, imagenet64-t10, imagenet64-t4, lsun-bedroom-t4; all in a dry run."""
    dry_run: bool = False
    """Count, and try one iteration of CIFAR-10, without data."""
    data: Path | None = None
    """Images: torchvision's root of CIFAR-10 for its presets; for others a folder of pictures, or an .npy or .npz file
    of images that have their size (``dxmi_rl.targets.load_images``)."""
    denoiser: Path | None = None
    """Backbone: the folder of a diffusers DDPMPipeline, a .pt file of an EDM network of consistency_models, or a
    .safetensors file of DenoiserUNet.save."""
    label: int | None = None
    """Class of a class-conditional backbone: the game has the images of that class."""
    iterations: int | None = None
    """Iterations; by default the released configuration's."""
    n_trajectories: int | None = None
    """Trajectories per iteration; by default the paper's, and 2 in a dry run."""
    features: str = "lite0"
    """What distances are measured on: lite0, or inception (FID) with the weights that $DXMI_RL_INCEPTION names."""
    samples: int = 2000
    """Samples that are scored at the end, against as many test and training images; published FIDs have 50,000."""
    precision: str = "float32"
    """float32, or bfloat16 (autocast)."""
    rows_at_a_time: int | None = None
    """Rows of a batch that a network computes at once; by default all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, one game after the other."""
    device: str = "cpu"
    """Torch device."""
    utilisation: float = 0.3
    """Part of an H100's arithmetic that is had, in the estimate."""
    folder: Path = Path("runs/paper")
    """Where games are kept."""
    json: Path | None = None
    """File for the results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Count or play, print, write; 2 for arguments that are not allowed or files that are not there."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_seeds(arguments.seeds)
        check_real("utilisation", arguments.utilisation, strict=True)
        check_integer("samples", arguments.samples, minimum=10)
        for key in ("iterations", "n_trajectories", "rows_at_a_time"):
            if getattr(arguments, key) is not None:
                check_integer(key, getattr(arguments, key))
        arguments = dataclasses.replace(arguments, device=str(own_device(arguments.device)))
        names = arguments.presets or tuple(PAPER_PRESETS)
        presets = {name: PAPER_PRESETS[name] for name in names}
        if not arguments.dry_run:
            if len(arguments.presets) != 1 or arguments.data is None or arguments.denoiser is None:
                raise ValueError("a game needs one preset, --data and --denoiser; --dry-run needs none.")
            load_features(arguments.features, arguments.device)  # what is missing is said before the game
            target = load_target(names[0], arguments.data, presets[names[0]], arguments.features)
        costs = {name: preset_cost(preset) for name, preset in presets.items()}
        if arguments.dry_run:
            print_tables([cost_table(costs, presets, arguments.utilisation)])
            small = [name for name in names if name.startswith("cifar10")]
            dry_runs = {name: try_one(presets[name], arguments) for name in small}
            runs = []
        else:
            dry_runs = {}
            runs = [play(names[0], presets[names[0]], target, seed, arguments) for seed in arguments.seeds]
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, tried in dry_runs.items():
        print(f"{name}: one iteration with {tried['n_trajectories']} trajectories took {tried['seconds']:.1f} s")
    if is_main_process():
        for run in runs:
            print(f"seed {run['seed']}: {', '.join(f'{key} {number(value)}' for key, value in run['scores'].items())}")
        if arguments.json is not None:
            content = header(command_line(__file__, argv), arguments.device)
            counted = {
                name: dataclasses.asdict(cost) | {"hours": cost.hours(H100_FLOPS, arguments.utilisation)}
                for name, cost in costs.items()
            }
            write_json(arguments.json, content | {"costs": counted, "dry_runs": dry_runs, "runs": runs})
    return 0


def cost_table(costs: dict[str, PresetCost], presets: dict[str, PaperPreset], utilisation: float) -> Table:
    """What every preset takes."""
    header = [
        "preset", "images", "T", "batch", "iterations", "denoiser,\nparameters", "energy,\nparameters",
        "GFLOP\nper call", "state,\nGiB", "kept per\nrow, MiB", "TFLOP per\niteration", "hours,\none H100",
    ]  # fmt: skip
    body = []
    for name, cost in costs.items():
        preset, denoiser = presets[name], cost.networks["denoiser"]
        body.append([
            name, " x ".join(map(str, preset.event_shape)), str(preset.task["horizon"]), str(preset.n_trajectories),
            f"{preset.iterations:,}", compact(denoiser.parameters), compact(cost.networks["energy"].parameters),
            number(denoiser.flops / 1e9), number(cost.state_bytes / 2**30), number(denoiser.saved_bytes / 2**20),
            number(cost.iteration_flops / 1e12), number(cost.hours(H100_FLOPS, utilisation)),
        ])  # fmt: skip
    note = f"Counted, not measured; hours at {utilisation:.0%} of 989 TFLOP/s. What a row keeps is in 32 bits."
    return Table("the paper's games", header, body, 0, note)


def try_one(preset: PaperPreset, arguments: Arguments) -> dict[str, Any]:
    """One iteration at full size with random images and an untrained backbone."""
    rows = arguments.n_trajectories or FEW
    generator = torch.Generator().manual_seed(0)
    bytes_ = torch.randint(256, (2 * rows, *preset.event_shape), generator=generator, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, seeded(0):
        file = preset.make_backbone().save(Path(folder) / "backbone.safetensors")
        task = preset.make_task(ImageSet(bytes_, bytes_[:1]), file, device=arguments.device)
        game = make_game(task, preset, n_trajectories=rows)
    set_execution(game, precision=arguments.precision, rows_at_a_time=arguments.rows_at_a_time)
    started = time.perf_counter()
    game.learn(game.timesteps_per_iteration)
    return {"n_trajectories": rows, "seconds": time.perf_counter() - started, "losses": game.log}


def load_target(name: str, path: Path, preset: PaperPreset, features: str) -> ImageSet:
    """The images of a preset. Raises MissingDataError where they are not."""
    if name.startswith("cifar10"):
        return cifar10(str(path), features=features)
    size = preset.event_shape[1] if path.is_dir() else None
    return load_images(path, size=size, name=name.rsplit("-", 1)[0], features=features)


def play(name: str, preset: PaperPreset, target: ImageSet, seed: int, arguments: Arguments) -> dict[str, Any]:
    """One game to its end, begun or continued: scores, and its distances on the way."""
    assert arguments.denoiser is not None
    task = preset.make_task(target, arguments.denoiser, label=arguments.label, device=arguments.device)
    target, of_class = image_set(task), "" if arguments.label is None else f"_class{arguments.label}"
    checkpoint = arguments.folder / f"{name}{of_class}_{seed}.safetensors"
    begin = functools.partial(make_game, task, preset, seed=seed, n_trajectories=arguments.n_trajectories)
    game, curve = begin_or_continue(checkpoint, task, begin)
    rows = arguments.rows_at_a_time

    def run_in_parts(rows_at_a_time: int | None) -> None:
        set_execution(game, precision=arguments.precision, rows_at_a_time=rows_at_a_time, share=True)

    run_in_parts(rows)
    iterations = arguments.iterations or preset.iterations
    budget = iterations * game.timesteps_per_iteration

    def note(_: Agent) -> None:
        if game.num_timesteps < len(curve) * budget / POINTS:
            return
        run_in_parts(rows or preset.n_trajectories)  # many more rows than a game has at once
        x = game.sample(samples_of(target), seed=EVALUATION_SEED + len(curve))
        run_in_parts(rows)
        fd, costs = evaluation.image_distance(target, x), game.costs
        point = {"timesteps": costs.timesteps, "seconds": costs.seconds, "fd": fd, "features": target.features}
        curve.append(point)
        if is_main_process():
            print(f"{name}, seed {seed}: {game.num_timesteps / budget:.0%}, fd {number(fd)}", flush=True)
            write_json(curve_file(checkpoint), curve)
            save_tensors(checkpoint.with_suffix(".samples.safetensors"), {"x": x[:SHOWN]}, {"fd": fd})
            save_grid(x[:SHOWN], checkpoint.with_suffix(".png"))

    if not curve:
        note(game)
    if (left := budget - game.num_timesteps) > 0:
        kept = checkpoint if is_main_process() else None
        game.learn(
            left, reset_num_timesteps=False, checkpoint=kept, checkpoint_every=iterations,
            checkpoint_minutes=KEPT_MINUTES, callback=note, progress_bar=is_main_process(),
        )  # fmt: skip
    run_in_parts(rows or preset.n_trajectories)
    how = {"label": arguments.label, "features": target.features, "samples": arguments.samples}
    found = {"seed": seed, "iterations": iterations, "scores": score(game, seed, arguments.samples), "curve": curve}
    return found | how | {"costs": dataclasses.asdict(game.costs)}


def save_grid(x: torch.Tensor, file: Path) -> None:
    """Samples as a picture, eight in a row."""
    save_image, shown = require("torchvision.utils", "images").save_image, x.float().clamp(-1, 1) / 2 + 0.5
    write_atomically(file, lambda path: save_image(shown, path, format="png", nrow=8))


if __name__ == "__main__":
    sys.exit(main())
