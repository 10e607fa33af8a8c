"""scikit-learn's 1,797 handwritten digits, 8x8 grey images, as a data-only target."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.checks import MissingExtraError
from dxmi_rl.targets.base import Target


def load_digits_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (train images, train labels, test images, test labels): 1,437 and 360 images ``[n, 1, 8, 8]`` in [-1, 1].

    The split is stratified and fixed (random_state = 0). Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("target 'digits' needs scikit-learn: pip install scikit-learn.") from error
    bunch = load_digits()
    images = (bunch.images / 8 - 1).astype(np.float32)[:, None]
    split = train_test_split(images, bunch.target, test_size=360, random_state=0, stratify=bunch.target)
    train, test, train_labels, test_labels = (torch.from_numpy(np.ascontiguousarray(part)) for part in split)
    return train, train_labels, test, test_labels


class Digits(Target):
    """8x8 digits scaled to [-1, 1]; a data set, without an energy of its own."""

    has_data: ClassVar[bool] = True
    train_images: Tensor
    test_images: Tensor

    def __init__(self) -> None:
        train, test = (part.to(torch.get_default_dtype()) for part in load_digits_split()[::2])
        super().__init__((1, 8, 8), scale=float(train.std()), plot_range=(-1.0, 1.0))
        self.register_buffer("train_images", train)
        self.register_buffer("test_images", test)

    def _data(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.train_images.device
        return self.train_images[torch.randint(len(self.train_images), (n,), generator=generator, device=device)]

    def test_data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """All 360 test images, whatever ``n``."""
        return self.test_images
