"""DenoisingMDP given everything wrong: what its docstrings say, and nothing else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from env_cases import arguments, built, every_task, missing, small_cache  # noqa: F401
from fuzz_cases import (
    ANSWERS,
    FINE,
    JUNK,
    VALUES,
    Moody,
    assert_clear,
    fuzz,
    is_finite,
    junk,
    no_hang,  # noqa: F401
    tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dxmi_rl.agents.untrained.base_sampler import BasePolicy
from dxmi_rl.diffusion import KERNELS
from dxmi_rl.mdp import COORDINATES, DenoisingMDP, EnergyError
from dxmi_rl.tasks import TASKS, list_tasks, make_task
from dxmi_rl.utils.checks import NonFiniteError

TASK_NAMES = st.sampled_from(list_tasks()).filter(lambda name: missing(name) is None)
REFUSED = (TypeError, ValueError)


@functools.cache
def mdp_of(name: str) -> DenoisingMDP:
    return built(arguments(name)).mdp


VALUE = st.just(ValueError)
TIMES = st.one_of(
    st.tuples(st.integers(0, 3), st.just(FINE)),
    st.lists(st.integers(0, 3), min_size=3, max_size=3).map(lambda t: (torch.tensor(t), FINE)),
    st.tuples(st.sampled_from([-1, 10**6, 2**70, torch.tensor([0, 1, 99]), torch.tensor([0, -1, 1])]), VALUE),
    st.tuples(st.sampled_from([torch.tensor(1), torch.zeros(3, 1).long(), torch.zeros(4).long()]), VALUE),
    st.tuples(st.sampled_from([torch.zeros(3), torch.zeros(3).int(), torch.zeros(3).bool()]), st.just(TypeError)),
    st.tuples(st.just(torch.zeros(3, dtype=torch.int64, device="meta")), VALUE),
    st.tuples(JUNK.filter(lambda value: type(value) is not int), st.just(TypeError)),
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["step", "transition", "next_state", "action"])
def test_states_times_and_actions(method: str) -> None:
    @fuzz(200)
    @given(name=TASK_NAMES, coordinates=st.sampled_from(COORDINATES), data=st.data())
    def check(name: str, coordinates: str, data: st.DataObject) -> None:
        mdp = mdp_of(name)
        shape = (3, *mdp.event_shape)
        wrong = data.draw(st.sampled_from(["x", "t", "action", "coordinates"]))
        given: dict[str, Any] = {"x": torch.full(shape, 0.25), "t": 1, "action": torch.full(shape, 0.5)}
        given["coordinates"], verdict = coordinates, FINE
        if wrong == "t":
            given["t"], verdict = data.draw(TIMES)
        elif wrong == "coordinates":
            given["coordinates"], verdict = data.draw(JUNK), REFUSED
        else:
            given[wrong], verdict = data.draw(st.one_of(tensors(shape, dtype=mdp.dtype), junk()))
        inputs = [value for value in given.values() if isinstance(value, Tensor) and value.device.type == "cpu"]
        before = [value.clone() for value in inputs]
        if method == "action":
            given["x_next"] = given.pop("action")
        try:
            result = getattr(mdp, method)(**given)
        except Exception as error:
            assert_clear(error, verdict)
            return
        assert verdict in (FINE, "either", NonFiniteError), (given, verdict)
        values = [value for value in (result if isinstance(result, tuple) else (result,)) if value is not None]
        assert [value.shape for value in values] == [torch.Size(shape), *[torch.Size([3])] * (len(values) - 1)]
        assert verdict != FINE or is_finite(*values)
        for value, old in zip(inputs, before, strict=True):  # pure functions: nothing is changed in place
            torch.testing.assert_close(value, old, rtol=0, atol=0, equal_nan=True)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("backward", KERNELS.names())
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_what_is_not_finite_shows_in_its_row_only(task: dict[str, Any], coordinates: str, backward: str) -> None:
    """In the reward when tau > 0; at tau = 0 in the next state, unless that is the action itself."""
    if TASKS[task["task"]].backward == "base":
        pytest.skip("the base sampler is in the kernel's place")
    for tau in (0.7, 0.0):
        mdp = built(task, backward=backward, tau=tau).mdp
        generator = torch.Generator().manual_seed(0)
        x, action = (torch.randn(4, *mdp.event_shape, generator=generator) for _ in range(2))
        for t in (0, mdp.horizon - 1, torch.arange(4) % mdp.horizon):
            clean = mdp.step(x, t, action, coordinates=coordinates)
            assert is_finite(*clean)
            for value in (torch.nan, torch.inf, -torch.inf):
                for which in ("x", "action"):
                    dirty = {"x": x.clone(), "action": action.clone()}
                    dirty[which].view(4, -1)[2, -1] = value
                    x_next, reward = mdp.step(dirty["x"], t, dirty["action"], coordinates=coordinates)
                    others = torch.tensor([0, 1, 3])
                    torch.testing.assert_close(x_next[others], clean[0][others])
                    torch.testing.assert_close(reward[others], clean[1][others])
                    if tau > 0:
                        assert not torch.isfinite(reward[2])
                    elif which == "action" or coordinates == "noise":
                        assert not torch.isfinite(x_next[2]).all()


# -- energies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", range(len(ANSWERS)))
def test_energies_that_break(answer: int) -> None:
    mdp, energy = make_task("8gaussians", horizon=3).mdp, Moody()
    mdp.set_energy(energy)
    trajectory = mdp.rollout(BasePolicy(mdp), 3, torch.Generator().manual_seed(0))
    rewards = mdp.rewards(trajectory)
    energy.answer, expected = ANSWERS[answer]
    with pytest.raises(expected) as caught:
        mdp.rewards(trajectory)
    if expected is EnergyError:
        assert_clear(caught.value, EnergyError)
    energy.answer = None
    assert torch.equal(mdp.rewards(trajectory), rewards)


def test_energies_of_any_type() -> None:
    mdp = make_task("8gaussians").mdp
    x = torch.ones(2, 2)
    before = mdp.energy(x)
    for value in VALUES:
        with pytest.raises(TypeError if not callable(value) else EnergyError) as caught:
            mdp.set_energy(value)
        assert_clear(caught.value, REFUSED)
        assert "energy" in str(caught.value) and torch.equal(mdp.energy(x), before)


# -- rollouts --------------------------------------------------------------------------------------------------------


class Answering:
    """A policy whose moments are the base sampler's until step ``when``, and then what it is told."""

    def __init__(self, mdp: DenoisingMDP, when: int, mean: Any, log_std: Any) -> None:
        self.base, self.when, self.mean, self.log_std = BasePolicy(mdp), when, mean, log_std

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Any, Any]:
        mean, log_std = self.base.moments(x, t)
        return (self.mean, self.log_std) if t == self.when else (mean, log_std)


