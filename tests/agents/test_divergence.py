"""What diverges steps back, or is one of three exceptions, and the last good checkpoint stays as it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import same, skip_without_extra, small, state, train

from dxmi_rl import load_agent, make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent
from dxmi_rl.live_energy import EnergyError, require_finite_energy
from dxmi_rl.utils.checks import CheckpointError, DivergenceError, NonFiniteError
from dxmi_rl.utils.storage import load_tensors, save_tensors

TRAINED = [name for name in AGENTS if AGENTS[name].trains and name != "dxmi"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_absurd_rates_leave_the_last_good_checkpoint(name: str, tmp_path: Path) -> None:
    """At learning rates of 1,000 training ends in one of three exceptions, or what it saves can go on."""
    skip_without_extra(name)
    agent = small(name)
    file = agent.learn(agent.timesteps_per_iteration).save(tmp_path / "agent.safetensors")
    for optimizer in agent.optimizers().values():
        for group in optimizer.param_groups:
            group["peak"] = group["lr"] = 1e3
    try:
        agent.set_progress = lambda progress: None  # type: ignore[method-assign]  # keeps those rates
        agent.learn(6 * agent.timesteps_per_iteration, checkpoint=file, checkpoint_every=1)
    except (DivergenceError, NonFiniteError, EnergyError):
        pass
    again = load_agent(file, task=None if agent.task.spec else agent.task)
    assert bool(again.sample(16, seed=1).isfinite().all())
    entries = [entry for one in again.all_optimizers().values() for entry in one.state.values()]
    numbers = [value for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)]
    assert all(bool(value.isfinite().all()) for value in numbers)


def test_a_learned_energy_that_is_not_finite_is_a_divergence() -> None:
    """Nobody can check an energy that the game itself has learned."""
    game = small("dxmi", energy_learning_rate=1e30)
    with pytest.raises(DivergenceError, match="its energy is nan"):
        game.learn(20 * game.timesteps_per_iteration)
    assert game.costs.setbacks == 5


@pytest.mark.parametrize("name", ["dxdp", "ppo", "path-wise", "adjoint-matching", "vgs"])
def test_an_energy_that_autograd_cannot_follow_says_so(name: str) -> None:
    def overwrites(x: torch.Tensor) -> torch.Tensor:
        return x.mul_(x).sum(1)

    options = {"scale": 2.0, "smallest_scale": 0.3}
    task = make_task(overwrites, dim=2, horizon=3, backward="learned", target_options=options)
    with pytest.raises(EnergyError, match=r"the energy's gradient(, which)? fails: RuntimeError: .*inplace operation"):
        train(small(name, task), 1)


@pytest.mark.parametrize("name", ["sb3-ppo", "sb3-a2c"])
def test_weights_that_make_no_distribution_are_a_divergence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses a standard deviation of 0, in words that no user of ours can make sense of."""
    skip_without_extra(name)
    monkeypatch.setattr("torch.distributions.Distribution._validate_args", True)  # TorchRL turns it off, for all
    agent = small(name)
    with torch.no_grad():
        agent.policy.log_std.fill_(-200.0)
    with pytest.raises(DivergenceError, match=f"{name} on .* diverged"):
        agent.learn(100 * agent.timesteps_per_iteration)
    assert agent.costs.setbacks == 5


@pytest.mark.parametrize("name", ["ppo", "path-wise", "dxdp"])
def test_an_energy_that_is_no_number_is_not_blamed_on_the_policy(name: str) -> None:
    """Also where the policy is told its gradient, and so leaves the finite numbers first."""
    task = make_task(lambda x: math.nan * x.sum(1), dim=2, horizon=2, backward="learned")
    agent = make_agent(name, task, seed=0, n_trajectories=8)
    with pytest.raises(EnergyError, match=rf"{name} on 'custom' stopped at timestep \d+: the energy is NaN .*E is nan"):
        agent.learn(100)


