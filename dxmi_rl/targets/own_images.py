"""Images of your own as a target: a folder of pictures, or an array file. They stay on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dxmi_rl.targets.base import MissingDataError
from dxmi_rl.targets.image_set import ImageSet, check_labels
from dxmi_rl.targets.stored import Bytes, StoredRows, is_channels_last, open_rows, unreadable, write_rows
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.storage import cache_is_a_help, cache_path, write_atomically

if TYPE_CHECKING:
    from PIL import Image

LARGEST_TEST = 10_000
"""Images of your own: a tenth is kept for tests, and at most so many."""
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
GREY_MODES = ("1", "L", "LA")
LANCZOS = 1
"""PIL's number of that filter, so that PIL is imported where it is used."""
IN_MEMORY = 2**30
"""A folder's images of at most so many bytes are used from memory where the cache cannot keep them."""


def load_images(
    path: str | os.PathLike[str], *, size: int | None = None, name: str = "images", features: str | None = None
) -> ImageSet:
    """Images of your own, such as ImageNet64 or LSUN: a folder of files, or bytes in an ``.npy`` or ``.npz`` file.

    A tenth of them, at most 10,000, chosen once, is the test set. Images stay on disk, and batches are read from there
    (StoredRows), so that a set may be larger than memory; only those of a compressed ``.npz`` file are held.

    Args:
        path: a folder with files bmp, jpeg, jpg, png or webp, also in folders of its own; they are read once and kept
            in the cache as one file, grey where all of them are. Or an array uint8 ``[rows, height, width, channels]``
            or ``[rows, channels, height, width]``: of an ``.npy`` file, or "images", "data" or "arr_0" of an ``.npz``
            file, whose "labels", if there are any, are the classes.
        size: height and width of images of a folder, which are cropped to the middle square and resized.
        name: the target's name.
        features: as for ImageSet.

    Raises MissingDataError when there is nothing readable or no room for a folder's images in the cache, ValueError for
    a folder without ``size`` (or a file with one), fewer than three images and arrays of other shapes, TypeError for
    other dtypes.
    """
    path, labels = Path(path), None
    rows: StoredRows | Bytes
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
    split = (None, None) if labels is None else (labels[train], labels[test])
    parts = [rows.chosen(part) if isinstance(rows, StoredRows) else rows[part] for part in (train, test)]
    return ImageSet(*parts, train_labels=split[0], test_labels=split[1], name=name, features=features)


def _read_arrays(path: Path) -> tuple[StoredRows | Bytes, NDArray[np.generic] | None]:
    """Images ``[rows, channels, height, width]`` and labels of an array file."""
    member, labels = _member(path) if path.suffix == ".npz" else (None, None)
    stored = open_rows(path, member)
    rows = _in_memory(path, member) if stored is None else stored
    check_labels(f"labels in {str(path)!r}", labels, len(rows))
    return rows, labels


def _member(path: Path) -> tuple[str, NDArray[np.generic] | None]:
    """What the images of an ``.npz`` file are called, and its labels."""
    try:
        with np.load(path, allow_pickle=False) as content:
            key = next((key for key in ("images", "data", "arr_0") if key in content), None)
            if key is None:
                raise ValueError(f"it has {sorted(content)}, and none of images, data, arr_0")
            return key, content.get("labels")
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(path, error) from error


def _in_memory(path: Path, member: str | None) -> Bytes:
    """Images of a file that has not one row after the other."""
    try:
        content = np.load(path, allow_pickle=False)
        rows: Bytes = content if member is None else content[member]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(path, error) from error
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2)) if is_channels_last(path, rows.shape) else rows


def _read_folder(path: Path, size: int) -> StoredRows | Bytes:
    """Images ``[rows, 1 or 3, size, size]``, in the order of their names; read once, and then from the cache."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise MissingDataError(f"folder {str(path)!r} has no image files ({', '.join(SUFFIXES)}).")
    listing = hashlib.sha256()
    for index, file in enumerate(files):
        found = file.stat()
        listing.update(f"{chr(10) * (index > 0)}{file.relative_to(path)} {found.st_size} {found.st_mtime_ns}".encode())
    key = {"folder": str(path.resolve()), "size": size, "files": listing.hexdigest(), "version": 2}
    kept = cache_path("images", key).with_suffix(".npy")
    with contextlib.suppress(MissingDataError, TypeError, ValueError):  # not there, or damaged
        if (rows := open_rows(kept)) is not None:
            return rows
    grey = all(_is_grey(file) for file in files)  # of pictures in colour, few are opened for this
    shape = (len(files), 1 if grey else 3, size, size)
    _check_room(kept.parent, int(np.prod(shape, dtype=np.int64)), path)

    def pictures() -> Iterator[Bytes]:
        for file in track(files, f"reading {path.name}"):
            yield _picture(file, size)[: shape[1]]

    with cache_is_a_help():
        write_atomically(kept, lambda file: write_rows(file, pictures(), shape))
        if (rows := open_rows(kept)) is not None:
            return rows
    return np.stack(list(pictures()))


def _check_room(cache: Path, needed: int, path: Path) -> None:
    """Raise MissingDataError where many images have no room in the cache; a few may stay in memory."""
    place = next(folder for folder in (cache, *cache.parents) if os.path.exists(folder))
    if needed > IN_MEMORY and (free := shutil.disk_usage(place).free) < needed:
        raise MissingDataError(
            f"images of folder {str(path)!r} take {needed / 2**30:.0f} GiB of the cache {str(cache)!r}, which has "
            f"{free / 2**30:.0f}: set DXMI_RL_CACHE to a folder with more room."
        )


def _is_grey(file: Path) -> bool:
    from PIL import Image

    with _said(file), Image.open(file) as picture:
        return picture.mode in GREY_MODES


def _picture(file: Path, size: int) -> Bytes:
    """``[3, size, size]``, on white where it is transparent."""
    from PIL import Image

    with _said(file), Image.open(file) as picture:
        clear = "A" in picture.getbands() or "transparency" in picture.info
        return square(on_white(picture) if clear else picture.convert("RGB"), size)


@contextlib.contextmanager
def _said(file: Path) -> Iterator[None]:
    """Raise MissingDataError for a file that is no image."""
    from PIL import Image

    try:
        yield
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise MissingDataError(f"{str(file)!r} is not a readable image: {error}. Remove it or get it anew.") from error


def square(picture: Image.Image, size: int) -> Bytes:
    """The middle square of an RGB picture, resized: ``[3, size, size]``."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    small = picture.crop((left, top, left + side, top + side)).resize((size, size), LANCZOS)
    return np.asarray(small).transpose(2, 0, 1)


def on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency, in RGB on a white square."""
    from PIL import Image

    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture.convert("RGBA"), ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")
