"""Scores of particle systems: oracles of distances, symmetries, and reference states that are what they claim."""

from __future__ import annotations

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from target_cases import energy_and_gradient, names, seeded
from torch import Tensor

from dxmi_rl import evaluate, make_agent, make_target, make_task
from dxmi_rl.evaluation import exact_floors, particles, quick_scores
from dxmi_rl.targets import ParticleTarget, TargetError

PARTICLES = names(lambda target: isinstance(target, ParticleTarget) and target.reference is not None)
KEYS = {"energy_w2", "energy_tv", "distance_tv", "w2", "w2_aligned"}


def built(name: str) -> ParticleTarget:
    target = make_target(name)
    assert isinstance(target, ParticleTarget)
    return target


def placed(n: int, particles_: int, space: int, seed: int = 0) -> Tensor:
    """Positions with mean zero, ``[n, N, d]``."""
    x = torch.randn(n, particles_, space, generator=seeded(seed), dtype=torch.float64)
    return x - x.mean(1, keepdim=True)


# Distances ------------------------------------------------------------------------------------------------------------


def test_one_dimensional_distance_is_pots() -> None:
    x, y = torch.randn(300, generator=seeded(0)), 2 * torch.randn(300, generator=seeded(1)) + 1
    wanted = math.sqrt(ot.wasserstein_1d(x.double().numpy(), y.double().numpy(), p=2))
    assert particles.w2_of_values(x, y) == pytest.approx(wanted, rel=1e-6)


def test_distance_between_sets_is_pots() -> None:
    costs = torch.rand(60, 60, generator=seeded(0), dtype=torch.float64)
    weights = np.full(60, 1 / 60)
    assert particles.wasserstein(costs) == pytest.approx(math.sqrt(ot.emd2(weights, weights, costs.numpy())), rel=1e-9)


def test_histograms_are_numpys_where_it_has_bins() -> None:
    x, y = 3 * torch.randn(500, generator=seeded(0)), 3 * torch.randn(400, generator=seeded(1)) + 2
    edges = np.arange(-100, 101)
    first, second = (np.histogram(z.numpy(), edges)[0] / len(z) for z in (x, y))
    assert particles.histogram_tv(x, y) == pytest.approx(0.5 * np.abs(first - second).sum(), abs=1e-12)
    assert particles.histogram_tv(x, x + 1e6) == pytest.approx(1.0), "mass beyond every bin counts"


@pytest.mark.parametrize("particles_", [3, 4])
def test_aligned_distance_in_the_plane_is_the_best_of_a_fine_grid(particles_: int) -> None:
    x, y = placed(3, particles_, 2), placed(4, particles_, 2, seed=1)
    angles = torch.arange(0, 2 * math.pi, 2e-3, dtype=torch.float64)
    cosine, sine = angles.cos(), angles.sin()
    turns = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    turns = torch.cat([turns, turns * torch.tensor([1.0, -1.0], dtype=torch.float64)])  # mirror images
    found = particles.aligned_distances(x, y)
    for i, j in itertools.product(range(3), range(4)):
        best = min(
            float((x[i] - y[j][list(order)] @ turns).square().sum((1, 2)).min())
            for order in itertools.permutations(range(particles_))
        )
        assert float(found[i, j]) == pytest.approx(math.sqrt(best), abs=1e-4)


@pytest.mark.parametrize(("particles_", "space"), [(4, 2), (7, 2), (13, 3)])
def test_aligned_distance_of_turned_relabelled_copies_vanishes(particles_: int, space: int) -> None:
    x = placed(12, particles_, space)
    copies = particles.random_symmetries(x, seeded(1))
    found = particles.aligned_distances(x, copies)
    assert float(found.diagonal().max()) < 1e-5
    assert float(found.max()) > 0.5, "others stay apart"
    assert particles.aligned_w2(x, copies) < 1e-5
    raw = (x[:, None] - copies).square().sum((2, 3)).sqrt()
    assert bool((found <= raw + 1e-9).all())


