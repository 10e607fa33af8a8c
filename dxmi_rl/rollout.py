"""Whole episodes: the container of a batch of them, and the loop over t that makes one."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dxmi_rl.diffusion.gaussian import gaussian_log_prob, standard_log_prob

Episodes = tuple[list[Tensor], list[Tensor]]
"""All states and log-probabilities of a batch of episodes, step by step."""


@dataclass
class Trajectory:
    """A batch of n episodes, from step ``first`` on.

    Attributes:
        x: states, ``[T + 1, n, *event_shape]``; x[T] are the samples.
        log_prob: log pi(x_{t+1} | x_t) of the policy that played, ``[T, n]``.
        base_mean: ``GaussianPolicy.base_mean`` at every x_t, ``[T, n, ...]``; None for policies without one.
        first: the step that x[0] belongs to; 0 for whole episodes.
        energy: E(x_T), ``[n]``, where an agent has asked for it.
        value_gradient: targets for grad V_t(x_t), ``[T, n, *event_shape]``, where an agent has computed them.
    """

    x: Tensor
    log_prob: Tensor
    base_mean: Tensor | None = None
    first: int = 0
    energy: Tensor | None = None
    value_gradient: Tensor | None = None

    @property
    def horizon(self) -> int:
        """Number of its steps: T for whole episodes."""
        return len(self.x) - 1

    @property
    def n(self) -> int:
        """Number of episodes."""
        return self.x.shape[1]

    @property
    def final(self) -> Tensor:
        """x_T: ``[n, *event_shape]``."""
        return self.x[-1]

    @functools.cached_property
    def t(self) -> Tensor:
        """The step of every transition, time-major: ``[T n]``."""
        steps = torch.arange(self.first, self.first + self.horizon, device=self.x.device)
        return steps.repeat_interleave(self.n)

    def transitions(self) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, x_{t+1}, t) of all T n transitions, time-major: ``[T n, *event_shape]`` twice and ``[T n]``."""
        return self.x[:-1].flatten(0, 1), self.x[1:].flatten(0, 1), self.t

    def base_means(self) -> Tensor | None:
        """``base_mean`` of all transitions, time-major: ``[T n, ...]``, or None."""
        return None if self.base_mean is None else self.base_mean.flatten(0, 1)

    def select(self, episodes: Tensor | slice) -> Trajectory:
        """The episodes with these indices ``[k]``, which may repeat, or a slice of them."""
        energy = None if self.energy is None else self.energy[episodes]
        kept = [None if part is None else part[:, episodes] for part in (self.base_mean, self.value_gradient)]
        return Trajectory(self.x[:, episodes], self.log_prob[:, episodes], kept[0], self.first, energy, kept[1])

    def from_step(self, first: int) -> Trajectory:
        """The episodes without the steps before ``first``.

        Raises ValueError for a step that they do not have.
        """
        skipped = first - self.first
        if not 0 <= skipped < self.horizon:
            raise ValueError(f"first must lie in {self.first}..{self.first + self.horizon - 1}, got {first}.")
        kept = [None if part is None else part[skipped:] for part in (self.base_mean, self.value_gradient)]
        return Trajectory(self.x[skipped:], self.log_prob[skipped:], kept[0], first, self.energy, kept[1])

    def cat(self, other: Trajectory) -> Trajectory:
        """These episodes, then those of ``other``; what only one of them has recorded is left out.

        Raises ValueError for episodes of other steps.
        """
        if (self.first, self.horizon) != (other.first, other.horizon):
            steps = [f"{part.first}..{part.first + part.horizon - 1}" for part in (self, other)]
            raise ValueError(f"other must have the steps {steps[0]}, got {steps[1]}.")

        def joined(name: str, dim: int) -> Tensor | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else torch.cat([mine, theirs], dim)

        x, log_prob = torch.cat([self.x, other.x], dim=1), torch.cat([self.log_prob, other.log_prob], dim=1)
        return Trajectory(
            x, log_prob, joined("base_mean", 1), self.first, joined("energy", 0), joined("value_gradient", 1)
        )


