"""A trust region for policy updates: an optimizer's long steps are shortened to a small divergence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.ops import Moments
from dxmi_rl.agents.policies import CorrectionPolicy, GaussianPolicy
from dxmi_rl.diffusion.samplers import IdentitySampler
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import gradient_step

RADIUS = 1.5e-5
"""Largest mean of KL(new || old) over states, in nats per transition, of one step on the log-variance or the balance of
n paths, divided by n: what a policy may learn from them grows with their number."""
GUARD = 0.1
"""The same for other losses, whatever n: agents with several steps on one rollout divide it by their number."""
ROWS = 256
"""States at which the divergence is measured, at most."""


@contextlib.contextmanager
def trust_region(policy: GaussianPolicy, trajectory: Trajectory, radius: float) -> Iterator[None]:
    """Shorten the step of the policy's weights that is made inside to one of divergence ``radius``.

    The divergence is measured at states of ``trajectory`` from the first trained step on, and taken as quadratic in
    the step: one that is many times too long may stay above. Networks that are fine-tuned are left alone: their small
    rates keep them near.
    """
    if not isinstance(policy, CorrectionPolicy):
        yield
        return
    trajectory = trajectory.from_step(max(trajectory.first, policy.frozen_steps))
    rows = some_rows(trajectory.t.numel(), trajectory.x.device)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    with limited_step(parameters, lambda: policy.moments_along(trajectory, rows), radius):
        yield


def some_rows(n: int, device: torch.device) -> Tensor:
    """Indices of ROWS of n rows at most, at equal distances."""
    return torch.arange(0, n, -(-n // ROWS), device=device)


@contextlib.contextmanager
def limited_step(parameters: Sequence[Tensor], moments: Callable[[], Moments], radius: float) -> Iterator[None]:
    """Move ``parameters`` only the part of the way they go inside that has divergence ``radius``: the mean of KL(new ||
    old) of the Gaussians ``moments()``, taken as quadratic in the way.
    """
    with torch.no_grad():
        old = [moment.clone() for moment in moments()]  # a moment may be a parameter itself
        before = [parameter.clone() for parameter in parameters]
    yield
    with torch.no_grad():
        divergence = ops.gaussian_kl(moments(), (old[0], old[1])).mean().clamp_min(0.0)
        part = (radius / divergence).sqrt().nan_to_num(0.0, 1.0).clamp_max(1.0)
        for start, parameter in zip(before, parameters, strict=True):
            parameter.copy_(start.lerp(parameter, part))


def policy_step(
    optimizer: torch.optim.Optimizer, policy: GaussianPolicy, loss: Tensor, max_grad_norm: float,
    trajectory: Trajectory, *, radius: float = GUARD,
) -> Tensor:  # fmt: skip
    """``gradient_step`` of a policy; from scratch, where losses may be of any size, with a trust region of ``radius``
    at states of ``trajectory``. Returns the loss, detached.
    """
    scratch = isinstance(policy, CorrectionPolicy) and isinstance(policy.base, IdentitySampler)
    with trust_region(policy, trajectory, radius) if scratch else contextlib.nullcontext():
        return gradient_step(optimizer, policy, loss, max_grad_norm)
