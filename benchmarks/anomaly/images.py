"""Anomalies in images: which images, and where in them. The energy of a DxMI game beside PatchCore and PaDiM.

    python benchmarks/anomaly/images.py --seeds 0 1 2                          the textures
    python benchmarks/anomaly/images.py --sets "elpv mono" "elpv poly"
    python benchmarks/anomaly/images.py --mvtec FOLDER --sets "mvtec bottle"
    python benchmarks/anomaly/images.py --sets "texture brick" --methods energy patchcore --pictures docs/pictures

Sets: three textures with Perlin-noise defects, solar cells of two types (ELPV, no masks), and with ``--mvtec FOLDER``
or ``--visa FOLDER`` their categories. Every method but the controls scores the same maps, signed square
roots of EfficientNet-Lite0's features (``LAYERS``, images of ``SIZE`` or ``TEXTURE_SIZE`` pixels), and every map
becomes a score of its image in the same way (ImageDetector). A command that is stopped goes on with the next fit when
it is started again. Methods:

    energy                   EnergyDetector, one energy for all places, of at most ``ITERATIONS`` iterations
    energy, start            the same before the game: what the denoiser takes out
    energy, tau = 0          the game without entropy
    energy, Langevin         the same network and start, trained by persistent Langevin chains
    energy, NCE              the same, against a Gaussian
    gaussian                 one Gaussian for all places
    padim                    a Gaussian for every place
    patchcore                distance to the nearest of a coreset of places (a tenth; of many images a hundredth)
    pixels                   control: distance to the nearest training image of 32 x 32 pixels
    mean grey                control: distance to the mean grey of training images, and of every pixel to it

Keys of ``--json FILE``:

    command              the command line
    machine, versions    what it ran on
    methods              per method: its scores and seconds, means over sets of means over seeds
    sets                 per set: images {train, test, anomalous}, scores {method: {score: {iqm, ...}}}
    runs                 every fit: set, method, seed, scores (auroc and average_precision of images; pixel_auroc and
                         aupro where there are masks), feature_seconds, fit_seconds, score_seconds
"""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from benchmarks.anomaly.energies import ENERGIES
from benchmarks.run_cache import code_of, kept_result, run_file
from benchmarks.scripts import command_line, header
from dxmi_rl.agents import DxDP
from dxmi_rl.anomaly import (
    AnomalyImages,
    EnergyDetector,
    FeatureMaps,
    ImageDetector,
    OneGaussian,
    PaDiM,
    PatchCore,
    elpv,
    mvtec,
    per_region_overlap,
    textures,
    visa,
)
from dxmi_rl.anomaly.feature_maps import as_numbers
from dxmi_rl.anomaly.image_data import CELL_TYPES, TEXTURES
from dxmi_rl.benchmark.protocol import check_seeds
from dxmi_rl.benchmark.results import score_statistics
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.benchmark.tables import Table, number, print_tables, statistics_text
from dxmi_rl.utils.checks import DivergenceError, resolve_device
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.storage import load_tensors, save_tensors, write_json

LAYERS, SIZE, TEXTURE_SIZE = (2, 3), 256, 448
"""Images are resized before the network: textures, of 224 pixels, to twice their size."""
ITERATIONS = 300
CORESETS, MANY = (0.1, 0.01), 100
"""Parts that PatchCore keeps, two of its paper's, of few and of many training images: its fit is quadratic in them."""
CONTROLS = ["pixels", "mean grey"]
METHODS = [*ENERGIES, "gaussian", "padim", "patchcore", *CONTROLS]
CONTROL_SIZE = 32
SHOWN = 5
"""Test images whose maps are kept for pictures."""
SCORES = {
    "auroc": "detection\nAUROC ↑", "average_precision": "detection\nprecision ↑",
    "pixel_auroc": "localisation\nAUROC ↑", "aupro": "AUPRO ↑",
}  # fmt: skip
SECONDS = {"feature_seconds": "features", "fit_seconds": "to fit", "score_seconds": "to score"}


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    sets: tuple[str, ...] = tuple(f"texture {name}" for name in TEXTURES)
    """Which sets."""
    methods: tuple[str, ...] = ()
    """Which methods; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of splits, defects and methods."""
    mvtec: Path | None = None
    """Folder of MVTec-AD's categories."""
    visa: Path | None = None
    """Folder of VisA."""
    device: str = "cpu"
    """Torch device of network and energies."""
    folder: Path = Path("runs/anomaly_images")
    """Where finished runs are kept."""
    json: Path | None = None
    """File for the results."""
    pictures: Path | None = None
    """Folder for pictures of maps of the first seed."""


