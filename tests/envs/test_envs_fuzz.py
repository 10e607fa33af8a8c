"""Everything wrong at every interface: a clear error that leaves the environment usable, or finite numbers."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from env_cases import KINDS, Bowl, Face, arguments, follow, missing, small_cache  # noqa: F401
from fuzz_cases import (
    ANSWERS,
    EITHER,
    FINE,
    VALUES,
    Broken,
    Moody,
    arrays,
    assert_clear,
    fail,
    fuzz,
    is_finite,
    junk,
    no_hang,  # noqa: F401
    tensors,
)
from gymnasium.error import Error, NoAsyncCallError, ResetNeeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dxmi_rl.diffusion import KERNELS
from dxmi_rl.envs import DenoiseEnv, DenoiseVectorEnv
from dxmi_rl.envs.episodes import Episodes
from dxmi_rl.mdp import COORDINATES, EnergyError
from dxmi_rl.tasks import TASKS, list_tasks
from dxmi_rl.utils.checks import NonFiniteError

TASK_NAMES = st.sampled_from(list_tasks()).filter(lambda name: missing(name) is None and TASKS[name].label is None)
LAYOUTS = st.sampled_from(["flat", "dict"])
THEIRS = {"torchrl": ("tensordict", "torchrl")}
"""Packages that refuse what never reaches us: TorchRL's tensordicts look at batch sizes and convert arrays."""


@functools.cache
def face(kind: str, name: str, coordinates: str, layout: str, free: bool) -> Face:
    """``free``: at tau = 0, where nothing but the energy is in the reward."""
    return Face(kind, **arguments(name), coordinates=coordinates, observation=layout, **({"tau": 0.0} if free else {}))


def actions(face: Face) -> st.SearchStrategy[tuple[Any, Any]]:
    shape, event = (*face.lead, face.mdp.dim), (*face.lead, *face.mdp.event_shape)
    return st.one_of(arrays(shape, (event,)), tensors(shape, (event,)), junk())


