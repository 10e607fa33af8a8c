"""The adjoint: gradients of the soft return along a policy's own paths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import frozen, input_gradient


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
        slopes = input_gradient(lambda point: values(point, steps), slopes.flatten(0, 1)).view_as(slopes)
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


def missed_along_paths(
    values: Callable[[Tensor, Tensor], Tensor], trajectory: Trajectory, moments: tuple[Tensor, Tensor]
) -> Tensor:
    """sum_t <x_{t+1}(theta) - x_{t+1}, g_{t+1} - grad V_{t+1}(x_{t+1})>, t = 0..T-2, over all paths: a scalar.

    x_{t+1}(theta) is a function of the policy's ``moments`` (mean, log sigma) at the path's own noise, and g the
    path's ``value_gradient``, the adjoint. Added to the loss of a policy step through V, it makes the gradient that of
    the adjoint, with V for a control variate.
    """
    x, x_next, t = trajectory.transitions()
    n, adjoint = trajectory.n, trajectory.value_gradient
    assert adjoint is not None
    mean, log_std = (part.expand_as(x)[:-n] for part in moments)
    noise = ((x_next[:-n] - mean) * torch.exp(-log_std)).detach()
    slopes = input_gradient(lambda point: values(point, t[n:]), x[n:])
    moved = mean + log_std.exp() * noise - x_next[:-n]
    return (moved * (adjoint[1:].flatten(0, 1) - slopes)).sum()
