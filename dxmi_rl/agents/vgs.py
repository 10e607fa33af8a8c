"""VGS: the value gradient sampler (Yoon et al. 2025, arXiv 2502.13280), a policy that is a learned value's gradient."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.aims import check_own_steps
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.gradients import EnergyGradient
from dxmi_rl.agents.settings import ValueConfig
from dxmi_rl.agents.values import FADE, ValueFunction, value_network
from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_real
from dxmi_rl.utils.torch_tools import average_towards, input_gradient

LARGEST_SHIFT = 5.0
"""Largest shift of a mean, in standard deviations per dimension: one step down a steep gradient would overshoot, and
the next one further."""
GRADIENT_WEIGHT = 0.06
"""Weight of gradients, per dimension and at most 1. In many dimensions values alone do not determine grad V. In few
dimensions they do, and a large weight would bias V: the gradient targets are exact for the best shift only."""
UNEXPLORING = 0.25
"""Share of a rollout's trajectories that are the policy's. The kernel is fitted to these: a fit to trajectories that
explore leaves looser bounds than none."""


@dataclass(frozen=True)
class VGSConfig:
    """Settings of VGS."""

    n_trajectories: int = 256
    """Trajectories per iteration."""
    n_epochs: int = 3
    """Passes over each rollout, each with fresh next states but the last ones, whose energies are asked for once."""
    n_minibatches: int = 10
    """Minibatches per pass."""
    noise_scale: float = 2.0
    """Largest ratio of noise to the policy's; three quarters of the trajectories draw one each, between 1 and this."""
    exploration: float = 0.3
    """Share of these trajectories that follow the policy in part only: their shifts are multiplied by a number between
    0 and 1 of their own. Where V is wrong enough to lead away from a mode, nothing else visits that mode again."""
    reach: float = 2.0
    """Largest coordinate of the x_T that V expects at a state, in units of the MDP's scale: where V is wrong, rollouts
    must not run away. Larger for heavy tails, where 2 cuts them off."""
    ema: float = 0.95
    """What the averaged value, whose gradient is the policy, keeps of itself after a rollout; 0: no average."""
    kernel_steps: int = 16
    """Fits of a learned backward kernel per rollout, to its quarter that does not explore; the method does not use it,
    but evaluation does."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(width=128, learning_rate=1e-3))
    """The value network."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "n_epochs", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        if check_real("noise_scale", self.noise_scale) < 1:
            raise ValueError(f"noise_scale must be >= 1, got {self.noise_scale!r}.")
        check_fraction("exploration", self.exploration)
        check_real("reach", self.reach, strict=True)
        check_fraction("ema", self.ema)