def as_array(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    value = action.detach().float().numpy() if isinstance(action, Tensor) else action
    return np.array(value, np.float32, order="C").reshape(shape)


def good(face: Face) -> np.ndarray:
    return np.full((*face.lead, face.mdp.dim), 0.25, np.float32)


def check_step(face: Face, action: Any, coordinates: str) -> bool:
    """One step that must do what ``mdp.step`` does, with nothing clipped; True at the end of the episode."""
    before = face.observation
    observation, reward, done = face.step(action)
    expected = follow(face, before, as_array(action, (*face.lead, face.mdp.dim)), coordinates)
    np.testing.assert_array_equal(observation, expected[0])
    np.testing.assert_array_equal(reward, expected[1])
    assert is_finite(observation, reward, face.observation)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", KINDS)
def test_actions(kind: str, coordinates: str) -> None:
    """Any action at any step of any task: taken exactly, or refused with the episode where it was."""
    seen: Counter[Any] = Counter()

    def attempt(env: Face, action: Any, verdict: Any) -> None:
        before = env.observation
        seen[verdict] += 1
        try:
            check_step(env, action, coordinates)
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            allowed = (TypeError, ResetNeeded, NoAsyncCallError) if action is None else verdict
            assert_clear(error, allowed, THEIRS.get(kind, ()))
            np.testing.assert_array_equal(env.observation, before)
            check_step(env, good(env), coordinates)
        else:
            assert verdict in (FINE, EITHER) or (kind == "torchrl" and not isinstance(action, (np.ndarray, Tensor)))

    @fuzz(120)
    @given(name=TASK_NAMES, layout=LAYOUTS, free=st.booleans(), start=st.integers(0, 9), data=st.data())
    def check(name: str, layout: str, free: bool, start: int, data: st.DataObject) -> None:
        env = face(kind, name, coordinates, layout, free)
        env.reset(seed=start)
        for _ in range(start % env.mdp.horizon):
            env.step(good(env))
        attempt(env, *data.draw(actions(env)))

    check()
    env = face(kind, "8gaussians", coordinates, "flat", False)
    env.reset(seed=0)
    for number in (np.nan, np.inf, -np.inf):  # which hypothesis may leave out
        attempt(env, np.full_like(good(env), number), NonFiniteError)
    assert {FINE, EITHER, TypeError, ValueError, NonFiniteError} <= set(seen), seen


# -- calls out of order ----------------------------------------------------------------------------------------------

CALLS = ["reset", "step", "step", "step", "bad action", "bad seed", "bad options", "close", "wait", "swap", "bad swap"]
CALLS += ["copy", "pickle"]
ORDERS = st.lists(st.sampled_from(CALLS), max_size=30)


class Model:
    """What an environment must be doing, whatever it was told: nothing, or step t of an episode."""

    def __init__(self, face: Face, coordinates: str) -> None:
        self.face, self.coordinates, self.t, self.running = face, coordinates, 0, False

    def refuses(self, call: Any, *arguments: Any, errors: Any) -> None:
        with pytest.raises(errors) as caught:
            call(*arguments)
        assert_clear(caught.value, errors, ("gymnasium", "torchrl", "tensordict"))

    def step(self) -> None:
        face = self.face
        if not self.running:
            self.refuses(face.step, good(face), errors=ResetNeeded)
            return
        done = check_step(face, good(face), self.coordinates)
        self.t += 1
        assert done == (self.t == face.mdp.horizon)
        if done:
            self.t, self.running = 0, face.autoresets

    def call(self, name: str) -> None:
        face = self.face
        if name == "reset":
            face.reset()
            self.t, self.running = 0, True
        elif name == "step":
            self.step()
        elif name == "bad action":
            self.refuses(face.step, np.zeros((7, 7)), errors=(ValueError, ResetNeeded, RuntimeError))
        elif name == "bad seed":
            for seed in (-1, 1.5, "one"):
                self.refuses(face.reset, seed, errors=(Error, TypeError, ValueError))
        elif name == "bad options" and face.kind in ("vector", "numpy"):
            for options in ("all", {"reset_mask": [True, False, True]}, {"reset_mask": np.zeros(3, bool)}):
                self.refuses(lambda o: face.env.reset(options=o), options, errors=(TypeError, ValueError))
        elif name == "close":
            face.env.close()
            if face.kind != "torchrl":  # which keeps no episode that could be closed
                self.running = False
        elif name == "wait" and face.kind == "sb3":
            self.refuses(face.env.step_wait, errors=NoAsyncCallError)
            face.env.step_async(good(face))  # forgotten by a reset: it was meant for another episode
            self.call("reset")
            self.refuses(face.env.step_wait, errors=NoAsyncCallError)
        elif name == "swap":
            face.mdp.set_energy(Bowl(0.1))
        elif name == "bad swap":
            for energy in (None, 3.0, lambda x: x, lambda x: 1 / 0, lambda x: x.sum(1).long()):
                self.refuses(face.mdp.set_energy, energy, errors=(TypeError, EnergyError))
        elif name in ("copy", "pickle"):
            self.face = copy.deepcopy(face) if name == "copy" else pickle.loads(pickle.dumps(face))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_any_order(kind: str) -> None:
    @fuzz(40)
    @given(coordinates=st.sampled_from(COORDINATES), layout=LAYOUTS, calls=ORDERS)
    def check(coordinates: str, layout: str, calls: list[str]) -> None:
        # Gymnasium 1.4's own checker is lost (an unpacked None) after a first reset that failed.
        plain = {"disable_env_checker": True} if kind == "scalar" else {}
        model = Model(Face(kind, coordinates=coordinates, observation=layout, horizon=3, **plain), coordinates)
        for call in [*calls, "step", "close", "step", "reset", "step", "step", "step"]:
            model.call(call)

    check()


# -- energies --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("answer", range(len(ANSWERS)))
@pytest.mark.parametrize("kind", KINDS)
def test_energies_that_break_between_steps(kind: str, answer: int) -> None:
    """Found when the reward is due and not before; put right, the episode goes on from where it was."""
    for coordinates, tau in [("noise", 0.0), ("noise", 1.0), ("next_state", 1.0)]:
        env, energy = Face(kind, coordinates=coordinates, tau=tau, horizon=3), Moody()
        env.mdp.set_energy(energy)
        for _ in range(2):
            env.reset(seed=0)
            energy.answer, expected = ANSWERS[answer]
            for _ in range(2):
                observation, reward, done = env.step(good(env))
                assert is_finite(observation, reward) and not done
            before = env.observation
            for _ in range(2):
                with pytest.raises(expected) as caught:
                    env.step(good(env))
                if expected is EnergyError:
                    assert_clear(caught.value, EnergyError)
                np.testing.assert_array_equal(env.observation, before)
            energy.answer = None
            assert check_step(env, good(env), coordinates)


# -- kernels that are fitted -----------------------------------------------------------------------------------------


SIZES = [1.0, 1e4, 1e8, 1e12, 1e15, 1e17, 1e18, 1e19, 1e20, 1e25, 1e38]


def flat(x: Tensor) -> Tensor:
    return torch.zeros(len(x))


@pytest.mark.slow
@pytest.mark.parametrize("backward", KERNELS.names())
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_episodes_leave_the_kernel_usable(kind: str, backward: str) -> None:
    @fuzz(25)
    @given(coordinates=st.sampled_from(COORDINATES), sizes=st.lists(st.sampled_from(SIZES), min_size=3, max_size=3))
    def check(coordinates: str, sizes: list[float]) -> None:
        # An energy that is finite wherever x is, so that whole episodes can be extreme.
        env = Face(kind, coordinates=coordinates, backward=backward, fit_backward=True, horizon=3, energy=flat)
        for size in (*sizes, None):
            env.reset(seed=0)
            for _ in range(3):
                action = good(env) if size is None else np.float32(size) * good(env)
                try:
                    observation, reward, _ = env.step(action)
                except NonFiniteError as error:
                    assert size is not None, error
                    assert_clear(error, NonFiniteError)
                    break
                assert is_finite(observation, reward)

    check()


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_whose_fit_failed_can_be_taken_again(kind: str, coordinates: str) -> None:
    """As if the failure had never been: the same numbers and the same fit as in an environment without it."""
    results = []
    for failures in (0, 2):
        env = Face(kind, coordinates=coordinates, backward="brownian", fit_backward=True, horizon=3)
        env.reset(seed=0)
        env.step(good(env))
        env.step(2 * good(env))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(env.mdp.kernel), "fit", lambda kernel, x, x_next, t: fail(x))
            for _ in range(failures):
                with pytest.raises(Broken):
                    env.step(3 * good(env))
        observation, reward, done = env.step(good(env))
        assert done
        results.append((observation, reward, env.mdp.kernel.variance.numpy()))
    for without, after in zip(*results, strict=True):
        np.testing.assert_array_equal(after, without)


