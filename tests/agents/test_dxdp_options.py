"""DxDP's replay, value network, kernel and settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import BATCH, PRETRAINING, same, state, task_for
from dxdp_cases import T, dxdp, play
from torch import Tensor

from dxmi_rl import make_task
from dxmi_rl.agents import DxDP, ValueConfig, policies
from dxmi_rl.agents import dxdp as dxdp_module
from dxmi_rl.agents.policies import FineTunedPolicy
from dxmi_rl.agents.values import ValueFunction
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.torch_tools import seeded

# Replay ---------------------------------------------------------------------------------------------------------------


def test_the_last_rollouts_are_kept_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(replay=3)
    seen: list[Trajectory] = []

    def noted(*arguments: Any, **options: Any) -> Trajectory:
        seen.append(policies.collect(*arguments, **options))
        return seen[-1]

    def check(trained: Any) -> None:
        last, memory = seen[-3:], trained.memory.trajectories
        assert torch.equal(memory.x, torch.cat([r.x for r in last], dim=1))
        assert torch.equal(memory.log_prob, torch.cat([r.log_prob for r in last], dim=1))
        assert torch.equal(memory.base_mean, torch.cat([r.base_mean for r in last], dim=1))
        assert memory.n == min(len(seen), 3) * BATCH

    monkeypatch.setattr(dxdp_module, "collect", noted)
    agent.learn(5 * agent.timesteps_per_iteration, callback=check)
    assert len(seen) == 5
    memory = agent.memory.trajectories
    assert memory is not None and memory.base_mean is not None
    x, x_next, t = memory.transitions()
    assert x.shape == x_next.shape == (T * 3 * BATCH, 2)
    assert t.tolist() == [step for step in range(T) for _ in range(3 * BATCH)]
    newest = memory.base_mean.view(T, 3, BATCH, 2)[:, 2]
    assert torch.equal(newest, seen[-1].base_mean)
    assert agent.costs.energy_evals == 5 * BATCH * (1 + agent.config.policy_steps), "energies are kept"


@pytest.mark.parametrize("base", [None, "ddpm"])
def test_picked_episodes_stay_together(base: str | None) -> None:
    agent = dxdp(make_task("8gaussians", base=base), replay=2)
    everything = agent.memory.add(play(agent))
    before = agent.generator.get_state()
    columns = torch.arange(T * BATCH).view(T, BATCH)
    assert agent.memory.pick(BATCH, columns, agent.generator) == (everything, columns), "all of them need no draw"
    assert torch.equal(agent.generator.get_state(), before)
    kept = agent.memory.add(play(agent))
    labels = torch.arange(T * 2 * BATCH).view(T, 2 * BATCH)
    part, picked = agent.memory.pick(BATCH, labels, agent.generator)
    chosen = picked[0]
    assert len(chosen.unique()) == BATCH == part.n, "without replacement"
    assert torch.equal(picked, chosen + 2 * BATCH * torch.arange(T)[:, None]), "the same episodes at every step"
    assert torch.equal(part.x, kept.x[:, chosen]) and torch.equal(part.log_prob, kept.log_prob[:, chosen])
    x, _, t = part.transitions()
    assert torch.allclose(agent.policy.base_mean(x, t), part.base_means(), atol=1e-4)


@pytest.mark.slow
def test_resuming_with_every_option_equals_not_having_stopped(tmp_path: Path) -> None:
    agent = dxdp(
        task_for("dxdp"), replay=3, correction=True, warmup_iterations=1, lookahead_value=True,
        **{"policy.fixed_last_sigma": True},
    )  # fmt: skip
    step, paths = agent.timesteps_per_iteration, {k: tmp_path / str(k) for k in (1, 4, 9)}

    def save(trained: Any) -> None:
        path = paths.get(trained.num_timesteps // step)
        if path is not None:
            trained.save(path)

    agent.learn(12 * step, callback=save)
    for done, path in paths.items():
        resumed = DxDP.load(path)
        kept = resumed.memory.trajectories
        assert kept is not None and kept.x.shape == (T + 1, min(done, 3) * BATCH, 2)
        resumed.learn((12 - done) * step, reset_num_timesteps=False)
        assert same(state(agent), state(resumed))
        assert same(agent.extra_tensors(), resumed.extra_tensors()) and "base_mean" in agent.extra_tensors()
        assert dataclasses.replace(agent.costs, seconds=0) == dataclasses.replace(resumed.costs, seconds=0)


# The value network ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [None, 7])
def test_a_fit_of_the_value_by_hand(rows: int | None) -> None:
    """((V - target) / (tau d))^2 in the mean, at once or in parts; then one step of Adam."""
    mdp = make_task("8gaussians", tau=0.6).mdp
    with seeded(0):
        value = ValueFunction(mdp, ValueConfig(width=16, depth=2, learning_rate=0.01))
    value.rows_at_once = rows
    assert value.unit == pytest.approx(1.2)
    generator = torch.Generator().manual_seed(0)
    x, t, targets = torch.randn(40, 2, generator=generator), torch.arange(40) % T, torch.randn(40, generator=generator)
    before = [parameter.detach().clone() for parameter in value.parameters()]
    found = value(x, t)
    assert torch.allclose(found, 1.2 * value.network(x, t)[:, 0])
    wanted = ((found - targets) / 1.2).square().mean()
    slopes = torch.autograd.grad(wanted, list(value.parameters()))
    assert float(value.fit(x, t, targets)) == pytest.approx(float(wanted.detach()))
    norm = math.sqrt(sum(float(slope.square().sum()) for slope in slopes))
    assert norm < 10, "below the limit that it is clipped to"
    for parameter, start, slope in zip(value.parameters(), before, slopes, strict=True):
        moves = slope.abs() > 1e-4  # Adam's first step is the learning rate along the sign, but for its epsilon
        assert torch.allclose((parameter.detach() - start)[moves], -0.01 * slope.sign()[moves], rtol=1e-3)


@pytest.mark.parametrize(("tau", "unit"), [(0.3, 0.6), (0.0, 1.0)])
def test_the_unit_of_the_value_is_tau_d(tau: float, unit: float) -> None:
    assert dxdp(task_for("dxdp", tau=tau)).value.unit == pytest.approx(unit)


def test_values_depend_on_the_step() -> None:
    agent = dxdp()
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(agent.values(x, 0), agent.values(x, 1))


# Sigma, the kernel, the denoiser --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("state_dependent", [True, False])
def test_the_last_sigma_can_be_frozen(state_dependent: bool) -> None:
    agent, free = (
        dxdp(policy={
            "state_dependent_sigma": state_dependent, "fixed_last_sigma": frozen, "sigma_learning_rate": 1e-2
        }) for frozen in (True, False)
    )  # fmt: skip
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    for trained in (agent, free):
        trained.learn(20 * trained.timesteps_per_iteration)
        for t in range(T):
            log_sigma = trained.policy.moments(x, t)[1]
            start = agent.mdp.base.sigma[t].log()
            if trained is agent and t == T - 1:
                assert torch.equal(log_sigma, start.expand_as(log_sigma))
            else:
                assert float((log_sigma - start).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
def test_the_number_of_kernel_fits(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(make_task("8gaussians", backward="learned"), kernel_steps=steps)
    fits: list[int] = []
    monkeypatch.setattr(agent.mdp.kernel, "fit", lambda x, x_next, t: fits.append(len(x)))
    agent.learn(4 * agent.timesteps_per_iteration)
    assert fits == [T * BATCH] * 4 * steps


@pytest.mark.parametrize("settings", [{"replay": 2}, {"gradient_weight": 1.0}, {"lookahead_value": True}])
def test_every_call_of_an_owned_denoiser_is_counted(settings: dict[str, Any]) -> None:
    task = make_task("8gaussians-data", pretraining=PRETRAINING, reward="target")
    agent = dxdp(task, policy={"kind": "fine-tuned"}, correction=True, **settings)
    assert isinstance(agent.policy, FineTunedPolicy)
    calls: list[int] = []
    agent.policy.base.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    agent.learn(3 * agent.timesteps_per_iteration)
    assert sum(calls) == agent.costs.denoiser_calls


# The order of the steps, bad settings ---------------------------------------------------------------------------------


def test_regressions_come_before_policy_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = dxdp(value_steps=2, policy_steps=4)
    order: list[str] = []

    def note(letter: str) -> Tensor:
        order.append(letter)
        return torch.zeros(())

    monkeypatch.setattr(agent, "update_value", lambda *_: note("V"))
    monkeypatch.setattr(agent, "update_policy", lambda *_: note("p"))
    agent.iterate()
    assert "".join(order) == "VppVpp"


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("n_trajectories", 1, ValueError),  # the correction compares trajectories
        ("policy_steps", 0, ValueError),
        ("replay", 0, ValueError),
        ("replay", 1.5, TypeError),
        ("td_lambda", -0.1, ValueError),
        ("clip_range", 0.0, ValueError),
        ("max_grad_norm", 0.0, ValueError),
        ("warmup_iterations", -1, ValueError),
        ("warmup_value_steps", -1, ValueError),
        ("kernel_steps", 0, ValueError),
        ("policy.width", 0, ValueError),
        ("policy.sigma_learning_rate", math.nan, ValueError),
        ("value.depth", 1.5, TypeError),
        ("value.learning_rate", -1.0, ValueError),
    ],
)
def test_bad_settings_are_named(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=setting):
        dxdp(**{setting: value})


def test_an_energy_model_that_nothing_fits_is_refused() -> None:
    alone = {"lookahead_value": True, "gradient_weight": 0.0, "value_steps": 0}
    with pytest.raises(ValueError, match="energy_model must be False with value_steps=0"):
        dxdp(**alone, energy_model=True)
    assert dxdp(**alone, energy_model=False).energy_model is None


@pytest.mark.parametrize("beside", [{"correction": True}, {"energy_model": True}, {"replay": 2}])
def test_the_path_correction_stands_alone(beside: dict[str, Any]) -> None:
    """With ``correction`` V's errors would count twice; a model's error, and old paths, it does not see."""
    alone = {"path_correction": True, "correction": False, "energy_model": False, "replay": 1}
    dxdp(**alone)
    with pytest.raises(ValueError, match="path_correction must be False with correction, energy_model or replay > 1"):
        dxdp(**alone | beside)


def test_one_trajectory_is_enough_without_the_correction() -> None:
    agent = dxdp(n_trajectories=1, correction=False)
    agent.learn(2 * agent.timesteps_per_iteration)
