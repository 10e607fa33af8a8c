"""scikit-learn's 1,797 handwritten digits, 8x8 grey images, as a data-only target."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.targets.image_set import ImageSet, stratified_split
from dxmi_rl.utils.checks import MissingExtraError

LEVELS = 16


def load_digits_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (train images, train labels, test images, test labels): 1,437 and 360 images ``[n, 1, 8, 8]`` in [-1, 1].

    The split is stratified and fixed (random_state = 0). Raises MissingExtraError without scikit-learn.
    """
    digits = Digits()
    assert digits.train_labels is not None and digits.test_labels is not None
    return digits.train_images, digits.train_labels, digits.test_images, digits.test_labels


class Digits(ImageSet):
    """8x8 digits scaled to [-1, 1]; a data set, without an energy of its own.

    1,437 training and 360 test images; the split is stratified and fixed. Raises MissingExtraError without
    scikit-learn.
    """

    task_kind: ClassVar[str | None] = "digits"
    features = "digits"

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingExtraError("target 'digits' needs scikit-learn: pip install scikit-learn.") from error
        bunch = load_digits()
        parts = stratified_split(bunch.images.astype(np.uint8)[:, None], bunch.target, 360)
        values = torch.from_numpy(parts["train"]).to(torch.get_default_dtype()) * (2 / LEVELS) - 1
        super().__init__(**parts, levels=LEVELS, scale=float(values.std()))