def all_sets(arguments: Arguments) -> dict[str, Callable[[int], AnomalyImages]]:
    """Builders of every set from a seed, by name; those of folders are the same for all."""
    found: dict[str, Callable[[int], AnomalyImages]] = {
        f"texture {name}": lambda seed, name=name: textures(name, seed=seed) for name in TEXTURES
    }
    found |= {f"elpv {cells}": lambda seed, cells=cells: elpv(cells, seed=seed) for cells in CELL_TYPES}
    for kind, folder, load in (("mvtec", arguments.mvtec, mvtec), ("visa", arguments.visa, visa)):
        if folder is not None:
            names = sorted(place.name for place in folder.iterdir() if place.is_dir() and place.name != "split_csv")
            found |= {
                f"{kind} {name}": lambda _, name=name, load=load, folder=folder: load(folder, name) for name in names
            }
    return found


class Remembered:
    """A network that computes the layers of a batch of images once, for all methods."""

    def __init__(self, size: int, device: str) -> None:
        self.maps = FeatureMaps(layers=LAYERS, size=size, device=device)
        self.known: dict[str, list[Tensor]] = {}
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Tensor]:
        """Layers of images ``[n, 3, height, width]`` in [-1, 1]."""
        key = hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()
        if key not in self.known:
            started = time.perf_counter()
            self.known[key] = [layer.cpu() for layer in self.maps.chosen_layers(x)]
            self.seconds += time.perf_counter() - started
        return [layer.to(x.device) for layer in self.known[key]]


def place_detector(name: str, seed: int, device: str, images: int) -> Any:
    """An unfitted detector of places, for so many training images."""
    if name in ENERGIES:
        settings = {"max_iterations": ITERATIONS, "whitening": True} | ENERGIES[name]
        return EnergyDetector(seed=seed, device=device, **settings)
    if name == "patchcore":
        return PatchCore(coreset=CORESETS[images > MANY], seed=seed)
    return {"gaussian": OneGaussian(), "padim": PaDiM(seed=seed)}[name]


