"""Targets of the user: an energy of their own, or a data set of their own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dxmi_rl.targets.base import Target, TargetError
from dxmi_rl.utils.checks import NonFiniteError, check_integer, check_real
from dxmi_rl.utils.torch_tools import evaluation_mode

TEST_FROM = 100
"""Data sets of at least this many rows keep a tenth of them for testing."""


class EnergyTarget(Target):
    """The density exp(-E(x)) / Z of an energy of your own; there are no samples.

    Args:
        energy: module or function ``[batch, *event_shape] -> [batch]`` in nats, differentiable for agents that need
            its gradient. A module becomes a submodule, moves with ``.to(device)`` and is called in eval mode.
        event_shape: shape of one x.
        scale: typical standard deviation of one coordinate of samples.
        plot_range: (low, high) of typical coordinates; None: four times ``scale`` about 0.
        smallest_scale: standard deviation of the narrowest mode, where ladders from scratch end; None when unknown.
        log_z: log Z in nats, with which scores have ``kl_bound``; None when unknown.

    Raises TypeError or ValueError for arguments of another kind. Calling ``energy`` raises TargetError when it does
    not return floating numbers ``[batch]``.
    """

    has_energy: ClassVar[bool] = True

    def __init__(
        self,
        energy: Callable[[Tensor], Tensor],
        event_shape: Sequence[int],
        *,
        scale: float = 1.0,
        plot_range: tuple[float, float] | None = None,
        smallest_scale: float | None = None,
        log_z: float | None = None,
    ) -> None:
        if not callable(energy):
            raise TypeError(f"energy must be a module or function, got {energy!r}.")
        scale = check_real("scale", scale, strict=True)
        if plot_range is None:
            plot_range = (-4 * scale, 4 * scale)
        log_z = None if log_z is None else check_real("log_z", log_z, -math.inf)
        super().__init__(event_shape, scale=scale, smallest_scale=smallest_scale, plot_range=plot_range, log_z=log_z)
        self.function = energy

    def _energy(self, x: Tensor) -> Tensor:
        with evaluation_mode(self.function):
            value = self.function(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            found = str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
            if isinstance(value, Tensor) and value.shape == (len(x), 1):
                found += ": return value.squeeze(1)"
            elif isinstance(value, np.ndarray):
                found += ": return torch.from_numpy(value)"
            raise TargetError(f"the energy must return a tensor of shape [{len(x)}], got {found}.")
        if not value.dtype.is_floating_point:
            raise TargetError(f"the energy must return floating numbers, got {value.dtype}.")
        return value.to(x.dtype)


class DataTarget(Target):
    """A data set of your own: rows ``[rows, *event_shape]``, without an energy.

    From 100 rows on, a tenth of them, drawn once with a fixed seed, is kept for ``test_data`` and never trained on;
    below, training and test rows are the same. ``scale`` is the standard deviation over all training values (for
    vectors: the root mean square over coordinates of theirs), ``plot_range`` spans the central 99.8 % of the values,
    a tenth wider at both ends for vectors.

    Args:
        data: floating tensor or array ``[rows, *event_shape]``, finite, two rows or more. Copied, in the default
            dtype (float64 is narrowed to float32 unless that is the default).

    Raises TypeError for other types and dtypes, ValueError for other shapes and for rows that are all the same,
    NonFiniteError for NaN or infinite values.
    """

    has_data: ClassVar[bool] = True
    train_rows: Tensor
    test_rows: Tensor

    def __init__(self, data: Tensor | np.ndarray) -> None:
        if not isinstance(data, (Tensor, np.ndarray)):
            raise TypeError(f"data must be a torch.Tensor or numpy array, got {type(data).__name__}.")
        if np.ma.is_masked(data):
            raise TypeError("data must have no masked cells: fill them in, or leave their rows out.")
        if not (data.dtype.is_floating_point if isinstance(data, Tensor) else data.dtype.kind == "f"):
            raise TypeError(f"data must have a floating dtype, got {data.dtype}.")
        rows = data.detach().cpu().clone() if isinstance(data, Tensor) else torch.from_numpy(np.array(data, float))
        if rows.dim() < 2 or len(rows) < 2 or rows[0].numel() == 0:
            raise ValueError(f"data must have shape [rows, *event_shape] with 2 rows or more, got {list(rows.shape)}.")
        rows = rows.to(torch.get_default_dtype())
        if not bool(rows.isfinite().all()):
            raise NonFiniteError(f"data must be finite: {int((~rows.isfinite()).sum())} of its values are not.")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        kept = len(rows) // 10 if len(rows) >= TEST_FROM else 0
        train, test = rows[order[kept:]], rows[order[:kept]] if kept else rows
        vectors = rows.dim() == 2
        values = train.double()
        scale = float(values.var(0, correction=0).mean().sqrt() if vectors else values.std(correction=0))
        if scale == 0:
            raise ValueError("data must not be copies of one row: its standard deviation is 0.")
        low, high = np.quantile(values.numpy(), [0.001, 0.999])
        if low == high:  # nearly all values are the same, as in images with few lit pixels
            low, high = float(values.min()), float(values.max())
        margin = 0.1 * (high - low) if vectors else 0.0
        super().__init__(tuple(rows.shape[1:]), scale=scale, plot_range=(float(low - margin), float(high + margin)))
        self.register_buffer("train_rows", train)
        self.register_buffer("test_rows", test)

    def _data(self, n: int, generator: torch.Generator | None) -> Tensor:
        index = torch.randint(len(self.train_rows), (n,), generator=generator, device=self.train_rows.device)
        return self.train_rows[index]

    def test_data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The first ``n`` rows of the test split, or all of it where it has fewer; always the same ones."""
        return self.test_rows[: check_integer("n", n)]

    def digest(self) -> str:
        """Sixteen hex digits of all training rows."""
        return hashlib.sha256(self.train_rows.cpu().double().numpy().tobytes()).hexdigest()[:16]
