"""Gradients of values: as an input of policies, and as targets along the paths of a rollout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import frozen


def value_gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient in x of a function ``[batch, *event_shape] -> [batch]``, as a constant in the shape of x."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(value(point).sum(), point)
    return slope


class ValueGradient:
    """-grad V_{t+1} at the base mean over tau, for ``CorrectionPolicy``. Copies of a policy share it."""

    def __init__(self, next_value: Callable[[Tensor, Tensor | int], Tensor], tau: float) -> None:
        self.next_value, self.tau = next_value, tau

    def __call__(self, mean: Tensor, t: Tensor | int) -> Tensor:
        """In the shape of ``mean``."""
        return -value_gradient(lambda point: self.next_value(point, t), mean) / (self.tau or 1.0)

    def __deepcopy__(self, memo: dict[int, object]) -> ValueGradient:
        return self


def adjoint_along_paths(
    mdp: DenoisingMDP, policy: GaussianPolicy, values: Callable[[Tensor, Tensor], Tensor], trajectory: Trajectory,
    last: Tensor, mixing: float,
) -> Tensor:  # fmt: skip
    """g_t, estimates of grad V_t(x_t) from g_T = ``last`` ``[n, *event_shape]``: ``[T, n, *event_shape]``.

    g_t = c_x + J^T [c_x' + lambda g_{t+1} + (1 - lambda) grad V_{t+1}(x_{t+1})], where J = dx_{t+1} / dx_t of the
    reparameterised step at the path's own noise and c = tau log pi - tau log qb. At lambda = 1 it is the gradient of
    the policy's own soft return on this path, whatever V is; its mean is grad V^pi. Gradients of E or V that the policy
    is given count as constants. One step's graph at a time, so memory does not grow with T.

    Args:
        values: V_t(x) of states ``[batch, *event_shape]`` and steps ``[batch]``, t = 1..T-1.
        mixing: lambda.
    """
    x, found, adjoint = trajectory.x, torch.empty_like(trajectory.x[:-1]), last
    slopes = x[1:-1]
    if mixing < 1 and mdp.horizon > 1:
        steps = trajectory.t[trajectory.n :]
        slopes = value_gradient(lambda point: values(point, steps), slopes.flatten(0, 1)).view_as(slopes)
    with torch.enable_grad(), frozen([*policy.parameters(), *mdp.kernel.parameters()]):
        for t in reversed(range(mdp.horizon)):
            recorded = None if trajectory.base_mean is None else trajectory.base_mean[t]
            point = x[t].detach().requires_grad_()
            mean, log_std = policy.moments(point, t, policy.differentiable_base_mean(point, t, recorded))
            log_std = log_std.expand_as(mean)
            x_next = mean + log_std.exp() * ((x[t + 1] - mean) * torch.exp(-log_std)).detach()
            if t < mdp.horizon - 1:
                adjoint = slopes[t].lerp(adjoint, mixing)
            cost = -mdp.tau * log_std.sum() - mdp.running_reward(point, x_next, t).sum()  # log pi at fixed noise
            (adjoint,) = torch.autograd.grad(cost + (x_next * adjoint).sum(), point)
            found[t] = adjoint
    return found
