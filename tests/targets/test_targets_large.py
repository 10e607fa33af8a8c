"""funnel10, manywell32 and lgcp40 against scipy: densities, normalisers, samples, data."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, optimize, stats
from target_cases import built, energy_and_gradient, seeded

from dxmi_rl import make_target
from dxmi_rl.targets import Funnel, LogGaussianCox, ManyWell
from dxmi_rl.targets.cox import FINPINES, MEAN, load_finpines
from dxmi_rl.targets.extension import exp_below


@pytest.mark.usefixtures("float64")
def test_exp_goes_on_along_its_tangent() -> None:
    x = torch.tensor([-50.0, 0.0, 2.0, 2.999, 3.0, 3.001, 5.0, 1e6], requires_grad=True)
    value = exp_below(x, 3.0)
    (slope,) = torch.autograd.grad(value.sum(), x)
    np.testing.assert_allclose(slope.numpy(), np.exp(np.minimum(x.detach().numpy(), 3.0)), rtol=1e-14)
    tangent = math.exp(3) * (1 + x.detach().numpy() - 3)
    np.testing.assert_allclose(value.detach().numpy(), np.where(x.detach() < 3, x.detach().exp(), tangent), rtol=1e-14)


def test_exps_gradient_is_exact_below_a_high_limit_in_float32() -> None:
    x = torch.linspace(-5, 5, 11, requires_grad=True)
    (slope,) = torch.autograd.grad(exp_below(x, 36.0).sum(), x)
    torch.testing.assert_close(slope, x.detach().exp())


# funnel10 -------------------------------------------------------------------------------------------------------------


def test_the_funnels_density_is_scipys() -> None:
    target = built("funnel10")
    assert isinstance(target, Funnel) and target.dim == 10 and target.log_z == 0
    x = torch.cat([target.sample(100, seeded(0)), 4 * torch.randn(100, 10, generator=seeded(1))]).double()
    first, others = x[:, 0].numpy(), x[:, 1:].numpy()
    log_density = stats.norm.logpdf(first, 0, 3) + stats.norm.logpdf(others, 0, np.exp(first / 2)[:, None]).sum(1)
    np.testing.assert_allclose(target.energy(x).numpy(), -log_density, rtol=1e-10)


def test_the_funnels_samples_follow_its_conditionals() -> None:
    x = built("funnel10").sample(20_000, seeded(2)).double().numpy()
    first, others = x[:, 0], x[:, 1:]
    white = others * np.exp(-first / 2)[:, None]
    assert stats.kstest(first, stats.norm(0, 3).cdf).pvalue > 1e-4
    assert min(stats.kstest(column, stats.norm.cdf).pvalue for column in white.T) > 1e-4 / 9
    together = np.column_stack([first / 3, white])
    correlations = np.corrcoef(together, rowvar=False) - np.eye(10)
    assert np.abs(correlations).max() * math.sqrt(len(x)) < 5
    squares = np.corrcoef(together**2, rowvar=False) - np.eye(10)
    assert np.abs(squares).max() * math.sqrt(len(x)) < 5, "the width is that of x0, in every row"


@pytest.mark.slow
def test_the_funnels_scale_is_the_robust_one() -> None:
    """Half the width of the central 68.27 % of each coordinate, root mean square over the ten."""
    tail = stats.norm.cdf(-1)

    def above(y: float) -> float:
        return integrate.quad(lambda v: stats.norm.pdf(v) * stats.norm.sf(y * math.exp(-1.5 * v)), -10, 10)[0]

    other = optimize.brentq(lambda y: above(y) - tail, 0.1, 10)
    assert built("funnel10").scale == pytest.approx(math.sqrt((9 + 9 * other**2) / 10), rel=1e-4)


# manywell32 -----------------------------------------------------------------------------------------------------------


@cache
def well_integral(power: int = 0, low: float = -np.inf) -> float:
    """Integral of x^power exp(-x^4 + 6 x^2 + x / 2) over x > low."""
    integrand = lambda x: x**power * math.exp(-(x**4) + 6 * x**2 + 0.5 * x)
    pieces = [(max(low, a), b) for a, b in ((-6.0, -1.7), (-1.7, 0.0), (0.0, 1.7), (1.7, 6.0)) if b > low]
    return sum(integrate.quad(integrand, *piece, epsabs=0, epsrel=1e-12)[0] for piece in pieces)


def test_the_wells_constants() -> None:
    target = built("manywell32")
    assert isinstance(target, ManyWell) and (target.pairs, target.dim) == (16, 32)
    assert well_integral() == pytest.approx(11784.50927, rel=1e-9)
    assert target.log_z == pytest.approx(16 * (math.log(well_integral()) + 0.5 * math.log(2 * math.pi)), rel=1e-12)
    assert target.log_z == pytest.approx(164.695675, abs=1e-6)
    assert well_integral(low=0.0) / well_integral() == pytest.approx(0.84431, abs=1e-5)
    mean, square = (well_integral(power) / well_integral() for power in (1, 2))
    assert target.scale == pytest.approx(math.sqrt((square - mean**2 + 1) / 2), rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_wells_energy_by_hand() -> None:
    x = 2 * torch.randn(20, 32, generator=seeded(0))
    energy = [
        sum(a**4 - 6 * a**2 - 0.5 * a + 0.5 * b**2 for a, b in zip(row[::2], row[1::2], strict=True))
        for row in x.tolist()
    ]
    np.testing.assert_allclose(make_target("manywell32").energy(x).numpy(), energy, rtol=1e-12)


@pytest.mark.slow
def test_fewer_wells_integrate_to_their_log_z() -> None:
    target = ManyWell(pairs=1).double()
    density = lambda b, a: float((-target.energy(torch.tensor([[a, b]], dtype=torch.float64))).exp())
    z = sum(integrate.dblquad(density, *ends, -8, 8, epsrel=1e-6)[0] for ends in ((-3.5, 0), (0, 3.5)))
    assert math.log(z) == pytest.approx(target.log_z, abs=1e-6)
    assert ManyWell(pairs=3).log_z == pytest.approx(3 * target.log_z)
    for pairs, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="pairs must be"):
            ManyWell(pairs=pairs)  # type: ignore[arg-type]


def test_the_worst_pair_of_wells_counts() -> None:
    target = ManyWell(pairs=3)
    exact = target.sample(20_000, seeded(0))
    assert target.well_error(exact) < 0.011  # three pairs, standard error 0.0026
    lost = exact.clone()
    lost[:, 2].abs_()
    assert target.well_error(lost) == pytest.approx(1 - 0.84431, abs=1e-5)
    lost[:, 4].abs_().neg_()
    assert target.well_error(lost) == pytest.approx(0.84431, abs=1e-5)
    with pytest.raises(ValueError, match="x must"):
        target.well_error(exact[:, :5])


def test_the_wells_table_is_fine_enough() -> None:
    """Between its nodes the distribution function is a straight line: nowhere more than 1e-6 off."""
    target = built("manywell32")
    assert isinstance(target, ManyWell)
    nodes, table = target.nodes.numpy(), target.cdf.numpy()
    fine = np.linspace(-3.5, 3.5, 4 * len(nodes) - 3)
    exact = integrate.cumulative_simpson(np.exp(-(fine**4) + 6 * fine**2 + fine / 2), x=fine, initial=0)
    assert np.abs(np.interp(fine, nodes, table) - exact / well_integral()).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_wells_samples_follow_the_exact_distribution(dtype: torch.dtype) -> None:
    """Also where the sampler's tables were narrowed to float32."""
    target = ManyWell().to(dtype)
    x = target.sample(5_000, seeded(3)).double().numpy()
    wells, normals = x[:, ::2], x[:, 1::2]
    nodes = np.linspace(-4, 4, 4_001)
    pieces = integrate.cumulative_simpson(np.exp(-(nodes**4) + 6 * nodes**2 + nodes / 2), x=nodes, initial=0)
    tests = [stats.kstest(wells.ravel(), lambda y: np.interp(y, nodes, pieces / well_integral()))]
    tests += [stats.kstest(normals.ravel(), stats.norm.cdf)]
    assert min(test.pvalue for test in tests) > 1e-4
    right = 0.84431
    shares = (wells > 0).mean(0)
    assert np.abs(shares - right).max() < 4.5 * math.sqrt(right * (1 - right) / len(x))
    correlations = np.corrcoef(x, rowvar=False) - np.eye(32)
    assert np.abs(correlations).max() * math.sqrt(len(x)) < 5, "the coordinates are independent"


