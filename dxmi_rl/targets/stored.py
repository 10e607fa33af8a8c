"""Images that stay on disk: rows of bytes in an array file, read when they are asked for."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dxmi_rl.targets.base import MissingDataError
from dxmi_rl.utils.checks import check_integer
from dxmi_rl.utils.progress import track
from dxmi_rl.utils.storage import JSON, cache_is_a_help, cache_path, write_json

PART_BYTES = 2**26
"""About so many bytes are read at once where all rows are."""
Number = TypeVar("Number", str, float)
Bytes = NDArray[np.uint8]


class StoredRows:
    """Images ``[rows, channels, height, width]`` in a file, as bytes; what ``load_images`` gives an ImageSet.

    ``rows[index]`` reads these rows: a tensor uint8 on the CPU. The index is a slice, or integers or truth values as a
    tensor or array. Nothing is kept, so memory does not grow with the file. ``chosen(index)`` are these rows of the
    file, unread.

    Args:
        file: a file that has the rows one after the other.
        offset: where the first begins, in bytes.
        shape: ``(rows, channels, height, width)`` as they are in the file; with ``channels_last``
            ``(rows, height, width, channels)``.
        channels_last: channels are the last dimension there.

    Reading raises MissingDataError when the file is gone, or is not as it was.
    """

    dtype, ndim = torch.uint8, 4

    def __init__(
        self, file: str | os.PathLike[str], offset: int, shape: tuple[int, ...], *, channels_last: bool = False
    ) -> None:  # fmt: skip
        self.file, self.offset, self.channels_last = Path(file).resolve(), offset, channels_last
        self._row_shape = tuple(shape[1:])
        self._state = _state_of(os.stat(self.file))
        self.order: NDArray[np.int64] = np.arange(shape[0])
        """Which rows of the file these are."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, channels, height, width)``."""
        size = self._row_shape
        return (len(self), size[2], size[0], size[1]) if self.channels_last else (len(self), *size)

    def __getitem__(self, index: slice | Tensor | NDArray[Any]) -> Tensor:
        order = self._at(index)
        rows = torch.from_numpy(self._read(order))
        return rows.permute(0, 3, 1, 2).contiguous() if self.channels_last else rows

    def chosen(self, index: slice | Tensor | NDArray[Any]) -> StoredRows:
        """These rows alone; nothing is read."""
        found = object.__new__(StoredRows)
        found.__dict__ |= self.__dict__ | {"order": self._at(index)}
        return found

    def parts(self) -> Iterator[Tensor]:
        """All rows in order, in parts of about 64 MiB; with a bar."""
        step = max(1, PART_BYTES // math.prod(self._row_shape))
        for first in track(range(0, len(self), step), f"reading {self.file.name}"):
            yield self[first : first + step]

    def kept(self, what: str, settings: JSON, compute: Callable[[], Number]) -> Number:
        """A number or text that takes reading many rows: computed once for this file and these rows, and then from the
        cache.
        """  # fmt: skip
        order = hashlib.sha256(self.order.tobytes()).hexdigest()
        size, changed = self._state
        key = {"file": str(self.file), "size": size, "changed": changed, "offset": self.offset, "order": order}
        key |= {"shape": self.shape, "channels_last": self.channels_last, "what": what, "settings": settings}
        key = json.loads(json.dumps(key))
        try:
            place = cache_path("rows", key).with_suffix(".json")
            stored = json.loads(place.read_text(encoding="utf-8"))
            if stored["key"] == key:
                found: Number = stored["value"]
                return found
        except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged
            pass
        value = compute()
        with cache_is_a_help():
            write_json(cache_path("rows", key).with_suffix(".json"), {"key": key, "value": value})
        return value

    def _at(self, index: slice | Tensor | NDArray[Any]) -> NDArray[np.int64]:
        return self.order[index.cpu().numpy() if isinstance(index, Tensor) else index]

    def _read(self, order: NDArray[np.int64]) -> Bytes:
        rows = np.empty((len(order), *self._row_shape), np.uint8)
        length = math.prod(self._row_shape)
        try:
            with self.file.open("rb", buffering=0) as file:
                if _state_of(os.fstat(file.fileno())) != self._state:
                    raise MissingDataError(f"{str(self.file)!r} has changed since it was opened: load it again.")
                for row, place in zip(rows.reshape(len(order), length), order.tolist(), strict=True):
                    file.seek(self.offset + place * length)
                    if file.readinto(row.data) != length:
                        raise MissingDataError(f"{str(self.file)!r} ends before its last image: make it again.")
        except OSError as error:
            raise MissingDataError(f"{str(self.file)!r} cannot be read: {error}.") from error
        return rows


def _state_of(found: os.stat_result) -> tuple[int, int]:
    """Size and time of the last change."""
    return found.st_size, found.st_mtime_ns


def open_rows(path: Path, member: str | None = None) -> StoredRows | None:
    """The images of an ``.npy`` file, or of a ``member`` of an ``.npz`` file, where they are.

    None for what is no plain sequence of rows: compressed, or in Fortran's order. Raises MissingDataError for a damaged
    file, TypeError for other dtypes and ValueError for other shapes than images have.
    """
    try:
        with path.open("rb") as file:
            if member is not None and not _to_member(file, path, f"{member}.npy"):
                return None
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset, end = file.tell(), file.seek(0, os.SEEK_END)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from error
    if dtype != np.uint8:
        raise TypeError(f"images in {str(path)!r} must have dtype uint8, got {dtype}.")
    channels_last = is_channels_last(path, shape)
    if fortran:
        return None
    if end < offset + math.prod(shape):
        raise unreadable(path, f"it ends before the last of {shape[0]} images")
    return StoredRows(path, offset, shape, channels_last=channels_last)


def unreadable(path: Path, reason: object) -> MissingDataError:
    """The error for a damaged file of arrays."""
    return MissingDataError(f"{str(path)!r} is not a readable file of arrays: {reason}.")


def is_channels_last(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether images of this shape have their channels last. Raises ValueError for a shape that images do not have."""
    if len(shape) != 4 or (shape[1] not in (1, 3) and shape[3] not in (1, 3)):
        raise ValueError(f"images in {str(path)!r} must be [rows, height, width, 1 or 3], got {list(shape)}.")
    return shape[1] not in (1, 3)


def _to_member(file: BinaryIO, path: Path, name: str) -> bool:
    """Go to where an uncompressed member of a zip file begins; False for a compressed one."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        return False
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise ValueError(f"its member {name!r} is damaged")
    file.seek(sum(struct.unpack_from("<HH", header, 26)), os.SEEK_CUR)
    return True


def write_rows(path: Path, rows: Iterable[Bytes], shape: tuple[int, ...]) -> None:
    """Write images one by one as an ``.npy`` file of bytes. Raises ValueError for another number of them."""
    count = 0
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(check_integer("shape", n, 0) for n in shape)}
        np.lib.format.write_array_header_2_0(file, header)
        for row in rows:
            file.write(np.ascontiguousarray(row, np.uint8).data)
            count += 1
    if count != shape[0]:
        raise ValueError(f"rows must be {shape[0]}, got {count}.")