class ValueGradientPolicy(nn.Module):
    """pi(x' | x) = N(m - (v / tau) grad U_{t+1}(m), v I), m = b a x, v = b s^2 a^2, b = S_{t+1} / (S_{t+1} + s^2 a^2).

    U_t(x) = V_t(x) - tau |x|^2 / (2 S_t), with V_T = E. It is the best policy where U is linear around m and the
    schedule's noising kernel N(x' / a, s^2 I) leads back to x.

    Attributes:
        a, back: a_t and s_t a_t, ``[T]``: x_{t+1} given x_t alone is N(a x, back^2 I) up to a constant.
        gain, std: b a and the square root of v, ``[T]``.
        alpha, variance: the schedule's alpha_t and variance of the noise, ``[T + 1]``.
        spread: S_t, the variance of x_t when x_T ~ N(0, c^2 I) is noised, c the MDP's scale, ``[T + 1]``.
        level: a constant that V starts from, the first rollout's median of E(x_T) less ``start`` [nats]. A network that
            has to learn thousands of nats first moves so far that its average over time has a wrong gradient.
        network: the averaged value network (x, t) -> ``[batch, 1]``, in units of ``unit`` nats.
        reach: largest coordinate of the x_T that V expects.
    """

    a: Tensor
    back: Tensor
    gain: Tensor
    std: Tensor
    alpha: Tensor
    variance: Tensor
    spread: Tensor
    level: Tensor

    def __init__(self, mdp: DenoisingMDP, value: ValueFunction, reach: float) -> None:
        super().__init__()
        self.horizon, self.tau, self.unit = mdp.horizon, mdp.tau, value.unit
        schedule = mdp.base.schedule
        gain, variance = schedule.forward_kernel()
        self.register_buffer("a", 1 / gain)
        self.register_buffer("alpha", schedule.alpha.clone())
        self.register_buffer("variance", schedule.s.square())
        self.reach = reach * mdp.scale
        self.register_buffer("back", variance.sqrt() / gain)
        spread = [torch.full_like(gain[0], mdp.scale**2)]
        for t in reversed(range(mdp.horizon)):
            spread.insert(0, gain[t] ** 2 * spread[0] + variance[t])
        self.register_buffer("spread", torch.stack(spread))
        share = self.spread[1:] / (self.spread[1:] + self.back.square())
        self.register_buffer("gain", share * self.a)
        self.register_buffer("std", share.sqrt() * self.back)
        self.register_buffer("level", torch.zeros_like(self.std[0]))
        self.network = copy.deepcopy(value.network).requires_grad_(False)
        self.pull = EnergyGradient(mdp.energy, constant=True)

    def start(self, x: Tensor, t: Tensor | int) -> Tensor:
        """tau |x|^2 / (2 S_t), the soft value of a Gaussian of the MDP's scale, and ``level``, which V starts from:
        ``[batch]``.
        """
        return self.level + self.tau * (x.square() / per_step(self.spread, t, x)).flatten(1).sum(1) / 2

    def value(self, x: Tensor, t: Tensor | int) -> Tensor:
        """V_t(x) of the averaged network, t = 0..T-1: ``[batch]``."""
        learned: Tensor = self.network(x, t)
        return self.start(x, t) + self.unit * learned.squeeze(1)

    def value_gradient(self, x: Tensor, t: Tensor | int) -> Tensor:
        """grad V_t(x) for t = 1..T, in the shape of x; one differentiated evaluation of E per row with t = T."""
        if isinstance(t, int):
            return -self.pull(x) if t == self.horizon else self.value_and_gradient(x, t)[1]
        gradient, last = torch.empty_like(x), t == self.horizon
        if bool(last.any()):  # energies need not take an empty batch
            gradient[last] = -self.pull(x[last])
        gradient[~last] = self.value_and_gradient(x[~last], t[~last])[1]
        return gradient

    def value_and_gradient(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """V_t(x) of the averaged network for t < T and its gradient, as constants, the gradient limited: D = (x - s_t^2
        grad V_t(x) / tau) / alpha_t, the x_T that V expects where pi is the best policy, stays within ``reach`` scales
        of 0, so that rollouts stay bounded whatever the network says.
        """
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value = self.value(point, t)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        alpha, variance = per_step(self.alpha, t, x), per_step(self.variance, t, x) / self.tau
        expected = ((x - variance * gradient) / alpha).clamp(-self.reach, self.reach)
        return value.detach(), (x - alpha * expected) / variance

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log sigma (broadcastable) of x_{t+1}."""
        std, point = per_step(self.std, t, x), per_step(self.gain, t, x) * x
        rest = self.value_gradient(point, t + 1) / self.tau - point / per_step(self.spread, t + 1, x)
        return point - std * (std * rest).clamp(-LARGEST_SHIFT, LARGEST_SHIFT), std.log()

    def step_cost(self, x: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        """E[log pi(x' | x) - log qb(x | x')] of a policy with ``mean`` ``[batch, *event_shape]``: ``[batch]``."""
        share, dim = self.gain / self.a, x[0].numel()
        constant = dim * ((share - 1 - share.log()) / 2 - self.a.log())
        shift = (per_step(self.a, t, x) * x - mean) / per_step(self.back, t, x)
        return shift.square().flatten(1).sum(1) / 2 + constant[t]


class Exploration:
    """The policy of rollouts, whose states surround those of the policy; it keeps the policy's means of the steps.

    The shift of the mean from m is multiplied by ``control`` and the noise by ``noise_scale``, ``[n, 1, ...]`` each.
    """

    def __init__(self, policy: ValueGradientPolicy, control: Tensor, noise_scale: Tensor) -> None:
        self.policy, self.control, self.noise_scale = policy, control, noise_scale
        self.means: list[Tensor] = []

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean between m and the policy's, and the policy's log sigma plus that of the noise scale."""
        mean, log_std = self.policy.moments(x, t)
        self.means.append(mean)
        return torch.lerp(per_step(self.policy.gain, t, x) * x, mean, self.control), log_std + self.noise_scale.log()


def _mean_of_halves(pairs: Tensor) -> Tensor:
    """Means of the first half of rows and the second: ``[2 n, ...]`` -> ``[n, ...]``."""
    return pairs.view(2, -1, *pairs.shape[1:]).mean(0)


class VGS(Agent[VGSConfig]):
    """Soft value iteration without a policy network, for a noising kernel qb(x | x') = N(x' / a_t, s_t^2 I):

        pi_t(x' | x) = N(mu_t(x), v_t I),   mu_t(x) = b_t a_t x - (v_t / tau) grad U_{t+1}(b_t a_t x)
        V_t(x) = E[V_{t+1}(x') + tau (log pi_t(x' | x) - log qb(x | x'))],   V_T = E

    with v_t = b_t s_t^2 a_t^2, b_t = S_{t+1} / (S_{t+1} + s_t^2 a_t^2) and U_t(x) = V_t(x) - tau |x|^2 / (2 S_t), where
    S_t is the variance of x_t when x_T ~ N(0, c^2 I), c the MDP's scale. That is exact for such an x_T, in any number
    of steps; b_t = 1 and U = V would be the published sampler, which overshoots in large ones. V_t is the soft value of
    docs/method.md of this policy. It is fitted to one-step targets with fresh next states, on rollouts that explore,
    and its gradient to theirs, a_t E[grad V_{t+1}(x')]; an average of it gives policy and targets. The loss is square
    where errors are small and grows linearly beyond tau d, as steep energies give rare targets that are far off. Kernel
    and denoiser of the task are not used: a_t and s_t are those of its schedule.

    U is linearised over one sigma: take it for T >= 10. The energy is differentiated at the last step of every sample.
    Three quarters of the trajectories explore, to the end of training. A learned kernel is fitted to the others; the
    energy of a game (DxMI) learns against the samples of all.
    """

    name: ClassVar[str] = "vgs"
    needs_gradient: ClassVar[bool] = True
    Config = VGSConfig
    policy: ValueGradientPolicy

    @property
    def denoiser_calls(self) -> int:
        return 0  # its steps do not use the base sampler

    def _build(self) -> None:
        self.require_energy()
        check_own_steps(self.name, self.mdp)
        if self.mdp.tau == 0:
            raise ValueError("tau must be > 0 for vgs, whose policy is the gradient of the value over tau, got 0.")
        blur = self.mdp.base.schedule.s[:-1] / self.mdp.state_scale[:-1]
        network = value_network(self.mdp, self.config.value, fade=FADE, blur=blur)
        self.value = ValueFunction(self.mdp, self.config.value, network=network)
        self.policy = ValueGradientPolicy(self.mdp, self.value, self.config.reach)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"value": self.value.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        return -self.policy.value(x, t)

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, mdp, log = self.config, self.mdp, Log()
        explorer = self._explorer()
        with torch.no_grad():
            trajectory = mdp.rollout(explorer, config.n_trajectories, self.generator)
        self.costs.timesteps += config.n_trajectories * mdp.horizon
        if on_final is not None:
            on_final(trajectory.final)
            with torch.no_grad():  # the last mean follows the energy
                explorer.means[-1] = self.policy.moments(trajectory.x[-2], mdp.horizon - 1)[0]
        own = trajectory.select(slice(self._unexploring())).transitions()
        for _ in range(config.kernel_steps):
            mdp.kernel.fit(*own)
        means = torch.stack(explorer.means)
        last = self.last_values(means[-1])
        above = (last[0] - self.policy.start(trajectory.x[-2], mdp.horizon - 1)).median()
        self.policy.level += above * (self.policy.level == 0)  # in the first rollout
        for _ in range(config.n_epochs):
            order = torch.randperm(trajectory.n, generator=self.generator, device=means.device)
            for rows in order.chunk(config.n_minibatches):
                own_last = (last[0][rows], last[1][rows])
                log["value_loss"] = self.update_value(trajectory.select(rows), means[:, rows], own_last)
        average_towards(self.policy.network, self.value.network, config.ema)
        return log

    def _unexploring(self) -> int:
        """Number of trajectories per rollout, the first ones, that are the policy's."""
        return max(1, int(UNEXPLORING * self.config.n_trajectories))

    def _explorer(self) -> Exploration:
        config, shape = self.config, (self.config.n_trajectories, *[1] * len(self.mdp.event_shape))
        uniform = torch.rand(3, *shape, generator=self.generator, device=self.mdp.device, dtype=self.mdp.dtype)
        chosen, control, noise = uniform.unbind()
        control = torch.where(chosen < config.exploration, control, torch.ones_like(control))
        control[: self._unexploring()], noise[: self._unexploring()] = 1.0, 0.0
        return Exploration(self.policy, control, 1 + (config.noise_scale - 1) * noise)

    @torch.no_grad()
    def last_values(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """E(x_T) ``[n]`` and its gradient ``[n, *event_shape]``, means over two fresh x_T at every ``mean`` of the last
        step.

        Raises EnergyError for those that are not finite.
        """
        noise = self._noise(mean) * per_step(self.policy.std, self.mdp.horizon - 1, mean)
        count_draws(2 * len(mean))
        energy, gradient = self.mdp.energy.value_and_gradient(torch.cat([mean + noise, mean - noise]))
        assert gradient is not None, "rollouts ask for it before"
        return _mean_of_halves(energy), _mean_of_halves(gradient)

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    @torch.no_grad()
    def value_targets(
        self, trajectory: Trajectory, means: Tensor, last: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Targets of V, V_{t+1}(x') + tau ``step_cost``, ``[T n]``, and of grad V, a grad V_{t+1}(x'), ``[T n,
        *event_shape]``. The latter holds the shift mu - a x fixed, exact for the best one.

        They are means over two fresh x' at every state, mu + sqrt(v) z and mu - sqrt(v) z, as V is nearly linear over
        one sigma. ``means`` are mu_t(x_t), ``[T, n, *event_shape]``, and ``last`` are ``last_values`` of the last ones.
        """
        x, _, t = trajectory.transitions()
        policy, n, mean = self.policy, trajectory.n, means.flatten(0, 1)
        noise = per_step(policy.std, t[:-n], x[:-n]) * self._noise(x[:-n])
        count_draws(2 * len(noise))
        ahead = torch.cat([mean[:-n] + noise, mean[:-n] - noise])
        value, slope = policy.value_and_gradient(ahead, torch.cat([t[:-n], t[:-n]]) + 1)
        future, slope = torch.cat([_mean_of_halves(value), last[0]]), torch.cat([_mean_of_halves(slope), last[1]])
        return future + self.mdp.tau * policy.step_cost(x, mean, t), per_step(policy.a, t, x) * slope

    def update_value(self, trajectory: Trajectory, means: Tensor, last: tuple[Tensor, Tensor]) -> Tensor:
        """One regression of V on ``value_targets``; returns the loss."""
        (x, _, t), start = trajectory.transitions(), self.policy.start
        values, gradients = self.value_targets(trajectory, means, last)
        return self.value.fit_gradients(
            x, t, values - start(x, t), gradients - input_gradient(lambda point: start(point, t), x),
            scale=self.mdp.state_scale[:-1], weight=min(1.0, GRADIENT_WEIGHT * self.mdp.dim), robust=True,
        )  # fmt: skip
