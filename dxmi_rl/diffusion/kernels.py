"""Backward kernels qb(x_t | x_{t+1}), the paper's auxiliary distribution: Brownian with AVR, Forward, Learned."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.checks import NonFiniteError, check_integer, check_real
from dxmi_rl.diffusion.schedules import Schedule, per_step
from dxmi_rl.networks import StepMLP
from dxmi_rl.registry import Registry

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_LOST = "the backward kernel cannot be fitted to these transitions, which are too large (or all zero)"


def gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, diag exp(2 log_std)) summed over the event: ``[batch, *event] -> [batch]``; log_std broadcasts."""
    return standard_log_prob((x - mean) * torch.exp(-log_std), log_std)


def standard_log_prob(z: Tensor, log_std: Tensor | float) -> Tensor:
    """The same for z = (x - mean) / std, ``[batch, *event]``: the density of x, not of z."""
    rows = z.flatten(1)
    dim = rows.shape[1]
    # A product with a constant vector sums twice as fast as .sum(1), which is most of the cost of a step in the plane.
    log_density = torch.mv(rows.square(), rows.new_full((dim,), -0.5))
    if not isinstance(log_std, Tensor) or log_std.dim() == 0:
        return log_density - dim * (log_std + HALF_LOG_TWO_PI)
    return log_density - (log_std.expand_as(z).flatten(1).sum(1) + dim * HALF_LOG_TWO_PI)


class BackwardKernel(nn.Module):
    """qb(x_t | x_{t+1}) = N(mean, diag std^2); subclasses give ``moments`` and, when they adapt, ``fit``."""

    horizon: int
    optimizer: torch.optim.Optimizer | None = None

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log standard deviation (broadcastable) of x_t given x_{t+1}."""
        raise TypeError(f"{type(self).__name__} must define moments.")

    def log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """log qb(x_t = x_prev | x_{t+1} = x_next): ``[batch]``, in nats, summed over dimensions."""
        mean, log_std = self.moments(x_next, t)
        return gaussian_log_prob(x_prev, mean, log_std)

    def sample(self, x_next: Tensor, t: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x_t given x_{t+1}, the shape of x_next."""
        mean, log_std = self.moments(x_next, t)
        noise = torch.randn(x_next.shape, generator=generator, device=x_next.device, dtype=x_next.dtype)
        return mean + log_std.exp() * noise

    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        """Adapt to transitions ``[batch, *event]`` at steps t ``[batch]``; kernels without parameters do nothing.

        Raises NonFiniteError for transitions so large that the fit is not finite; the kernel is then as it was.
        """

    def set_progress(self, progress: float) -> None:
        """Told by agents: the fraction of training that is done, 0..1, for learning-rate schedules."""


class Brownian(BackwardKernel):
    """N(x_{t+1}, s_t^2 I) with adaptive velocity regularisation: the paper's kernel (DxMI section 4.3).

    ``fit``: s_t^2 <- rate s_t^2 + (1 - rate) mean ||x_{t+1} - x_t||^2 / d, the running maximum-likelihood fit.
    """

    variance: Tensor

    def __init__(self, variance: Tensor, *, rate: float = 0.99) -> None:
        super().__init__()
        if not 0 <= check_real("rate", rate) <= 1:
            raise ValueError(f"rate must lie in [0, 1], got {rate}.")
        if variance.dim() != 1 or not bool((variance > 0).all()):
            raise ValueError(f"variance must be a positive vector [T], got {variance}.")
        self.horizon, self.rate = len(variance), rate
        self.register_buffer("variance", variance.clone())

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return x_next, 0.5 * per_step(self.variance, t, x_next).log()

    @torch.no_grad()
    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        squared = (x_next - x).square().flatten(1).mean(1)
        total = torch.zeros_like(self.variance).index_add_(0, t, squared)
        count = torch.zeros_like(self.variance).index_add_(0, t, torch.ones_like(squared))
        fitted = torch.where(count > 0, total / count.clamp_min(1), self.variance)
        variance = self.variance.lerp(fitted, 1 - self.rate)
        if not bool(((variance > 0) & (variance < math.inf)).all()):
            raise NonFiniteError(f"{_LOST}: its variances would be {variance.tolist()}.")
        self.variance.copy_(variance)


