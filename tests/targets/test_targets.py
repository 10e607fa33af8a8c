"""All registered targets: what each one has and lacks, draws, gradients, dtypes, devices, copies, options."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from target_cases import (
    ENERGIES,
    ENERGIES_ONLY,
    SAMPLES,
    built,
    dependence,
    energy_and_gradient,
    names,
    seeded,
    typical,
)

from dxmi_rl import list_targets, make_target
from dxmi_rl.targets import GaussianMixture, Target, TargetError, target_class
from dxmi_rl.utils.registry import Registry, UnknownNameError

HEAVY_TAILED = ["funnel10", "mos10", "mos10-50"]
"""Their scale is the robust one, half the width of the central 68.27 % interval."""


@pytest.fixture(name="target", params=list_targets())
def every_target(request: pytest.FixtureRequest) -> Target:
    return built(request.param)


def test_a_target_says_what_it_is(target: Target) -> None:
    assert target.dim == math.prod(target.event_shape) >= 1
    low, high = target.plot_range
    assert low < high
    assert 0 < target.scale < high - low
    assert target.smallest_scale is None or 0 < target.smallest_scale <= target.scale
    assert target.has_energy or target.has_sampler or target.has_data
    kind = target_class(target.name)
    assert type(target) is kind
    for attribute in ("has_energy", "has_sampler", "has_data", "heavy_tailed"):
        assert getattr(target, attribute) is getattr(kind, attribute), "tasks read it off the class"
    assert target.options == {} and len(target.digest()) == 16


def test_a_target_refuses_what_it_has_not(target: Target) -> None:
    if not target.has_energy:
        with pytest.raises(TargetError, match=rf"{target.name}.*has no energy"):
            target.energy(torch.zeros(2, *target.event_shape))
    if not target.has_sampler:
        with pytest.raises(TargetError, match=rf"{target.name}.*no exact sampler"):
            target.sample(2)
    if not (target.has_sampler or target.has_data):
        for draw in (target.data, target.test_data):
            with pytest.raises(TargetError, match=rf"{target.name}.*no exact sampler"):
                draw(2)


@pytest.mark.parametrize("name", SAMPLES)
def test_draws_follow_the_generator(name: str) -> None:
    target = built(name)
    first, again, other = (target.data(16, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == (16, *target.event_shape) and first.dtype == torch.get_default_dtype()
    assert target.test_data(9).shape[1:] == target.event_shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(3)
    free = target.data(16)
    torch.manual_seed(3)
    assert torch.equal(free, target.data(16)), "without a generator it is torch's global one"
    assert target.data(1, seeded(0)).shape == (1, *target.event_shape)


@pytest.mark.parametrize("name", SAMPLES)
def test_rows_come_in_no_order(name: str) -> None:
    """Rank autocorrelations and trend of eight projections of 4,000 rows: independent rows exceed 5.5 once in 50,000
    runs of this test (Bonferroni over 8 x 65 normal z values)."""
    x = built(name).data(4_000, seeded(0)).flatten(1)
    directions = torch.randn(x.shape[1], 8, generator=seeded(1))
    rows = (x @ directions).numpy()
    assert dependence(rows) < 5.5
    ordered = rows[rows[:, 0].argsort()]
    in_turn = ordered.reshape(8, 500, 8).swapaxes(0, 1).reshape(4_000, 8)
    assert min(dependence(ordered), dependence(in_turn)) > 20, "the test sees an order"


@pytest.mark.parametrize("name", names(lambda target: hasattr(target, "means")))
def test_modes_come_in_no_order(name: str) -> None:
    """The same mode comes twice running as often as by chance, within 4.5 standard deviations."""
    target, n = built(name), 10_000
    mode = torch.cdist(target.sample(n, seeded(0)), target.means).argmin(1)
    same = float((mode[1:] == mode[:-1]).sum())
    chance = float((torch.bincount(mode) / n).square().sum())
    assert abs(same - chance * n) < 4.5 * math.sqrt(n * chance * (1 - chance))


@pytest.mark.parametrize("name", SAMPLES)
def test_scale_is_the_spread(name: str) -> None:
    target = built(name)
    x = target.data(40_000, seeded(0)).flatten(1).double()
    if name in HEAVY_TAILED:
        tail = (1 - math.erf(math.sqrt(0.5))) / 2
        low, high = torch.quantile(x, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
        spread = ((high - low) / 2).square().mean().sqrt()
    else:
        assert not target.heavy_tailed
        spread = x.std() if len(target.event_shape) > 1 else x.var(0).mean().sqrt()
    assert float(spread) == pytest.approx(target.scale, rel=0.03)


@pytest.mark.parametrize("name", ENERGIES)
def test_energy_refuses_what_is_no_batch(name: str) -> None:
    target = built(name)
    for shape in [target.event_shape, (3, target.dim + 7), (3, 1, *target.event_shape), ()]:
        with pytest.raises(ValueError, match="x must have shape"):
            target.energy(torch.zeros(shape))
    for x in (torch.zeros(2, *target.event_shape, dtype=torch.long), [0.0], None):
        with pytest.raises(TypeError, match="x must"):
            target.energy(x)  # type: ignore[arg-type]
    assert target.energy(torch.zeros(0, *target.event_shape)).shape == (0,)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ENERGIES)
def test_energy_gradient_against_differences(name: str) -> None:
    """Along every axis, or 24 random directions where there are more than 40, at typical points and at wide ones."""
    target = make_target(name)
    wide = 2 * target.scale * torch.randn(8, *target.event_shape, generator=seeded(1))
    for x in (typical(target, 8), wide):
        _, gradient = energy_and_gradient(target, x)
        directions = torch.eye(target.dim)
        if target.dim > 40:
            directions = torch.nn.functional.normalize(torch.randn(24, target.dim, generator=seeded(2)), dim=1)
        h = 1e-5 * min(1.0, target.scale)
        with torch.no_grad():
            shifts = h * directions.view(-1, 1, *target.event_shape)
            above, below = (target.energy((x + sign * shifts).flatten(0, 1)) for sign in (1, -1))
        differences = ((above - below) / (2 * h)).view(len(directions), len(x)).T
        error = (gradient.flatten(1) @ directions.T - differences).abs()
        # Rounding: the last bits of the energy, over h.
        rounding = 1e-14 * target.energy(x).abs()[:, None] / h
        assert bool((error <= 1e-6 * (1 + gradient.flatten(1).norm(dim=1, keepdim=True)) + rounding).all())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENERGIES)
def test_energies_and_gradients_are_finite_wherever_a_policy_goes(name: str, dtype: torch.dtype) -> None:
    """At zero (particles in one place), and up to ten thousand widths away, in all coordinates or in one."""
    target = built(name)
    noise = torch.randn(64, target.dim, generator=seeded(0))
    axes = torch.eye(target.dim)[:64]
    directions = torch.cat([noise, noise.sign(), torch.ones(1, target.dim), axes, -axes])
    for width in (0.0, 1e-30, 1e-6, 1.0, 10.0, 1e2, 1e3, 1e4):
        x = (width * target.scale * directions).view(-1, *target.event_shape).to(dtype)
        energy, gradient = energy_and_gradient(target, x)
        assert energy.dtype == gradient.dtype == dtype
        assert bool(energy.isfinite().all() and gradient.isfinite().all()), f"{width} widths away"
        if width >= 1e3:
            inward = (gradient * x).flatten(1).sum(1)
            assert bool((inward > 0).all()), "far out, the energy leads back"


@pytest.mark.parametrize("name", ENERGIES)
def test_energy_has_the_dtype_of_x_and_little_rounding(name: str) -> None:
    target = built(name)
    wide = copy.deepcopy(target).to(torch.float64)
    x = typical(target, 32)
    energy, gradient = energy_and_gradient(wide, x.double())
    terms = 1e-6 * float(gradient.abs().max())  # one entry is a sum of terms of this size, which may cancel
    assert energy.dtype == torch.float64 and wide.energy(x).dtype == torch.float32
    for points in (x, x.double()):
        rounded, slope = energy_and_gradient(target, points)
        assert rounded.dtype == points.dtype
        torch.testing.assert_close(rounded.double(), energy, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(slope.double(), gradient, rtol=1e-3, atol=max(1e-3, terms))


def test_a_target_moves_to_other_dtypes_and_devices(target: Target) -> None:
    """The "meta" device computes shapes only, and refuses a tensor that was left on the CPU."""
    draws = target.has_sampler or target.has_data
    for dtype in (torch.float64, torch.float32):
        moved = copy.deepcopy(target).to(torch.float64).to(dtype)
        if draws:
            x = moved.data(2_000, seeded(0))
            assert x.dtype == dtype and bool(x.isfinite().all())
    for device in ("meta", *(["cuda"] if torch.cuda.is_available() else [])):
        moved = copy.deepcopy(target).to(device)
        assert moved.device.type == device
        x = moved.data(5) if draws else torch.zeros(5, *target.event_shape, device=device)
        assert x.device.type == device and x.shape == (5, *target.event_shape)
        if target.has_energy:
            energy = moved.energy(x)
            assert energy.device.type == device and energy.shape == (5,)
    assert target.device.type == "cpu", "the original stays where it was"


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda target: pickle.loads(pickle.dumps(target))])
def test_copies_and_pickles_are_the_same_target(target: Target, twin: Any) -> None:
    again = twin(target)
    assert (again.name, again.options, again.digest()) == (target.name, target.options, target.digest())
    assert (again.scale, again.plot_range, again.log_z) == (target.scale, target.plot_range, target.log_z)
    if target.has_sampler or target.has_data:
        assert torch.equal(again.data(8, seeded(0)), target.data(8, seeded(0)))
    if target.has_energy:
        x = typical(target, 8)
        assert torch.equal(again.energy(x), target.energy(x))


def test_digests_tell_all_targets_apart() -> None:
    digests = [built(name).digest() for name in list_targets()]
    assert len(set(digests)) == len(digests)
    assert digests == [make_target(name).digest() for name in list_targets()]


def test_targets_of_one_name_are_told_apart_by_their_data() -> None:
    """Caches and checkpoints go by it: two rings of different radius must not share a denoiser."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    near, far = (GaussianMixture(scale * means, 0.3, plot_range=(-4, 4)) for scale in (1.0, 2.0))
    assert near.name == far.name
    assert near.digest() != far.digest()
    assert near.digest() == GaussianMixture(means, 0.3, plot_range=(-4, 4)).digest()
    assert make_target("lj13").digest() != make_target("lj13", linear_below=0.9).digest()


