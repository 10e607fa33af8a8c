"""Data sets: the plane's against scikit-learn, the flow literature's recipes and exact laws; the digits' split."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.datasets import make_moons
from target_cases import built, seeded

from dxmi_rl.targets import Digits
from dxmi_rl.targets.digits import load_digits_split

N = 20_000
Reference = Callable[[np.random.Generator], np.ndarray]


def checkerboard(rng: np.random.Generator) -> np.ndarray:
    """FFJORD's recipe (arXiv 1810.01367, toy_data.py), as the other two."""
    x1 = rng.random(N) * 4 - 2
    x2 = rng.random(N) - rng.integers(0, 2, N) * 2 + np.floor(x1) % 2
    return np.column_stack([x1, x2]) * 2


def two_spirals(rng: np.random.Generator) -> np.ndarray:
    n = np.sqrt(rng.random((N // 2, 1))) * 540 * (2 * np.pi) / 360
    d1x = -np.cos(n) * n + rng.random((N // 2, 1)) * 0.5
    d1y = np.sin(n) * n + rng.random((N // 2, 1)) * 0.5
    x = np.vstack((np.hstack((d1x, d1y)), np.hstack((-d1x, -d1y)))) / 3
    return x + rng.standard_normal(x.shape) * 0.1


def rings(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, N // 4, endpoint=False)
    circle = np.column_stack([np.cos(angles), np.sin(angles)])
    x = np.vstack([radius * circle for radius in (1, 0.75, 0.5, 0.25)]) * 3
    return x + rng.normal(scale=0.08, size=x.shape)


def moons(rng: np.random.Generator) -> np.ndarray:
    data, _ = make_moons(N, noise=0.1, random_state=int(rng.integers(2**31)))
    return data * 2 + np.array([-1, -0.2])


REFERENCES: dict[str, Reference] = {
    "checkerboard": checkerboard,
    "2spirals": two_spirals,
    "rings": rings,
    "moons": moons,
}


def draw(name: str, seed: int = 0) -> np.ndarray:
    return built(name).sample(N, seeded(seed)).double().numpy()


@pytest.mark.parametrize("name", list(REFERENCES))
def test_sets_are_those_of_the_literature(name: str) -> None:
    """Kolmogorov-Smirnov tests of 16 projections and the radius against the recipes written out above."""
    ours, theirs = draw(name), REFERENCES[name](np.random.default_rng(0))
    directions = np.random.default_rng(1).standard_normal((2, 16))
    columns = [(np.column_stack([x @ directions, np.linalg.norm(x, axis=1)])) for x in (ours, theirs)]
    values = [stats.ks_2samp(*pair, method="asymp").pvalue for pair in zip(*(c.T for c in columns), strict=True)]
    assert min(values) > 1e-4 / len(values)
    low, high = built(name).plot_range
    assert low <= np.quantile(ours, 0.0005) and np.quantile(ours, 0.9995) <= high, "pictures show it"


@pytest.mark.parametrize("name", list(REFERENCES))
def test_a_set_far_from_the_recipe_is_noticed(name: str) -> None:
    """Five per cent wider, the comparison above fails: it can."""
    ours, theirs = 1.05 * draw(name), REFERENCES[name](np.random.default_rng(0))
    radii = (np.linalg.norm(x, axis=1) for x in (ours, theirs))
    assert stats.ks_2samp(*radii, method="asymp").pvalue < 1e-6


def test_the_checkerboards_support() -> None:
    x = draw("checkerboard")
    assert np.abs(x).max() <= 4
    cells = np.floor((x + 4) / 2).astype(int)
    assert bool((cells.sum(1) % 2 == 0).all()), "eight of sixteen cells, the lower left one among them"
    counts = np.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16)
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-4 and (counts > 0).sum() == 8
    inside = (x + 4) % 2 / 2
    assert min(stats.kstest(column, stats.uniform.cdf).pvalue for column in inside.T) > 1e-4
    assert abs(np.corrcoef(inside.T)[0, 1]) * math.sqrt(N) < 4.5


def test_the_rings_radii_and_angles() -> None:
    """The radius is a mixture of Rice laws, the angle uniform."""
    x = draw("rings")
    radius, angle = np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0])
    radii = 0.75 * np.arange(1, 5)
    law = lambda r: stats.rice.cdf(r[:, None], radii / 0.08, scale=0.08).mean(1)
    assert stats.kstest(radius, law).pvalue > 1e-4
    for nearest in range(4):
        ring = angle[np.abs(radius[:, None] - radii).argmin(1) == nearest]
        assert stats.kstest(ring, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-4


@pytest.mark.slow
def test_the_moons_arcs() -> None:
    """Each point lies on one of the two half circles, up to noise of standard deviation 0.2 in either coordinate."""
    x = draw("moons")
    angles = np.linspace(0, np.pi, 2_000)
    upper = 2 * np.column_stack([np.cos(angles), np.sin(angles)]) - [1, 0.2]
    lower = [1, 0.8] - 2 * np.column_stack([np.cos(angles), np.sin(angles)])
    distances = [np.sqrt(((x[:4_000, None] - arc) ** 2).sum(-1)).min(1) for arc in (upper, lower)]
    distance = np.minimum(*distances)
    assert distance.max() < 0.2 * stats.rayleigh.ppf(1 - 1e-8)
    assert 0.12 < distance.mean() < 0.2, "the mean of |z| is 0.16; at the ends it is further, between the arcs nearer"
    share = (distances[0] < distances[1]).mean()
    assert share == pytest.approx(0.5, abs=0.04)


def test_scales_are_exact() -> None:
    """Root mean square over coordinates, from the recipes by quadrature."""
    end, v = 3 * np.pi, 0.25
    second = 0.5**2 / 3  # of half a uniform number; its mean is v
    square = lambda a: a**2 - 2 * v * a * np.cos(a) + 2 * v * a * np.sin(a) + 2 * second
    arm = integrate.quad(lambda a: square(a) * 2 * a / end**2, 0, end)[0] / 9
    assert built("2spirals").scale == pytest.approx(math.sqrt(arm / 2 + 0.1**2), rel=1e-4)
    assert built("checkerboard").scale == pytest.approx(math.sqrt(64 / 12), rel=1e-12)
    assert built("rings").scale == pytest.approx(math.sqrt(np.mean((0.75 * np.arange(1, 5)) ** 2) / 2 + 0.08**2))
    a = np.linspace(0, np.pi, 100_001)
    arcs = np.vstack([np.column_stack([np.cos(a), np.sin(a)]), np.column_stack([1 - np.cos(a), 0.5 - np.sin(a)])])
    assert built("moons").scale == pytest.approx(math.sqrt((2 * arcs).var(0).mean() + 0.2**2), rel=1e-4)


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
    batch = target.data(64, seeded(0)).flatten(1)
    known = target.train_images.flatten(1)
    assert bool((torch.cdist(batch, known).min(dim=1).values == 0).all())
    assert torch.equal(target.test_data(3), target.test_images[:3]) and len(target.test_data(1000)) == 360


@pytest.mark.usefixtures("float64")
def test_digits_come_in_the_default_dtype() -> None:
    target = Digits()
    assert target.data(2).dtype == target.test_data(2).dtype == torch.float64