class GaussianDensity(Protocol):
    """A Gaussian over the next state."""

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log standard deviation (broadcastable) of x_{t+1} given x_t."""


class TransportDensity(Protocol):
    """Any other density over the next state, given as a map from standard normal noise."""

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_{t+1} (shape of x) made from x_t and N(0, I) noise, and its log pi(x_{t+1} | x_t): ``[batch]``."""

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log pi(x_{t+1} | x_t): ``[batch]``."""


Policy = GaussianDensity | TransportDensity
"""What ``DenoisingMDP.rollout`` takes."""


def log_prob(policy: Any, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
    """log pi(x_{t+1} | x_t) of any policy: ``[batch]``."""
    if hasattr(policy, "transport"):
        found: Tensor = policy.log_prob(x, x_next, t)
        return found
    return gaussian_log_prob(x_next, *policy.moments(x, t))


def draw(policy: Any, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
    """x_{t+1} that any policy makes from x_t and N(0, I) noise, in the shape of x."""
    return draw_with_log_prob(policy, x, t, noise)[0]


def draw_with_log_prob(policy: Any, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """``draw``, and log pi(x_{t+1} | x_t) of it: ``[batch]``."""
    if hasattr(policy, "transport"):
        x_next, log_density = policy.transport(x, t, noise)
        return x_next, log_density
    mean, log_std = checked_moments(policy, x, t)
    return mean + log_std.exp() * noise, standard_log_prob(noise, log_std)


def checked_moments(policy: Any, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
    """``policy.moments``; raises TypeError or ValueError for an answer of another type, dtype, shape or device."""
    mean, log_std = policy.moments(x, t)
    _check_answer("means", mean, x.shape, x)
    _check_answer("log standard deviations", log_std, None, x)
    return mean, log_std


def play(policy: Any, start: Tensor, noises: Iterable[Tensor], *, whole: bool) -> Episodes:
    """All T + 1 states and T log-probabilities; without ``whole`` only [x_T], so that memory does not grow with T.

    Raises TypeError or ValueError for a policy's answer of another type, dtype, shape or device.
    """
    transported = hasattr(policy, "transport")
    log_probs: list[Tensor] = []
    x, states = start, [start]
    for t, noise in enumerate(noises):
        if transported:
            x, log_density = policy.transport(x, t, noise)
            _check_answer("log-probabilities", log_density, start.shape[:1], start)
        else:
            mean, log_std = checked_moments(policy, x, t)
            x = mean + log_std.exp() * noise
            log_density = standard_log_prob(noise, log_std) if whole else x
        _check_answer("states", x, start.shape, start)
        if whole:
            states.append(x)
            log_probs.append(log_density)
    return (states, log_probs) if whole else ([x], [])


def _check_answer(name: str, value: object, shape: torch.Size | None, start: Tensor) -> None:
    """Raise TypeError or ValueError unless ``value`` has this shape (None: one that broadcasts to ``start``'s), and the
    dtype and device of ``start``.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise TypeError(f"the policy's {name} must be a dense tensor, got {value!r}.")
    if shape is None:
        sizes = zip(reversed(value.shape), reversed(start.shape), strict=False)
        if value.dim() > start.dim() or any(size not in (1, full) for size, full in sizes):
            raise ValueError(f"the policy's {name} must broadcast to {list(start.shape)}, got {list(value.shape)}.")
    elif value.shape != shape:
        raise ValueError(f"the policy's {name} must have shape {list(shape)}, got {list(value.shape)}.")
    elif value.dtype != start.dtype:
        raise TypeError(f"the policy's {name} must have dtype {start.dtype}, got {value.dtype}.")
    if value.device != start.device:
        raise ValueError(f"the policy's {name} must be on device {str(start.device)!r}, got {str(value.device)!r}.")