def test_a_digest_does_not_hang_on_the_last_bits() -> None:
    """Machines differ in them: their sines and logarithms are not the same."""
    target = make_target("8gaussians")
    other = make_target("8gaussians")
    other.means.mul_(1 + 2e-7)
    assert not torch.equal(target.sample(64, seeded(0)), other.sample(64, seeded(0)))
    assert target.digest() == other.digest()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "n must be >= 1, got 0"),
        ((-3,), ValueError, "n must be >= 1, got -3"),
        ((2.5,), TypeError, "n must be an integer"),
        ((3, 0), TypeError, "generator must be a torch.Generator or None, got 0"),
    ],
)
def test_draws_refuse_bad_arguments(name: str, arguments: Any, error: type[Exception], text: str) -> None:
    target = built(name)
    for draw in [target.data] + [target.sample] * target.has_sampler:
        with pytest.raises(error, match=text):
            draw(*arguments)


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("lj13", {"linear_below": 2}, ValueError, r"linear_below must be None or lie in \(0, 1\).*got 2"),
        ("lj13", {"linear_below": 1.0}, ValueError, r"linear_below must be None or lie in \(0, 1\)"),
        ("lj13", {"linear_below": 0}, ValueError, "linear_below must be finite and > 0, got 0"),
        ("lj13", {"linear_below": math.nan}, ValueError, "linear_below must be finite and > 0, got nan"),
        ("lj13", {"linear_below": "0.6"}, TypeError, "linear_below must be a real number, got '0.6'"),
        ("lj13", {"linear_bellow": 0.6}, UnknownNameError, "option of target 'lj13'.*Did you mean 'linear_below'"),
        ("lgcp40", {"linear_above": 61.0}, ValueError, r"linear_above must lie in \(0, 60\].*got 61"),
        ("lgcp40", {"linear_above": -1.0}, ValueError, "linear_above must be finite and > 0, got -1"),
        ("lgcp40", {"whitened": 1}, TypeError, "whitened must be True or False, got 1"),
        ("lgcp40", {"linear_above": None}, TypeError, "linear_above must be a real number, got None"),
        ("lgcp40", {"linear_below": 16.0}, UnknownNameError, "Did you mean 'linear_above'"),
        ("gmm25", {"std": 0.1}, UnknownNameError, r"unknown option of target 'gmm25' 'std'\. Known: none\."),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_target(name, **options)


def test_every_target_refuses_an_option_that_it_has_not(target: Target) -> None:
    with pytest.raises(UnknownNameError, match=rf"unknown option of target '{target.name}' 'no_such_option'\."):
        make_target(target.name, no_such_option=1)


@pytest.mark.parametrize(("name", "options"), [("lj13", {"linear_below": None}), ("lgcp40", {"linear_above": 12})])
def test_options_arrive_and_are_kept(name: str, options: dict[str, Any]) -> None:
    target = make_target(name, **options)
    assert target.options == options
    assert all(getattr(target, key) == value for key, value in options.items())


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


def test_targets_without_samples_are_the_ones_that_literature_has_none_for() -> None:
    assert ENERGIES_ONLY == ["dw4", "lj13", "lj55", "lgcp40"]