def controls(name: str, data: AnomalyImages) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of images and pixels, larger for anomalies, that no network made."""
    train, test = (as_numbers(images).mean(1, keepdim=True) for images in (data.train, data.test))
    if name == "mean grey":
        grey = train.mean()
        return (test.mean((1, 2, 3)) - grey).abs().numpy(), (test[:, 0] - grey).abs().numpy()
    small = [
        torch.nn.functional.interpolate(part, size=(CONTROL_SIZE, CONTROL_SIZE), mode="bilinear", antialias=True)
        for part in (train, test)
    ]
    return torch.cdist(small[1].flatten(1), small[0].flatten(1)).min(1).values.numpy(), None


def shown_images(data: AnomalyImages) -> list[int]:
    """One normal test image, and anomalous ones from all over the set."""
    anomalous = np.flatnonzero(data.anomalous)
    spaced = anomalous[np.linspace(0, len(anomalous) - 1, SHOWN - 1).astype(int)]
    return [int(np.flatnonzero(~data.anomalous)[0]), *map(int, spaced)]


def fit(method: str, data: AnomalyImages, seed: int, network: Remembered) -> tuple[dict[str, Any], np.ndarray | None]:
    """Scores and seconds of one method, and its maps, larger for anomalies."""
    started = time.perf_counter()
    if method in CONTROLS:
        fitted = started
        scores, maps = controls(method, data)
    else:
        inner = place_detector(method, seed, str(network.maps.device), len(data.train))
        settings: dict[str, Any] = {"layers": range(len(LAYERS)), "size": None, "device": str(network.maps.device)}
        detector = ImageDetector(inner, network=network, **settings)
        detector.fit(data.train)
        fitted = time.perf_counter()
        maps = -detector.score_maps(data.test)
        scores = np.quantile(maps.reshape(len(maps), -1), detector.quantile, axis=1)
    seconds = {"fit_seconds": fitted - started, "score_seconds": time.perf_counter() - fitted}
    found = {
        "auroc": float(roc_auc_score(data.anomalous, scores)),
        "average_precision": float(average_precision_score(data.anomalous, scores)),
    }
    if maps is not None and data.masks is not None:
        found["pixel_auroc"] = float(roc_auc_score(data.masks.ravel(), maps.ravel()))
        found["aupro"] = per_region_overlap(data.masks, maps)
    return {"scores": found} | seconds, maps


CODE = code_of(Remembered, place_detector, controls, fit)
"""Digest of the code in this file that a result depends on."""


def size_of(name: str) -> int:
    """Pixels per side that the network sees of a set's images."""
    return TEXTURE_SIZE if name.startswith("texture") else SIZE


def folder_of(name: str, arguments: Arguments) -> Path | None:
    """Where the images of a set are, for those that you have in a folder."""
    return {"mvtec": arguments.mvtec, "visa": arguments.visa}.get(name.split()[0])


def result_file(folder: Path, name: str, method: str, seed: int, device: str, data: Path | None = None) -> Path:
    """Where the result of a fit is, or will be: its maps have another ending. ``data``: the folder of MVTec or VisA."""
    settings = {
        "set": name, "method": method, "seed": seed, "device": device, "energy": ENERGIES.get(method),
        "data": None if data is None else str(data.resolve()), "layers": LAYERS, "size": size_of(name),
        "iterations": ITERATIONS, "coresets": CORESETS, "many": MANY, "control_size": CONTROL_SIZE,
    }  # fmt: skip
    uses = (ImageDetector, PatchCore, EnergyDetector, DxDP, textures, per_region_overlap)
    return run_file(folder, settings, uses, CODE)


