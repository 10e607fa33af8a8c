"""Particle systems: plain double loops, ASE, symmetries, the minimum of LJ13, coordinates, touching particles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize
from target_cases import energy_and_gradient, names, seeded
from torch import Tensor

from dxmi_rl import make_target
from dxmi_rl.targets import LennardJones13, ParticleTarget

PARTICLES = names(lambda target: isinstance(target, ParticleTarget))


def particles(name: str) -> ParticleTarget:
    target = make_target(name)
    assert isinstance(target, ParticleTarget)
    return target


def placed(target: ParticleTarget, n: int, seed: int = 0) -> Tensor:
    """Positions ``[n, N, d]`` anywhere, about as wide as the target's."""
    return target.scale * torch.randn(n, target.particles, target.space, generator=seeded(seed))


def icosahedron() -> np.ndarray:
    """A centre and the twelve corners at distance 1."""
    ratio = (1 + math.sqrt(5)) / 2
    corners = [p for a, b in itertools.product((-1, 1), (-ratio, ratio)) for p in ((0, a, b), (a, b, 0), (b, 0, a))]
    return np.vstack([np.zeros(3), np.array(corners) / math.hypot(1, ratio)])


def two_shells() -> np.ndarray:
    """The icosahedron of 55: the thirteen, and around them the corners at distance 2 and the midpoints of its edges."""
    corners = icosahedron()[1:]
    middles = [a + b for a, b in itertools.combinations(corners, 2) if math.dist(a, b) < 1.1]
    return np.vstack([icosahedron(), 2 * corners, middles])


LOWEST = {"lj13": (icosahedron(), -83.0896), "lj55": (two_shells(), -491.6413)}
"""Particles near their lowest minimum, and its energy."""


