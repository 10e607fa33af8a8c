"""TorchRLEnv: one MDP in tensordicts, with TorchRL's checker, collectors, transforms and losses."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from env_cases import Bowl, every_task, is_base_sampler, small_cache  # noqa: F401
from gymnasium.error import ResetNeeded
from torch import Tensor, nn

pytest.importorskip("torchrl")
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import Compose, ObservationNorm, RewardSum, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import ExplorationType, check_env_specs, set_exploration_type
from torchrl.modules import (
    IndependentNormal,
    NormalParamExtractor,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
)
from torchrl.objectives import A2CLoss, ClipPPOLoss, ReinforceLoss, SACLoss
from torchrl.objectives.value import GAE

from dxmi_rl.diffusion import sample_base
from dxmi_rl.envs import DenoiseVectorEnv
from dxmi_rl.envs import torchrl as module
from dxmi_rl.envs.torchrl import TorchRLEnv
from dxmi_rl.mdp import EnergyError
from dxmi_rl.utils.checks import NonFiniteError
from dxmi_rl.utils.registry import UnknownNameError

Play = Callable[[int, TensorDictBase], Tensor]


def batch(*shape: int) -> TensorDict:
    return TensorDict({}, shape)


def play(env: Any, action: Play, start: TensorDictBase | None = None) -> list[TensorDictBase]:
    """One episode by ``env.step``: the tensordicts at t = 0..T, those after the first with rewards."""
    visited = [env.reset() if start is None else start]
    for t in range(env.mdp.horizon):
        visited.append(env.step(visited[-1].set("action", action(t, visited[-1]))).get("next"))
    return visited


def normal(seed: int) -> Play:
    generator = torch.Generator().manual_seed(seed)
    return lambda _, state: torch.randn(*state.batch_size, state["x"].numel() // state.numel(), generator=generator)


# -- conformance -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_specs(task: dict[str, Any]) -> None:
    for coordinates, observation, horizon in itertools.product(["noise", "next_state"], ["flat", "dict"], [2, 5]):
        kwargs = task | {"coordinates": coordinates, "observation": observation, "horizon": horizon}
        locked, unlocked = TorchRLEnv(**kwargs, num_envs=3), TorchRLEnv(**kwargs)
        assert locked.batch_locked and locked.batch_size == (3,)
        assert not unlocked.batch_locked and unlocked.batch_size == ()
        check_env_specs(locked, break_when_any_done="both", seed=0)
        check_env_specs(unlocked, break_when_any_done="both", seed=0)
        for shape in [(4,), (2, 2)]:
            check_env_specs(unlocked, break_when_any_done="both", tensordict=unlocked.reset(batch(*shape)))


@pytest.mark.parametrize("num_envs", [None, 5])
def test_what_the_entries_are(num_envs: int | None) -> None:
    env = TorchRLEnv("8gaussians", num_envs=num_envs, action_bound=7.0)
    lead = env.batch_size
    assert env.action_spec.shape == (*lead, 2) and env.reward_spec.shape == (*lead, 1)
    assert (env.action_spec.space.low == -7).all() and (env.action_spec.space.high == 7).all()
    assert set(env.full_done_spec.keys()) == {"done", "terminated"}
    assert set(env.observation_spec.keys()) == {"x", "t", "observation"}
    assert set(env.state_spec.keys()) == {"x", "t"} == set(TorchRLEnv(observation="dict").observation_spec.keys())
    visited = play(env, normal(0))
    for t, state in enumerate(visited):
        assert state["t"].dtype == torch.int64 and (state["t"] == t).all()
        assert torch.equal(state["observation"][..., :-1], state["x"])
        assert (state["observation"][..., -1] == torch.tensor(1 - t / 5)).all()
        assert bool((state["done"] == (t == 5)).all()) and torch.equal(state["done"], state["terminated"])
        assert state["x"].dtype == torch.float32 and not state["x"].requires_grad
    box = TorchRLEnv("8gaussians", coordinates="next_state").action_spec.space
    assert box.low.tolist() == DenoiseVectorEnv("8gaussians", coordinates="next_state").single_action_space.low.tolist()


def test_double_precision_stays_double(float64: None) -> None:
    env = TorchRLEnv(num_envs=2)
    check_env_specs(env, break_when_any_done="both")
    final = play(env, normal(0))[-1]
    assert final["x"].dtype == final["observation"].dtype == final["reward"].dtype == torch.float64


# -- the same MDP as everywhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("coordinates", ["noise", "next_state"])
def test_agrees_with_the_vector_environment(task: dict[str, Any], coordinates: str) -> None:
    venv = DenoiseVectorEnv(**task, num_envs=6, coordinates=coordinates)
    env = TorchRLEnv(**task, num_envs=6, coordinates=coordinates)
    observation, _ = venv.reset(seed=0)
    state = env.reset().set("x", observation[:, :-1].reshape(6, *env.mdp.event_shape))
    generator = torch.Generator().manual_seed(0)
    for _ in range(env.mdp.horizon):
        action = torch.randn(6, env.mdp.dim, generator=generator)
        observation, reward, terminated, _, info = venv.step(action)
        state = env.step(state.set("action", action)).get("next")
        assert torch.equal(state["reward"][:, 0], reward) and torch.equal(state["done"][:, 0], terminated)
        assert torch.equal(state["observation"], info.get("final_obs", observation))
    assert terminated.all()


def test_rows_at_different_steps(task: dict[str, Any]) -> None:
    env = TorchRLEnv(**task)
    mdp, horizon = env.mdp, env.mdp.horizon
    t = torch.arange(2 * horizon).view(2, horizon) % horizon
    x = mdp.reset(2 * horizon, torch.Generator().manual_seed(0))
    action = torch.randn(2, horizon, mdp.dim, generator=torch.Generator().manual_seed(1))
    state = TensorDict({"x": x.view(2, horizon, *mdp.event_shape), "t": t, "action": action}, t.shape)
    result = env.step(state)["next"]
    assert torch.equal(result["t"], t + 1) and torch.equal(result["done"][..., 0], t == horizon - 1)
    for row, step in enumerate(t.flatten().tolist()):
        one = slice(row, row + 1)
        x_next, reward = mdp.step(x[one], step, action.flatten(0, 1)[one].view_as(x[one]))
        torch.testing.assert_close(result["x"].flatten(0, 1)[one], x_next, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result["reward"].flatten()[one], reward, rtol=1e-4, atol=1e-4)
    alone = env.step(state[1, horizon - 1])["next"]  # an empty batch size is one episode
    torch.testing.assert_close(alone["reward"], result["reward"][1, horizon - 1], rtol=1e-4, atol=1e-4)


def test_standard_normal_policy_is_the_base_sampler_exactly(task: dict[str, Any]) -> None:
    env = TorchRLEnv(**task, num_envs=50)
    mdp, generator = env.mdp, torch.Generator().manual_seed(3)
    expected = sample_base(mdp.base, 50, mdp.event_shape, torch.Generator().manual_seed(3))
    mdp.reset(50, generator)
    env.set_seed(3)
    final = play(env, lambda *_: torch.randn(50, *mdp.event_shape, generator=generator).flatten(1))[-1]
    torch.testing.assert_close(final["x"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("std", [1.0, 0.8])
def test_standard_normal_policy_is_the_base_sampler_in_distribution(std: float) -> None:
    env = TorchRLEnv(num_envs=16_000)
    env.set_seed(0)
    noise = normal(1)
    final = play(env, lambda *args: std * noise(*args))[-1]
    assert is_base_sampler(final["x"].numpy(), env.mdp) == (std == 1.0)  # 0.8: the test can tell


# -- reset, step, seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [None, 4])
def test_partial_resets_and_partial_steps(num_envs: int | None) -> None:
    env = TorchRLEnv("8gaussians", num_envs=num_envs)
    state = env.reset(batch(4))
    state = env.step(state.set("action", torch.zeros(4, 2)))["next"].exclude("reward")
    mask = torch.tensor([[True], [False], [True], [False]])
    before, state = state.clone(), env.reset(state.set("_reset", mask.clone()))
    assert state["t"].tolist() == [0, 1, 0, 1] and not state["done"].any()
    assert torch.equal((state["x"] != before["x"]).any(1), mask[:, 0])
    # Rows that are done wait for the others.
    data = env.rollout(9, tensordict=state, auto_reset=False, break_when_any_done=False, break_when_all_done=True)
    assert data["next", "t"].tolist() == [[1, 2, 3, 4, 5], [2, 3, 4, 5, 5]] * 2
    # One more step of two rows only: the others stay as they are.
    state = env.step(env.reset(batch(4)).set("action", torch.zeros(4, 2)))["next"]
    rows = state.clone().set("action", torch.ones(4, 2)).set("_step", mask[:, 0].clone())
    result = env.step(rows)["next"]
    whole = env.step(state.clone().set("action", torch.ones(4, 2)))["next"]
    assert result["t"][::2].tolist() == [2, 2]
    for key in ("x", "observation", "reward"):
        torch.testing.assert_close(result[key][::2], whole[key][::2])
    if num_envs is not None:  # without a locked batch TorchRL itself picks the rows
        for key in ("x", "t", "observation", "done"):
            assert torch.equal(result[key][1::2], state[key][1::2])
        assert not result["reward"][1::2].any()


def test_finished_episodes_are_reset_in_rollouts() -> None:
    data = TorchRLEnv("8gaussians", num_envs=3).rollout(12, break_when_any_done=False)
    assert data["t"].tolist() == [[t % 5 for t in range(12)]] * 3
    assert (data["next", "t"] == data["t"] + 1).all()
    assert torch.equal(data["next", "done"][..., 0], data["t"] == 4)
    assert torch.equal(data["x"][:, 1:5], data["next", "x"][:, :4]) and not torch.equal(
        data["x"][:, 0], data["x"][:, 5]
    )


def test_seeds_fix_the_starting_states(task: dict[str, Any]) -> None:
    env = TorchRLEnv(**task, num_envs=3)

    def starts(seed: int) -> Tensor:
        env.set_seed(seed)
        torch.rand(1)
        return torch.stack([env.reset()["x"], env.reset()["x"]])

    one, again, other = starts(1), starts(1), starts(2)
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    torch.manual_seed(0)
    first = TorchRLEnv(**task).reset()["x"]
    torch.manual_seed(0)
    assert not torch.equal(first, TorchRLEnv(**task).reset()["x"])  # unseeded environments differ


def test_actions_are_copied_where_they_become_the_state() -> None:
    env = TorchRLEnv(num_envs=2, coordinates="next_state")
    action = torch.ones(2, 2)
    result = env.step(env.reset().set("action", action))["next"]
    action.fill_(7.0)
    assert torch.equal(result["x"], torch.ones(2, 2))


# -- t is read only where it must be ---------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of times that a "t" was read, which on CUDA would wait for the device."""
    count, aminmax = [0], torch.aminmax

    def counted(values: Tensor) -> Any:
        count[0] += 1
        return aminmax(values)

    monkeypatch.setattr(module.torch, "aminmax", counted)
    return count