def run(
    name: str, load: Callable[[int], AnomalyImages], methods: Sequence[str], seed: int, device: str, folder: Path,
    advance: Callable[[], None] = lambda: None, data_folder: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Results of every method on one set, from its file or fitted now."""
    files = {method: result_file(folder, name, method, seed, device, data_folder) for method in methods}
    if any(not file.is_file() for file in files.values()):
        data, network = load(seed), Remembered(size_of(name), device)
        if any(method not in CONTROLS for method in methods):
            for images in (data.train, data.test):  # so that no method's seconds have them
                FeatureMaps(network, layers=(0,), device=device)(images)

    def fit_and_draw(method: str, file: Path) -> dict[str, Any]:
        with one_thread():
            result, maps = fit(method, data, seed, network)
        shown = shown_images(data)
        tensors = {"images": torch.from_numpy(data.test[shown])}
        if maps is not None:
            tensors["maps"] = torch.from_numpy(maps[shown]).float()
        if data.masks is not None:
            tensors["masks"] = torch.from_numpy(data.masks[shown])
        save_tensors(file.with_suffix(".safetensors"), tensors, {"set": name, "method": method})
        sizes = {"train": len(data.train), "test": len(data.test), "anomalous": int(data.anomalous.sum())}
        result = {"set": name, "method": method, "seed": seed, "images": sizes} | result
        return result | {"feature_seconds": 0.0 if method in CONTROLS else network.seconds}

    found = []
    for method, file in files.items():
        found.append(kept_result(file, functools.partial(fit_and_draw, method, file)))
        advance()
    return found


def describe(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sizes and scores of every set."""
    sets: dict[str, Any] = {}
    for result in runs:
        own = sets.setdefault(result["set"], {"images": result["images"], "scores": {}})
        own["scores"].setdefault(result["method"], []).append(result["scores"])
    for own in sets.values():
        for method, scores in own["scores"].items():
            own["scores"][method] = {key: score_statistics([one[key] for one in scores]) for key in scores[0]}
    return sets


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per method its means over sets of means over seeds; of a score over the sets that have it."""
    found: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(result["method"] for result in runs):
        own = [result | result["scores"] for result in runs if result["method"] == method]
        found[method] = {}
        for key in (*SCORES, *SECONDS):
            names = dict.fromkeys(result["set"] for result in own if key in result)
            if names:
                found[method][key] = fmean(fmean(one[key] for one in own if one["set"] == name) for name in names)
    return found


def set_table(name: str, found: dict[str, Any]) -> Table:
    """All methods on one set."""
    keys = [key for key in SCORES if any(key in scores for scores in found["scores"].values())]
    body = [[method, *(statistics_text(scores.get(key)) for key in keys)] for method, scores in found["scores"].items()]
    sizes = found["images"]
    note = (
        f"{sizes['train']} images to train on; {sizes['anomalous']} of {sizes['test']} test images are anomalous (with "
        "the first seed). Interquartile means over seeds with 95 % intervals."
    )
    return Table(name, ["method", *(SCORES[key] for key in keys)], body, len(keys), note)


def method_table(methods: dict[str, dict[str, float]]) -> Table:
    """Means over sets."""
    keys = [key for key in (*SCORES, *SECONDS) if any(key in scores for scores in methods.values())]
    header = [
        "method",
        *({**SCORES, **{key: f"seconds\n{text}" for key, text in SECONDS.items()}}[key] for key in keys),
    ]
    body = [
        [method, *(number(scores[key]) if key in scores else "" for key in keys)] for method, scores in methods.items()
    ]
    note = "Features are computed once for all methods; their seconds are not in the others."
    return Table("means over sets", header, body, len(keys) - len(SECONDS), note)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print, draw, write; 2 for arguments that are not allowed or images that are not there."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    methods = arguments.methods or tuple(METHODS)
    total = len(arguments.sets) * len(arguments.seeds) * len(methods)
    runs: list[dict[str, Any]] = []
    try:
        check_seeds(arguments.seeds)
        resolve_device(arguments.device)
        known = all_sets(arguments)
        for kind, names, allowed in (("set", arguments.sets, list(known)), ("method", methods, METHODS)):
            for name in names:
                if name not in allowed:
                    raise UnknownNameError(kind, name, allowed)
        with progress("fits", total) as advance:
            done = iter(range(1, total + 1))
            for seed in arguments.seeds:
                for name in arguments.sets:
                    runs += run(
                        name, known[name], methods, seed, arguments.device, arguments.folder,
                        lambda: advance(next(done)), folder_of(name, arguments),
                    )  # fmt: skip
    except (ValueError, TypeError, ImportError, OSError, DivergenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sets, by_method = describe(runs), summarise(runs)
    print_tables([*(set_table(name, found) for name, found in sets.items()), method_table(by_method)])
    if arguments.pictures is not None:
        from benchmarks.anomaly.pictures import draw_maps

        for name in arguments.sets:
            kept = {
                method: load_tensors(
                    result_file(
                        arguments.folder, name, method, arguments.seeds[0], arguments.device, folder_of(name, arguments)
                    ).with_suffix(".safetensors")
                )[0]
                for method in methods
            }
            draw_maps(name, kept, arguments.pictures / f"anomaly_{name.replace(' ', '_')}.png")
    if arguments.json is not None:
        content = header(command_line(__file__, argv), arguments.device)
        write_json(arguments.json, content | {"methods": by_method, "sets": sets, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