def test_an_infinite_energy_far_out_is_the_policys_fault() -> None:
    x = torch.tensor([[0.0, 1.0], [1e25, 0.0]])
    with pytest.raises(NonFiniteError, match="the policy left the finite numbers"):
        require_finite_energy(x, x.square().sum(1))
    with pytest.raises(EnergyError, match="first in row 0: E is inf, at a state of norm 1"):
        require_finite_energy(x[:1], torch.tensor([torch.inf]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint": 5}, TypeError, "checkpoint must be a path, got 5"),
        ({"checkpoint": ""}, IsADirectoryError, "checkpoint must name a file"),
        ({"checkpoint": "."}, IsADirectoryError, "checkpoint must name a file"),
        ({"checkpoint": "file/x"}, NotADirectoryError, "checkpoint must lie in a folder"),
        ({"callback": 3}, TypeError, "callback must be callable, got 3"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_training(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    agent = small("ppo")
    with pytest.raises(error, match=message):
        agent.learn(agent.timesteps_per_iteration, **options)
    assert agent.costs.timesteps == 0


@pytest.mark.parametrize(
    ("answer", "iterations"),
    [
        (np.bool_(False), 1),
        (torch.tensor(False), 1),
        (False, 1),
        (None, 3),
        (np.bool_(True), 3),
        (torch.tensor(True), 3),
        ("file", 3),
    ],
)
def test_a_callback_ends_training_with_any_false(answer: object, iterations: int) -> None:
    agent = small("ppo")
    agent.learn(3 * agent.timesteps_per_iteration, callback=lambda _: answer)
    assert agent.costs.timesteps == iterations * agent.timesteps_per_iteration


def test_what_a_callback_breaks_is_not_saved(tmp_path: Path) -> None:
    agent = small("ppo")

    def break_it(_: Agent[Any]) -> None:
        agent.policy.load_state_dict({key: value * torch.nan for key, value in agent.policy.state_dict().items()})

    agent.learn(agent.timesteps_per_iteration, callback=break_it, checkpoint=tmp_path / "agent.safetensors")
    assert agent.costs.setbacks == 1
    assert bool(load_agent(tmp_path / "agent.safetensors").sample(4).isfinite().all())


def test_an_energy_with_weights_of_its_own_and_no_gradient_in_x_says_so() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    task = make_task(lambda x: (x.detach().square() * weight).sum(1), dim=2, horizon=2)
    with pytest.raises(EnergyError, match="the energy has no gradient in x, and it is asked for"):
        make_agent("ppo", task, n_trajectories=8).learn(16)
    with pytest.raises(EnergyError, match="'path-wise' needs the energy's gradient"):
        make_agent("path-wise", task, n_trajectories=8)
    make_agent("ppo", task, n_trajectories=8, policy={"energy_gradient": False}).learn(16)


def test_a_state_that_cannot_go_on_is_not_saved(tmp_path: Path) -> None:
    agent = small("ppo")
    file = tmp_path / "agent.safetensors"
    agent.learn(agent.timesteps_per_iteration, checkpoint=file)
    good = file.read_bytes()
    state = next(iter(agent.optimizers()["policy"].state.values()))
    state["exp_avg_sq"].fill_(torch.inf)  # Adam stands still from here on
    with pytest.raises(DivergenceError, match="state of optimizer policy is inf"):
        agent.learn(agent.timesteps_per_iteration, checkpoint=file)
    assert file.read_bytes() == good


def broken_at(agent: Agent[Any], iterations: set[int]) -> Agent[Any]:
    """The agent, whose weights are no numbers after these iterations, counted from 0."""
    done, iterate = [0], agent.iterate

    def iterate_and_break(*arguments: Any) -> Any:
        log = iterate(*arguments)
        if done[0] in iterations:
            with torch.no_grad():
                next(iter(agent.policy.parameters())).fill_(torch.nan)
        done[0] += 1
        return log

    agent.iterate = iterate_and_break  # type: ignore[method-assign]
    return agent


def test_training_steps_back_to_the_last_good_state(tmp_path: Path) -> None:
    """Once at its second iteration: the rates are halved, the budget is what it was, the checkpoint is whole."""
    agent = broken_at(small("ppo"), {1})
    step, states, rates = agent.timesteps_per_iteration, [], []

    def note(agent: Agent[Any]) -> None:
        states.append(state(agent))
        rates.append(agent.rate_factor())

    file = tmp_path / "agent.safetensors"
    agent.learn(3 * step, callback=note, checkpoint=file, checkpoint_every=1)
    assert agent.costs.setbacks == 1 and agent.num_timesteps == 3 * step
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    assert not all(torch.equal(states[2][key], value) for key, value in states[0].items())
    assert rates[0] > 0.9 and rates[1] < 0.5 and rates[2] < 0.5
    again = load_agent(file)
    assert again.costs.setbacks == 1
    again.set_progress(0.0)
    assert again.rate_factor() == 0.5
    kernel = again.mdp.kernel
    assert kernel.optimizer is None or kernel.optimizer.param_groups[0]["lr"] == 0.5 * kernel.learning_rate


def test_a_last_iteration_that_diverges_leaves_the_state_before_it(tmp_path: Path) -> None:
    agent, file = small("ppo"), tmp_path / "agent.safetensors"
    step, iterate, states = agent.timesteps_per_iteration, agent.iterate, []

    def iterate_and_fail(*arguments: Any) -> Any:
        log = iterate(*arguments)
        if agent.num_timesteps == 2 * step:
            raise NonFiniteError("states that are no numbers")
        return log

    agent.iterate = iterate_and_fail  # type: ignore[method-assign]
    agent.learn(2 * step, callback=lambda agent: states.append(state(agent)), checkpoint=file, checkpoint_every=1)
    assert agent.costs.setbacks == 1 and agent.num_timesteps == 2 * step and len(states) == 2
    saved = state(load_agent(file))
    assert all(
        torch.equal(saved[key], value) and torch.equal(states[1][key], value) for key, value in states[0].items()
    )


def test_what_diverges_for_the_sixth_time_ends(tmp_path: Path) -> None:
    agent = broken_at(small("ppo"), set(range(1, 100)))
    file = tmp_path / "agent.safetensors"
    with pytest.raises((DivergenceError, NonFiniteError)):
        agent.learn(100 * agent.timesteps_per_iteration, checkpoint=file, checkpoint_every=1)
    assert agent.costs.setbacks == 5
    saved = load_agent(file)
    assert bool(saved.sample(16, seed=0).isfinite().all())
    assert same(state(agent), state(saved)), "the agent keeps its last good state, too"


def test_states_that_are_no_numbers_are_stepped_back_from() -> None:
    """As a rollout raises them, before a look at the losses."""
    agent = broken_at(small("a2c"), {1})
    agent.learn(6 * agent.timesteps_per_iteration)
    assert agent.costs.setbacks == 1 and all(bool(value.isfinite().all()) for value in state(agent).values())


def test_what_a_library_raises_when_the_weights_are_gone_is_divergence() -> None:
    skip_without_extra("sb3-ppo")
    agent = small("sb3-ppo")
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(torch.nan)
    with pytest.raises((DivergenceError, NonFiniteError)):
        agent.learn(2 * agent.timesteps_per_iteration)


# What a checkpoint must hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("modules", lambda agent: {"policy": agent.policy}, "must hold all that is trained"),
        ("modules", lambda agent: {"policy": agent.policy, "policy.v": agent.value}, "begin with another's"),
        ("modules", lambda agent: [agent.policy], "must return a dict"),
        ("optimizers", lambda agent: None, "must return a dict"),
    ],
)
def test_what_a_checkpoint_would_lose_is_refused(part: str, value: Any, message: str, tmp_path: Path) -> None:
    agent = small("ppo")
    setattr(agent, part, lambda: value(agent))
    with pytest.raises(TypeError, match=message):
        agent.save(tmp_path / "agent.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["task", "task_name", "task_config", "seed", "config", "costs", "progress"])
@pytest.mark.parametrize("value", ["gone", "x", [1]])
def test_forged_metadata_are_a_checkpoint_error(key: str, value: Any, tmp_path: Path) -> None:
    file = small("ppo").save(tmp_path / "agent.safetensors")
    tensors, metadata = load_tensors(file)
    if value == "gone":
        del metadata[key]
    elif (key, value) == ("task_name", "x"):
        metadata[key] = 5
    else:
        metadata[key] = value
    save_tensors(file, tensors, metadata)
    with pytest.raises(CheckpointError):
        load_agent(file)
