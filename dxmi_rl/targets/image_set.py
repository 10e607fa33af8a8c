"""Sets of images as targets."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from typing import ClassVar, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dxmi_rl.networks.features import FEATURES
from dxmi_rl.targets.base import Target, TargetError
from dxmi_rl.targets.stored import Bytes, StoredRows
from dxmi_rl.utils.checks import check_integer

LEVELS = 255
"""The largest byte, and the level that stands for 1 unless another is given."""

SCALE_ROWS = 10_000
"""At most so many training images, evenly spaced, give the scale."""
PART_NUMBERS = 2**25
"""Numbers that are read or scored at once where there are many images."""
HELD_BACK = 5
"""One training image of so many, in every class, is held back for choosing settings."""


class ImageSet(Target):
    """Images ``[rows, channels, height, width]`` as numbers in [-1, 1], split once into training and test images.

    They are kept as bytes, neither copied nor changed, so that copies of the target share them. ``scale`` is the
    standard deviation over training values, of at most 10,000 images.

    StoredRows, which ``load_images`` makes, stay on disk, whatever device the set is on: ``data`` and ``train_data``
    read the rows that they give. What takes more rows, digests and the scale, is computed in parts and kept in the
    cache. ``train_images`` and ``test_images`` are whole sets in memory.

    Args:
        train, test: uint8 tensors or arrays ``[rows, channels, height, width]`` of levels 0 to ``levels``, or
            StoredRows.
        train_labels, test_labels: class of every image, integers ``[rows]``, or None.
        levels: the level that stands for 1; level 0 stands for -1.
        scale: standard deviation of one value; None: measured.
        name: the target's name; None: "custom".
        features: the network whose features distances between images of this set use: "lite0", "inception" (FID, with
            weights of yours: ``dxmi_rl.networks.features.InceptionFeatures``), or for 8 x 8 digits "digits". None: the
            class's.

    Raises UnknownNameError for other features, TypeError or ValueError for other dtypes and shapes, fewer than two
    training images or no test image, values above ``levels``, training images that are all one value, and labels that
    are not one integer per image.
    """

    has_data: ClassVar[bool] = True
    task_kind: ClassVar[str | None] = "images"
    features: str = "lite0"
    """Name of the feature network (dxmi_rl.networks.features) that distances between images of this set use."""
    train_bytes: Tensor | StoredRows
    test_bytes: Tensor | StoredRows
    train_labels: Tensor | None
    test_labels: Tensor | None

    def __init__(
        self, train: Tensor | Bytes | StoredRows, test: Tensor | Bytes | StoredRows, *, train_labels: object = None,
        test_labels: object = None, levels: int = LEVELS, scale: float | None = None, name: str | None = None,
        features: str | None = None,
    ) -> None:  # fmt: skip
        rows, held = _check_images("train", train, minimum=2), _check_images("test", test, minimum=1)
        if rows.shape[1:] != held.shape[1:]:
            raise ValueError(f"test must have images of shape {list(rows.shape[1:])}, got {list(held.shape[1:])}.")
        whole = check_integer("levels", levels)
        for key, images in (("train", rows), ("test", held)):
            if whole < LEVELS and (largest := _largest(images)) > whole:
                raise ValueError(f"{key} must have values up to levels = {whole}, got {largest}.")
        if scale is None:
            scale = 2 / whole * _spread(rows)
            if not scale > 0:
                raise ValueError("train must not be images of one value: their standard deviation is 0.")
        super().__init__(tuple(rows.shape[1:]), scale=scale, plot_range=(-1.0, 1.0))
        if features is not None:
            FEATURES[features]  # an unknown name is refused
            if features == "digits" and rows.shape[1:] != (1, 8, 8):
                raise ValueError(f"features 'digits' are of images [1, 8, 8], got {list(rows.shape[1:])}.")
            self.features = features
        self.levels = whole
        self._digest: str | None = None
        self._test_digest: str | None = None
        if name is not None:
            self.name = name
        for key, images in (("train_bytes", rows), ("test_bytes", held)):
            if isinstance(images, Tensor):
                self.register_buffer(key, images, persistent=False)
            else:
                setattr(self, key, images)
        self.register_buffer("train_labels", check_labels("train_labels", train_labels, len(rows)), persistent=False)
        self.register_buffer("test_labels", check_labels("test_labels", test_labels, len(held)), persistent=False)

    def __deepcopy__(self, memo: dict[int, object]) -> ImageSet:
        twin = copy.copy(self)
        twin._buffers = dict(self._buffers)  # moving the twin to a device must not move this one
        return twin

    @property
    def metrics(self) -> tuple[str, ...]:
        """Distances between features of images."""
        return ("images",)

    def digest(self) -> str:
        """Sixteen hex digits of all training images, their levels and the scale; computed once."""
        if self._digest is None:
            self._digest = _digest(self.train_bytes, repr((self.event_shape, self.levels, self.scale)))
        return self._digest

    def test_digest(self) -> str:
        """Sixteen hex digits of all test images and their levels; computed once."""
        if self._test_digest is None:
            self._test_digest = _digest(self.test_bytes, repr((self.event_shape, self.levels)))
        return self._test_digest

    @property
    def train_images(self) -> Tensor:
        """All training images as numbers, ``[rows, *event_shape]``."""
        return self._numbers(self.train_bytes[:])

    @property
    def test_images(self) -> Tensor:
        """All test images as numbers, ``[rows, *event_shape]``."""
        return self._numbers(self.test_bytes[:])

    def train_data(self, n: int) -> Tensor:
        """The first ``n`` training images, or all where there are fewer."""
        return self._numbers(self.train_bytes[: check_integer("n", n)])

    def test_data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The first ``n`` test images, or all where there are fewer."""
        return self._numbers(self.test_bytes[: check_integer("n", n)])

    def parts(self, n: int, *, test: bool = False) -> Iterator[Tensor]:
        """The first ``n`` training images, or test images, in parts that fit memory: 256 images, or more small ones."""
        rows, step = self.test_bytes if test else self.train_bytes, rows_of_part(self.dim)
        for first in range(0, min(check_integer("n", n), len(rows)), step):
            yield self._numbers(rows[first : min(first + step, n)])

    def _data(self, n: int, generator: torch.Generator | None) -> Tensor:
        index = torch.randint(len(self.train_bytes), (n,), generator=generator, device=self.device)
        return self._numbers(self.train_bytes[index])

    @property
    def classes(self) -> int | None:
        """Number of classes, one more than the largest label of training images; None without labels."""
        return None if self.train_labels is None else int(self.train_labels.max()) + 1

    def labels_digest(self) -> str:
        """Sixteen hex digits of the classes of all training images. Raises TargetError without labels."""
        if self.train_labels is None:
            raise TargetError(f"target {self.name!r} has no labels.")
        return hashlib.sha256(self.train_labels.cpu().numpy().tobytes()).hexdigest()[:16]

    def labelled_data(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """As ``data``, with the class of every row ``[n]``. Raises TargetError without labels."""
        if self.train_labels is None:
            raise TargetError(f"target {self.name!r} has no labels.")
        index = torch.randint(len(self.train_bytes), (n,), generator=generator, device=self.device)
        return self._numbers(self.train_bytes[index]), self.train_labels[index]

    def of_class(self, label: int) -> ImageSet:
        """The images of one class as a set of their own, with the scale of all.

        Raises TargetError without labels or without two training and two test images of that class.
        """
        return self.of_classes((label,))

    def of_classes(self, labels: tuple[int, ...]) -> ImageSet:
        """The images of some classes as a set of their own, with the scale of all; itself where these are all.

        Raises TargetError as ``of_class``.
        """
        chosen = [check_integer("label", label, minimum=0) for label in labels]
        if self.train_labels is None or self.test_labels is None:
            raise TargetError(f"target {self.name!r} has no labels.")
        for label in chosen:
            train, test = (int((part == label).sum()) for part in (self.train_labels, self.test_labels))
            if min(train, test) < 2:
                raise TargetError(
                    f"label must be a class with two training and two test images, got {label}, of which target "
                    f"{self.name!r}, with {self.classes} classes, has {train} and {test}."
                )
        wanted = torch.tensor(chosen, device=self.device)
        own, held = torch.isin(self.train_labels, wanted), torch.isin(self.test_labels, wanted)
        if bool(own.all()) and bool(held.all()):
            return self
        parts = {"train_labels": self.train_labels[own].cpu(), "test_labels": self.test_labels[held].cpu()}
        found = ImageSet(
            _chosen(self.train_bytes, own, "cpu"), _chosen(self.test_bytes, held, "cpu"), **parts, levels=self.levels,
            scale=self.scale, name=f"{self.name} {', '.join(map(str, chosen))}", features=self.features,
        )  # fmt: skip
        return found.to(self.device)

    def validation_split(self) -> ImageSet:
        """The set to choose settings on, so that test images are seen once: training images alone, one in HELD_BACK of
        every class in the place of the test images. The split is fixed, the scale and the levels are those of all.

        Single images are drawn, so those of one emoji lie on both sides. The digits' features have seen all training
        images, so distances compare within the split only.

        Raises TargetError where a class has fewer than HELD_BACK training images.
        """
        rows = len(self.train_bytes)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(self.device)
        labels = torch.zeros_like(order) if self.train_labels is None else self.train_labels
        held = torch.zeros_like(order, dtype=torch.bool)
        for label in labels.unique():
            own = order[labels[order] == label]
            if len(own) < HELD_BACK:
                raise TargetError(
                    f"target {self.name!r} has too few training images to hold some back: {len(own)} of class "
                    f"{int(label)}, {HELD_BACK} are needed."
                )
            held[own[: len(own) // HELD_BACK]] = True
        found = copy.deepcopy(self)
        found.train_bytes, found.test_bytes = (
            _chosen(self.train_bytes, part, self.device) for part in (~held, held)
        )  # fmt: skip
        if self.train_labels is not None:
            found.train_labels, found.test_labels = self.train_labels[~held], self.train_labels[held]
        found._digest = found._test_digest = None
        return found

    def _numbers(self, rows: Tensor) -> Tensor:
        return rows.to(self.device).to(self.anchor.dtype).div_(self.levels / 2).sub_(1)  # of bytes: a tensor of its own


def rows_of_part(dim: int) -> int:
    """How many images of ``dim`` numbers are read or scored at once: a multiple of 256 that fits 128 MiB, or 256."""
    return max(1, PART_NUMBERS // dim // 256) * 256


def _check_images(name: str, rows: object, minimum: int) -> Tensor | StoredRows:
    if not isinstance(rows, (Tensor, np.ndarray, StoredRows)):
        raise TypeError(f"{name} must be a torch.Tensor, numpy array or StoredRows, got {type(rows).__name__}.")
    if rows.dtype not in (torch.uint8, np.uint8):
        raise TypeError(f"{name} must have dtype uint8, got {rows.dtype}.")
    if rows.ndim != 4 or len(rows) < minimum or 0 in rows.shape:
        shape = f"[rows, channels, height, width] with {minimum} or more rows"
        raise ValueError(f"{name} must have shape {shape}, got {list(rows.shape)}.")
    return torch.from_numpy(np.require(rows, np.uint8, ["C", "W"])) if isinstance(rows, np.ndarray) else rows


def _spread(rows: Tensor | StoredRows) -> float:
    """Standard deviation of the values of bytes ``[rows, ...]``, of at most SCALE_ROWS rows."""
    if isinstance(rows, StoredRows):
        return rows.kept("spread", {}, lambda: _measured_spread(rows))
    return _measured_spread(rows)


def _measured_spread(rows: Tensor | StoredRows) -> float:
    total, squares, count = 0.0, 0.0, 0
    step = math.ceil(len(rows) / SCALE_ROWS)
    for first in range(0, len(rows), 256 * step):
        values = rows[first : first + 256 * step : step].double()
        total, squares, count = (
            total + float(values.sum()),
            squares + float(values.square().sum()),
            count + values.numel(),
        )
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))


def _largest(rows: Tensor | StoredRows) -> int:
    return max(int(part.max()) for part in (rows.parts() if isinstance(rows, StoredRows) else [rows]))


def _digest(rows: Tensor | StoredRows, settings: str) -> str:
    """Sixteen hex digits of all rows and of ``settings``; those of rows on disk are kept."""

    def compute() -> str:
        found = hashlib.sha256()
        for part in rows.parts() if isinstance(rows, StoredRows) else [rows.cpu()]:
            found.update(part.flatten().numpy().data)
        found.update(settings.encode())
        return found.hexdigest()[:16]

    return rows.kept("digest", {"of": settings}, compute) if isinstance(rows, StoredRows) else compute()


def _chosen(rows: Tensor | StoredRows, wanted: Tensor, device: str | torch.device) -> Tensor | StoredRows:
    """The rows where ``wanted`` is true: on the device, or where they are on disk."""
    return rows.chosen(wanted) if isinstance(rows, StoredRows) else rows[wanted].to(device)


def check_labels(name: str, labels: object, rows: int) -> Tensor | None:
    """One integer per row, ``[rows]``, or None; raises ValueError for anything else."""
    if labels is None:
        return None
    found = np.asarray(labels)
    if found.dtype.kind not in "iu" or found.shape != (rows,):
        raise ValueError(f"{name} must be {rows} integers, got {found.dtype} of shape {list(found.shape)}.")
    return torch.from_numpy(found.astype(np.int64))


class Split(TypedDict):
    """Arguments of ImageSet."""

    train: Bytes
    test: Bytes
    train_labels: NDArray[np.integer]
    test_labels: NDArray[np.integer]


def stratified_split(images: Bytes, labels: NDArray[np.integer], test: int) -> Split:
    """``test`` images are kept for tests, chosen once, of every class alike."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(images, labels, test_size=test, random_state=0, stratify=labels)
    train, held, train_labels, test_labels = map(np.ascontiguousarray, parts)
    return {"train": train, "test": held, "train_labels": train_labels, "test_labels": test_labels}
