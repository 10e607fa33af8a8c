"""Targets of the user: energies, data tensors and subclasses of their own."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from target_cases import dependence, energy_and_gradient, seeded
from torch import Tensor, nn

from dxmi_rl import make_task
from dxmi_rl.targets import DataTarget, EnergyTarget, Target, TargetError
from dxmi_rl.utils.checks import NonFiniteError


def bowl(x: Tensor) -> Tensor:
    return 0.5 * x.square().flatten(1).sum(1)


class Network(nn.Module):
    """An energy with weights and with dropout, which must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(6, 32), nn.Dropout(0.5), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


# EnergyTarget ---------------------------------------------------------------------------------------------------------


def test_an_energy_of_your_own_is_called_as_it_is() -> None:
    target = EnergyTarget(bowl, (2, 3), scale=2.0)
    x = torch.randn(5, 2, 3)
    assert torch.equal(target.energy(x), bowl(x))
    assert (target.event_shape, target.dim, target.plot_range) == ((2, 3), 6, (-8.0, 8.0))
    assert target.smallest_scale is None and target.log_z is None
    _, gradient = energy_and_gradient(target, x)
    torch.testing.assert_close(gradient, x)
    for draw in (target.sample, target.data, target.test_data):
        with pytest.raises(TargetError, match="no exact sampler"):
            draw(3)
    assert EnergyTarget(bowl, [4], plot_range=(-1, 2), smallest_scale=0.5).plot_range == (-1.0, 2.0)


def test_a_module_moves_along_and_is_called_in_eval_mode() -> None:
    network = Network().train()
    target = EnergyTarget(network, (6,)).to(torch.float64)
    assert {p.dtype for p in network.parameters()} == {torch.float64}, "it is a part of the target"
    x = torch.randn(50, 6, dtype=torch.float64)
    first = target.energy(x)
    assert torch.equal(first, target.energy(x)), "no dropout"
    assert network.training and network.net[2].training, "and back in training mode"
    assert target.to("meta").energy(x.to("meta")).shape == (50,)