@pytest.mark.parametrize("name", PARTICLES)
def test_random_symmetries_keep_energies_and_spread_over_all_turns(name: str) -> None:
    target = built(name)
    x = target.positions(target.reference_states()[:500])
    turned = particles.random_symmetries(x, seeded(0))
    before, after = target.energy(target.coordinates(x)), target.energy(target.coordinates(turned))
    assert torch.allclose(before, after, atol=1e-2, rtol=1e-3)
    lengths = torch.arange(1.0, target.space + 1)
    moved = particles.random_symmetries(lengths.diag().expand(4000, -1, -1), seeded(0))
    order = moved.norm(dim=2).argsort(1)  # the labels of before
    turns = moved.gather(1, order[..., None].expand_as(moved)) / lengths[:, None]
    assert float(turns.mean(0).abs().max()) < 0.05, "uniform: entries have mean 0"
    assert float(torch.linalg.det(turns).mean().abs()) < 0.06, "as many mirror images"
    assert float(order.double().mean(0).std()) < 0.05, "and all labels"


# Reference states -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTICLES)
def test_reference_states_obey_identities_of_the_density(name: str) -> None:
    """E[x . grad E] = d and E[|x|^2 x . grad E] = (d + 2) E[|x|^2], for every density exp(-E) that falls off."""
    target = built(name)
    x = target.reference_states()
    assert x.shape == (6000, target.dim) and x.dtype == torch.float32
    _, gradient = energy_and_gradient(target, x)
    virial = (x * gradient).sum(1).double()
    assert float(virial.mean()) == pytest.approx(target.dim, abs=4 * float(virial.std()) / math.sqrt(len(x)))
    squared = x.square().sum(1).double()
    second = squared * virial - (target.dim + 2) * squared
    assert float(second.mean()) == pytest.approx(0, abs=4 * float(second.std()) / math.sqrt(len(x)))


def test_a_target_without_reference_states_says_so() -> None:
    class Pair(ParticleTarget):
        def __init__(self) -> None:
            super().__init__(2, 2, scale=1.0, smallest_scale=None, plot_range=(-3.0, 3.0))

        def _pair_energy(self, distances: Tensor) -> Tensor:
            return distances.square().sum(1)

    assert Pair().metrics == ()
    with pytest.raises(TargetError, match="no reference states"):
        Pair().reference_states()


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTICLES)
def test_reference_states_are_at_the_floor_and_others_above(name: str) -> None:
    target = built(name)
    x = target.reference_states()
    assert set(exact_floors(target, 50)) == KEYS
    shaken = particles.energy_scores(target, x[2000:4000] + 0.1 * torch.randn(2000, target.dim), x[:2000])
    again = particles.energy_scores(target, x[2000:4000], x[:2000])
    assert again["energy_w2"] < 0.7 and again["energy_tv"] < 0.1
    assert shaken["energy_w2"] > 5 * again["energy_w2"] and shaken["energy_tv"] > 2 * again["energy_tv"]


def test_evaluation_has_scores_and_floors() -> None:
    agent = make_agent("base", make_task("dw4"), seed=0)
    scores = evaluate(agent, samples=100, draws=1, trajectories=100, fit=False)
    assert set(scores) >= KEYS and {f"{key}_floor" for key in KEYS} <= set(scores)
    assert scores["energy_w2"] > 10 * scores["energy_w2_floor"]
    assert {"energy_w2", "energy_tv"} <= set(quick_scores(agent, samples=100))
    again = evaluate(agent, samples=100, draws=1, trajectories=100, fit=False)
    assert scores == again


def test_sets_of_states_are_checked() -> None:
    target = built("dw4")
    x = target.reference_states()[:5]
    with pytest.raises(ValueError, match="equal width"):
        particles.particle_scores(target, x[:, :4], x)
    with pytest.raises(ValueError, match="must be finite"):
        particles.particle_scores(target, x.masked_fill(x > 1, math.nan), x)
    with pytest.raises(ValueError, match="must hold 3 values"):
        particles.w2_of_values(torch.zeros(3), torch.zeros(4))
