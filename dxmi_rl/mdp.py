"""DenoisingMDP: few-step denoising as a finite-horizon Markov decision process, in pure tensor functions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dxmi_rl.checks import NonFiniteError, check_batch, check_integer, check_real
from dxmi_rl.diffusion.kernels import BackwardKernel, gaussian_log_prob, per_step
from dxmi_rl.diffusion.samplers import BaseSampler
from dxmi_rl.registry import UnknownNameError

Energy = Callable[[Tensor], Tensor]
COORDINATES = ["noise", "next_state"]


class EnergyError(ValueError):
    """There is no energy, or it returned the wrong shape or a non-finite value."""


class Policy(Protocol):
    """What ``rollout`` needs: a Gaussian over the next state."""

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log standard deviation (broadcastable) of x_{t+1} given x_t."""


@dataclass
class Trajectory:
    """A batch of n whole episodes.

    Attributes:
        x: states, ``[T + 1, n, *event_shape]``; x[T] are the samples.
        log_prob: log pi(x_{t+1} | x_t), ``[T, n]``.
    """

    x: Tensor
    log_prob: Tensor

    @property
    def horizon(self) -> int:
        """T."""
        return len(self.x) - 1

    @property
    def final(self) -> Tensor:
        """x_T: ``[n, *event_shape]``."""
        return self.x[-1]

    def transitions(self) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, x_{t+1}, t) of all T n transitions, time-major: ``[T n, *event_shape]`` twice and ``[T n]``."""
        steps = torch.arange(self.horizon, device=self.x.device).repeat_interleave(self.x.shape[1])
        return self.x[:-1].flatten(0, 1), self.x[1:].flatten(0, 1), steps


class DenoisingMDP:
    """State (x_t, t), action x_{t+1}, deterministic transition; docs/method.md has the mathematics.

    Running reward r_t = tau log qb(x_t | x_{t+1}); the last step adds the terminal reward -E(x_T). ``base`` gives
    the noise coordinates x_{t+1} = mu_t(x_t) + sigma_t a. All functions are batched, stay on ``device`` and keep
    no state but the energy and the kernel, which are held by reference.

    Raises ValueError for horizon < 1, tau < 0 or parts whose horizons disagree.
    """

    def __init__(
        self,
        base: BaseSampler,
        kernel: BackwardKernel,
        event_shape: tuple[int, ...],
        *,
        energy: Energy | None = None,
        tau: float = 1.0,
        scale: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        self.horizon = check_integer("horizon", base.schedule.horizon)
        self.tau = check_real("tau", tau)
        self.scale = check_real("scale", scale, strict=True)
        if kernel.horizon != self.horizon:
            raise ValueError(f"the kernel's horizon must be the base sampler's {self.horizon}, got {kernel.horizon}.")
        self.device = device or torch.device("cpu")
        self.event_shape = tuple(event_shape)
        self.base, self.kernel = base.to(self.device), kernel.to(self.device)
        self.start_std = base.schedule.start_std
        self._energy: Energy | None = None
        if energy is not None:
            self.set_energy(energy)

    @property
    def dim(self) -> int:
        """Number of coordinates d of one state."""
        return math.prod(self.event_shape)

    @property
    def state_scale(self) -> Tensor:
        """Typical standard deviation of x_t, ``[T + 1]``: sqrt(alpha_t^2 scale^2 + s_t^2); networks divide by it."""
        schedule = self.base.schedule
        return (schedule.alpha**2 * self.scale**2 + schedule.s**2).sqrt()

    # -- energy ------------------------------------------------------------------------------------------------

    @property
    def has_energy(self) -> bool:
        """True when a reward model is set."""
        return self._energy is not None

    def set_energy(self, energy: Energy) -> None:
        """Swap the reward model: a module or function ``[batch, *event_shape] -> [batch]``, held by reference.

        It is tried on two points; raises EnergyError for a wrong shape and TypeError when it is not callable.
        """
        if not callable(energy):
            raise TypeError(f"energy must be a module or function, got {energy!r}.")
        previous, self._energy = self._energy, energy
        try:
            with torch.no_grad():
                self.energy(torch.zeros(2, *self.event_shape, device=self.device))
        except Exception:
            self._energy = previous
            raise

    def energy_parameters(self) -> list[nn.Parameter]:
        """Parameters of the reward model; empty for a function."""
        return list(self._energy.parameters()) if isinstance(self._energy, nn.Module) else []

    def energy(self, x: Tensor) -> Tensor:
        """E(x): ``[batch]``, modules in eval mode; gradients flow when autograd is on. Raises EnergyError."""
        if self._energy is None:
            raise EnergyError("this task has no energy: pass energy=, a module or function [batch, ...] -> [batch].")
        with _evaluation_mode(self._energy):
            value = self._energy(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise EnergyError(f"the energy must return a tensor of shape [{len(x)}], got {found}.")
        return value

    # -- dynamics ----------------------------------------------------------------------------------------------

    def reset(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """x_0 ~ N(0, s0^2 I): ``[n, *event_shape]``. Raises ValueError for n < 1."""
        check_integer("n", n)
        return self.start_std * torch.randn(n, *self.event_shape, generator=generator, device=self.device)

    def start_log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x_0): ``[batch]``."""
        return gaussian_log_prob(x, torch.zeros_like(x), torch.full((), math.log(self.start_std), device=x.device))

    def next_state(self, x: Tensor, t: Tensor | int, action: Tensor, coordinates: str = "noise") -> Tensor:
        """x_{t+1} for an action in ``coordinates``: mu_t(x) + sigma_t a (``noise``) or a itself (``next_state``)."""
        if coordinates == "next_state":
            return action
        self.check_coordinates(coordinates)
        return self.base.mean(x, t) + per_step(self.base.sigma, t, x) * action

    def action(self, x: Tensor, t: Tensor | int, x_next: Tensor, coordinates: str = "noise") -> Tensor:
        """The action that leads from x_t to x_{t+1}: the inverse of ``next_state``."""
        if coordinates == "next_state":
            return x_next
        self.check_coordinates(coordinates)
        return (x_next - self.base.mean(x, t)) / per_step(self.base.sigma, t, x)

    def check_coordinates(self, coordinates: str) -> None:
        """Raises UnknownNameError for unknown coordinates, ValueError for noise on a deterministic base sampler."""
        if coordinates not in COORDINATES:
            raise UnknownNameError("action coordinates", coordinates, COORDINATES)
        if coordinates == "noise" and self.base.deterministic:
            raise ValueError("a deterministic base sampler (DDIM with eta = 0) has no noise coordinates: use eta > 0.")

    def running_reward(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """r_t = tau log qb(x_t | x_{t+1}): ``[batch]``, nats; zero when tau = 0."""
        if self.tau == 0:
            return x.new_zeros(len(x))
        return self.tau * self.kernel.log_prob(x, x_next, t)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """r_T = -E(x_T): ``[batch]``."""
        return -self.energy(x)

    def step(
        self, x: Tensor, t: Tensor | int, action: Tensor, *, coordinates: str = "noise", differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One step: (x_{t+1}, reward ``[batch]``). Never clips, never synchronises the device.

        With t a LongTensor ``[batch]`` the energy is evaluated on every row and used where t = T - 1. Rewards and
        next states carry gradients only when ``differentiable``. Raises TypeError or ValueError for wrong shapes,
        dtypes, devices or t outside 0..T-1 (an int).
        """
        check_batch("x", x, self.event_shape, device=self.device)
        check_batch("action", action, self.event_shape, device=self.device, batch=len(x))
        if isinstance(t, int) and not 0 <= t < self.horizon:
            raise ValueError(f"t must lie in 0..{self.horizon - 1}, got {t}.")
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            x_next = self.next_state(x, t, action, coordinates)
            if not differentiable:
                x_next = x_next.detach()  # in next-state coordinates it is the caller's own tensor
            reward = self.running_reward(x, x_next, t)
            if isinstance(t, int):
                if t == self.horizon - 1:
                    reward = reward + self.terminal_reward(x_next)
            else:
                reward = reward + torch.where(t == self.horizon - 1, self.terminal_reward(x_next), 0.0)
        return x_next, reward

    # -- whole episodes ----------------------------------------------------------------------------------------

    def rollout(
        self, policy: Policy, n: int, generator: torch.Generator | None = None, *, differentiable: bool = False
    ) -> Trajectory:
        """n episodes of ``policy``, batched; path-wise differentiable in the policy when ``differentiable``.

        Raises NonFiniteError when a state is NaN or infinite, checked once at the end.
        """
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            states, log_probs = [self.reset(n, generator)], list[Tensor]()
            for t in range(self.horizon):
                x = states[-1]
                mean, log_std = policy.moments(x, t)
                noise = torch.randn(x.shape, generator=generator, device=self.device, dtype=x.dtype)
                states.append(mean + log_std.exp() * noise)
                log_probs.append(gaussian_log_prob(states[-1], mean, log_std))
            trajectory = Trajectory(torch.stack(states), torch.stack(log_probs))
        if not bool(torch.isfinite(trajectory.log_prob.sum() + trajectory.final.sum())):
            raise NonFiniteError("the policy left the finite numbers during a rollout: its states are NaN or infinite.")
        return trajectory

    def backward_rollout(self, policy: Policy, x_final: Tensor, generator: torch.Generator | None = None) -> Trajectory:
        """Chains drawn backwards from x_T by the kernel, with the policy's log-probabilities (for the EUBO)."""
        with torch.no_grad():
            states, log_probs = [x_final], list[Tensor]()
            for t in reversed(range(self.horizon)):
                x_next = states[0]
                x = self.kernel.sample(x_next, t, generator)
                log_probs.insert(0, gaussian_log_prob(x_next, *policy.moments(x, t)))
                states.insert(0, x)
            return Trajectory(torch.stack(states), torch.stack(log_probs))

    def rewards(self, trajectory: Trajectory) -> Tensor:
        """All T rewards of the episodes, ``[T, n]``; the last includes -E(x_T). Raises EnergyError when not finite.

        They carry gradients when the trajectory does (``rollout(differentiable=True)``).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and trajectory.x.requires_grad):
            x, x_next, t = trajectory.transitions()
            rewards = self.running_reward(x, x_next, t).view(self.horizon, -1)
            rewards = torch.cat([rewards[:-1], rewards[-1:] + self.terminal_reward(trajectory.final)])
        if not bool(torch.isfinite(rewards.detach().sum())):
            raise EnergyError("the rewards of a rollout are NaN or infinite: check the energy.")
        return rewards

    def soft_return(self, trajectory: Trajectory) -> Tensor:
        """Sampled soft return sum_t r_t - tau log pi(x_{t+1} | x_t): ``[n]``."""
        return (self.rewards(trajectory) - self.tau * trajectory.log_prob).sum(0)

    def log_weights(self, trajectory: Trajectory) -> Tensor:
        """log w = -E(x_T) - log p_0(x_0) + sum_t [log qb - log pi]: ``[n]``, energy at temperature 1."""
        x, x_next, t = trajectory.transitions()
        log_backward = self.kernel.log_prob(x, x_next, t).view(self.horizon, -1)
        log_ratio = (log_backward - trajectory.log_prob).sum(0)
        return self.terminal_reward(trajectory.final) - self.start_log_prob(trajectory.x[0]) + log_ratio


@contextlib.contextmanager
def _evaluation_mode(energy: Energy) -> Iterator[None]:
    """Put a module into eval mode and back: rewards must not depend on dropout or batch statistics."""
    training = [part for part in energy.modules() if part.training] if isinstance(energy, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
