"""What the fuzz tests throw: arrays of every shape, dtype, device and size, with what must become of them."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from dxmi_rl.mdp import EnergyError
from dxmi_rl.utils.checks import NonFiniteError

FINE, EITHER = "fine", "either"
"""Must be taken; may be taken or be too large for float32."""
SECONDS = 120
"""No test of these takes as long: one that does hangs."""


def fuzz(examples: int) -> settings:
    """The same examples in every run."""
    return settings(max_examples=examples, deadline=None, derandomize=True, report_multiple_bugs=False)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"this test hangs: {SECONDS} seconds are over.")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


# -- what is thrown --------------------------------------------------------------------------------------------------

EXTREMES = [np.nan, np.inf, -np.inf, 1e-45, 1e-300, 1e4, -1e10, 1e15, 1e18, -1e19, 1e25, 1e30, 3e38, -1e300]
NUMBERS = st.one_of(st.floats(-3, 3), st.sampled_from(EXTREMES), st.floats(width=64))
NUMPY_FLOATS = ["float16", "float32", "float64", ">f4", ">f8"]
NUMPY_OTHERS = ["int64", "uint8", "bool", "complex64", "complex128", "object", "longdouble", "U3", "datetime64[s]"]
TORCH_FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TORCH_OTHERS = [torch.int64, torch.uint8, torch.bool, torch.complex64]
JUNK = st.sampled_from([None, True, 0, 1.5, "left", b"left", [], [0.0, 0.0], (0.0, 0.0), {}, {"action": 1}, object()])
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(
    draw: Any, shape: tuple[int, ...], others: tuple[tuple[int, ...], ...] = (), *, dtype: torch.dtype | None = None
) -> tuple[Any, Any]:
    """(a tensor, FINE or EITHER or the exception that it must raise) where ``shape`` (or ``others``) is right.

    With ``dtype`` no other one is right; without, every floating one is.
    """
    right = [shape, *others]
    fault = draw(st.sampled_from(["none", "none", "numbers", "numbers", "dtype", "shape", "device", "layout"]))
    kind = draw(st.sampled_from(TORCH_FLOATS)) if dtype is None else dtype
    number = draw(st.floats(-3, 3))
    if fault == "dtype":
        kind = draw(st.sampled_from(TORCH_OTHERS if dtype is None else [k for k in TORCH_FLOATS if k != dtype]))
    elif fault == "numbers":
        number = draw(NUMBERS)
    chosen = draw(SHAPES) if fault == "shape" else draw(st.sampled_from(right))
    value = torch.full(chosen, 0.5, dtype=torch.float64)
    if draw(st.booleans()):
        value[...] = number
    elif value.numel():
        value.view(-1)[draw(st.integers(0, value.numel() - 1))] = number
    value = value.to(kind)
    form = draw(st.sampled_from(["plain", "gradient", "strided"]))
    if form == "gradient" and kind.is_floating_point:
        value.requires_grad_()
    elif form == "strided" and value.dim() > 1:
        value = value.transpose(0, -1).contiguous().transpose(0, -1)
    if fault == "device":
        return value.to("meta"), ValueError
    if fault == "layout":
        return value.detach().to_sparse(), (TypeError, ValueError)
    if not kind.is_floating_point or (dtype is not None and kind != dtype):
        return value, TypeError
    return value, ValueError if chosen not in right else _verdict(value.detach().float().numpy())


@st.composite
def arrays(draw: Any, shape: tuple[int, ...], others: tuple[tuple[int, ...], ...] = ()) -> tuple[Any, Any]:
    """The same for numpy arrays: negative strides, read-only, either byte order, object and structured dtypes."""
    right = [shape, *others]
    fault = draw(st.sampled_from(["none", "none", "numbers", "numbers", "dtype", "shape"]))
    number = draw(NUMBERS) if fault == "numbers" else draw(st.floats(-3, 3))
    chosen = draw(SHAPES) if fault == "shape" else draw(st.sampled_from(right))
    value = np.full(chosen, 0.5)
    if draw(st.booleans()):
        value[...] = number
    elif value.size:
        value.flat[draw(st.integers(0, value.size - 1))] = number
    if fault == "dtype":
        return value.astype(draw(st.sampled_from(NUMPY_OTHERS))), TypeError
    with np.errstate(over="ignore"):
        value = value.astype(draw(st.sampled_from(NUMPY_FLOATS)))
        verdict = ValueError if chosen not in right else _verdict(value.astype(np.float32))
    form = draw(st.sampled_from(["plain", "backwards", "read-only"]))
    if form == "backwards" and value.ndim:
        value = value[..., ::-1]
    elif form == "read-only":
        value = np.broadcast_to(value, value.shape)
    return value, verdict


def junk() -> st.SearchStrategy[tuple[Any, Any]]:
    """What is no array at all."""
    return st.tuples(JUNK, st.just(TypeError))


def _verdict(values: np.ndarray) -> Any:
    if not np.isfinite(values).all():
        return NonFiniteError
    return FINE if np.abs(values).max(initial=0) <= 3 else EITHER


VALUES: list[Any] = [
    *(None, True, -1, 0, 2, 2.5, np.nan, np.inf, -np.inf, 1e-50, 1e40, np.float32(3)),
    *("left", "", b"left", [], [1], {}, {"a": 1}, (1, 2), (0,), (2.5,), object, object(), len),
    *(np.zeros(3), np.zeros((2, 2)), np.array("left"), torch.zeros(3), torch.zeros(2, 2, device="meta")),
]
"""What any argument may be given."""

# -- energies --------------------------------------------------------------------------------------------------------


class Broken(RuntimeError):
    """The user's own exception."""