def test_no_read_in_rollouts_transforms_and_collectors(reads: list[int]) -> None:
    env, unlocked = TorchRLEnv(num_envs=3), TorchRLEnv()
    transformed = TransformedEnv(TorchRLEnv(num_envs=3), Compose(RewardSum(), StepCounter()))
    play(env, normal(0))
    env.rollout(12, break_when_any_done=False)
    transformed.rollout(12, break_when_any_done=False)
    unlocked.rollout(12, tensordict=unlocked.reset(batch(3)), auto_reset=False, break_when_any_done=False)
    for _ in Collector(env, frames_per_batch=21, total_frames=42):
        pass
    assert reads == [0]


def test_a_t_that_was_changed_is_read(reads: list[int]) -> None:
    env = TorchRLEnv("8gaussians", num_envs=3)
    changes: list[tuple[Callable[[TensorDictBase], Any], list[int]]] = [
        (lambda state: state["t"].add_(2), [3, 3, 3]),
        (lambda state: state["t"][1:].fill_(3), [1, 4, 4]),
        (lambda state: state.set("t", torch.tensor([4, 0, 2])), [5, 1, 3]),
        (lambda state: state.update(state.clone()), [1, 1, 1]),
    ]
    for number, (change, expected) in enumerate(changes, 1):
        state = env.reset().set("action", torch.zeros(3, 2))
        change(state)
        assert env.step(state)["next", "t"].tolist() == expected and reads == [number]
    with torch.inference_mode():  # tensors without versions
        assert play(env, normal(0))[-1]["t"].tolist() == [5, 5, 5]
    assert reads[0] > len(changes)