@pytest.mark.usefixtures("float64")
def test_dw4_is_the_sum_over_pairs() -> None:
    target = particles("dw4")
    x = placed(target, 20)
    for positions, energy in zip(x.tolist(), target.energy(x.flatten(1)).tolist(), strict=True):
        total = 0.0
        for i in range(4):
            for j in range(i + 1, 4):
                d = math.dist(positions[i], positions[j])
                total += 0.9 * (d - 4) ** 4 - 4 * (d - 4) ** 2
        assert energy == pytest.approx(total, rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_lj13_is_the_sum_over_ordered_pairs() -> None:
    target = LennardJones13(linear_below=None)
    x = placed(target, 10) + torch.from_numpy(icosahedron())
    for positions, energy in zip(x.numpy(), target.energy(x.flatten(1)).tolist(), strict=True):
        total = 0.5 * float(np.square(positions - positions.mean(0)).sum())
        for i, j in itertools.permutations(range(13), 2):
            r = math.dist(positions[i], positions[j])
            total += r**-12 - 2 * r**-6
        assert energy == pytest.approx(total, rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_lj13s_lennard_jones_part_is_twice_ases() -> None:
    """ASE's sigma is where the energy crosses zero, 2^(-1/6) of the resting distance; its energy counts pairs once."""
    from ase import Atoms
    from ase.calculators.lj import LennardJones

    target = LennardJones13(linear_below=None)
    for seed in range(5):
        x = icosahedron() + 0.1 * torch.randn(13, 3, generator=seeded(seed)).numpy()
        atoms = Atoms("Ar13", positions=x)
        atoms.calc = LennardJones(sigma=2 ** (-1 / 6), epsilon=1.0, rc=1e6)
        y = target.coordinates(torch.from_numpy(x)[None])
        trap = 0.5 * y.square().sum(1)
        energy, gradient = energy_and_gradient(target, y)
        assert float(energy - trap) == pytest.approx(2 * atoms.get_potential_energy(), rel=1e-9)
        forces = target.positions(y - gradient)[0].numpy()  # minus the gradient without the trap's, y
        np.testing.assert_allclose(forces, 2 * atoms.get_forces(), rtol=1e-7, atol=1e-7)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_lj13s_minimum_is_the_published_icosahedron() -> None:
    target = particles("lj13")

    def energy(y: np.ndarray, trap: float = 1.0) -> tuple[float, np.ndarray]:
        value, gradient = energy_and_gradient(target, torch.from_numpy(y)[None])
        missing = 1 - trap
        return float(value) - missing * 0.5 * y @ y, gradient[0].numpy() - missing * y

    starts = torch.cat([torch.from_numpy(icosahedron())[None], placed(target, 20)])
    lowest = {
        trap: [
            optimize.minimize(energy, y, args=(trap,), jac=True, method="L-BFGS-B", options={"maxiter": 2_000}).fun
            for y in target.coordinates(starts[: 21 if trap else 1]).numpy()
        ]
        for trap in (1.0, 0.0)
    }
    assert lowest[1.0][0] == pytest.approx(-83.0896, abs=1e-3)
    assert min(lowest[1.0]) > -83.0896 - 1e-3, "no start leads lower"
    assert lowest[0.0][0] / 2 == pytest.approx(-44.326801, abs=1e-4), "without the trap: the plain cluster's"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PARTICLES)
def test_energies_are_invariant_and_gradients_turn_along(name: str) -> None:
    target = particles(name)
    x = placed(target, 30)
    energy = target.energy(x.flatten(1))
    shift = 50 * torch.randn(30, 1, target.space, generator=seeded(1))
    order = torch.randperm(target.particles, generator=seeded(2))
    turn, _ = torch.linalg.qr(torch.randn(target.space, target.space, generator=seeded(3)))
    mirror = turn * torch.tensor([-1.0] + [1.0] * (target.space - 1))
    for moved in (x + shift, x[:, order], x @ turn, x @ mirror):
        torch.testing.assert_close(target.energy(moved.flatten(1)), energy, rtol=1e-8, atol=1e-8)
    y = target.coordinates(x)
    turned = target.coordinates(x @ turn)
    _, gradient = energy_and_gradient(target, y)
    _, gradient_turned = energy_and_gradient(target, turned)
    expected = target.coordinates(target.positions(gradient) @ turn)
    torch.testing.assert_close(gradient_turned, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PARTICLES)
def test_coordinates_span_the_zero_mean_subspace(name: str) -> None:
    target = particles(name)
    n, d = target.particles, target.space
    assert target.event_shape == ((n - 1) * d,)
    torch.testing.assert_close(target.basis.T @ target.basis, torch.eye(n - 1))
    torch.testing.assert_close(target.basis.sum(0), torch.zeros(n - 1))
    x = placed(target, 5) + 3
    centred = x - x.mean(1, keepdim=True)
    for given in (x, x.flatten(1)):
        y = target.coordinates(given)
        torch.testing.assert_close(target.positions(y), centred)
    torch.testing.assert_close(y.norm(dim=1), centred.flatten(1).norm(dim=1))
    torch.testing.assert_close(target.energy(y), target.energy(x.flatten(1)))


@pytest.mark.parametrize("name", PARTICLES)
def test_other_shapes_are_refused(name: str) -> None:
    target = particles(name)
    n, d = target.particles, target.space
    for call, shape in (
        (target.positions, (2, n * d)),
        (target.coordinates, (2, (n - 1) * d)),
        (target.coordinates, (2, n, d + 1)),
        (target.energy, (2, n, d)),
        (target.energy, (2, n * d + 1)),
    ):
        with pytest.raises(ValueError, match="must have shape"):
            call(torch.zeros(shape))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        target.coordinates(np.zeros((2, n, d)))  # type: ignore[arg-type]


@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-8, 1e-3])
@pytest.mark.parametrize("name", PARTICLES)
def test_touching_particles_have_finite_energies_and_gradients(name: str, gap: float) -> None:
    target = particles(name)
    x = placed(target, 8)
    x[:, 1] = x[:, 0] + gap
    x[4:] = x[4:, :1]  # all in one place
    energy, gradient = energy_and_gradient(target, target.coordinates(x))
    assert bool(energy.isfinite().all() and gradient.isfinite().all())


