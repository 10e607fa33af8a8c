"""DenoisingMDP: few-step denoising as a finite-horizon Markov decision process, in pure tensor functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.kernels import BackwardKernel
from dxmi_rl.diffusion.samplers import BaseSampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.fast_rollout import fast_loop
from dxmi_rl.live_energy import Energy, EnergyError, LiveEnergy, require_finite, require_finite_energy
from dxmi_rl.rollout import Episodes, Policy, Trajectory, log_prob, play
from dxmi_rl.utils.checks import NonFiniteError, all_finite, check_batch, check_integer, check_real, resolve_device
from dxmi_rl.utils.registry import UnknownNameError

__all__ = ["COORDINATES", "DenoisingMDP", "Energy", "EnergyError"]

Draw = Callable[[int, torch.Generator | None], Tensor]
"""Rows of data, ``[n, *event_shape]``."""
COORDINATES = ["noise", "next_state"]


class DenoisingMDP:
    """State (x_t, t), action x_{t+1}, deterministic transition; docs/method.md has the mathematics.

    Running reward r_t = tau log qb(x_t | x_{t+1}); the last step adds the terminal reward -E(x_T). ``base`` gives
    the noise coordinates x_{t+1} = mu_t(x_t) + sigma_t a. All functions are batched, stay on ``device`` and keep
    no state but the energy and the kernel, which are held by reference. ``particles`` (N, d) says that states are
    coordinates of N identical particles in d dimensions (``ParticleTarget``): agents then take networks for them.

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
        particles: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.horizon = check_integer("horizon", base.schedule.horizon)
        self.tau = check_real("tau", tau)
        self.scale = check_real("scale", scale, strict=True)
        if kernel.horizon != self.horizon:
            raise ValueError(f"the kernel's horizon must be the base sampler's {self.horizon}, got {kernel.horizon}.")
        self.device = resolve_device(device)
        self.event_shape, self.particles = tuple(event_shape), particles
        self.base, self.kernel = base.to(self.device), kernel.to(self.device)
        self.start_std = base.schedule.start_std
        self.energy = LiveEnergy()
        """E(x), ``[batch, *event_shape] -> [batch]``: the live reward model (``set_energy``)."""
        self._start: Draw | None = None
        if energy is not None:
            self.set_energy(energy)

    @property
    def dim(self) -> int:
        """Number of coordinates d of one state."""
        return math.prod(self.event_shape)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of states, actions and rewards: torch's default one when the MDP was built."""
        return self.base.sigma.dtype

    @property
    def state_scale(self) -> Tensor:
        """Typical standard deviation of x_t, ``[T + 1]``: sqrt(alpha_t^2 scale^2 + s_t^2); networks divide by it."""
        schedule = self.base.schedule
        return (schedule.alpha**2 * self.scale**2 + schedule.s**2).sqrt()

    # -- energy ------------------------------------------------------------------------------------------------

    @property
    def has_energy(self) -> bool:
        """True when a reward model is set."""
        return self.energy.function is not None

    def set_energy(self, energy: Energy) -> None:
        """Swap the reward model: a module or function ``[batch, *event_shape] -> [batch]``, held by reference.

        It is tried on a batch of 2 zeros: raises EnergyError when it fails there or returns another shape, device or
        kind of numbers (floating ones of another dtype are converted), and TypeError when it is not callable.
        """
        self.energy.set(energy, torch.zeros(2, *self.event_shape, dtype=self.dtype, device=self.device))

    def finite_energy(self, x: Tensor) -> Tensor:
        """``energy`` of a rollout's x_T; raises EnergyError when one is NaN or infinite (waits for the device)."""
        energy = self.energy(x)
        require_finite_energy(x, energy.detach())
        return energy

    # -- dynamics ----------------------------------------------------------------------------------------------

    def start_from(self, data: Draw | None) -> None:
        """Let episodes start at noised data, x_0 = alpha_0 x + s_0 noise with x from ``data(n, generator)``, at the
        schedule's first noise level; None: at noise alone, as by default.
        """
        self._start = data

    def reset(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """x_0 ~ N(0, s0^2 I), or noised data (``start_from``): ``[n, *event_shape]``. Raises ValueError for n < 1,
        TypeError for a seed as generator.
        """
        check_integer("n", n)
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}.")
        if self._start is None:
            return self.start_std * self._noise(n, generator)
        alpha, s = self.base.schedule.alpha[0], self.base.schedule.s[0]
        return alpha * self._start(n, generator) + s * self._noise(n, generator)

    def start_log_prob(self, x: Tensor) -> Tensor:
        """log p_0(x_0): ``[batch]``. Raises TypeError where episodes start at noised data, whose density is unknown."""
        if self._start is not None:
            raise TypeError("episodes start at noised data, whose density is unknown: no bound on log Z can be had.")
        return gaussian_log_prob(x, torch.zeros_like(x), x.new_full((), math.log(self.start_std)))

    def next_state(self, x: Tensor, t: Tensor | int, action: Tensor, coordinates: str = "noise") -> Tensor:
        """x_{t+1} for an action in ``coordinates``: mu_t(x) + sigma_t a (``noise``) or a itself (``next_state``).

        Raises what ``step`` does.
        """
        return self._next_state(x, self._check_arguments(x, t, action), action, coordinates)

    def _next_state(self, x: Tensor, t: Tensor | int, action: Tensor, coordinates: str) -> Tensor:
        if coordinates == "next_state":
            return action
        self.check_coordinates(coordinates)
        return self.base.step(x, t, action)

    def action(self, x: Tensor, t: Tensor | int, x_next: Tensor, coordinates: str = "noise") -> Tensor:
        """The action that leads from x_t to x_{t+1}: the inverse of ``next_state``. Raises what ``step`` does."""
        t = self._check_arguments(x, t, x_next, "x_next")
        if coordinates == "next_state":
            return x_next
        self.check_coordinates(coordinates)
        return (x_next - self.base.mean(x, t)) / per_step(self.base.sigma, t, x)

    def check_coordinates(self, coordinates: str) -> None:
        """Raises UnknownNameError for unknown coordinates, ValueError for noise on a deterministic base sampler."""
        if not isinstance(coordinates, str) or coordinates not in COORDINATES:
            raise UnknownNameError("action coordinates", coordinates, COORDINATES)
        if coordinates == "noise" and self.base.deterministic:
            raise ValueError("a deterministic base sampler has no noise coordinates: use eta > 0 and sigma_last > 0.")

    def running_reward(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        """r_t = tau log qb(x_t | x_{t+1}): ``[batch]``, nats; zero when tau = 0."""
        if self.tau == 0:
            return x.new_zeros(len(x))
        return self.tau * self.kernel.step_log_prob(x, x_next, t)

    def terminal_reward(self, x: Tensor) -> Tensor:
        """r_T = -E(x_T): ``[batch]``."""
        return -self.energy(x)

    def step(
        self, x: Tensor, t: Tensor | int, action: Tensor, *, coordinates: str = "noise", differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One step: (x_{t+1}, reward ``[batch]``). Never clips, never synchronises the device.

        With t a LongTensor ``[batch]`` the energy is evaluated on every row and used where t = T - 1. Rewards and
        next states carry gradients only when ``differentiable``. Raises TypeError or ValueError for wrong shapes,
        dtypes, devices or t outside 0..T-1 (the numbers of a LongTensor are checked on the CPU only). The numbers of
        states and actions are not checked: where they are NaN or infinite, so is the reward, or at tau = 0 the next
        state. The environments raise then.
        """
        x_next, reward, terminal = self.transition(x, t, action, coordinates, differentiable)
        return x_next, reward if terminal is None else reward + terminal

    def transition(
        self, x: Tensor, t: Tensor | int, action: Tensor, coordinates: str = "noise", differentiable: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``step`` with its reward in two parts: (x_{t+1}, running reward, terminal reward or None before the end)."""
        return self.checked_transition(x, self._check_arguments(x, t, action), action, coordinates, differentiable)

    def checked_transition(
        self, x: Tensor, t: Tensor | int, action: Tensor, coordinates: str, differentiable: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``transition`` for arguments that the caller has checked."""
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            x_next = self._next_state(x, t, action, coordinates)
            if not differentiable:
                x_next = x_next.detach()  # in next-state coordinates it is the caller's own tensor
            terminal: Tensor | None = None
            if not isinstance(t, int):
                terminal = torch.where(t == self.horizon - 1, self.terminal_reward(x_next), 0.0)
            elif t == self.horizon - 1:
                terminal = self.terminal_reward(x_next)
            return x_next, self.running_reward(x, x_next, t), terminal

    def _check_arguments(self, x: Tensor, t: object, action: Tensor, name: str = "action") -> Tensor | int:
        """t, as an int where it is one number."""
        dtype = self.dtype
        check_batch("x", x, self.event_shape, device=self.device, dtype=dtype)
        check_batch(name, action, self.event_shape, device=self.device, dtype=dtype, batch=len(x))
        return self._check_t(t, len(x))

    def _check_t(self, t: object, batch: int) -> Tensor | int:
        if not isinstance(t, Tensor):
            step = check_integer("t", t, minimum=None)
            if not 0 <= step < self.horizon:
                raise ValueError(f"t must lie in 0..{self.horizon - 1}, got {step}.")
            return step
        if t.dtype != torch.int64:
            raise TypeError(f"t must be an integer or an int64 tensor, got {t.dtype}.")
        if t.shape != (batch,) or t.device.type != self.device.type:
            raise ValueError(
                f"t must have shape [{batch}] on device {str(self.device)!r}, got {list(t.shape)} on {str(t.device)!r}."
            )
        if t.device.type == "cpu" and not bool(((t >= 0) & (t < self.horizon)).all()):
            raise ValueError(f"t must lie in 0..{self.horizon - 1}, got {int(t.min())}..{int(t.max())}.")
        return t

    # -- whole episodes ----------------------------------------------------------------------------------------

    def rollout(
        self,
        policy: Policy,
        n: int,
        generator: torch.Generator | None = None,
        *,
        start: Tensor | None = None,
        differentiable: bool = False,
        compile: bool = False,
        graph: bool = False,
    ) -> Trajectory:
        """n whole episodes of ``policy`` in one batch, which waits for the device once, at the end.

        Args:
            policy: anything with ``moments(x, t)`` (a Gaussian over the next state) or ``transport(x, t, noise)``.
            n: number of episodes.
            generator: source of x_0 and of the noise, on the MDP's device; None is torch's global one.
            start: x_0 of the episodes, ``[n, *event_shape]``; None: drawn by ``reset``.
            differentiable: path-wise gradients in the policy's parameters.
            compile: run the loop through torch.compile: the first call takes tens of seconds, later ones less than
                without. The noise is drawn outside, so the numbers are the same up to rounding.
            graph: replay the loop as one CUDA graph (captured once per policy and n); no gradients.

        Raises NonFiniteError when a state is NaN or infinite, checked once at the end; TypeError for what is no policy
        or answers with another dtype; ValueError for n < 1, answers of another shape or on another device, a graph
        without CUDA or with gradients.
        """
        if graph and differentiable:
            raise ValueError("graph=True replays a recorded loop, which has no gradients: use differentiable=False.")
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            states, log_probs = self._play(policy, n, generator, start, whole=True, compile=compile, graph=graph)
            trajectory = Trajectory(torch.stack(states), torch.stack(log_probs))
        self._require_finite(trajectory.x, trajectory.log_prob)
        return trajectory

    def sample(
        self, policy: Policy, n: int, generator: torch.Generator | None = None, *, compile: bool = False,
        graph: bool = False,
    ) -> Tensor:  # fmt: skip
        """x_T of n episodes, ``[n, *event_shape]``: ``rollout(...).final``, in memory that does not grow with T."""
        with torch.no_grad():
            (x,), _ = self._play(policy, n, generator, None, whole=False, compile=compile, graph=graph)
        self._require_finite(x)
        return x

    def _play(
        self, policy: Policy, n: int, generator: torch.Generator | None, start: Tensor | None, *, whole: bool,
        compile: bool, graph: bool,
    ) -> Episodes:  # fmt: skip
        if not (hasattr(policy, "moments") or hasattr(policy, "transport")):
            raise TypeError(f"policy must have moments(x, t) or transport(x, t, noise), got {policy!r}.")
        if start is None:
            start = self.reset(n, generator)
        else:
            check_batch("start", start, self.event_shape, device=self.device, dtype=self.dtype, batch=n)
        noises = (self._noise(n, generator) for _ in range(self.horizon))
        count_draws(n * self.horizon)
        if compile or graph:
            loop = fast_loop(policy, start, self.horizon, whole=whole, compile=compile, graph=graph)
            return loop(start, noises)
        return play(policy, start, noises, whole=whole)

    def _noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, *self.event_shape, generator=generator, device=self.device, dtype=self.dtype)

    @staticmethod
    def _require_finite(*values: Tensor) -> None:
        if not all_finite(*values):
            who = "the policy, or an energy's gradient that it is told,"
            raise NonFiniteError(f"{who} left the finite numbers during a rollout: states are NaN or infinite.")

    def backward_rollout(
        self, policy: Policy, x_final: Tensor, generator: torch.Generator | None = None, *,
        kernel: BackwardKernel | None = None,
    ) -> Trajectory:  # fmt: skip
        """Chains drawn backwards from x_T by the kernel (None: the MDP's), with the policy's log-probabilities.

        The EUBO is the mean of their ``log_weights``.
        """
        kernel = self.kernel if kernel is None else kernel
        with torch.no_grad():
            states, log_probs = [x_final], list[Tensor]()
            for t in reversed(range(self.horizon)):
                x_next = states[0]
                x = kernel.sample(x_next, t, generator)
                log_probs.insert(0, log_prob(policy, x, x_next, t))
                states.insert(0, x)
            return Trajectory(torch.stack(states), torch.stack(log_probs))

    def rewards(self, trajectory: Trajectory) -> Tensor:
        """All T rewards of the episodes, ``[T, n]``; the last includes -E(x_T). Raises EnergyError when not finite.

        They carry gradients when the trajectory does (``rollout(differentiable=True)``). Raises ValueError for episodes
        of another length.
        """
        x = trajectory.x
        if trajectory.horizon != self.horizon:
            raise ValueError(f"the episodes must have {self.horizon} steps, got {trajectory.horizon}.")
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            rewards = [self.running_reward(x[t], x[t + 1], t) for t in range(self.horizon)]
            rewards[-1] = rewards[-1] - self.finite_energy(trajectory.final)
            stacked = torch.stack(rewards)
        require_finite(stacked.detach())
        return stacked

    def soft_return(self, trajectory: Trajectory) -> Tensor:
        """Sampled soft return sum_t r_t - tau log pi(x_{t+1} | x_t): ``[n]``."""
        return (self.rewards(trajectory) - self.tau * trajectory.log_prob).sum(0)

    def log_weights(
        self, trajectory: Trajectory, *, kernel: BackwardKernel | None = None, energy: Energy | None = None
    ) -> Tensor:
        """log w = -E(x_T) - log p_0(x_0) + sum_t [log qb - log pi]: ``[n]``, energy at temperature 1.

        ``kernel`` and ``energy`` take the place of the MDP's own. Raises EnergyError as ``energy`` does.
        """
        x = trajectory.x
        kernel = self.kernel if kernel is None else kernel
        energy = self.energy if energy is None else LiveEnergy(energy)
        steps = range(self.horizon)  # one by one: a mixture's densities of all steps at once need gigabytes
        log_backward = torch.stack([kernel.log_prob(x[t], x[t + 1], t) for t in steps])
        log_ratio = (log_backward - trajectory.log_prob).sum(0)
        return -energy(trajectory.final) - self.start_log_prob(trajectory.x[0]) + log_ratio