class Moody:
    """An energy that answers as it is told to."""

    def __init__(self) -> None:
        self.answer: Any = None

    def __call__(self, x: Tensor) -> Any:
        energy = x.flatten(1).square().sum(1)
        return energy if self.answer is None else self.answer(energy)


def fail(_: Tensor) -> Tensor:
    raise Broken("out of order")


ANSWERS: list[tuple[Any, type[Exception]]] = [
    *[(lambda e, v=v: e * 0 + v, EnergyError) for v in (np.nan, np.inf, -np.inf)],
    *[(lambda e, v=v: torch.where(torch.arange(len(e)) == len(e) - 1, v, e), EnergyError) for v in (np.nan, -np.inf)],
    (lambda e: e.double() * 0 + 1e300, EnergyError),
    (lambda e: e[:, None], EnergyError),
    (lambda e: e.sum(), EnergyError),
    (lambda e: torch.cat([e, e]), EnergyError),
    (lambda e: e[:0], EnergyError),
    (lambda e: e.long(), EnergyError),
    (lambda e: e > 0, EnergyError),
    (lambda e: e.to(torch.complex64), EnergyError),
    (lambda e: e.to("meta"), EnergyError),
    (lambda e: e.numpy(), EnergyError),
    (lambda e: e.tolist(), EnergyError),
    (lambda e: None, EnergyError),
    (lambda e: 0.0, EnergyError),
    (fail, EnergyError),
]
"""What an energy may answer, and the exception that must come of it."""

# -- what must become of it ------------------------------------------------------------------------------------------


def assert_clear(error: Exception, expected: Any = (TypeError, ValueError), theirs: tuple[str, ...] = ()) -> None:
    """Is it one of the ``expected`` exceptions, raised on purpose: by us, or by one of ``theirs`` packages?

    An error that comes out of the depths of torch or numpy is no answer to a wrong argument.
    """
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = "".join(traceback.format_exception(error))
    assert any(f"/{package}/" in where.filename for package in ("dxmi_rl", *theirs)), told
    if "/dxmi_rl/" in where.filename:
        assert where.line is not None and where.line.startswith("raise"), told
        if expected == EITHER:
            expected = (NonFiniteError, EnergyError)
        assert expected != FINE and isinstance(error, expected), told
        assert len(str(error)) > 20, told
    else:
        assert isinstance(error, (TypeError, ValueError, RuntimeError, gym.error.Error)), told


def is_finite(*values: Any) -> bool:
    arrays = (np.asarray(value.detach() if isinstance(value, Tensor) else value) for value in values)
    return all(bool(np.isfinite(array).all()) for array in arrays)
