"""Value functions V_t(x): a network that is fitted to soft returns, alone or on a look-ahead; their gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dxmi_rl.agents.policies import FineTunedPolicy, GaussianPolicy
from dxmi_rl.agents.settings import ValueConfig
from dxmi_rl.diffusion.samplers import ReverseSampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.live_energy import Energy
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.networks import ParticleMLP, StepConv, StepMLP, check_without_coordinates
from dxmi_rl.utils.torch_tools import adam, frozen, gradient_step

CACHED_NUMBERS = 640 * 128
"""Rows times width of one backward pass of ``fit`` on a CPU; more overflows its cache and takes 1.5 times as long."""
MAX_VALUE_GRAD_NORM = 10.0
"""Largest norm of a value's gradient in its weights."""
FADE = 4.0
"""Mean square of x, in units of its scale, beyond which Fourier features vanish where the policy is given grad V."""
LOW_DIMENSIONS = 3
"""Up to here ``fourier=None`` means four frequencies."""


def value_network(
    mdp: DenoisingMDP, config: ValueConfig, scale: Tensor | None = None, *, fade: float | None = None,
    blur: Tensor | None = None,
) -> StepMLP | StepConv | ParticleMLP:  # fmt: skip
    """A network (x, t) -> ``[batch, 1]`` with a step for every entry of ``scale`` (None: the T steps of the MDP).

    ``fade`` and ``blur`` ``[steps]`` are those of FourierFeatures. Particles have a ParticleMLP.
    """
    schedule = mdp.base.schedule
    codes = schedule.codes if scale is None else schedule.class_codes(len(scale))
    scale = mdp.state_scale[:-1] if scale is None else scale
    if mdp.particles is not None:
        check_without_coordinates("value.coordinate_width", config.coordinate_width)
        return ParticleMLP(mdp.particles, 1, 1, scale, width=config.width, pooled=True, codes=codes)
    if config.convolutional:
        return StepConv(mdp.event_shape, 1, scale, width=config.width, depth=config.depth, codes=codes)
    fourier = config.fourier
    if fourier is None:
        # In more dimensions data are sparse, and frequencies make grad V rough, which the policy follows.
        fourier = 4 if mdp.dim <= LOW_DIMENSIONS else 0
    return StepMLP(
        mdp.dim, 1, scale, width=config.width, depth=config.depth, fourier=fourier, residual=config.residual,
        dim=mdp.dim, pooled=True, coordinate_width=config.coordinate_width, fade=fade, blur=blur,
        codes=codes,
    )  # fmt: skip


class ValueFunction(nn.Module):
    """V_t(x) in nats, ``[batch]``: ``unit`` times a network, with the network's optimizer.

    Attributes:
        network: (x, t) -> ``[batch, 1]``.
        unit: tau d, the spread of a soft return, or 1 where tau = 0: learning rates then mean the same at every tau.
        optimizer: Adam.
    """

    def __init__(
        self, mdp: DenoisingMDP, config: ValueConfig, *, network: nn.Module | None = None, unit: float | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = (value_network(mdp, config) if network is None else network).to(mdp.device)
        self.unit = mdp.tau * mdp.dim or 1.0 if unit is None else unit
        self.optimizer = adam([(list(self.network.parameters()), config.learning_rate)])
        places = math.prod(mdp.event_shape[1:]) if config.convolutional else 1
        self.rows_at_once = max(1, CACHED_NUMBERS // (config.width * places)) if mdp.device.type == "cpu" else None

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        value: Tensor = self.network(x, t)
        return self.unit * value.squeeze(1)

    def fit(self, x: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        """One Adam step on the mean of ((V_t(x) - target) / unit)^2 over rows ``[batch]``; returns that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        rows = self.rows_at_once or len(x)
        total = targets.new_zeros(())
        for part in range(0, len(x), rows):
            chosen = slice(part, part + rows)
            error = self.network(x[chosen], t[chosen]) - (targets[chosen] / self.unit)[:, None]
            loss = error.square().mean(1).sum() / len(x)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_VALUE_GRAD_NORM)
        self.optimizer.step()
        return total

    def fit_gradients(
        self, x: Tensor, t: Tensor, targets: Tensor, gradients: Tensor | None, *, scale: Tensor, weight: float = 1.0,
        robust: bool = False,
    ) -> Tensor:  # fmt: skip
        """One Adam step on values and gradients, with targets ``[batch]`` and ``[batch, *event_shape]`` (None: values
        only); returns the loss.

        It is the mean of e^2 + weight h(|scale_t (grad V_t(x) - gradient)| / unit), e = (V_t(x) - target) / unit, where
        h(r) = 2 (sqrt(1 + r^2) - 1) grows like r: gradients have steep outliers. ``robust`` takes h(e) for e^2, too.
        """
        if gradients is None:
            value, along = self.network(x, t), None
        else:
            point = x.detach().requires_grad_()
            value = self.network(point, t)
            (slope,) = torch.autograd.grad(value.sum(), point, create_graph=True)
            along = (per_step(scale, t, x) * (slope - gradients / self.unit)).flatten(1).norm(dim=1)
        error = value.squeeze(1) - targets / self.unit
        loss = _root_loss(error) if robust else error.square().mean()
        if along is not None:
            loss = loss + weight * _root_loss(along)
        return gradient_step(self.optimizer, self.network, loss, MAX_VALUE_GRAD_NORM)


def _root_loss(errors: Tensor) -> Tensor:
    """Mean of 2 (sqrt(1 + r^2) - 1), which is r^2 where r is small and 2 |r| where it is large; r^2 may overflow."""
    return 2 * (torch.hypot(torch.ones_like(errors), errors) - 1).mean()


class Lookahead:
    """E(D_t(x)): the energy of what the denoiser of a policy (or of its base sampler) expects in the end.

    It is the soft value of rewards at the posterior's mean, as Li et al. 2024 (arXiv 2408.08252) use it at sampling
    time. It has a first derivative in x and none in the weights.
    """

    def __init__(self, mdp: DenoisingMDP, policy: GaussianPolicy) -> None:
        if not isinstance(mdp.base, ReverseSampler):
            kind = type(mdp.base).__name__
            raise ValueError(f"lookahead_value must be False for base sampler {kind}, which has no denoiser, got True.")
        self.mdp, self.base, self.policy = mdp, mdp.base, policy

    def __call__(
        self, x: Tensor, t: Tensor | int, *, policy: nn.Module | None = None, energy: Energy | None = None,
        trained: bool = False,
    ) -> Tensor:  # fmt: skip
        """``[batch]``; of another policy or energy where they are given. ``trained`` promises that no step is frozen,
        which saves the calls of the frozen steps' denoiser.
        """
        followed = self.policy if policy is None else policy
        energy = self.mdp.energy if energy is None else energy
        tuned = followed if isinstance(followed, FineTunedPolicy) else None
        denoiser = self.base.denoiser if tuned is None else tuned.base.denoiser

        def ahead_of(x: Tensor) -> Tensor:
            return energy(self.base.denoised(x, t) if tuned is None else tuned.denoised(x, t, trained=trained))

        if not (torch.is_grad_enabled() and x.requires_grad):
            with torch.no_grad():
                return ahead_of(x)
        # Forward and backward in one place: while weights are frozen, and before ``rows_at_a_time`` runs them again.
        with frozen([*denoiser.parameters(), *self.mdp.energy.parameters()]):
            point = x.detach().requires_grad_()
            ahead = ahead_of(point)
            (slope,) = torch.autograd.grad(ahead.sum(), point)
        return ahead.detach() + ((x - x.detach()) * slope).flatten(1).sum(1)