class Forward(BackwardKernel):
    """The noising kernel of the schedule: N(a_t x_{t+1}, v_t I), a_t = alpha_t / alpha_{t+1} (docs/method.md)."""

    gain: Tensor
    log_std: Tensor

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.horizon = schedule.horizon
        gain, variance = schedule.forward_kernel()
        self.register_buffer("gain", gain)
        self.register_buffer("log_std", 0.5 * variance.log())
        self._numbers = list(zip(self.gain.tolist(), self.log_std.tolist(), strict=True))

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return per_step(self.gain, t, x_next) * x_next, per_step(self.log_std, t, x_next)

    def log_prob(self, x_prev: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        if not isinstance(t, int):
            return super().log_prob(x_prev, x_next, t)
        gain, log_std = self._numbers[t]  # the same with numbers, which cost no work on the device
        return standard_log_prob(torch.sub(x_prev, x_next, alpha=gain) * math.exp(-log_std), log_std)


class Learned(BackwardKernel):
    """Mean and variance from a network, starting as Forward, fitted by maximum likelihood on the policy's trajectories.

    A trainable destruction process (cf. arXiv 2506.01541): mean = a_t x' + sqrt(v_t) m(x', t), log std = log v_t / 2 +
    l(x', t), per dimension. ``fit`` does ``steps`` Adam steps on the given transitions. ``coordinate_width`` adds a
    network that sees one coordinate at a time (``StepMLP``).
    """

    def __init__(
        self, schedule: Schedule, event_shape: tuple[int, ...], scale: float, *, width: int = 64, depth: int = 3,
        learning_rate: float = 2e-3, steps: int = 1, coordinate_width: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_integer("steps", steps)
        check_integer("coordinate_width", coordinate_width, minimum=0)
        self.horizon, self.steps, self.learning_rate = schedule.horizon, steps, learning_rate
        self.start = Forward(schedule)
        dim = math.prod(event_shape)
        rms = (schedule.alpha**2 * scale**2 + schedule.s**2).sqrt()[1:]
        self.net = StepMLP(
            dim, 2 * dim, rms, width=width, depth=depth, zero=True, dim=dim, coordinate_width=coordinate_width
        )
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=learning_rate)

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        mean, log_std = self.start.moments(x_next, t)
        shift, stretch = self.net(x_next, t).chunk(2, dim=1)
        # A soft bound on the variance: one outlier must not blow up the likelihood.
        return mean + log_std.exp() * shift.view_as(x_next), log_std + 4 * torch.tanh(stretch / 4).view_as(x_next)

    def fit(self, x: Tensor, x_next: Tensor, t: Tensor) -> None:
        assert self.optimizer is not None
        with torch.enable_grad():
            for _ in range(self.steps):
                self.optimizer.zero_grad(set_to_none=True)
                loss = -self.log_prob(x, x_next, t).mean()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
                if not math.isfinite(norm):  # one such step would leave NaN for good
                    raise NonFiniteError(f"{_LOST}: its loss is {loss.item():g} and the gradient's norm {float(norm)}.")
                self.optimizer.step()

    def set_progress(self, progress: float) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Learned:
        copied = type(self).__new__(type(self))
        nn.Module.__init__(copied)
        memo[id(self)] = copied
        for name, value in self.__dict__.items():
            if name != "optimizer":
                copied.__dict__[name] = copy.deepcopy(value, memo)
        copied.optimizer = torch.optim.Adam(copied.net.parameters(), lr=self.learning_rate)
        if self.optimizer is not None:
            copied.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return copied


KernelBuilder = Callable[..., BackwardKernel]
KERNELS: Registry[KernelBuilder] = Registry("backward kernel")


def _brownian(
    schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
) -> Brownian:
    """Start at the spread of a base step: its noise, and the shrinking of the remaining level."""
    levels = schedule.levels
    start = (levels[:-1] ** 2 - levels[1:] ** 2) * schedule.alpha[:-1] ** 2
    return Brownian(torch.maximum(start, sigma**2), **options)


def _forward(schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any) -> Forward:
    return Forward(schedule, **options)


def _learned(schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any) -> Learned:
    return Learned(schedule, event_shape, scale, **options)


KERNELS.add("brownian", _brownian)
KERNELS.add("forward", _forward)
KERNELS.add("learned", _learned)


def make_kernel(
    name: str, schedule: Schedule, event_shape: tuple[int, ...], scale: float, sigma: Tensor, **options: Any
) -> BackwardKernel:
    """Build a backward kernel for a schedule; ``sigma`` is the base sampler's ``[T]``.

    Raises UnknownNameError for an unknown name and TypeError for an option that the kernel does not have.
    """
    return KERNELS[name](schedule, event_shape, scale, sigma, **options)