# -- arguments -------------------------------------------------------------------------------------------------------

ARGUMENTS = {
    "task": "task|data|energy",
    "target": "task|data|energy",
    "dim": "dim",
    "coordinates": "coordinates",
    "observation": "observation",
    "action_bound": "action_bound",
    "energy": "energy",
    "fit_backward": "fit_backward",
    "render_mode": "render",
    "device": "device",
    "horizon": "horizon",
    "tau": "tau",
    "num_envs": "num_envs",
    "to_numpy": "to_numpy",
}


def makers() -> dict[str, Any]:
    """The classes themselves: ``gym.make`` wraps up every error in one of its own."""
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("torchrl")
    from dxmi_rl.envs import TorchRLEnv, make_sb3_env

    return {"scalar": DenoiseEnv, "vector": DenoiseVectorEnv, "sb3": make_sb3_env, "torchrl": TorchRLEnv}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scalar", "vector", "sb3", "torchrl"])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_arguments(kind: str, argument: str) -> None:
    """Of any type: an environment that works, or an error that names the argument."""
    if argument == "to_numpy" and kind != "vector":
        pytest.skip("the vector environment's own")
    make = makers()[kind]
    for value in VALUES:
        try:
            env = make(**{argument: value})
        except Exception as error:
            assert_clear(error)
            assert re.search(ARGUMENTS[argument], str(error)), (value, error)
        else:
            env.reset()


# -- TorchRL's tensordicts -------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.lists(st.integers(-1, 6), min_size=3, max_size=3).map(torch.tensor),
    st.sampled_from([torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)]),
    st.sampled_from([torch.tensor([0, 0, 2**62]), torch.zeros(3, dtype=torch.int64, device="meta")]),
    st.integers(0, 4).map(lambda t: torch.full((3,), t)),
)