@pytest.mark.usefixtures("float64")
def test_lj13_is_linear_where_particles_overlap_and_exact_elsewhere() -> None:
    singular, usual, wider = (LennardJones13(linear_below=limit) for limit in (None, 0.65, 0.9))
    pair = lambda r: 2 * (r**-12 - 2 * r**-6)
    slope = lambda r: 2 * (-12 * r**-13 + 12 * r**-7)
    r = torch.tensor([[0.3, 0.65, 0.7, 0.89, 0.91, 1.0, 3.0]]).T
    for target, limit in ((singular, 0.0), (usual, 0.65), (wider, 0.9)):
        inside = np.maximum(r.numpy(), limit)
        expected = pair(inside) + (slope(limit) * (r.numpy() - inside) if limit else 0)
        np.testing.assert_allclose(target._pair_energy(r).numpy(), expected[:, 0], rtol=1e-12)
    assert pair(0.65) == pytest.approx(298, abs=1)
    together = torch.zeros(1, 36)
    energy, gradient = energy_and_gradient(usual, together)
    assert float(energy) == pytest.approx(78 * (pair(0.65) - 0.65 * slope(0.65)), rel=1e-4)
    assert bool((gradient == 0).all()), "particles in one place do not know where to go"


def test_the_singular_lj13_is_not_finite_where_particles_meet() -> None:
    """As its docstring says: linear_below=None is for checks against the literature."""
    target = make_target("lj13", linear_below=None)
    x = torch.zeros(1, 36)
    energy, _ = energy_and_gradient(target, x)
    assert not bool(energy.isfinite().any())


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_dw4s_spread_by_importance_sampling() -> None:
    """Root mean square of a coordinate under the density itself, and its widest coordinates within the pictures."""
    target = particles("dw4")
    width = 1.08 * target.scale
    y = width * torch.randn(1_500_000, 6, generator=seeded(0))
    with torch.no_grad():
        log_weight = y.square().sum(1) / (2 * width**2) - target.energy(y)
    weight = (log_weight - log_weight.max()).exp()
    assert float(weight.sum() ** 2 / weight.square().sum()) > 500, "effective samples"
    spread = float((weight @ y.square()).mean() / weight.sum()) ** 0.5
    assert spread == pytest.approx(target.scale, rel=0.03)
    outside = (y < target.plot_range[0]) | (y > target.plot_range[1])
    assert float(weight @ outside.double().mean(1) / weight.sum()) < 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_lj13s_spread_by_hamiltonian_monte_carlo() -> None:
    """32 chains from the icosahedron, 120 steps of 30 leapfrogs; the first third is left out."""
    target = particles("lj13")
    step, generator = 0.022, seeded(0)
    y = target.coordinates(torch.from_numpy(icosahedron())[None]).repeat(32, 1)
    energy, gradient = energy_and_gradient(target, y)
    squares, accepted = [], []
    for _ in range(120):
        momentum = torch.randn(y.shape, generator=generator)
        total = energy + 0.5 * momentum.square().sum(1)
        x, slope = y, gradient
        for _ in range(30):
            momentum = momentum - step / 2 * slope
            x = x + step * momentum
            value, slope = energy_and_gradient(target, x)
            momentum = momentum - step / 2 * slope
        log_ratio = total - value - 0.5 * momentum.square().sum(1)
        accept = torch.rand(len(y), generator=generator).log() < log_ratio
        y, gradient = (torch.where(accept[:, None], new, old) for new, old in ((x, y), (slope, gradient)))
        energy = torch.where(accept, value, energy)
        accepted.append(float(accept.double().mean()))
        squares.append(float(y.square().mean()))
    assert 0.5 < np.mean(accepted) < 0.95
    assert math.sqrt(np.mean(squares[40:])) == pytest.approx(target.scale, rel=0.03)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PARTICLES)
def test_the_narrowest_scale_is_that_of_the_stiffest_direction(name: str) -> None:
    """1 / sqrt of the largest curvature at the lowest minimum."""
    target = particles(name)

    def energy(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = energy_and_gradient(target, torch.from_numpy(y)[None])
        return float(value), gradient[0].numpy()

    starts = torch.from_numpy(LOWEST[name][0])[None] if name in LOWEST else placed(target, 10)
    found = [optimize.minimize(energy, y, jac=True, method="L-BFGS-B") for y in target.coordinates(starts).numpy()]
    best = min(found, key=lambda result: result.fun)
    if name in LOWEST:
        assert best.fun == pytest.approx(LOWEST[name][1], abs=1e-3)
    hessian = torch.autograd.functional.hessian(lambda y: target.energy(y[None]).sum(), torch.from_numpy(best.x))
    stiffest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert target.smallest_scale == pytest.approx(stiffest**-0.5, rel=0.1)
