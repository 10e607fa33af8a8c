"""Systems of identical particles in the zero-mean subspace: the double-well DW4, Lennard-Jones LJ13 and LJ55."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.networks import zero_mean_basis
from dxmi_rl.targets.base import Target, TargetError
from dxmi_rl.utils.checks import check_batch, check_integer, check_real
from dxmi_rl.utils.storage import load_tensors

REFERENCES = Path(__file__).parents[1] / "data" / "particles.safetensors"
"""Reference states, which tools/make_references.py makes."""


@functools.cache
def _references() -> dict[str, Tensor]:
    """All of them; read once, as learning curves ask often."""
    return load_tensors(REFERENCES)[0]


class ParticleTarget(Target):
    """N particles in d dimensions whose energy does not change under translations, rotations and permutations.

    Centre-of-mass convention: such a density cannot be normalised on R^(N d), so it lives on the subspace where the
    particles' mean is zero. States are coordinates y in an orthonormal basis of it, ``event_shape = ((N - 1) d,)``:
    positions = B y for y as ``[N - 1, d]`` and B the ``[N, N - 1]`` Helmert matrix, whose columns are orthonormal and
    sum to zero. Lengths, and so volumes and log Z, are those of the positions. ``energy`` takes coordinates
    ``[n, (N - 1) d]`` and also positions ``[n, N d]``, whose mean it takes away.

    Subclasses define ``_pair_energy(distances)``, ``[n, N (N - 1) / 2] -> [n]``, from the distances of all unordered
    pairs. These are at least 1e-6, so that particles in one place have a gradient (zero) and not NaN. Those with
    reference states name them in ``reference``; ``evaluate`` then compares samples with these.
    """

    has_energy: ClassVar[bool] = True
    reference: ClassVar[str | None] = None
    basis: Tensor
    pairs: Tensor

    def __init__(
        self, particles: int, space: int, *, scale: float, plot_range: tuple[float, float], smallest_scale: float | None
    ) -> None:
        self.particles = check_integer("particles", particles, minimum=2)
        self.space = check_integer("space", space)
        super().__init__(((particles - 1) * space,), scale=scale, smallest_scale=smallest_scale, plot_range=plot_range)
        self.register_buffer("basis", zero_mean_basis(particles))
        self.register_buffer("pairs", torch.triu_indices(particles, particles, offset=1))

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*super().metrics, *(["particles"] if self.reference is not None else []))

    def reference_states(self) -> Tensor:
        """6,000 states of long Markov chains (tools/make_references.py), nearly independent: ``[6000, (N - 1) d]``.

        Turned, mirrored and relabelled at random, in no order. Raises TargetError for a target that names none.
        """
        if self.reference is None:
            raise TargetError(f"target {self.name!r} has no reference states.")
        return _references()[self.reference].to(self.anchor, copy=True)

    def positions(self, y: Tensor) -> Tensor:
        """Positions with mean zero ``[n, N, d]`` of coordinates ``[n, (N - 1) d]``. Raises ValueError, TypeError."""
        y = check_batch("y", y, self.event_shape)
        return self.basis.to(y.dtype) @ y.reshape(-1, self.particles - 1, self.space)

    def coordinates(self, x: Tensor) -> Tensor:
        """Coordinates ``[n, (N - 1) d]`` of positions ``[n, N, d]`` or ``[n, N d]``; their mean is taken away."""
        if isinstance(x, Tensor) and x.dim() == 3:
            x = check_batch("x", x, (self.particles, self.space))
        else:
            x = check_batch("x", x, (self.particles * self.space,))
        return (self.basis.T.to(x.dtype) @ x.reshape(-1, self.particles, self.space)).flatten(1)

    def energy(self, x: Tensor) -> Tensor:
        """E in nats of coordinates ``[n, (N - 1) d]`` or of positions ``[n, N d]``: ``[n]``."""
        if isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == self.particles * self.space:
            x = self.coordinates(x)
        return super().energy(x)

    def _energy(self, x: Tensor) -> Tensor:
        positions = self.positions(x)
        differences = positions[:, self.pairs[0]] - positions[:, self.pairs[1]]
        return self._pair_energy(differences.square().sum(-1).clamp_min(1e-12).sqrt())

    def _pair_energy(self, distances: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _pair_energy.")


class DoubleWell4(ParticleTarget):
    """DW4: four particles in the plane, ``E = sum_{i<j} 0.9 (d_ij - 4)^4 - 4 (d_ij - 4)^2`` (Koehler et al. 2020).

    arXiv 2006.02425 with a = 0, b = -4, c = 0.9, d0 = 4, temperature 1. A pair rests at distance 2.51 or 5.49. States
    are coordinates in the zero-mean subspace, R^6 (see ParticleTarget); log Z is unknown.
    """

    reference: ClassVar[str | None] = "dw4"

    def __init__(self) -> None:
        super().__init__(4, 2, scale=2.13, smallest_scale=0.13, plot_range=(-5.0, 5.0))

    def _pair_energy(self, distances: Tensor) -> Tensor:
        squared = (distances - 4).square()
        return (0.9 * squared.square() - 4 * squared).sum(1)


class LennardJones(ParticleTarget):
    """``E = sum_{i != j} (r_ij^-12 - 2 r_ij^-6) + sum_i |x_i - mean|^2 / 2`` over ordered pairs of N particles.

    arXiv 2006.02425 with epsilon = r_m = 1, temperature 1: twice the plain Lennard-Jones energy with sigma = 2^(-1/6),
    plus a harmonic trap. States are coordinates in the zero-mean subspace (see ParticleTarget); log Z is unknown.

    Args:
        particles: N.
        linear_below: distance below which r^-12 - 2 r^-6 goes on along its tangent, so that energies and gradients
            stay finite. At 0.65 the pair costs 298 nats, which makes such states rarer than e^-200. None: the
            singular potential itself, whose energy and gradient are not finite where particles meet.
        scale, smallest_scale, plot_range: as in Target.

    Raises ValueError or TypeError for linear_below outside (0, 1).
    """

    def __init__(
        self, particles: int, *, linear_below: float | None = 0.65, scale: float, smallest_scale: float,
        plot_range: tuple[float, float],
    ) -> None:  # fmt: skip
        if linear_below is not None and check_real("linear_below", linear_below, strict=True) >= 1:
            raise ValueError(f"linear_below must be None or lie in (0, 1), where the pair repels, got {linear_below}.")
        self.linear_below = linear_below
        super().__init__(particles, 3, scale=scale, smallest_scale=smallest_scale, plot_range=plot_range)

    def _energy(self, x: Tensor) -> Tensor:
        return super()._energy(x) + 0.5 * x.square().sum(1)

    def _pair_energy(self, distances: Tensor) -> Tensor:
        limit = self.linear_below
        r = distances if limit is None else distances.clamp_min(limit)
        inverse = r.pow(-6)
        potential = inverse * (inverse - 2)
        if limit is not None:
            slope = 12 * (limit**-7 - limit**-13)
            potential = potential - slope * (limit - distances).relu()
        return 2 * potential.sum(1)


class LennardJones13(LennardJones):
    """LJ13: 13 Lennard-Jones particles; the minimum is -83.0896, an icosahedron. States are in R^36."""

    reference: ClassVar[str | None] = "lj13"

    def __init__(self, *, linear_below: float | None = 0.65) -> None:
        super().__init__(13, linear_below=linear_below, scale=0.71, smallest_scale=0.025, plot_range=(-2.2, 2.2))


class LennardJones55(LennardJones):
    """LJ55: 55 Lennard-Jones particles; the minimum is -491.6413, an icosahedron of two shells. States are in R^162."""

    def __init__(self, *, linear_below: float | None = 0.65) -> None:
        super().__init__(55, linear_below=linear_below, scale=1.01, smallest_scale=0.019, plot_range=(-3.3, 3.3))