MASKS = st.none() | st.lists(st.booleans(), min_size=3, max_size=3).filter(any)
"""Rows to step alone, TorchRL's "_step"; a mask that is all False never reaches us."""


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_tensordicts(coordinates: str, num_envs: int | None) -> None:
    """TorchRLEnv reads its state from whatever it is given."""
    pytest.importorskip("torchrl")
    from tensordict import TensorDict

    from dxmi_rl.envs import TorchRLEnv

    seen: Counter[Any] = Counter()

    @fuzz(300)
    @given(name=TASK_NAMES, t=STEPS, mask=MASKS, data=st.data())
    def check(name: str, t: Tensor, mask: list[bool] | None, data: st.DataObject) -> None:
        env = torchrl_env(TorchRLEnv, name, coordinates, num_envs)
        shape, event = (3, env.mdp.dim), (3, *env.mdp.event_shape)
        wrong = data.draw(st.sampled_from(["x", "t", "action"]))  # the other two are right
        x, of_x, action, of_action = torch.full(event, 0.25), FINE, torch.full(shape, 0.25), FINE
        if wrong == "x":
            x, of_x = data.draw(st.one_of(tensors(event, dtype=torch.float32), junk()))
        elif wrong == "action":
            action, of_action = data.draw(st.one_of(tensors(shape, (event,)), junk()))
        t = t if wrong == "t" else torch.tensor([0, 1, env.mdp.horizon - 1])
        moved = torch.tensor([True] * 3 if mask is None else mask)
        right = t.device.type == "cpu" and t.dtype == torch.int64 and t.shape == (3,)
        right = right and bool(((t >= 0) & (t < env.mdp.horizon))[moved].all())
        state = TensorDict({}, [3])
        try:
            for key, value in [("x", x), ("t", t), ("action", action)]:
                state.set(key, value)
            state.set("observation", torch.zeros(3, env.mdp.dim + 1))
            if mask is not None:
                state.set("_step", moved)
            result = env.step(state)["next"]
        except Exception as error:
            seen[type(error)] += 1
            assert_clear(error, (TypeError, ValueError, ResetNeeded), ("tensordict", "torchrl"))
            assert not (right and of_x == of_action == FINE), error
        else:
            seen[FINE] += 1
            allowed = (FINE, EITHER) if mask is None else (FINE, EITHER, NonFiniteError)  # in rows that stay
            assert right and of_x in allowed and (of_action in allowed or isinstance(action, (list, tuple)))
            assert is_finite(result["reward"], result["x"][moved])
            assert torch.equal(result["t"][moved], t[moved] + 1)

    check()
    assert {FINE, TypeError, ValueError, NonFiniteError, ResetNeeded} <= set(seen), seen


@functools.cache
def torchrl_env(make: Any, name: str, coordinates: str, num_envs: int | None) -> Any:
    return make(**arguments(name), coordinates=coordinates, num_envs=num_envs)


# -- once per episode on CUDA ----------------------------------------------------------------------------------------

CUDA = pytest.param(
    "cuda",
    False,
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "at_once"), [("cpu", True), ("cpu", False), CUDA])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_number_is_found_by_the_end_of_the_episode(
    kind: str, coordinates: str, device: str, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU at once, elsewhere (or where the CPU does as they do) when the episode ends; and then forgotten."""
    monkeypatch.setattr(Episodes, "_checks_at_once", at_once)
    for tau in (0.0, 1.0):
        env = Face(kind, coordinates=coordinates, tau=tau, device=device, horizon=4)
        for value, row, when in itertools.product([np.nan, np.inf, -np.inf], range(env.count), range(4)):
            env.reset(seed=0)
            bad = good(env)
            bad.reshape(env.count, -1)[row, 1] = value
            with pytest.raises(NonFiniteError) as caught:
                for t in range(4):
                    env.step(env.to_device(bad if t == when else good(env)))
            assert_clear(caught.value, NonFiniteError)
            assert t == (when if at_once else 3)
            if not at_once and kind != "torchrl":
                with pytest.raises(ResetNeeded):
                    env.step(env.to_device(good(env)))
            env.reset()
            for _ in range(4):
                assert is_finite(env.step(env.to_device(good(env)))[1])
