"""Images with known anomalies: MVTec-AD and VisA folders, ELPV solar cells, textures with Perlin-noise defects."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dxmi_rl.targets import MissingDataError
from dxmi_rl.targets.own_images import SUFFIXES
from dxmi_rl.utils.checks import check_integer, require
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.registry import UnknownNameError

if TYPE_CHECKING:
    from PIL import Image

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

TEXTURES = ["brick", "grass", "gravel"]
FOREIGN = ["astronaut", "camera", "chelsea", "coffee", "coins", "immunohistochemistry", "moon", "rocket"]
"""Photographs that defects are taken from, at their own scale."""
PERLIN_LEVEL = 0.4
"""A defect is where Perlin noise is larger."""
PERLIN_CELLS = (2, 3, 4)
"""Cells of the noise along one side of a texture image."""
AREA = (0.03, 0.3)
"""Parts of an image that a defect may cover."""
OPACITY = (0.7, 1.0)
"""Weight of the other photograph inside a defect."""
CELL_TYPES = ["mono", "poly"]
ELPV_BLOCK = 60
"""Solar cells of one type that stay on one side of the split: neighbours in the file are cut from one module."""
DEFECTIVE = 0.5
"""A cell with a larger probability of a defect counts as defective."""


@dataclass(frozen=True)
class AnomalyImages:
    """Normal images to train on, and normal and anomalous ones to score."""

    name: str
    train: Bytes
    """Normal images ``[n, 1 or 3, height, width]``."""
    test: Bytes
    """Images ``[m, 1 or 3, height, width]``."""
    anomalous: Flags
    """Which test images are, ``[m]``."""
    masks: Flags | None
    """Which of their pixels are, ``[m, height, width]``; None where nobody has marked them."""
    kinds: tuple[str, ...]
    """Kind of every test image, such as "good" or "crack"."""


# Folders of one's own -------------------------------------------------------------------------------------------------


def mvtec(folder: str | os.PathLike[str], category: str, *, size: int = 256) -> AnomalyImages:
    """One category of MVTec-AD (Bergmann et al. 2019), or of a folder laid out alike.

    ``category/train/good/*.png``, ``category/test/KIND/*.png`` with the normal KIND "good", and for every other image
    ``category/ground_truth/KIND/NAME_mask.png``, whose pixels above 0 are anomalous.

    Args:
        folder: where the categories are.
        category: such as "bottle".
        size: height and width that images and masks are resized to.

    Raises MissingDataError for what is not there, images that cannot be read, and masks that are missing or of another
    size than their image.
    """
    root = Path(folder) / category
    help_text = "Get MVTec-AD from https://www.mvtec.com/company/research/datasets/mvtec-ad and give its folder."
    train = _images_in(root / "train" / "good", help_text)
    files, masks, kinds = [], [], []
    for kind in sorted(place.name for place in _existing(root / "test", help_text).iterdir() if place.is_dir()):
        for file in _images_in(root / "test" / kind, help_text):
            files.append(file)
            kinds.append(kind)
            masks.append(None if kind == "good" else root / "ground_truth" / kind / f"{file.stem}_mask.png")
    return _from_files(f"mvtec {category}", train, files, masks, kinds, size)


def visa(folder: str | os.PathLike[str], category: str, *, size: int = 256) -> AnomalyImages:
    """One category of VisA (Zou et al. 2022), split as its ``split_csv/1cls.csv`` says.

    That table has columns object, split (train, test), label (normal, anomaly), image and mask, the last two relative
    to ``folder``, such as ``candle/Data/Images/Anomaly/000.JPG`` and ``candle/Data/Masks/Anomaly/000.png``. Arguments
    and errors are those of ``mvtec``; ValueError for a table without these columns.
    """
    root = Path(folder)
    help_text = "Get VisA from https://github.com/amazon-science/spot-diff and give its folder."
    table = _existing(root / "split_csv" / "1cls.csv", help_text)
    columns = {"object", "split", "label", "image", "mask"}
    with table.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if not columns <= set(reader.fieldnames or ()):
            raise ValueError(f"{str(table)!r} must have columns {sorted(columns)}, got {reader.fieldnames}.")
        rows = list(reader)
    known = sorted({row["object"] for row in rows})
    if category not in known:
        raise UnknownNameError("category of VisA", category, known)
    parts: dict[str, list[dict[str, str]]] = {
        part: [row for row in rows if row["object"] == category and row["split"] == part] for part in ("train", "test")
    }
    for part, own in parts.items():
        if not own:
            raise MissingDataError(f"{str(table)!r} has no rows of split {part!r} for {category!r}. {help_text}")
    train = [root / row["image"] for row in parts["train"] if row["label"] == "normal"]
    kinds = ["good" if row["label"] == "normal" else "anomaly" for row in parts["test"]]
    masks = [
        None if kind == "good" else root / (row["mask"] or f"a mask for {row['image']}")
        for row, kind in zip(parts["test"], kinds, strict=True)
    ]
    return _from_files(f"visa {category}", train, [root / row["image"] for row in parts["test"]], masks, kinds, size)


def _existing(place: Path, help_text: str) -> Path:
    if not place.exists():
        raise MissingDataError(f"{str(place)!r} is not there. {help_text}")
    return place


def _images_in(folder: Path, help_text: str) -> list[Path]:
    files = sorted(file for file in _existing(folder, help_text).iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise MissingDataError(f"folder {str(folder)!r} has no image files ({', '.join(SUFFIXES)}). {help_text}")
    return files


def _from_files(
    name: str, train: Sequence[Path], test: Sequence[Path], masks: Sequence[Path | None], kinds: Sequence[str],
    size: int,
) -> AnomalyImages:  # fmt: skip
    size = check_integer("size", size)
    normal = [_read(file, size)[0] for file in track(list(train), f"reading {name}")]
    images, marked = [], []
    for file, mask in track(list(zip(test, masks, strict=True)), f"reading {name}"):
        image, original = _read(file, size)
        images.append(image)
        marked.append(np.zeros((size, size), bool) if mask is None else _read_mask(mask, size, file, original))
    flags = np.array([kind != "good" for kind in kinds])
    return AnomalyImages(name, np.stack(normal), np.stack(images), flags, np.stack(marked), tuple(kinds))


def _opened(file: Path, what: str) -> Image.Image:
    """A picture, read whole."""
    from PIL import Image

    if not file.is_file():
        raise MissingDataError(f"{what} {str(file)!r} is not there.")
    try:
        with Image.open(file) as opened:
            picture: Image.Image = opened
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MissingDataError(f"{str(file)!r} is not a readable image: {error}. Get it anew.") from error


def _read(file: Path, size: int) -> tuple[Bytes, tuple[int, int]]:
    """An image ``[3, size, size]``, and its width and height in the file."""
    picture = _opened(file, "image")
    small = picture.convert("RGB").resize((size, size), 2, reducing_gap=None)  # 2: PIL's number of bilinear
    return np.asarray(small).transpose(2, 0, 1), picture.size


def _read_mask(file: Path, size: int, image: Path, wanted: tuple[int, int]) -> Flags:
    """Anomalous pixels ``[size, size]``: the nearest of the mask's."""
    picture = _opened(file, f"the mask of image {str(image)!r},")
    if picture.size != wanted:
        raise MissingDataError(
            f"mask {str(file)!r} is {picture.size[0]} x {picture.size[1]} pixels, but its image {str(image)!r} is "
            f"{wanted[0]} x {wanted[1]}."
        )
    marked: Flags = np.asarray(picture.convert("I")) > 0
    rows, columns = (np.arange(size) * length // size + length // (2 * size) for length in marked.shape)
    shown: Flags = marked[rows][:, columns]
    return shown


# Solar cells ----------------------------------------------------------------------------------------------------------


def elpv(
    cells: str = "mono", *, size: int = 128, seed: int = 0, folder: str | os.PathLike[str] | None = None
) -> AnomalyImages:  # fmt: skip
    """ELPV: electroluminescence images of solar cells (Deitsch et al. 2019), 300 x 300 grey, without masks.

    Blocks of ``ELPV_BLOCK`` neighbours in the file, all of one type, go to one side: half of them, drawn by ``seed``,
    train with their cells of defect probability 0; all cells of the others are scored, anomalous above ``DEFECTIVE``.
    (A random split has cells of every module on both sides, and pixels then give the answer. Which cells are of one
    module the file does not say: blocks have a module's size, and some cut one in two.)

    Args:
        cells: "mono" or "poly", the type of the modules.
        size: height and width.
        seed: of the split.
        folder: where ``labels.csv`` and ``images`` are (zae-bayern/elpv-dataset); None: those of the package
            elpv-dataset (extra ``anomaly``; its images are CC-BY-NC-SA).

    Raises UnknownNameError, MissingExtraError, MissingDataError for images that are missing or cannot be read.
    """
    if cells not in CELL_TYPES:
        raise UnknownNameError("type of solar cells", cells, CELL_TYPES)
    help_text = "Get it with pip install elpv-dataset, or from https://github.com/zae-bayern/elpv-dataset."
    if folder is None:
        folder = Path(str(require("elpv_dataset", "anomaly").__file__)).parent / "data"
    table = _existing(Path(folder) / "labels.csv", help_text)
    try:
        rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [(Path(folder) / file, float(defect), kind) for file, defect, kind in rows]
    except ValueError as error:
        raise MissingDataError(f"{str(table)!r} is not lines of file, probability and type: {error}.") from error
    own = [(file, defect) for file, defect, kind in found if kind == cells]
    blocks: list[tuple[int, int]] = []
    for stretch, (kind, neighbours) in enumerate(itertools.groupby(found, key=lambda row: row[2])):
        if kind == cells:
            blocks += [(stretch, place // ELPV_BLOCK) for place, _ in enumerate(neighbours)]
    block = np.unique(blocks, axis=0, return_inverse=True)[1].reshape(-1) if blocks else np.zeros(1, int)
    if len(own) == 0 or block[-1] == 0:
        raise MissingDataError(f"{str(table)!r} must have more than {ELPV_BLOCK} cells {cells!r}, got {len(own)}.")
    generator = np.random.default_rng(check_integer("seed", seed, minimum=0))
    trained = np.isin(block, generator.permutation(block[-1] + 1)[: (block[-1] + 1) // 2])
    probability = np.array([defect for _, defect in own])
    images = [_read(file, check_integer("size", size))[0][:1] for file, _ in track(own, f"reading elpv {cells}")]
    pixels = np.stack(images)
    kinds = tuple("good" if defect <= DEFECTIVE else "defect" for defect in probability[~trained])
    flags = np.array([kind != "good" for kind in kinds])
    return AnomalyImages(f"elpv {cells}", pixels[trained & (probability == 0)], pixels[~trained], flags, None, kinds)


# Textures -------------------------------------------------------------------------------------------------------------


def textures(
    name: str = "brick", *, size: int = 224, seed: int = 0, train: int = 40, normal: int = 40, defective: int = 40
) -> AnomalyImages:  # fmt: skip
    """Crops of a photograph of brick, grass or gravel (512 x 512 grey, scikit-image's), some with defects.

    The photograph is cut in halves (which way, and which half trains, goes by ``seed``): no pixel is on both sides.
    Defects are made as in DRAEM (Zavrtanik et al. 2021): where Perlin noise is above ``PERLIN_LEVEL``, a crop of
    another photograph (one of ``FOREIGN``) is blended in.

    Args:
        name: one of ``TEXTURES``.
        size: height and width, at most 256.
        seed: of the split, crops and defects.
        train, normal, defective: how many crops there are to train on, and of both kinds to score.

    Raises UnknownNameError, ValueError for sizes and numbers that are not allowed, MissingExtraError without
    scikit-image (extra ``anomaly``).
    """
    if name not in TEXTURES:
        raise UnknownNameError("texture", name, TEXTURES)
    photograph = _photograph(name)
    half = photograph.shape[0] // 2
    if check_integer("size", size, minimum=16) > half:
        raise ValueError(f"size must be <= {half}, got {size}.")
    for key, number in (("train", train), ("normal", normal), ("defective", defective)):
        check_integer(key, number)
    generator = np.random.default_rng(check_integer("seed", seed, minimum=0))
    turned = np.rot90(photograph, seed % 4)
    sides = [np.rot90(side, -(seed % 4)) for side in (turned[:, :half], turned[:, half:])]
    others = [_photograph(key) for key in FOREIGN]
    images = [_crop(sides[0], size, generator) for _ in range(train)]
    test = [_crop(sides[1], size, generator) for _ in range(normal + defective)]
    masks = np.zeros((normal + defective, size, size), bool)
    for index in range(normal, normal + defective):
        masks[index] = _defect_mask(size, generator)
        other = _crop(others[generator.integers(len(others))], size, generator)
        test[index] = _blended(test[index], other, masks[index], generator.uniform(*OPACITY))
    flags = np.arange(normal + defective) >= normal
    kinds = ("good",) * normal + ("defect",) * defective
    return AnomalyImages(f"texture {name}", np.stack(images)[:, None], np.stack(test)[:, None], flags, masks, kinds)


def _crop(photograph: Bytes, size: int, generator: np.random.Generator) -> Bytes:
    """A square somewhere, flipped or not."""
    top, left = (generator.integers(length - size + 1) for length in photograph.shape)
    crop = photograph[top : top + size, left : left + size]
    return crop[:: generator.choice([-1, 1]), :: generator.choice([-1, 1])]


def _blended(image: Bytes, other: Bytes, mask: Flags, opacity: float) -> Bytes:
    result = image.copy()
    result[mask] = np.rint((1 - opacity) * image[mask] + opacity * other[mask])
    return result


def _photograph(name: str) -> Bytes:
    """One of scikit-image's, in grey."""
    from PIL import Image

    return np.asarray(Image.fromarray(getattr(require("skimage.data", "anomaly"), name)()).convert("L"))


def _defect_mask(size: int, generator: np.random.Generator) -> Flags:
    """Where Perlin noise is above its level, drawn until it covers an allowed part of the image."""
    while True:
        cells = generator.choice(PERLIN_CELLS, 2)
        mask = perlin_noise(size, (int(cells[0]), int(cells[1])), generator) > PERLIN_LEVEL
        if AREA[0] <= mask.mean() <= AREA[1]:
            return mask


def perlin_noise(size: int, cells: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float64]:
    """Gradient noise ``[size, size]`` in [-1, 1] (Perlin 1985), zero at the corners of ``cells`` rows and columns."""
    angles = generator.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    y, x = (np.arange(size) * number / size for number in cells)
    row, column = y.astype(int)[:, None], x.astype(int)[None]
    dy, dx = y[:, None] - row, x[None] - column
    total: NDArray[np.float64] = np.zeros((size, size))
    for down in (0, 1):
        for right in (0, 1):
            angle = angles[row + down, column + right]
            slope = np.cos(angle) * (dx - right) + np.sin(angle) * (dy - down)
            weights = [_fade(d) if far else 1 - _fade(d) for d, far in ((dy, down), (dx, right))]
            total += slope * weights[0] * weights[1]
    return math.sqrt(2) * total


def _fade(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return t**3 * (t * (6 * t - 15) + 10)