# -- rewards are live ------------------------------------------------------------------------------------------------


class Counting(Bowl):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_energy_is_swapped_and_trained_live() -> None:
    env = TransformedEnv(TorchRLEnv(num_envs=2, tau=0.0), RewardSum())
    for weight in (0.0, 1.0):
        energy = Counting(weight)
        env.mdp.set_energy(energy)
        energy.calls = 0
        final = play(env, normal(0))[-1]
        assert energy.calls == 1  # in lockstep the energy is evaluated at the end only
        torch.testing.assert_close(final["reward"][:, 0], -weight * final["x"].square().sum(1))
        with torch.no_grad():
            energy.weight.add_(1.0)
        final = play(env, normal(0))[-1]
        torch.testing.assert_close(final["reward"][:, 0], -(weight + 1) * final["x"].square().sum(1))
        torch.testing.assert_close(final["episode_reward"], final["reward"])


@pytest.mark.parametrize("backward", ["brownian", "learned", "forward"])
def test_the_kernel_is_fitted_only_on_request(backward: str) -> None:
    kwargs: dict[str, Any] = {"num_envs": 64, "backward": backward}
    torch.manual_seed(0)
    env, frozen = TorchRLEnv(**kwargs, fit_backward=True), TorchRLEnv(**kwargs)
    venv = DenoiseVectorEnv(**kwargs, fit_backward=True)
    venv.mdp.kernel.load_state_dict(env.mdp.kernel.state_dict())
    before = copy.deepcopy(env.mdp.kernel.state_dict())
    for seed in (0, 1):
        observation, _ = venv.reset(seed=seed)
        noise = normal(seed)
        play(
            env,
            lambda t, state, noise=noise: venv.step(a := noise(t, state)) and a,
            env.reset().set("x", observation[:, :2]),
        )
    fitted, expected = env.mdp.kernel.state_dict(), venv.mdp.kernel.state_dict()
    assert all(torch.equal(fitted[key], expected[key]) for key in before)
    assert all(torch.equal(fitted[key], before[key]) for key in before) == (backward == "forward")
    before = copy.deepcopy(frozen.mdp.kernel.state_dict())
    play(frozen, normal(0))
    assert all(torch.equal(frozen.mdp.kernel.state_dict()[key], before[key]) for key in before)


