"""Targets: exact constants by quadrature, samplers by moments, gradients by differences, and what each one lacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dxmi_rl import list_targets, make_target
from dxmi_rl.registry import Registry, UnknownNameError
from dxmi_rl.targets import Digits, GaussianMixture, Target, TargetError
from dxmi_rl.targets.digits import load_digits_split

MIXTURES = ["8gaussians", "gmm25"]


@pytest.fixture(name="target", params=list_targets())
def every_target(request: pytest.FixtureRequest) -> Target:
    return make_target(request.param)


def plane(low: float, high: float, n: int) -> tuple[Tensor, float]:
    """Midpoints of an n x n grid, ``[n^2, 2]``, and the area of one cell."""
    step = (high - low) / n
    axis = low + step * (torch.arange(n) + 0.5)
    return torch.cartesian_prod(axis, axis), step**2


def test_a_target_says_what_it_has(target: Target) -> None:
    generator = torch.Generator().manual_seed(0)
    assert target.dim == math.prod(target.event_shape) >= 1
    low, high = target.plot_range
    assert low < high
    assert target.scale > 0
    assert target.has_sampler or target.has_data, "nothing to compare samples with"
    if target.has_energy:
        x = torch.randn(5, *target.event_shape)
        assert target.energy(x).shape == (5,)
    else:
        with pytest.raises(TargetError, match=target.name):
            target.energy(torch.zeros(2, *target.event_shape))
    if target.has_sampler:
        assert target.sample(7, generator).shape == (7, *target.event_shape)
    else:
        with pytest.raises(TargetError, match="sampler"):
            target.sample(2)
    batch = target.data(9, generator)
    assert batch.shape == (9, *target.event_shape)
    assert batch.dtype == torch.get_default_dtype()
    assert target.test_data(9).shape[1:] == target.event_shape


def test_draws_follow_the_generator(target: Target) -> None:
    first, again, other = (target.data(16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scale_is_the_spread_of_the_data(target: Target) -> None:
    x = target.data(20_000, torch.Generator().manual_seed(0)).flatten(1)
    spread = x.std() if len(target.event_shape) > 1 else x.var(0).mean().sqrt()
    assert float(spread) == pytest.approx(target.scale, rel=0.03)


@pytest.mark.parametrize("shape", [(2,), (3, 5), (3, 1, 2)])
def test_energy_refuses_wrong_shapes(target: Target, shape: tuple[int, ...]) -> None:
    if not target.has_energy:
        pytest.skip("a data set")
    with pytest.raises(ValueError, match="shape"):
        target.energy(torch.zeros(shape))
    with pytest.raises(TypeError, match="floating"):
        target.energy(torch.zeros(2, *target.event_shape, dtype=torch.long))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MIXTURES)
def test_energies_are_normalised(name: str) -> None:
    target = make_target(name)
    low, high = target.plot_range
    x, cell = plane(low - 2, high + 2, 400)
    z = float((-target.energy(x)).exp().sum()) * cell
    assert z == pytest.approx(math.exp(target.log_z), rel=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MIXTURES)
def test_sampler_agrees_with_the_energy(name: str) -> None:
    target = make_target(name)
    low, high = target.plot_range
    x, cell = plane(low - 2, high + 2, 400)
    q = (-target.energy(x)).exp() * cell
    n = 200_000
    samples = target.sample(n, torch.Generator().manual_seed(0))
    functions = {
        "mean": lambda y: y,
        "second moments": lambda y: torch.stack([y[:, 0] ** 2, y[:, 1] ** 2, y[:, 0] * y[:, 1]], 1),
        "fine detail": lambda y: torch.cos(3 * y),
        "energy": lambda y: target.energy(y)[:, None],
    }
    for label, function in functions.items():
        values = function(samples)
        exact = (q[:, None] * function(x)).sum(0)
        error = (values.mean(0) - exact).abs() / (values.std(0) / math.sqrt(n))
        assert float(error.max()) < 4.5, label


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", MIXTURES)
def test_energy_gradient_against_differences(name: str) -> None:
    target = make_target(name)
    x = (2 * target.scale * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (gradient,) = torch.autograd.grad(target.energy(x).sum(), x)
    with torch.no_grad():
        h = 1e-5
        shifts = h * torch.eye(2)
        differences = torch.stack([(target.energy(x + d) - target.energy(x - d)) / (2 * h) for d in shifts], 1)
    assert torch.allclose(gradient, differences, rtol=1e-6, atol=1e-6)


def test_eight_gaussians_are_the_papers() -> None:
    target = make_target("8gaussians")
    assert isinstance(target, GaussianMixture)
    assert target.means.norm(dim=1).numpy() == pytest.approx(np.full(8, 4 / 1.414), rel=1e-6)
    assert target.std == pytest.approx(0.5 / 1.414)
    assert target.weights.sum() == pytest.approx(1.0)
    spacing = (target.means[0] - target.means[1]).norm()
    assert float(spacing) == pytest.approx(2 * 4 / 1.414 * math.sin(math.pi / 8), rel=1e-6)


def test_gmm25_is_the_grid() -> None:
    target = make_target("gmm25")
    assert isinstance(target, GaussianMixture)
    assert {tuple(m) for m in target.means.tolist()} == {(a, b) for a in range(-10, 11, 5) for b in range(-10, 11, 5)}
    assert target.std**2 == pytest.approx(0.3)


@pytest.mark.usefixtures("float64")
def test_a_mixture_in_three_dimensions_by_hand() -> None:
    target = GaussianMixture(torch.tensor([[0.0, 0, 0], [1, 2, 3]]), 0.7, plot_range=(-1, 4))
    x = torch.tensor([[0.3, -0.2, 1.0]])
    density = (
        sum(
            0.5 * math.exp(-sum((a - b) ** 2 for a, b in zip((0.3, -0.2, 1.0), mean, strict=True)) / (2 * 0.49))
            for mean in ((0, 0, 0), (1, 2, 3))
        )
        / (2 * math.pi * 0.49) ** 1.5
    )
    assert float(target.energy(x)) == pytest.approx(-math.log(density))


def test_far_away_the_energy_and_its_gradient_are_finite() -> None:
    for name in MIXTURES:
        x = torch.full((1, 2), 1e3).requires_grad_()
        energy = make_target(name).energy(x)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        assert bool(torch.isfinite(energy).all() and torch.isfinite(gradient).all())


def test_digits_are_split_once_for_all() -> None:
    train, train_labels, test, test_labels = load_digits_split()
    assert (train.shape, test.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (float(train.min()), float(train.max())) == (-1.0, 1.0)
    assert torch.bincount(test_labels).min() >= 34, "the split is stratified"
    assert torch.bincount(train_labels).min() >= 138
    again = load_digits_split()
    assert torch.equal(train, again[0]) and torch.equal(test, again[2])
    both = torch.cat([train, test]).flatten(1)
    assert len(both.unique(dim=0)) == len(both), "no image is in both"


def test_digits_give_rows_of_the_training_set() -> None:
    target = Digits()
    batch = target.data(64, torch.Generator().manual_seed(0)).flatten(1)
    known = target.train_images.flatten(1)
    assert bool((torch.cdist(batch, known).min(dim=1).values == 0).all())
    assert torch.equal(target.test_data(3), target.test_images)


@pytest.mark.parametrize(("name", "near"), [("8gaussian", "8gaussians"), ("gm25", "gmm25"), ("digit", "digits")])
def test_unknown_targets_name_the_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown target '{name}'. Did you mean '{near}'") as error:
        make_target(name)
    assert isinstance(error.value, ValueError)
    assert "Known: " in str(error.value)


@pytest.mark.parametrize("name", [None, 3, ["gmm25"]])
def test_names_must_be_strings(name: object) -> None:
    with pytest.raises(ValueError, match="unknown target"):
        make_target(name)  # type: ignore[arg-type]


def test_registry_refuses_a_second_entry_and_keeps_the_order() -> None:
    registry: Registry[int] = Registry("number")
    registry.add("one", 1)
    registry.add("two", 2)
    with pytest.raises(ValueError, match="number 'one' is registered already"):
        registry.add("one", 3)
    assert (registry["one"], registry.names(), list(registry), "one" in registry) == (
        1,
        ["one", "two"],
        ["one", "two"],
        True,
    )
    with pytest.raises(UnknownNameError, match=r"unknown number 'zzz'\. Known: one, two"):
        registry["zzz"]


def test_targets_of_one_name_are_told_apart_by_their_data() -> None:
    """Caches and checkpoints go by it: two rings of different radius must not share a denoiser."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    near, far = (GaussianMixture(scale * means, 0.3, plot_range=(-4, 4)) for scale in (1.0, 2.0))
    assert near.name == far.name
    assert near.digest() != far.digest()
    assert near.digest() == GaussianMixture(means, 0.3, plot_range=(-4, 4)).digest()
