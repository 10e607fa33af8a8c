"""What a target is: a density to sample from, a data set to imitate, or both."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.utils.checks import check_batch, check_integer, check_real


class TargetError(ValueError):
    """A target was asked for something it does not have (an energy, a sampler, a data split)."""


class MissingDataError(TargetError):
    """A data set that is not on this machine, or a damaged one; the message says how to get it."""


@dataclass(frozen=True)
class Modes:
    """The modes of a target.

    Attributes:
        centers: ``[K, dim]``.
        std: standard deviation of one coordinate within a mode.
        weights: probability of every mode, ``[K]``, summing to one.
    """

    centers: Tensor
    std: float
    weights: Tensor


class Target(nn.Module):
    """A density ``q(x) = exp(-E(x)) / Z`` or a data set over events of ``event_shape``.

    A target of your own is a subclass that states:

    - what it has, by the class attributes ``has_energy``, ``has_sampler`` and ``has_data``. It sets those to True and
      defines ``_energy(x)``, ``_sample(n, generator)`` or ``_data(n, generator)``; asking for the rest raises
      TargetError.
    - its ``name``, and in ``__init__`` its shape, scales and log Z; rows of data are a buffer. Samples are drawn with
      ``generator``, on ``self.device`` and in the dtype of ``self.anchor``, without branches or masks that depend on
      values.
    - how samplers are scored on it, by ``metrics``. This follows from the rest: sliced W2 and MMD where it has samples
      or data (``heavy_tailed = True``: MMD and quantiles), the number of modes where it defines ``modes``, and the
      scores of ``own_scores`` where it defines these. Override ``metrics`` for others, such as those of images.
    - what a task on it is by default, by ``task_kind``, where that does not follow from what it has.

    Nothing else has to be changed for it: evaluation, floors and tasks ask the target.

    Attributes:
        event_shape: shape of one x, ``(dim,)`` or ``(channels, height, width)``.
        scale: typical standard deviation of one coordinate (root mean square over coordinates); networks divide their
            inputs by it. Heavy tails (funnel10, mos10): half the width of the central 68.27 % interval instead.
        smallest_scale: standard deviation of the narrowest mode, or None when unknown.
        plot_range: (low, high) of every coordinate in pictures; typical coordinates where there are more than two.
        log_z: log of the normaliser Z, or None when it is unknown.
        options: the options that ``make_target`` passed to the builder.
        heavy_tailed: whether W2 and moments of finite samples say nothing: only MMD and quantiles are scored.
        task_kind: a name of ``dxmi_rl.tasks.DEFAULTS``, the settings of a task on it; None: "energy" or "data", after
            what it has.

    Raises TypeError or ValueError for an empty event_shape or one with other than positive integers, scales that are
    not positive and a plot_range that is not a finite (low, high).
    """

    name: str = "custom"
    has_energy: ClassVar[bool] = False
    has_sampler: ClassVar[bool] = False
    has_data: ClassVar[bool] = False
    heavy_tailed: ClassVar[bool] = False
    task_kind: ClassVar[str | None] = None
    anchor: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scale: float,
        plot_range: tuple[float, float],
        smallest_scale: float | None = None,
        log_z: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(event_shape, str) or not isinstance(event_shape, Sequence) or not event_shape:
            raise TypeError(f"event_shape must be a tuple of positive integers, got {event_shape!r}.")
        self.event_shape = tuple(check_integer("every entry of event_shape", size) for size in event_shape)
        self.scale = check_real("scale", scale, strict=True)
        if smallest_scale is not None:
            smallest_scale = check_real("smallest_scale", smallest_scale, strict=True)
            if smallest_scale > 1.001 * self.scale:  # equal ones may differ by rounding
                raise ValueError(f"smallest_scale must be at most scale, {self.scale:g}, got {smallest_scale:g}.")
        self.smallest_scale = smallest_scale
        self.plot_range = _check_range("plot_range", plot_range)
        self.log_z = log_z
        self.options: dict[str, object] = {}
        # A tensor that every target has, so that it knows its device and dtype after .to(...).
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where energies are computed and samples are drawn."""
        return self.anchor.device

    @property
    def dim(self) -> int:
        """Number of coordinates of one x."""
        return math.prod(self.event_shape)

    @property
    def has_samples(self) -> bool:
        """It has an exact sampler or a data set: samples can be compared with samples."""
        return self.has_sampler or self.has_data

    @property
    def modes(self) -> Modes | None:
        """Where its modes are; None where that is unknown or there are too many to count."""
        return None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that samples are scored by, of ``dxmi_rl.evaluation.METRICS``."""
        names: list[str] = []
        if self.has_samples:
            names += ["mmd", "quantile_error"] if self.heavy_tailed else ["sliced_w2", "mmd"]
        if self.modes is not None:
            names.append("modes")
        if type(self).own_scores is not Target.own_scores:
            names.append("own")
        return tuple(names)

    def own_scores(self, x: Tensor) -> dict[str, float]:
        """Scores of samples ``[n, *event_shape]`` that this target alone can compute, by name; none by default."""
        return {}

    def energy(self, x: Tensor) -> Tensor:
        """E(x) in nats and the dtype of x: ``[batch, *event_shape] -> [batch]``.

        Raises TargetError when there is no energy, TypeError or ValueError for what is no such batch.
        """
        if not self.has_energy:
            raise TargetError(f"target {self.name!r} is a data set and has no energy; train one (dxmi_rl.irl.DxMI).")
        return self._energy(check_batch("x", x, self.event_shape))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact independent samples ``[n, *event_shape]``, in no order. Raises TargetError when there is no sampler.

        ``generator`` lives on the target's device; None is torch's global one.
        """
        if not self.has_sampler:
            raise TargetError(f"target {self.name!r} has no exact sampler, or the track of its task hides it.")
        return self._sample(check_integer("n", n), _check_generator(generator))

    def data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """A training batch ``[n, *event_shape]``: rows of the training set with replacement, or exact samples."""
        if self.has_data:
            return self._data(check_integer("n", n), _check_generator(generator))
        return self.sample(n, generator)

    def test_data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples to score against: exact ones, or a data set's own rows; override it where there is a test split.

        ``generator`` as of ``sample``, but None: always the same ones.
        """
        if generator is None:
            generator = torch.Generator(self.device).manual_seed(0)
        return self.sample(n, generator) if self.has_sampler else self.data(n, generator)

    def digest(self) -> str:
        """Sixteen hex digits that tell targets of one name apart in caches and checkpoints.

        They are those of 64 training rows or samples at a fixed seed; without both, of the energies at 64 normal points
        with standard deviation ``scale``. What is computed counts with three significant digits, so that machines
        whose last bits differ agree; energies that differ between two calls, as those of a noisy simulator, do not
        count. For a data set of your own its buffers count, too. Empty for a target that has nothing.
        """
        if not self.has_samples:
            return digest_of_function(self.energy, self) if self.has_energy else ""
        values = copy.deepcopy(self).to("cpu").data(64, torch.Generator().manual_seed(0)).double()
        if not self.has_data:
            text = " ".join(f"{value:.2e}" for value in values.flatten().tolist())
            return hashlib.sha256(text.encode()).hexdigest()[:16]
        content = values.numpy().tobytes()
        if not type(self).__module__.startswith("dxmi_rl."):  # few of its rows are among 64 draws
            content += b"".join(buffer.cpu().double().numpy().tobytes() for buffer in self.buffers())
        return hashlib.sha256(content).hexdigest()[:16]

    def _energy(self, x: Tensor) -> Tensor:
        raise TargetError(f"target {self.name!r} has no energy.")

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise TargetError(f"target {self.name!r} has no exact sampler.")

    def _data(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise TargetError(f"target {self.name!r} has no data set.")


def _check_range(name: str, value: object) -> tuple[float, float]:
    try:
        low, high = map(float, value)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be two numbers (low, high), got {value!r}.") from error
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"{name} must be finite (low, high) with low < high, got {value!r}.")
    return low, high


def _check_generator(generator: object) -> torch.Generator | None:
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}.")
    return generator


def digest_of_function(function: Callable[[Tensor], Tensor], target: Target) -> str:
    """Sixteen hex digits of a function's values at 64 normal points of the target's scale, in three digits.

    One whose values differ between two calls counts as random, whatever they are, and so does one that fails there.
    """
    x = target.scale * torch.randn(64, *target.event_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            calls = [function(x.to(target.anchor, copy=True)).double().tolist() for _ in range(2)]
        except Exception:
            calls = [[0.0], [1.0]]
    first, second = (" ".join(f"{value:.2e}" for value in values) for values in calls)
    return hashlib.sha256((first if first == second else "random").encode()).hexdigest()[:16]
