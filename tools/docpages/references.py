"""References where there is no exact sampler: Hamiltonian Monte Carlo and the lowest energy. Neither is exact."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from dxmi_rl.targets import LennardJones, LogGaussianCox, Target


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """New tensors and targets in float64."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def value_and_gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) ``[batch]`` and its gradient ``[batch, dim]``."""
    x = x.detach().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def hamiltonian(
    energy: Callable[[Tensor], Tensor], x: Tensor, *, steps: int, leapfrogs: int, step_size: float, every: int = 10
) -> Tensor:
    """States of Markov chains for exp(-E) from ``x`` ``[chains, dim]`` on: ``[kept * chains, dim]``.

    Hamiltonian Monte Carlo (Neal 2011, arXiv 1206.1901). In the first half of the ``steps`` the step size follows an
    acceptance rate of 0.8; of the second half every ``every``-th state is kept, and the last. Step sizes vary by 20 %,
    against resonances. Seeded.
    """
    generator = torch.Generator().manual_seed(0)
    value, gradient = value_and_gradient(energy, x)
    kept = []
    for step in range(steps):
        momentum = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        size = step_size * (0.8 + 0.4 * float(torch.rand((), generator=generator)))
        y, y_value, y_gradient, p = x, value, gradient, momentum
        for _ in range(leapfrogs):
            p = p - size / 2 * y_gradient
            y = y + size * p
            y_value, y_gradient = value_and_gradient(energy, y)
            p = p - size / 2 * y_gradient
        loss = value + momentum.square().sum(1) / 2 - y_value - p.square().sum(1) / 2
        rate = loss.clamp_max(0).exp().nan_to_num(0.0)
        accepted = torch.rand(len(x), generator=generator, dtype=x.dtype) < rate
        x, gradient = torch.where(accepted[:, None], y, x), torch.where(accepted[:, None], y_gradient, gradient)
        value = torch.where(accepted, y_value, value)
        if step < steps / 2:
            step_size *= math.exp(0.1 * (float(rate.mean()) - 0.8))
        elif (steps - 1 - step) % every == 0:
            kept.append(x)
    return torch.cat(kept)


def cox_sample(target: LogGaussianCox) -> Tensor:
    """One field of the Cox process by Hamiltonian Monte Carlo in coordinates that whiten its prior: ``[dim]``.

    The chain starts at the lowest energy; ``target`` must be in float64.
    """
    factor = torch.linalg.inv(target.whitening)
    white = lowest_energy(target)[1][None] @ target.whitening.T
    white = hamiltonian(lambda z: target.energy(z @ factor.T), white, steps=40, leapfrogs=10, step_size=0.3)
    return white[-1] @ factor.T


def lowest_energy(target: Target) -> tuple[float, Tensor]:
    """The lowest energy found and where, ``[dim]``: L-BFGS in float64, Lennard-Jones clusters from icosahedra of ASE's,
    others from noise.
    """
    if isinstance(target, LennardJones):
        from ase.cluster import Icosahedron

        shells = {13: 2, 55: 3}[target.particles]
        positions = torch.from_numpy(Icosahedron("Ar", shells, latticeconstant=2**0.5).positions)  # neighbours about 1
        starts = target.coordinates(positions[None])
    else:
        generator = torch.Generator().manual_seed(0)
        count = 64 if target.dim < 100 else 1  # the Cox process is convex
        starts = target.scale * torch.randn(count, target.dim, generator=generator, dtype=torch.float64)

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_gradient(target.energy, torch.from_numpy(x)[None])
        return float(value), gradient[0].numpy()

    found = [
        minimize(function, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 5000}) for start in starts
    ]
    best = min(found, key=lambda result: result.fun)
    return float(best.fun), torch.from_numpy(best.x)
