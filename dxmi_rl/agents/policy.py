"""Gaussian policies pi(x_{t+1} | x_t) = N(mu_theta(x_t, t), diag sigma_theta^2) that start as the base sampler."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion.samplers import ReverseSampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.networks import StepMLP

GRADIENT_LIMIT = 5.0
"""Largest pull of the energy's gradient that a policy is given, in widths of a mode; wells may be arbitrarily steep."""


class GaussianPolicy(nn.Module):
    """Base for policies: ``moments`` from a mean and a learned log sigma per step.

    ``reference(x, t)`` is the part of the mean that is not trained (the base sampler's mean, or None); agents compute
    it once per state and hand it back to ``moments``, so the base denoiser is never paid for twice.
    """

    log_sigma: nn.Parameter
    """Learned log sigma_t, ``[T]``."""
    held_steps: int = 0
    """The first so many steps stay the base sampler's."""
    fixed_sigma: Tensor | None
    """Whose log sigma is not trained, ``[T]``; None: all are. A mask and no hook, which copies would lose."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fixed_sigma", None, persistent=False)

    def reference(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """The untrained part of the mean, or None."""
        return None

    def moments(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (shape of x) and log sigma (broadcastable) of x_{t+1}; ``reference`` is computed when it is None."""
        raise TypeError(f"{type(self).__name__} must define moments.")

    def log_std(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> Tensor:
        """log sigma of x_{t+1} alone, as in ``moments``; cheap where it does not depend on the state."""
        return self.moments(x, t, reference)[1]

    def trained_log_sigma(self) -> Tensor:
        """log sigma_t with gradients where it is trained: ``[T]``."""
        if self.fixed_sigma is None:
            return self.log_sigma
        return torch.where(self.fixed_sigma, self.log_sigma.detach(), self.log_sigma)

    def hold_last_sigma(self) -> None:
        """Keep sigma_{T-1} where it is."""
        self._hold_sigma(slice(-1, None))

    def hold_first_steps(self, steps: int) -> None:
        """Keep so many of the first steps, mean and sigma, as they are in the base sampler; before any training."""
        self.held_steps = steps
        self._hold_sigma(slice(steps))

    def _hold_sigma(self, steps: slice) -> None:
        if self.fixed_sigma is None:
            self.fixed_sigma = torch.zeros_like(self.log_sigma, dtype=torch.bool)
        self.fixed_sigma[steps] = True

    def mean_parameters(self) -> list[nn.Parameter]:
        """Trained parameters other than log sigma, which has a learning rate of its own."""
        return [p for name, p in self.named_parameters() if name != "log_sigma" and p.requires_grad]


class EnergyGradient:
    """-grad E of an MDP's live energy. Copies of a policy share it: it belongs to the MDP, not to the policy."""

    def __init__(self, mdp: DenoisingMDP) -> None:
        self.mdp = mdp

    def __call__(self, x: Tensor) -> Tensor:
        """-grad E(x), ``[batch, *event]``; with a graph where x has one."""
        return -self.mdp.energy_gradient(x, create_graph=torch.is_grad_enabled() and x.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> EnergyGradient:
        return self


class CorrectionPolicy(GaussianPolicy):
    """mu = mu_base(x, t) + w_t m(x, t), log sigma = log sigma_t + l(x, t): a zero-initialised network on a fixed base.

    The network sees x_t and mu_base. w_t is the larger of sigma_t and half the fall of the noise: a unit output matters
    at every step. With ``energy_gradient`` it also sees g = -sigma_{T-1} grad E(x), softly clipped, and adds a gated
    w_t g to the mean, as samplers that are given only the energy do (Zhang and Chen 2022, arXiv 2111.15141, section 4);
    sigma_{T-1}, where the ladder ends, stands for the width of a mode, in which g then counts.
    """

    state_scale: Tensor
    reference_scale: Tensor
    step_scale: Tensor
    stretch_limit: Tensor

    def __init__(
        self, mdp: DenoisingMDP, *, width: int, depth: int, fourier: int, state_dependent_sigma: bool,
        energy_gradient: bool = False, coordinate_width: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = copy.deepcopy(mdp.base).requires_grad_(False)
        self.dim = mdp.dim
        self.state_dependent_sigma = state_dependent_sigma
        self.gradient = EnergyGradient(mdp) if energy_gradient else None
        sigma = self.base.sigma
        schedule = self.base.schedule
        fall = (schedule.s[:-1] - schedule.s[1:]).abs()
        self.register_buffer("step_scale", torch.maximum(sigma, 0.5 * fall))
        self.register_buffer("reference_scale", mdp.state_scale[1:].clone())
        parts = 1 + state_dependent_sigma + energy_gradient
        self.net = StepMLP(
            (2 + energy_gradient) * self.dim, parts * self.dim, torch.ones(mdp.horizon), width=width, depth=depth,
            fourier=fourier, zero=True, dim=self.dim, coordinate_width=coordinate_width,
        )  # fmt: skip
        self.register_buffer("state_scale", mdp.state_scale[:-1].clone())
        self.register_buffer("stretch_limit", torch.full_like(sigma, 2.0), persistent=False)
        self.log_sigma = nn.Parameter(sigma.log().clone())

    def hold_last_sigma(self) -> None:
        super().hold_last_sigma()
        self.stretch_limit[-1] = 0.0

    def hold_first_steps(self, steps: int) -> None:
        super().hold_first_steps(steps)
        self.step_scale[:steps] = 0.0
        self.stretch_limit[:steps] = 0.0

    def log_std(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> Tensor:
        if self.state_dependent_sigma:
            return super().log_std(x, t, reference)
        return per_step(self.trained_log_sigma(), t, x)

    def reference(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """mu_base(x, t), ``[batch, *event]``; stacked with the clipped gradient, ``[batch, 2, *event]``, where used."""
        mean = self.base.mean(x, t)
        if self.gradient is None:
            return mean
        pull = self.base.sigma[-1] * self.gradient(x)
        pull = pull.clamp(-1e30, 1e30)  # an infinite one is a wall
        return torch.stack([mean, pull / torch.hypot(torch.ones_like(pull), pull / GRADIENT_LIMIT)], dim=1)

    def moments(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if reference is None:
            reference = self.reference(x, t)
        assert reference is not None
        mean, *pulls = reference.unbind(1) if self.gradient is not None else (reference,)
        parts = [x / per_step(self.state_scale, t, x), mean / per_step(self.reference_scale, t, x), *pulls]
        out, *rest = self.net(torch.cat(parts, dim=1).flatten(1), t).view(len(x), -1, *x.shape[1:]).unbind(1)
        log_sigma = per_step(self.trained_log_sigma(), t, x)
        if self.state_dependent_sigma:
            log_sigma = log_sigma + per_step(self.stretch_limit, t, x) * torch.tanh(rest[0] / 2)
        if pulls:
            out = out + rest[-1] * pulls[0]
        return mean + per_step(self.step_scale, t, x) * out, log_sigma


class FineTunedPolicy(GaussianPolicy):
    """The pretrained network itself as the policy: mu is the base sampler's mean with its denoiser trainable.

    This is what is done to large backbones (DxMI, DDPO); it never calls a second denoiser. Steps that are held have a
    copy of the pretrained one, which is their reference.
    """

    start: ReverseSampler | None

    def __init__(self, mdp: DenoisingMDP) -> None:
        super().__init__()
        if not isinstance(mdp.base, ReverseSampler):
            raise ValueError("policy 'fine-tuned' needs a base sampler with a denoiser network; use 'correction'.")
        self.base = copy.deepcopy(mdp.base)
        self.base.denoiser.requires_grad_(True)
        if not any(True for _ in self.base.denoiser.parameters()):
            raise ValueError("policy 'fine-tuned' needs a denoiser with parameters; use 'correction' for an exact one.")
        self.log_sigma = nn.Parameter(self.base.sigma.log().clone())
        self.start = None

    def hold_first_steps(self, steps: int) -> None:
        super().hold_first_steps(steps)
        self.start = copy.deepcopy(self.base).requires_grad_(False)

    def log_std(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> Tensor:
        return per_step(self.trained_log_sigma(), t, x)

    def reference(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        if self.start is None:
            return None
        late = isinstance(t, int) and t >= self.held_steps
        return x if late else self.start.mean(x, t)  # of late steps nobody looks at it

    def moments(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.mean(x, t, reference), per_step(self.trained_log_sigma(), t, x)

    def mean(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> Tensor:
        """mu(x, t), ``[batch, *event]``."""
        if self.start is None:
            return self.base.mean(x, t)
        if reference is None:
            reference = self.reference(x, t)
            assert reference is not None
        if isinstance(t, int):
            return reference if t < self.held_steps else self.base.mean(x, t)
        return torch.where(self._held(t, x), reference, self.base.mean(x, t))

    def denoised(self, x: Tensor, t: Tensor | int, *, trained: bool = False) -> Tensor:
        """D_t(x), ``[batch, *event]``, of the denoiser of that step; ``trained``: it is known that no step is held."""
        at = self.base.schedule.at(t)
        if self.start is None or trained or (isinstance(t, int) and t >= self.held_steps):
            return self.base.denoiser(x, *at)
        held = self.start.denoiser(x, *at)
        return held if isinstance(t, int) else torch.where(self._held(t, x), held, self.base.denoiser(x, *at))

    def _held(self, t: Tensor, x: Tensor) -> Tensor:
        return (t < self.held_steps).view(-1, *[1] * (x.ndim - 1))


class BasePolicy(GaussianPolicy):
    """The base sampler as a policy: mu_t and sigma_t, nothing trained."""

    log_base: Tensor

    def __init__(self, mdp: DenoisingMDP) -> None:
        super().__init__()
        self.base = copy.deepcopy(mdp.base).requires_grad_(False)
        self.register_buffer("log_base", self.base.sigma.log(), persistent=False)

    def moments(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.base.mean(x, t), per_step(self.log_base, t, x)


class WiderPolicy(GaussianPolicy):
    """A policy with more noise, for exploring rollouts: variance sigma_pi^2 + extra_t^2, extra ``[T]``."""

    def __init__(self, policy: GaussianPolicy, extra: Tensor) -> None:
        super().__init__()
        self.policy, self.log_variance = policy, 2 * extra.log()

    def reference(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        return self.policy.reference(x, t)

    def moments(self, x: Tensor, t: Tensor | int, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy.moments(x, t, reference)
        return mean, 0.5 * torch.logaddexp(2 * log_std, per_step(self.log_variance, t, x))


class Recorder:
    """A policy for ``mdp.rollout`` that keeps the reference means it computed (``references``: T tensors or Nones)."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self.policy = policy
        self.references: list[Tensor | None] = []

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """As the policy's, noting its reference."""
        reference = self.policy.reference(x, t)
        self.references.append(reference)
        return self.policy.moments(x, t, reference)

    def stacked(self) -> Tensor | None:
        """References of all transitions, time-major ``[T n, *event]``, or None."""
        known = [reference for reference in self.references if reference is not None]
        return torch.cat(known) if known else None