class Transporting:
    """The same, as a transport of the noise: (next state, log-probability)."""

    def __init__(self, mdp: DenoisingMDP, when: int, x_next: Any, log_prob: Any) -> None:
        self.base, self.when, self.x_next, self.value = BasePolicy(mdp), when, x_next, log_prob

    def transport(self, x: Tensor, t: Tensor | int, noise: Tensor) -> tuple[Any, Any]:
        mean, log_std = self.base.moments(x, t)
        return (self.x_next, self.value) if t == self.when else (mean + log_std.exp() * noise, noise.flatten(1).sum(1))

    def log_prob(self, x: Tensor, x_next: Tensor, t: Tensor | int) -> Tensor:
        return x.flatten(1).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rollout", "sample"])
@pytest.mark.parametrize("make", [Answering, Transporting])
def test_policies(make: Any, method: str) -> None:
    """Whatever a policy answers at any step: finite episodes or a clear error, at the latest at their end."""

    @fuzz(150)
    @given(name=TASK_NAMES, when=st.integers(0, 3), data=st.data())
    def check(name: str, when: int, data: st.DataObject) -> None:
        mdp = mdp_of(name)
        shape, lesser = (3, *mdp.event_shape), ((), (3, *mdp.event_shape)) if make is Answering else ((3,),)
        first, of_first = data.draw(tensors(shape, dtype=mdp.dtype))
        second, of_second = data.draw(tensors(lesser[0], lesser[1:], dtype=mdp.dtype))
        try:
            result = getattr(mdp, method)(make(mdp, when, first, second), 3, torch.Generator().manual_seed(0))
        except Exception as error:
            assert not (of_first == of_second == FINE), error
            assert_clear(error, (TypeError, ValueError, NonFiniteError))
        else:
            values = (result.x, result.log_prob) if method == "rollout" else (result,)
            assert is_finite(*values) and values[0].shape[-len(shape) :] == shape

    check()


@pytest.mark.parametrize("method", ["reset", "rollout", "sample"])
def test_numbers_and_generators(method: str) -> None:
    mdp = make_task("8gaussians").mdp
    policy = [] if method == "reset" else [BasePolicy(mdp)]
    for value in VALUES:
        for arguments_ in ([*policy, value], [*policy, 3, value], [value, 3]):
            try:
                getattr(mdp, method)(*arguments_)
            except Exception as error:
                assert_clear(error, REFUSED)
                assert any(word in str(error) for word in ("n must be", "generator", "policy")), error