def test_fitting_needs_whole_episodes() -> None:
    env = TorchRLEnv(fit_backward=True, backward="brownian")
    start = env.reset(batch(3)).set("action", torch.zeros(3, 2))
    second = env.step(start.clone())["next"].set("action", torch.zeros(3, 2))
    env.step(start.clone())  # beginning again is fine
    for wrong in (
        second[:2],
        second.clone().set("t", torch.tensor([1, 1, 2])),
        second.clone().set("t", second["t"] + 1),
    ):
        with pytest.raises(ValueError, match="whole episodes"):
            env.step(wrong)
    env.rollout(10, break_when_any_done=False)


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"task": "8gausians"}, UnknownNameError, "Did you mean '8gaussians'"),
        ({"observation": "flatt"}, UnknownNameError, "'flat'"),
        ({"coordinates": "noises"}, UnknownNameError, "'noise'"),
        ({"horizn": 3}, UnknownNameError, "'horizon'"),
        ({"render_mode": "rgb_array"}, TypeError, "render_mode"),
        ({"num_envs": 0}, ValueError, "num_envs"),
        ({"num_envs": 2.0}, TypeError, "num_envs"),
        ({"num_envs": True}, TypeError, "num_envs"),
        ({"task": "digits"}, EnergyError, "energy="),
        ({"base": "ddim", "eta": 0.0}, ValueError, "eta > 0"),
        ({"device": "warp"}, ValueError, "device"),
    ],
)  # fmt: skip
def test_bad_arguments(kwargs: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TorchRLEnv(**kwargs)


def test_bad_tensordicts() -> None:
    env = TorchRLEnv("8gaussians")
    good = env.reset(batch(3)).set("action", torch.full((3, 2), 30.0, dtype=torch.float64))  # beyond the box, double
    result = env.step(good.clone())["next"]
    assert result["x"].dtype == torch.float32
    bad: list[tuple[str, Any, type[Exception], str]] = [
        ("x", None, ResetNeeded, "env.reset"),
        ("t", None, ResetNeeded, "env.reset"),
        ("action", None, ValueError, "no 'action'"),
        ("action", torch.zeros(3, 1), ValueError, "action must have shape"),
        ("action", torch.zeros(3), ValueError, "action must have shape"),
        ("action", torch.zeros(3, 2, 1), ValueError, "action must have shape"),
        ("action", torch.zeros(3, 2, dtype=torch.int64), TypeError, "floating dtype"),
        ("action", torch.full((3, 2), math.nan), NonFiniteError, "action"),
        ("action", torch.full((3, 2), math.inf), NonFiniteError, "action"),
        ("action", torch.full((3, 2), 1e30), NonFiniteError, "reward"),
        ("x", torch.full((3, 2), math.nan), NonFiniteError, "state"),
        ("x", torch.zeros(3, 3), ValueError, "'x' must have shape"),
        ("x", torch.zeros(3, 2, dtype=torch.int64), TypeError, "floating dtype"),
        ("t", torch.zeros(3), TypeError, "int64"),
        ("t", torch.zeros(3, 1, dtype=torch.int64), TypeError, r"shape \[3\]"),
        ("t", torch.tensor([0, 1, 5]), ResetNeeded, "over"),
        ("t", torch.tensor([0, 1, 6]), ValueError, "0..4"),
        ("t", torch.tensor([0, 1, -1]), ValueError, "0..4"),
    ]
    for key, value, error, words in bad:
        wrong = good.exclude(key) if value is None else good.clone().set(key, value)
        with pytest.raises(error, match=words):
            env.step(wrong)
        assert torch.equal(env.step(good.clone())["next", "x"], result["x"])  # it leaves no trace
    with pytest.raises(RuntimeError, match="batch_size"):
        TorchRLEnv(num_envs=2).step(good)
    with pytest.raises(ResetNeeded, match="over"):
        env.step(play(env, normal(0))[-1].set("action", torch.zeros(2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [1, 2])
def test_bad_energies(value: float, rows: int) -> None:
    env = TorchRLEnv("8gaussians", energy=lambda x: x.sum(1) * 0 + value)
    state = TensorDict({"x": torch.zeros(2, 2), "t": torch.tensor([4, 3]), "action": torch.zeros(2, 2)}, [2])
    env.step(state[1:])
    with pytest.raises(EnergyError, match="energy"):
        env.step(state[:rows])


@pytest.mark.slow
def test_torchrl_is_imported_only_when_it_is_asked_for() -> None:
    code = (
        "import sys, dxmi_rl, dxmi_rl.envs.vector\n"
        "assert not {'torchrl', 'tensordict'} & set(sys.modules)\n"
        "sys.modules['torchrl'] = None\n"
        "try: import dxmi_rl.envs.torchrl\n"
        "except dxmi_rl.utils.checks.MissingExtraError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "dxmi_rl[torchrl]" in run.stdout


# -- TorchRL's own tools ---------------------------------------------------------------------------------------------


def test_copies_pickles_and_batched_environments() -> None:
    for env in (TorchRLEnv(num_envs=2), TorchRLEnv()):
        for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
            assert other.batch_locked == env.batch_locked and other.mdp is not env.mdp
            env.set_seed(0), other.set_seed(0)
            assert torch.equal(env.reset(batch(2))["x"], other.reset(batch(2))["x"])
            other.rollout(6, break_when_any_done=False)
    for num_envs in (None, 3):
        serial = SerialEnv(2, lambda num_envs=num_envs: TorchRLEnv(num_envs=num_envs))
        check_env_specs(serial, break_when_any_done="both")
        serial.set_seed(0)
        data = serial.rollout(12, break_when_any_done=False)
        assert data["t"].flatten(0, -2).tolist() == [[t % 5 for t in range(12)]] * (2 * (num_envs or 1))
        assert not torch.equal(data["x"][0], data["x"][1])
        serial.close()


def test_transforms_of_the_observation_leave_the_state_alone() -> None:
    norm = ObservationNorm(loc=1.0, scale=3.0, in_keys=["observation"])
    env = TransformedEnv(TorchRLEnv(num_envs=4), Compose(norm, RewardSum(), StepCounter()))
    check_env_specs(env, break_when_any_done="both")
    start = env.reset()
    changed = play(env, normal(0), start.clone())
    plain = play(env.base_env, normal(0), start.select("x", "t").clone())
    for one, two in zip(changed[1:], plain[1:], strict=True):
        assert torch.equal(one["x"], two["x"]) and torch.equal(one["reward"], two["reward"])
        torch.testing.assert_close(one["observation"], 3 * two["observation"] + 1)
    assert (changed[-1]["step_count"] == 5).all()
    torch.testing.assert_close(changed[-1]["episode_reward"], sum(state["reward"] for state in plain[1:]))
    assert env.rand_step(env.reset())["next", "reward"].shape == (4, 1)


def gaussian_actor(env: TorchRLEnv, distribution: type) -> ProbabilisticActor:
    net = nn.Sequential(
        nn.Linear(env.mdp.dim + 1, 16), nn.Tanh(), nn.Linear(16, 2 * env.mdp.dim), NormalParamExtractor()
    )
    box = env.action_spec_unbatched.space
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=distribution,
        distribution_kwargs={"low": box.low, "high": box.high} if distribution is TanhNormal else {},
        spec=env.action_spec_unbatched,
        return_log_prob=True,
    )


def value_net(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 1))


@pytest.mark.parametrize("loss_name", ["ppo", "a2c", "reinforce", "sac"])
def test_one_update_of_every_algorithm(loss_name: str) -> None:
    torch.manual_seed(0)
    env = TorchRLEnv(num_envs=16, action_bound=5.0 if loss_name == "sac" else 25.0)
    env.set_seed(0)
    actor = gaussian_actor(env, TanhNormal if loss_name == "sac" else IndependentNormal)
    critic = ValueOperator(value_net(3), in_keys=["observation"])
    with set_exploration_type(ExplorationType.RANDOM):
        (data,) = Collector(env, actor, frames_per_batch=16 * 10, total_frames=16 * 10)
    assert data.shape == (16, 10) and int(data["next", "done"].sum()) == 32
    if loss_name == "sac":

        class Quality(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = value_net(5)

            def forward(self, observation: Tensor, action: Tensor) -> Tensor:
                return self.net(torch.cat([observation, action], -1))

        loss = SACLoss(
            actor, ValueOperator(Quality(), in_keys=["observation", "action"]), action_spec=env.action_spec_unbatched
        )
        losses = loss(data.flatten())
    else:
        GAE(gamma=1.0, lmbda=1.0, value_network=critic)(data)
        make = {"ppo": ClipPPOLoss, "a2c": A2CLoss, "reinforce": ReinforceLoss}[loss_name]
        loss = make(actor, critic)
        losses = loss(data.flatten())
    total = sum(value.sum() for key, value in losses.items() if key.startswith("loss_"))
    total.backward()
    total = total.detach()
    gradients = [p.grad for p in loss.parameters() if p.requires_grad]
    assert math.isfinite(float(total)) and gradients
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)
    assert all(bool(p.grad.any()) for p in loss.actor_network_params.flatten_keys().values())


# -- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_do_not_wait_for_the_gpu() -> None:
    env = TorchRLEnv("8gaussians", num_envs=64, backward="learned", fit_backward=True).to("cuda")
    assert env.device == torch.device("cuda:0") and env.action_spec.device == env.device
    check_env_specs(env, break_when_any_done="both")
    state = env.reset()
    action = torch.zeros(64, 2, device="cuda")

    def advance(state: TensorDictBase, times: int, action: Tensor = action) -> TensorDictBase:
        for _ in range(times):
            state = env.step(state.set("action", action)).get("next")
        return state

    try:
        torch.cuda.set_sync_debug_mode("error")
        state = advance(state, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.device == env.device and bool(advance(state, 1)["done"].all())
    state = advance(advance(env.reset(), 1, action * math.nan), 3)
    with pytest.raises(NonFiniteError, match="action"):
        advance(state, 1)
    advance(env.reset(), 5)  # the failure is forgotten
    assert env.to("cpu").reset()["x"].device.type == "cpu"
    env.rollout(10, break_when_any_done=False)
