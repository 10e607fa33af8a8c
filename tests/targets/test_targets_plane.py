"""Energies in the plane: constants, normalisation by quadrature, samples against exact distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from target_cases import EXACT, MIXTURES, PLANE, built, energy_and_gradient, line, names, plane, seeded
from torch import Tensor

from dxmi_rl import make_target
from dxmi_rl.diffusion import MixtureDenoiser
from dxmi_rl.targets import GaussianMixture, StudentMixture, Target


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PLANE)
def test_energies_are_normalised(name: str) -> None:
    target = make_target(name)
    x, weight = plane(target)
    z = float((-target.energy(x)).exp() @ weight)
    assert target.log_z is not None
    assert z == pytest.approx(math.exp(target.log_z), rel=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", PLANE)
def test_functions_of_samples_have_their_exact_means(name: str) -> None:
    """Within 4.5 standard errors; the exact means are quadratures of the energy."""
    target = make_target(name)
    x, weight = plane(target)
    q = (-target.energy(x)).exp() * weight
    n = 100_000
    samples = target.sample(n, seeded(0))
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "fine detail": lambda y: torch.cos(3 * y / target.smallest_scale / 2),
        "width": lambda y: torch.cat([(y / target.scale).tanh(), (y / target.scale).prod(1, keepdim=True).sin()], 1),
        "energy": lambda y: target.energy(y)[:, None],
    }
    if not target.heavy_tailed:
        functions["mean"] = lambda y: y
        functions["second moments"] = lambda y: torch.stack([y[:, 0] ** 2, y[:, 1] ** 2, y[:, 0] * y[:, 1]], 1)
    for label, function in functions.items():
        values = function(samples)
        exact = (q[:, None] * function(x)).sum(0) / q.sum()
        error = (values.mean(0) - exact).abs() / (values.std(0) / math.sqrt(n))
        assert float(error.max()) < 4.5, label


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANE)
def test_coordinates_of_samples_follow_the_energys_marginals(name: str) -> None:
    """Kolmogorov-Smirnov tests against distribution functions by quadrature of the energy; each fails wrongly once in
    10,000 times."""
    target = built(name)
    fine, weight = line(target, 4_000)
    coarse, weight_across = line(target, 300)
    samples = target.sample(20_000, seeded(1)).double().numpy()
    for axis in (0, 1):
        order = [fine, coarse] if axis == 0 else [coarse, fine]
        with torch.no_grad():
            q = (-target.energy(torch.cartesian_prod(*order))).exp().view(*map(len, order))
        density = (q @ weight_across) if axis == 0 else (weight_across @ q)
        # Mass up to a midpoint: all cells before it and half of its own.
        mass = (density * weight).double()
        distribution = (mass.cumsum(0) - mass / 2) / mass.sum()
        test = stats.kstest(samples[:, axis], lambda y, F=distribution: np.interp(y, fine.numpy(), F.numpy()))
        assert test.pvalue > 1e-4, axis


@pytest.mark.parametrize("name", MIXTURES)
def test_coordinates_of_samples_follow_the_mixtures_of_their_definition(name: str) -> None:
    target = built(name)
    kinds: dict[type, Any] = {GaussianMixture: stats.norm, StudentMixture: stats.t(2)}
    law = kinds[type(target)]
    width = target.smallest_scale
    assert isinstance(target, (GaussianMixture, StudentMixture)) and width is not None
    means, samples = target.means.double().numpy(), target.sample(20_000, seeded(2)).double().numpy()
    for axis in (0, 1):
        test = stats.kstest(samples[:, axis], lambda y, m=means[:, axis]: law.cdf((y[:, None] - m) / width).mean(1))
        assert test.pvalue > 1e-4, axis


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", EXACT)
def test_sampler_and_energy_are_of_one_density(name: str) -> None:
    """Stein's identity in any dimension: E_q[f' - f dE/dx_i] = 0 for f = sin(x_i / width), within 4.5 standard errors;
    modes may have other weights, which the tests above see."""
    target = make_target(name)
    n = 50_000
    x = target.sample(n, seeded(0))
    _, gradient = energy_and_gradient(target, x)
    for width in {target.scale, target.smallest_scale or target.scale}:
        values = (x / width).cos() / width - (x / width).sin() * gradient
        error = values.mean(0).abs() / (values.std(0) / math.sqrt(n))
        assert float(error.max()) < 4.5, width


@pytest.mark.parametrize("name", names(lambda target: isinstance(target, GaussianMixture)))
def test_mixture_energies_are_scipys(name: str) -> None:
    target = built(name)
    assert isinstance(target, GaussianMixture)
    x = (1.5 * target.scale * torch.randn(200, target.dim, generator=seeded(0))).double()
    means = target.means.double().numpy()
    log_density = stats.norm.logpdf(x.numpy()[:, None, :], means, target.std).sum(2)
    expected = -np.logaddexp.reduce(log_density, axis=1) + math.log(len(means))
    np.testing.assert_allclose(target.energy(x).numpy(), expected, rtol=1e-9)


def test_eight_gaussians_are_the_papers() -> None:
    target = make_target("8gaussians")
    assert isinstance(target, GaussianMixture)
    assert target.means.norm(dim=1).numpy() == pytest.approx(np.full(8, 4 / 1.414), rel=1e-6)
    assert target.std == pytest.approx(0.5 / 1.414)
    assert target.weights.numpy() == pytest.approx(np.full(8, 1 / 8))
    spacing = (target.means[0] - target.means[1]).norm()
    assert float(spacing) == pytest.approx(2 * 4 / 1.414 * math.sin(math.pi / 8), rel=1e-6)


@pytest.mark.parametrize(("name", "axis", "std"), [("gmm9", 5, 0.5477222), ("gmm25", 10, math.sqrt(0.3))])
def test_grids_are_the_literatures(name: str, axis: int, std: float) -> None:
    target = make_target(name)
    assert isinstance(target, GaussianMixture)
    points = range(-axis, axis + 1, 5)
    assert {tuple(m) for m in target.means.tolist()} == {(a, b) for a in points for b in points}
    assert target.std == pytest.approx(std, rel=1e-12)


def test_gmm40_is_that_of_fab_and_idem() -> None:
    target = make_target("gmm40")
    assert isinstance(target, GaussianMixture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        means = (torch.rand(40, 2) - 0.5) * 80
    assert torch.equal(target.means, means)
    assert target.std == pytest.approx(float(torch.nn.functional.softplus(torch.ones(()))), rel=1e-6)
    assert target.std == pytest.approx(1.31326, abs=1e-5)


@pytest.mark.parametrize("name", ["mos10", "mos10-50"])
def test_mos10_is_a_mixture_of_student_t(name: str) -> None:
    target = make_target(name)
    assert isinstance(target, StudentMixture) and target.heavy_tailed
    if name == "mos10":
        assert torch.equal(target.means, (torch.rand(10, 2, generator=seeded(0)) - 0.5) * 20)
    means = target.means
    x = means[torch.arange(100) % 10] + 3 * torch.randn(100, target.dim, generator=seeded(1))
    density = stats.t.pdf(x.double().numpy()[:, None, :] - means.double().numpy(), df=2).prod(2).mean(1)
    np.testing.assert_allclose(target.energy(x).numpy(), -np.log(density), rtol=1e-5)


@pytest.mark.parametrize("name", ["mos10", "mos10-50"])
def test_mos10s_scale_is_half_the_central_interval(name: str) -> None:
    """Root mean square over the coordinates, from the exact distribution functions."""
    from scipy.optimize import brentq

    target = make_target(name)
    assert isinstance(target, StudentMixture)
    tail = stats.norm.cdf(-1)
    halves = []
    for means in target.means.double().numpy().T:
        low, high = (
            brentq(lambda y, m=means, p=p: stats.t.cdf(y - m, 2).mean() - p, -99, 99) for p in (tail, 1 - tail)
        )
        halves.append((high - low) / 2)
    assert target.scale == pytest.approx(math.sqrt(np.mean(np.square(halves))), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "law"),
    [
        (GaussianMixture(torch.tensor([[3.0]]), 0.7, plot_range=(0, 6)), stats.norm(3, 0.7)),
        (StudentMixture(torch.tensor([[3.0]]), scale=1.3, plot_range=(0, 6)), stats.t(2, 3)),
    ],
)
def test_a_single_component_to_half_a_per_cent(target: Target, law: Any) -> None:
    x = target.sample(1_000_000, seeded(0)).double().numpy()[:, 0]
    assert stats.kstest(x, law.cdf).pvalue > 1e-4
    assert stats.kstest(3 + 1.01 * (x - 3), law.cdf).pvalue < 1e-4, "one per cent would be seen"


@pytest.mark.usefixtures("float64")
def test_mixtures_in_three_dimensions_by_hand() -> None:
    means = torch.tensor([[0.0, 0, 0], [1, 2, 3]])
    x = np.array([0.3, -0.2, 1.0])
    normal = GaussianMixture(means, 0.7, plot_range=(-1, 4))
    density = 0.5 * sum(
        math.exp(-sum((a - b) ** 2 for a, b in zip(x, mean, strict=True)) / (2 * 0.49)) for mean in means.tolist()
    )
    density /= (2 * math.pi * 0.49) ** 1.5
    assert float(normal.energy(torch.from_numpy(x)[None])) == pytest.approx(-math.log(density))
    assert normal.scale == pytest.approx(math.sqrt((0.25 + 1 + 2.25) / 3 + 0.49))
    student = StudentMixture(means, scale=1.0, plot_range=(-1, 4))
    density = 0.5 * sum(math.prod(stats.t.pdf(a - b, 2) for a, b in zip(x, m, strict=True)) for m in means.tolist())
    assert float(student.energy(torch.from_numpy(x)[None])) == pytest.approx(-math.log(density))


def test_student_densities_in_one_dimension_integrate_to_one() -> None:
    target = StudentMixture(torch.tensor([[-3.0], [4.0]]), scale=4.0, plot_range=(-9, 9)).double()
    density = lambda y: float((-target.energy(torch.tensor([[y]], dtype=torch.float64))).exp())
    halves = [integrate.quad(density, *ends)[0] for ends in ((-np.inf, 0), (0, np.inf))]
    assert sum(halves) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("means", "std", "error", "text"),
    [
        (torch.zeros(3), 0.5, ValueError, r"means must have shape \[components, dim\], got \[3\]"),
        (torch.zeros(0, 2), 0.5, ValueError, r"means must have shape \[components, dim\], got \[0, 2\]"),
        (torch.tensor([[math.nan, 0.0]]), 0.5, ValueError, "means must be finite"),
        (torch.zeros(3, 2), 0.0, ValueError, "std must be finite and > 0, got 0"),
        (torch.zeros(3, 2), -1.0, ValueError, "std must be finite and > 0, got -1"),
        (torch.zeros(3, 2), "1", TypeError, "std must be a real number"),
    ],
)
def test_mixtures_of_your_own_are_checked(means: Tensor, std: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        GaussianMixture(means, std, plot_range=(-4, 4))
    if text.startswith("means"):
        with pytest.raises(error, match=text):
            StudentMixture(means, scale=1.0, plot_range=(-4, 4))


def test_a_mixture_with_weights_of_its_own() -> None:
    """Density, samples and the exact denoiser of weights 1 : 2 : 5, against sums by hand."""
    means = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    target = GaussianMixture(means, 0.5, plot_range=(-2.0, 6.0), weights=[1, 2, 5])
    assert target.weights.tolist() == [0.125, 0.25, 0.625]
    x = 3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    normals = [torch.distributions.Normal(mean, 0.5).log_prob(x).sum(1) for mean in means]
    wanted = -torch.logsumexp(torch.stack(normals) + target.weights.log()[:, None], 0)
    torch.testing.assert_close(target.energy(x), wanted, rtol=1e-4, atol=1e-4)

    samples = target.sample(20_000, torch.Generator().manual_seed(0))
    counts = torch.cdist(samples, means).argmin(1).bincount() / 20_000
    assert float((counts - target.weights).abs().max()) < 0.015
    assert target.scale == pytest.approx(float(samples.var(0).mean().sqrt()), rel=0.02)

    alpha, s = 0.8, 0.6
    variance = alpha**2 * 0.25 + s**2
    posterior = torch.softmax(
        torch.stack([-(x - alpha * mean).square().sum(1) / (2 * variance) for mean in means])
        + target.weights.log()[:, None],
        dim=0,
    )
    parts = torch.stack([mean + alpha * 0.25 / variance * (x - alpha * mean) for mean in means])
    denoised = MixtureDenoiser(target)(x, alpha, s)
    torch.testing.assert_close(denoised, (posterior[..., None] * parts).sum(0), rtol=1e-4, atol=1e-4)


def test_weights_tell_targets_apart() -> None:
    """In caches and checkpoints; samples alone would hardly see a hundredth."""
    digests = [make_target("8gaussians", weights=[1.0] * 7 + [last]).digest() for last in (1.0, 1.01, 1.0)]
    assert digests[0] == digests[2] != digests[1]


def test_equal_weights_given_are_equal_weights() -> None:
    plain, given = make_target("8gaussians"), make_target("8gaussians", weights=[3.0] * 8)
    x = plain.sample(100)
    torch.testing.assert_close(plain.energy(x), given.energy(x), rtol=1e-4, atol=1e-4)
    assert given.scale == pytest.approx(plain.scale)


@pytest.mark.parametrize("weights", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [float("nan")], [[1.0] * 8]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 8 finite positive numbers"):
        make_target("8gaussians", weights=weights)


def test_mixtures_in_50_dimensions_have_the_public_codes_means() -> None:
    """The first numbers of what ``jax.random.uniform(jax.random.PRNGKey(0), ...)`` gave in jax 0.4.38."""
    gaussians, students = make_target("gmm40-50"), make_target("mos10-50")
    assert isinstance(gaussians, GaussianMixture) and isinstance(students, StudentMixture)
    assert gaussians.means.shape == (40, 50) and students.means.shape == (10, 50)
    assert gaussians.std == 1 and gaussians.log_z == students.log_z == 0
    torch.testing.assert_close(gaussians.means[0, :3], torch.tensor([8.719435, -6.0695076, -33.8233]))
    torch.testing.assert_close(students.means[0, :3], torch.tensor([2.920661, 5.2793646, -3.3952212]))
    assert float(gaussians.means.abs().max()) <= 40 and float(students.means.abs().max()) <= 10
    x = gaussians.sample(500, seeded(0))
    components = [stats.multivariate_normal(mean) for mean in gaussians.means.double().numpy()]
    logs = np.stack([component.logpdf(x.double().numpy()) for component in components])
    np.testing.assert_allclose(gaussians.energy(x).numpy(), math.log(40) - np.logaddexp.reduce(logs), rtol=1e-5)
