"""What a target is: a density to sample from, a data set to imitate, or both."""

from __future__ import annotations

import copy
import hashlib
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.checks import check_batch


class TargetError(ValueError):
    """A target was asked for something it does not have (an energy, a sampler, a data split)."""


class Target(nn.Module):
    """A density ``q(x) = exp(-E(x)) / Z`` or a data set over events of ``event_shape``.

    What a target has is said by the class attributes ``has_energy``, ``has_sampler`` and ``has_data``; asking for the
    rest raises TargetError. A target of your own sets those that it has to True, defines ``_energy(x)``,
    ``_sample(n, generator)`` or ``_data(n, generator)`` for them, and gives itself a ``name``.

    Attributes:
        event_shape: shape of one x, ``(dim,)`` or ``(channels, height, width)``.
        scale: typical standard deviation of one coordinate; networks divide their inputs by it.
        smallest_scale: standard deviation of the narrowest mode, or None when unknown.
        plot_range: (low, high) of every coordinate in pictures.
        log_z: log of the normaliser Z, or None when it is unknown.
    """

    name: str = "custom"
    has_energy: ClassVar[bool] = False
    has_sampler: ClassVar[bool] = False
    has_data: ClassVar[bool] = False

    def __init__(
        self,
        event_shape: tuple[int, ...],
        *,
        scale: float,
        plot_range: tuple[float, float],
        smallest_scale: float | None = None,
        log_z: float | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.scale = scale
        self.smallest_scale = smallest_scale
        self.plot_range = plot_range
        self.log_z = log_z

    @property
    def dim(self) -> int:
        """Number of coordinates of one x."""
        return math.prod(self.event_shape)

    def energy(self, x: Tensor) -> Tensor:
        """E(x) in nats: ``[batch, *event_shape] -> [batch]``. Raises TargetError when there is no energy."""
        if not self.has_energy:
            raise TargetError(f"target {self.name!r} is a data set and has no energy; train one (dxmi_rl.irl.DxMI).")
        return self._energy(check_batch("x", x, self.event_shape))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent samples ``[n, *event_shape]``. Raises TargetError when there is no exact sampler."""
        if not self.has_sampler:
            raise TargetError(f"target {self.name!r} has no exact sampler.")
        return self._sample(n, generator)

    def data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A training batch ``[n, *event_shape]``: rows of the training set with replacement, or exact samples."""
        if self.has_data:
            return self._data(n, generator)
        return self.sample(n, generator)

    def test_data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples to score against: exact ones, or a data set's own rows; override it where there is a test split."""
        return self.sample(n, generator) if self.has_sampler else self.data(n, generator)

    def digest(self) -> str:
        """Sixteen hex digits of 64 training rows at a fixed seed: tells targets of one name apart in caches."""
        if not (self.has_data or self.has_sampler):
            return ""
        rows = copy.deepcopy(self).to("cpu").data(64, torch.Generator().manual_seed(0))
        return hashlib.sha256(rows.double().numpy().tobytes()).hexdigest()[:16]

    def _energy(self, x: Tensor) -> Tensor:
        raise TargetError(f"target {self.name!r} has no energy.")

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise TargetError(f"target {self.name!r} has no exact sampler.")

    def _data(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise TargetError(f"target {self.name!r} has no data set.")
