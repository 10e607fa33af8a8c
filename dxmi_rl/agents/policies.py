"""Gaussian policies pi(x_{t+1} | x_t) = N(mu_theta(x_t, t), diag sigma_theta^2) that start as the base sampler."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents.gradients import EnergyGradient, ValueGradient
from dxmi_rl.agents.settings import MeanConfig, PolicyConfig, policy_kind
from dxmi_rl.diffusion.denoisers import FirstLevelDenoiser
from dxmi_rl.diffusion.samplers import BaseSampler, IdentitySampler, ReverseSampler
from dxmi_rl.diffusion.schedules import Schedule, per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.networks import step_network
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import adam

if TYPE_CHECKING:
    from dxmi_rl.agents.base import Agent, FinalStateHook

GRADIENT_LIMIT, SHIFT_LIMIT = 5.0, 10.0
"""Largest pull of the energy's gradient that a policy sees, in widths of a mode, as wells may be arbitrarily steep; and
largest correction of such a policy, in units of w_t: a rare path would be pushed farther at every step."""
VALUE_GRADIENT_LIMIT, VALUE_SHIFT_LIMIT = 1.0, 5.0
"""The same for a value's gradient, the pull in units of w_t, too: far from the paths V is a guess."""


class GaussianPolicy(nn.Module):
    """Base for policies: ``moments`` from a mean and a learned log sigma per step.

    ``base_mean(x, t)`` is the part of the mean that is not trained (the base sampler's mean, or None); agents compute
    it once per state and hand it back to ``moments``, so the base denoiser is never paid for twice.
    """

    log_sigma: nn.Parameter
    """Learned log sigma_t, ``[T]``; with the schedule's ``codes``, ``[C]``, what is added to the base sampler's
    log sigma_t per number of the code."""
    start_log_sigma: Tensor | None
    """The base sampler's log sigma_t, ``[T]``, where there are ``codes``."""
    codes: Tensor | None
    """What tells the steps of several horizons apart, ``[T, C]`` (Schedule); None with one horizon."""
    sees_gradient: bool = False
    """Whether grad E or grad V is an input, which changes when E or V does."""
    frozen_steps: int = 0
    """Number of initial steps that stay the base sampler's."""
    fixed_sigma: Tensor | None
    """True at steps whose log sigma is not trained, ``[T]``; None: all are trained. (A mask, as deep copies of a
    module lose gradient hooks.)"""

    def __init__(self) -> None:
        super().__init__()
        for name in ("fixed_sigma", "start_log_sigma", "codes"):
            self.register_buffer(name, None, persistent=False)

    def base_mean(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """The untrained part of the mean, or None."""
        return None

    def differentiable_base_mean(self, x: Tensor, t: int, recorded: Tensor | None) -> Tensor | None:
        """``base_mean`` with gradients in x; gradients of E or V in it are taken from ``recorded``, as constants."""
        return self.base_mean(x, t)

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log sigma (broadcastable) of x_{t+1}; ``base_mean`` is computed when it is None."""
        raise TypeError(f"{type(self).__name__} must define moments.")

    def moments_along(self, trajectory: Trajectory, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log sigma at the transitions of a rollout, or at ``rows`` of them: ``[rows, *event]`` each."""
        x, _, t = trajectory.transitions()
        base_mean = trajectory.base_means()
        if rows is not None:
            x, t, base_mean = x[rows], t[rows], None if base_mean is None else base_mean[rows]
        mean, log_std = self.moments(x, t, base_mean)
        return mean, log_std.expand_as(mean)

    def _start_sigma(self, schedule: Schedule, sigma: Tensor) -> None:
        """Let log sigma_t be learned, from that of ``sigma`` ``[T]`` on."""
        start = sigma.log()
        self.codes = schedule.codes
        self.start_log_sigma = None if self.codes is None else start.clone()
        self.log_sigma = nn.Parameter(start.clone() if self.codes is None else start.new_zeros(self.codes.shape[1]))

    def trained_log_sigma(self) -> Tensor:
        """log sigma_t with gradients where it is trained: ``[T]``."""
        log_sigma: Tensor = self.log_sigma
        kept = self.start_log_sigma
        if kept is not None and self.codes is not None:
            log_sigma = kept + self.codes @ log_sigma
        if self.fixed_sigma is None:
            return log_sigma
        return torch.where(self.fixed_sigma, self.log_sigma.detach() if kept is None else kept, log_sigma)

    def freeze_last_sigma(self) -> None:
        """Keep sigma_{T-1} where it is."""
        self._freeze_sigma(slice(-1, None))

    def freeze_first_steps(self, steps: int) -> None:
        """Keep the first ``steps`` steps, mean and sigma, as they are in the base sampler; call it before training."""
        self.frozen_steps = steps
        self._freeze_sigma(slice(steps))

    def _freeze_sigma(self, steps: slice) -> None:
        if self.fixed_sigma is None:
            self.fixed_sigma = torch.zeros_like(self.trained_log_sigma(), dtype=torch.bool)
        self.fixed_sigma[steps] = True

    def mean_parameters(self) -> list[nn.Parameter]:
        """Trained parameters other than log sigma, which has a learning rate of its own."""
        return [p for name, p in self.named_parameters() if name != "log_sigma" and p.requires_grad]


class CorrectionPolicy(GaussianPolicy):
    """mu = mu_base(x, t) + w_t m(x, t), log sigma = log sigma_t + l(x, t): a zero-initialised network on a fixed base.

    The network m sees x_t and mu_base. w_t is the larger of sigma_t and half the fall of the noise level, so that an
    output of 1 matters at every step. With ``energy_gradient`` the network also sees g = -sigma_{T-1} grad E(x), softly
    clipped, and adds w_t g times a learned gate to the mean, as samplers that are given only the energy do (Zhang and
    Chen 2022, arXiv 2111.15141, section 4). sigma_{T-1}, the last step's, stands for the width of a mode: g is the pull
    towards a mode, in units of that width. With ``value`` and ``energy_gradient=None`` the network sees
    g = -w_t grad V_{t+1}(mu_base) / tau in its place. With either, the whole correction is softly clipped. ``base``
    stands for the MDP's base sampler where it is given.
    """

    state_scale: Tensor
    base_scale: Tensor
    step_scale: Tensor
    stretch_limit: Tensor

    def __init__(
        self, mdp: DenoisingMDP, config: MeanConfig, value: ValueGradient | None = None, base: BaseSampler | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = copy.deepcopy(mdp.base if base is None else base).requires_grad_(False)
        self.dim = mdp.dim
        self.state_dependent_sigma = isinstance(config, PolicyConfig) and config.state_dependent_sigma
        self.gradient: EnergyGradient | ValueGradient | None = None
        wanted = config.energy_gradient
        if value is not None and wanted is None:
            self.gradient = value
        elif isinstance(mdp.base, IdentitySampler) and not mdp.energy.values_only if wanted is None else wanted:
            self.gradient = EnergyGradient(mdp.energy)
        self.sees_gradient = self.gradient is not None
        sigma, schedule = self.base.sigma, self.base.schedule
        fall = (schedule.s[:-1] - schedule.s[1:]).abs()
        self.register_buffer("step_scale", torch.maximum(sigma, 0.5 * fall))
        self.register_buffer("base_scale", mdp.state_scale[1:].clone())
        parts = 1 + self.state_dependent_sigma + self.sees_gradient
        self.net = step_network(
            mdp.particles, self.dim, 2 + self.sees_gradient, parts, torch.ones(mdp.horizon), width=config.width,
            depth=config.depth, fourier=config.fourier, coordinate_width=config.coordinate_width, codes=schedule.codes,
        )  # fmt: skip
        self.register_buffer("state_scale", mdp.state_scale[:-1].clone())
        self.register_buffer("stretch_limit", torch.full_like(sigma, 2.0), persistent=False)
        self._start_sigma(schedule, sigma)

    def freeze_last_sigma(self) -> None:
        super().freeze_last_sigma()
        self.stretch_limit[-1] = 0.0

    def freeze_first_steps(self, steps: int) -> None:
        super().freeze_first_steps(steps)
        self.step_scale[:steps] = 0.0
        self.stretch_limit[:steps] = 0.0

    def base_mean(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """mu_base(x, t), ``[batch, *event]``; stacked with the clipped gradient, ``[batch, 2, *event]``, where used."""
        mean = self.base.mean(x, t)
        if self.gradient is None:
            return mean
        if isinstance(self.gradient, EnergyGradient):
            pull, limit = self.base.sigma[-1] * self.gradient(x), GRADIENT_LIMIT
        else:
            pull, limit = per_step(self.step_scale, t, x) * self.gradient(mean, t), VALUE_GRADIENT_LIMIT
        pull = pull.clamp(-1e30, 1e30)  # an infinite one is a wall
        return torch.stack([mean, self.net.soft_clip(pull, limit)], dim=1)

    def differentiable_base_mean(self, x: Tensor, t: int, recorded: Tensor | None) -> Tensor | None:
        mean = self.base.mean(x, t)
        return mean if recorded is None or self.gradient is None else torch.stack([mean, recorded[:, 1]], dim=1)

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if base_mean is None:
            base_mean = self.base_mean(x, t)
        assert base_mean is not None
        mean, *pulls = base_mean.unbind(1) if self.gradient is not None else (base_mean,)
        parts = [x / per_step(self.state_scale, t, x), mean / per_step(self.base_scale, t, x), *pulls]
        out, *rest = self.net(torch.cat(parts, dim=1).flatten(1), t).view(len(x), -1, *x.shape[1:]).unbind(1)
        log_sigma = per_step(self.trained_log_sigma(), t, x)
        if self.state_dependent_sigma:
            log_sigma = log_sigma + per_step(self.stretch_limit, t, x) * torch.tanh(rest[0] / 2)
        if pulls:
            limit = VALUE_SHIFT_LIMIT if isinstance(self.gradient, ValueGradient) else SHIFT_LIMIT
            out = self.net.soft_clip(out + rest[-1] * pulls[0], limit)
        return mean + per_step(self.step_scale, t, x) * out, log_sigma


class FineTunedPolicy(GaussianPolicy):
    """The pretrained network itself as the policy: mu is the base sampler's mean with its denoiser trainable.

    This is what is done to large backbones (DxMI, DDPO); it never calls a second denoiser. Frozen steps use a copy of
    the pretrained network, ``start``, whose mean is their ``base_mean``. Of several horizons the first step has weights
    of its own (FirstLevelDenoiser).
    """

    start: ReverseSampler | None

    def __init__(self, mdp: DenoisingMDP) -> None:
        super().__init__()
        if not isinstance(mdp.base, ReverseSampler) or not list(mdp.base.denoiser.parameters()):
            raise ValueError("policy.kind 'fine-tuned' needs a base sampler with a denoiser network; use 'correction'.")
        self.base = copy.deepcopy(mdp.base)
        schedule = self.base.schedule
        if schedule.several_horizons:
            self.base.denoiser = FirstLevelDenoiser(self.base.denoiser, float(schedule.levels[0]))
        self.base.denoiser.requires_grad_(True)
        self._start_sigma(schedule, self.base.sigma)
        self.start = None

    def freeze_first_steps(self, steps: int) -> None:
        super().freeze_first_steps(steps)
        self.start = copy.deepcopy(self.base).requires_grad_(False)

    def base_mean(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        if self.start is None:
            return None
        trained = isinstance(t, int) and t >= self.frozen_steps
        return x if trained else self.start.mean(x, t)  # trained steps do not use it: any tensor of the shape will do

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.start is not None and base_mean is None:
            base_mean = self.base_mean(x, t)
        if base_mean is None:
            mean = self.base.mean(x, t)
        elif isinstance(t, int):
            mean = base_mean if t < self.frozen_steps else self.base.mean(x, t)
        else:
            mean = torch.where(self._frozen(t, x), base_mean, self.base.mean(x, t))
        return mean, per_step(self.trained_log_sigma(), t, x)

    def denoised(self, x: Tensor, t: Tensor | int, *, trained: bool = False) -> Tensor:
        """D_t(x), ``[batch, *event]``, of the denoiser of that step; ``trained`` promises that no step is frozen."""
        if self.start is None or trained or (isinstance(t, int) and t >= self.frozen_steps):
            return self.base.denoised(x, t)
        frozen = self.start.denoised(x, t)
        return frozen if isinstance(t, int) else torch.where(self._frozen(t, x), frozen, self.base.denoised(x, t))

    def _frozen(self, t: Tensor, x: Tensor) -> Tensor:
        return (t < self.frozen_steps).view(-1, *[1] * (x.ndim - 1))


def make_policy(mdp: DenoisingMDP, config: MeanConfig, value: ValueGradient | None = None) -> GaussianPolicy:
    """The policy of an MDP that starts as its base sampler; ``value`` is for corrections (CorrectionPolicy).

    Raises ValueError for a base sampler that cannot start it, or a setting of a correction with a fine-tuned network.
    """
    policy: GaussianPolicy
    if config.energy_gradient and mdp.energy.values_only:
        raise ValueError("policy.energy_gradient must be False or None on a task that gives no gradient, got True.")
    if policy_kind(config, mdp.event_shape) == "correction":
        policy = CorrectionPolicy(mdp, config, value)
    else:
        for key, allowed in {"coordinate_width": "0", "energy_gradient": "False or None"}.items():
            if value := getattr(config, key):
                raise ValueError(f"policy.{key} must be {allowed} for a fine-tuned network, got {value!r}.")
        policy = FineTunedPolicy(mdp)
    # Sigma of a deterministic base is 0 and cannot be learned in log space.
    if not bool(torch.isfinite(policy.trained_log_sigma().detach()).all()):
        raise ValueError("a deterministic base sampler (eta = 0 or sigma_last = 0) cannot start a Gaussian policy.")
    if isinstance(config, PolicyConfig) and config.fixed_last_sigma:
        policy.freeze_last_sigma()
    several = mdp.base.schedule.several_horizons  # then all have the same parts
    if config.trained_steps is not None and (several or config.trained_steps < mdp.horizon):
        policy.freeze_first_steps(max(0, mdp.horizon - config.trained_steps))
    if not isinstance(config, PolicyConfig):
        policy.log_sigma.requires_grad_(False)
    return policy.to(mdp.device)


def policy_optimizer(policy: GaussianPolicy, config: MeanConfig) -> torch.optim.Adam:
    """Adam with a rate for the mean and one for log sigma: a pretrained network is moved gently, a correction fast."""
    tuned = isinstance(policy, FineTunedPolicy)
    groups = [(policy.mean_parameters(), config.fine_tuning_rate if tuned else config.learning_rate)]
    if isinstance(config, PolicyConfig):
        rate = config.sigma_fine_tuning_rate if tuned else config.sigma_learning_rate
        groups.append(([policy.log_sigma], rate))
    return adam(groups)


@torch.no_grad()
def base_moments(mdp: DenoisingMDP, policy: GaussianPolicy, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """Mean and log sigma of the task's base sampler at all transitions: ``[T n, *event]`` each.

    The rollout of a correction has recorded the means already.
    """
    x, _, t = trajectory.transitions()
    mean = trajectory.base_means()
    if mean is None or not isinstance(policy, CorrectionPolicy):
        mean = mdp.base.mean(x, t)
    elif policy.sees_gradient:
        mean = mean[:, 0]
    return mean, per_step(mdp.base.sigma.log(), t, mean).expand_as(mean)


class Recorder:
    """A policy for rollouts that keeps the base means it computed: ``base_means``, T tensors or none."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self.policy = policy
        self.base_means: list[Tensor] = []

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """As the policy's, noting its base mean."""
        base_mean = self.policy.base_mean(x, t)
        if base_mean is not None:
            self.base_means.append(base_mean)
        return self.policy.moments(x, t, base_mean)


def collect(
    agent: Agent[Any], policy: GaussianPolicy, n: int, on_final: FinalStateHook | None = None, *,
    kernel_steps: int = 1, start: Tensor | None = None,
) -> Trajectory:  # fmt: skip
    """The rollout of one iteration: n episodes of ``policy`` with its base means, added to ``costs.timesteps``.

    First x_T is handed to ``on_final``, which may change the energy; then the backward kernel is fitted
    ``kernel_steps`` times. ``start`` holds x_0 of the episodes, ``[n, *event_shape]``; None: the MDP draws it.
    """
    mdp, recorder = agent.mdp, Recorder(policy)
    with torch.no_grad():
        trajectory = mdp.rollout(recorder, n, agent.generator, start=start)
    trajectory.base_mean = torch.stack(recorder.base_means) if recorder.base_means else None
    agent.costs.timesteps += n * mdp.horizon
    if on_final is not None:
        on_final(trajectory.final)
    for _ in range(kernel_steps):
        mdp.kernel.fit(*trajectory.transitions())
    return trajectory