def test_the_energys_dtype_is_that_of_x() -> None:
    target = EnergyTarget(lambda x: bowl(x).double(), (2,))
    assert target.energy(torch.zeros(3, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("energy", "text"),
    [
        (lambda x: x, r"the energy must return a tensor of shape \[3\], got \[3, 2\]"),
        (lambda x: x.sum(), r"the energy must return a tensor of shape \[3\], got \[\]"),
        (lambda x: x.sum(1, keepdim=True), r"got \[3, 1\]: return value\.squeeze\(1\)"),
        (lambda x: x.sum(1).numpy(), r"got ndarray: return torch\.from_numpy\(value\)"),
        (lambda x: None, "got NoneType"),
        (lambda x: x.sum(1) > 0, r"the energy must return floating numbers, got torch\.bool"),
        (lambda x: x.sum(1).long(), r"the energy must return floating numbers, got torch\.int64"),
    ],
)
def test_energies_that_return_something_else_are_refused(energy: Callable[[Tensor], Any], text: str) -> None:
    with pytest.raises(TargetError, match=text):
        EnergyTarget(energy, (2,)).energy(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("energy", "event_shape", "settings", "error", "text"),
    [
        (3, (2,), {}, TypeError, "energy must be a module or function, got 3"),
        (bowl, 2, {}, TypeError, "event_shape must be a tuple of positive integers, got 2"),
        (bowl, "22", {}, TypeError, "event_shape must be a tuple of positive integers, got '22'"),
        (bowl, (), {}, TypeError, r"event_shape must be a tuple of positive integers, got \(\)"),
        (bowl, (2, 0), {}, ValueError, "every entry of event_shape must be >= 1, got 0"),
        (bowl, (2.5,), {}, TypeError, "every entry of event_shape must be an integer"),
        (bowl, (2,), {"scale": 0.0}, ValueError, "scale must be finite and > 0, got 0"),
        (bowl, (2,), {"scale": math.inf}, ValueError, "scale must be finite and > 0, got inf"),
        (bowl, (2,), {"scale": "1"}, TypeError, "scale must be a real number, got '1'"),
        (bowl, (2,), {"smallest_scale": -1.0}, ValueError, "smallest_scale must be finite and > 0, got -1"),
        (bowl, (2,), {"plot_range": (1.0, -1.0)}, ValueError, r"plot_range must be finite \(low, high\)"),
        (bowl, (2,), {"plot_range": (0.0, math.nan)}, ValueError, r"plot_range must be finite \(low, high\)"),
        (bowl, (2,), {"plot_range": 4.0}, TypeError, r"plot_range must be two numbers \(low, high\), got 4"),
        (bowl, (2,), {"plot_range": (1, 2, 3)}, TypeError, r"plot_range must be two numbers \(low, high\)"),
    ],
)
def test_energy_arguments_are_checked(
    energy: Any, event_shape: Any, settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        EnergyTarget(energy, event_shape, **settings)


def test_energies_are_told_apart_by_their_values() -> None:
    assert EnergyTarget(bowl, (2,)).digest() == EnergyTarget(bowl, (2,)).digest()
    assert EnergyTarget(bowl, (2,)).digest() != EnergyTarget(lambda x: 1.01 * bowl(x), (2,)).digest()
    assert EnergyTarget(bowl, (2,)).digest() == EnergyTarget(lambda x: (1 + 1e-7) * bowl(x), (2,)).digest()
    network = Network()
    target = EnergyTarget(network, (6,))
    before = target.digest()
    with torch.no_grad():
        network.net[1].weight.add_(0.5)
    assert target.digest() != before, "training it makes it another target"


def test_an_energy_of_module_level_is_pickled() -> None:
    for energy in (bowl, Network()):
        target = EnergyTarget(energy, (6,), scale=3.0)
        again = pickle.loads(pickle.dumps(target))
        x = torch.randn(4, 6)
        assert torch.equal(again.energy(x), target.energy(x)) and again.scale == 3.0


# DataTarget -----------------------------------------------------------------------------------------------------------


def test_data_of_your_own_are_split_once_for_all() -> None:
    rows = torch.arange(2_000, dtype=torch.float32).view(1_000, 2)
    target, again = DataTarget(rows), DataTarget(rows.numpy())
    assert (len(target.train_rows), len(target.test_rows)) == (900, 100)
    together = torch.cat([target.train_rows, target.test_rows])
    assert torch.equal(together[together[:, 0].argsort()], rows), "every row is in one of the parts"
    assert torch.equal(target.train_rows, again.train_rows) and target.digest() == again.digest()
    first = target.test_rows[:, 0] / 2
    assert abs(float(first.mean()) - 499.5) < 4.5 * 289 / 10, "the test rows are spread over the whole"
    assert torch.equal(target.test_data(30), target.test_rows[:30]) and len(target.test_data(10_000)) == 100
    rows.zero_()
    assert float(target.train_rows.max()) > 0, "a copy"


def test_batches_are_training_rows_in_no_order() -> None:
    target = DataTarget(torch.arange(3_000, dtype=torch.float32).view(1_500, 2))
    batch = target.data(6_000, seeded(0))
    counts = torch.bincount((batch[:, 0] / 2).long(), minlength=1_500)
    tested = (target.test_rows[:, 0] / 2).long()
    assert int(counts[tested].sum()) == 0, "never a test row"
    assert int((counts > 0).sum()) == pytest.approx(1_350 * (1 - math.exp(-6_000 / 1_350)), rel=0.02)
    assert dependence(batch.numpy()) < 5.5
    with pytest.raises(TargetError, match="no energy"):
        target.energy(batch)
    with pytest.raises(TargetError, match="no exact sampler"):
        target.sample(3)


@pytest.mark.parametrize(("rows", "train", "test"), [(2, 2, 2), (99, 99, 99), (100, 90, 10), (109, 99, 10)])
def test_small_sets_are_not_split(rows: int, train: int, test: int) -> None:
    target = DataTarget(torch.randn(rows, 3, generator=seeded(0)))
    assert (len(target.train_rows), len(target.test_rows)) == (train, test)


def test_scale_and_plot_range_of_vectors_and_images() -> None:
    vectors = torch.randn(20_000, 2, generator=seeded(0)) * torch.tensor([1.0, 3.0]) + torch.tensor([0.0, 50.0])
    target = DataTarget(vectors)
    assert target.scale == pytest.approx(math.sqrt((1 + 9) / 2), rel=0.02), "about each coordinate's own mean"
    low, high = target.plot_range
    assert low < -2 and high > 57
    images = torch.rand(500, 1, 4, 4, generator=seeded(1)) * 2 - 1
    target = DataTarget(images)
    assert target.event_shape == (1, 4, 4)
    assert target.scale == pytest.approx(math.sqrt(1 / 3), rel=0.02)
    assert target.plot_range == pytest.approx((-1.0, 1.0), abs=0.01)
    dark = torch.zeros(500, 1, 8, 8)
    dark[::100, 0, 0, 0] = 1.0
    assert DataTarget(dark).plot_range == (0.0, 1.0), "hardly a lit pixel"


def test_data_take_the_default_dtype(float64: None) -> None:
    for data in (torch.randn(10, 2, dtype=torch.float32), np.random.default_rng(0).standard_normal((10, 2))):
        assert DataTarget(data).data(3).dtype == torch.float64
    assert DataTarget(np.ones((4, 2), np.float16) * np.arange(4)[:, None].astype(np.float16)).data(2).dtype == (
        torch.float64
    )


def test_sets_are_told_apart_by_every_row() -> None:
    rows = torch.randn(300, 2, generator=seeded(0))
    changed = rows.clone()
    changed[7, 1] += 1e-6
    kept = [DataTarget(rows).digest(), DataTarget(rows.clone()).digest(), DataTarget(rows.double()).digest()]
    assert len(set(kept)) == 1
    assert DataTarget(changed).digest() != kept[0]
    assert pickle.loads(pickle.dumps(DataTarget(rows))).digest() == kept[0]


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ([[0.0, 1.0]], TypeError, r"data must be a torch\.Tensor or numpy array, got list"),
        (torch.zeros(5, 2, dtype=torch.long), TypeError, r"data must have a floating dtype, got torch\.int64"),
        (np.zeros((5, 2), int), TypeError, "data must have a floating dtype, got int64"),
        (np.array([["a", "b"]] * 3), TypeError, "data must have a floating dtype, got <U1"),
        (np.array([[None, 1.0]] * 3), TypeError, "data must have a floating dtype, got object"),
        (torch.zeros(5, 2, dtype=torch.complex64), TypeError, r"data must have a floating dtype, got torch\.complex64"),
        (torch.randn(5), ValueError, r"data must have shape \[rows, \*event_shape\] with 2 rows or more, got \[5\]"),
        (torch.randn(1, 2), ValueError, r"with 2 rows or more, got \[1, 2\]"),
        (torch.randn(5, 0), ValueError, r"with 2 rows or more, got \[5, 0\]"),
        (torch.ones(5, 2), ValueError, "data must not be copies of one row"),
        (torch.tensor([[0.0, math.nan], [1.0, 2.0]]), NonFiniteError, "data must be finite: 1 of its values are not"),
        (torch.tensor([[0.0, 1e300], [1.0, 2.0]]).double() * 1e300, NonFiniteError, "data must be finite"),
    ],
)
def test_data_arguments_are_checked(data: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DataTarget(data)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_numbers_of_rows_are_checked(n: Any, error: type[Exception]) -> None:
    target = DataTarget(torch.randn(200, 2))
    for draw in (target.data, target.test_data):
        with pytest.raises(error, match="n must be"):
            draw(n)


# A subclass of Target -------------------------------------------------------------------------------------------------


class Uniform(Target):
    """What the docstring of Target asks of a target of your own: an energy and a sampler on the unit square."""

    name = "uniform"
    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__((2,), scale=1 / math.sqrt(12), plot_range=(0.0, 1.0), log_z=0.0)

    def _energy(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(n, 2, generator=generator, device=self.device, dtype=self.anchor.dtype)


def test_a_subclass_has_what_it_defines() -> None:
    target = Uniform()
    x = target.data(100, seeded(0))
    assert torch.equal(x, target.sample(100, seeded(0))) and torch.equal(x, target.test_data(100, seeded(0)))
    assert target.energy(x).tolist() == [0.0] * 100
    assert target.to(torch.float64).sample(2).dtype == torch.float64


class Sensor(Target):
    """A data set of one's own, as a subclass."""

    name = "sensor"
    has_data: ClassVar[bool] = True

    def __init__(self, rows: Tensor) -> None:
        super().__init__((2,), scale=1.0, plot_range=(-4.0, 4.0))
        self.register_buffer("rows", rows)

    def _data(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.rows[torch.randint(len(self.rows), (n,), generator=generator)]


def test_a_subclass_without_a_test_split_is_scored_against_the_same_rows_each_time() -> None:
    target, state = Sensor(torch.randn(50, 2)), torch.get_rng_state()
    for one in (target, Uniform()):
        assert torch.equal(one.test_data(100), one.test_data(100))
        assert not torch.equal(one.test_data(100, seeded(1)), one.test_data(100, seeded(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_row_of_a_subclass_counts_for_its_digest() -> None:
    """Caches of denoisers and floors know data by their digest."""
    rows = torch.randn(5000, 2)
    mended = rows.clone()
    mended[0] = 8.0
    assert Sensor(rows).digest() == Sensor(rows.clone()).digest() != Sensor(mended).digest()


def test_an_energy_that_is_random_has_one_digest() -> None:
    """A checkpoint of its agent is one of this task, whatever the noise is."""

    def noisy(x: Tensor) -> Tensor:
        return bowl(x) + 0.1 * torch.randn(len(x))

    assert EnergyTarget(noisy, (2,)).digest() == EnergyTarget(noisy, (2,)).digest() != EnergyTarget(bowl, (2,)).digest()
    in_place = [EnergyTarget(lambda x, shift=shift: bowl(x.sub_(shift)), (2,)).digest() for shift in (0.0, 1.0)]
    assert in_place[0] == EnergyTarget(bowl, (2,)).digest() != in_place[1], "one that works in place is not random"
    task = make_task("8gaussians", reward=noisy)
    assert task.fingerprint() == task.fingerprint()


def test_masked_cells_are_no_data() -> None:
    rows = np.ma.masked_array(np.random.default_rng(0).standard_normal((50, 2)))
    assert DataTarget(rows).event_shape == (2,)
    rows[3, 1] = np.ma.masked
    with pytest.raises(TypeError, match="no masked cells"):
        DataTarget(rows)


def test_a_target_without_anything_says_so() -> None:
    nothing = Target((2,), scale=1.0, plot_range=(-1, 1))
    assert nothing.digest() == ""
    for call in (lambda: nothing.energy(torch.zeros(1, 2)), lambda: nothing.sample(1), lambda: nothing.data(1)):
        with pytest.raises(TargetError, match=r"'custom' (is a data set and has no energy|has no exact sampler)"):
            call()


@pytest.mark.parametrize("flag", ["has_energy", "has_sampler", "has_data"])
def test_a_subclass_that_promises_more_than_it_defines(flag: str) -> None:
    target = type("Promise", (Target,), {flag: True})((2,), scale=1.0, plot_range=(-1, 1))
    with pytest.raises(TargetError, match="'custom' has no"):
        target.energy(torch.zeros(1, 2)) if flag == "has_energy" else target.data(1)