# lgcp40 ---------------------------------------------------------------------------------------------------------------


@cache
def cox_constants() -> tuple[np.ndarray, float, np.ndarray]:
    """Prior covariance, prior mean and counts of the grid's cells, from the definition and the file."""
    centres = (np.arange(40) + 0.5) / 40
    cells = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)
    distances = np.sqrt(np.square(cells[:, None] - cells[None]).sum(-1))
    points = np.array(json.loads(FINPINES.read_text())["points"])
    counts, _, _ = np.histogram2d(*points.T, bins=40, range=[[-5, 5], [-8, 2]])
    return 1.91 * np.exp(-33 * distances), math.log(126) - 1.91 / 2, counts.ravel()


def test_the_pines_are_the_papers() -> None:
    target = built("lgcp40")
    assert isinstance(target, LogGaussianCox)
    points = load_finpines()
    assert points.shape == (126, 2) and 0 <= float(points.min()) <= float(points.max()) <= 1
    assert len(points.unique(dim=0)) == 126
    counts = cox_constants()[2]
    assert target.counts.sum() == 126 == counts.sum()
    np.testing.assert_array_equal(target.counts.numpy(), counts)


@pytest.mark.slow
def test_the_cox_process_is_scipys() -> None:
    """Multivariate normal prior by scipy, Poisson likelihood without its factorials."""
    covariance, mean, counts = cox_constants()
    factor = linalg.cholesky(covariance, lower=True)
    noise = torch.randn(6, 1600, generator=seeded(0)).double().numpy()
    x = np.concatenate([mean + noise[:3] @ factor.T, 1.5 * noise[3:]])
    log_prior = stats.multivariate_normal(np.full(1600, mean), covariance).logpdf(x)
    log_poisson = stats.poisson.logpmf(counts, np.exp(x) / 1600).sum(1)
    # Constants that the energy leaves out: cell areas and factorials.
    log_poisson += 126 * math.log(1600) + np.vectorize(math.lgamma)(counts + 1).sum()
    energy = built("lgcp40").energy(torch.from_numpy(x - mean)).numpy()
    np.testing.assert_allclose(energy, -log_prior - log_poisson, rtol=1e-5)
    exact = make_target("lgcp40").double()
    assert exact.energy(torch.from_numpy(x - mean)).numpy() == pytest.approx(energy, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_cox_energy_in_float64_and_its_mode() -> None:
    """Newton's method with the textbook gradient finds a point where ours vanishes; there the narrowest direction and
    the coordinates' spread (Laplace) are those that the target states."""
    covariance, mean, counts = cox_constants()
    target = make_target("lgcp40")
    precision = linalg.inv(covariance)
    x = np.full(1600, mean)
    for _ in range(15):
        rate = np.exp(x) / 1600
        hessian = precision + np.diag(rate)
        x = x - linalg.solve(hessian, precision @ (x - mean) - counts + rate, assume_a="pos")
    residual = x - mean
    energy, gradient = energy_and_gradient(target, torch.from_numpy(residual)[None])
    assert float(gradient.abs().max()) < 1e-6
    sign, log_det = np.linalg.slogdet(2 * math.pi * covariance)
    expected = 0.5 * residual @ precision @ residual + 0.5 * log_det - (x * counts - np.exp(x) / 1600).sum()
    assert sign == 1 and float(energy) == pytest.approx(expected, rel=1e-10)
    factor = linalg.cholesky(covariance, lower=True)
    noise = linalg.solve_triangular(factor, residual, lower=True)
    white = make_target("lgcp40", whitened=True)
    jacobian = np.log(factor.diagonal()).sum()
    assert float(white.energy(torch.from_numpy(noise)[None])) == pytest.approx(float(energy) - jacobian, rel=1e-10)
    for one, second, mode in ((target, hessian, residual), (white, factor.T @ hessian @ factor, noise)):
        curvatures = linalg.eigvalsh(second)
        assert one.smallest_scale == pytest.approx(curvatures[-1] ** -0.5, rel=0.02)
        spread = math.sqrt(np.mean(1 / curvatures))  # trace of the inverse, over 1,600
        assert one.scale == pytest.approx(spread, rel=0.03)
        low, high = one.plot_range
        assert low < mode.min() and mode.max() < high


def test_the_cox_likelihood_goes_on_linearly() -> None:
    target = LogGaussianCox(linear_above=5.0)
    usual = built("lgcp40")
    below, above = torch.full((1, 1600), 4.9 - MEAN), torch.full((1, 1600), 6.0 - MEAN)
    assert torch.equal(target.energy(below), usual.energy(below))
    gap = float(usual.energy(above.double()) - target.energy(above.double()))
    assert gap == pytest.approx(math.exp(6) - math.exp(5) * 2, rel=1e-6)
