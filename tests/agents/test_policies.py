"""Policies and their settings: which setting means something where, moments along rollouts, rates, collecting."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from agent_cases import PRETRAINING, small
from torch import Tensor

from dxmi_rl import DxMI, make_agent, make_task
from dxmi_rl.agents import MeanConfig, PolicyConfig, PPOConfig, ValueConfig
from dxmi_rl.agents.policies import CorrectionPolicy, FineTunedPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import CORRECTION_ONLY, FINE_TUNING_ONLY, check_changes, policy_kind
from dxmi_rl.tasks import Task
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import changed, setting_names
from dxmi_rl.utils.torch_tools import seeded

VECTOR, IMAGE = (2,), (1, 8, 8)


def learned_task(**changes: Any) -> Task:
    """One whose denoiser is a network."""
    return make_task("8gaussians-data", pretraining=PRETRAINING, reward="target", **changes)


# Which setting means something where ----------------------------------------------------------------------------------


def test_auto_is_fine_tuned_for_images() -> None:
    assert [policy_kind(PolicyConfig(), shape) for shape in (VECTOR, IMAGE)] == ["correction", "fine-tuned"]
    for kind in ("correction", "fine-tuned"):
        assert [policy_kind(PolicyConfig(kind=kind), shape) for shape in (VECTOR, IMAGE)] == [kind, kind]


def test_a_setting_of_the_other_kind_is_refused() -> None:
    plain = PPOConfig()
    tuned = changed(plain, {"policy.kind": "fine-tuned"}, "setting")
    assert set(setting_names(PolicyConfig())) >= CORRECTION_ONLY | FINE_TUNING_ONLY

    def moved(config: PPOConfig, field: str) -> PPOConfig:
        value = getattr(config.policy, field)
        return changed(config, {f"policy.{field}": not value if isinstance(value, bool) else value + 1}, "setting")

    for field in CORRECTION_ONLY:
        check_changes(plain, moved(plain, field), VECTOR)
        for config, shape in ((tuned, VECTOR), (plain, IMAGE)):
            with pytest.raises(ValueError, match=rf"policy\.{field} belongs to a policy of kind 'correction'"):
                check_changes(config, moved(config, field), shape)
    for field in FINE_TUNING_ONLY:
        check_changes(tuned, moved(tuned, field), VECTOR)
        with pytest.raises(ValueError, match=rf"policy\.{field} belongs to a policy of kind 'fine-tuned'"):
            check_changes(plain, moved(plain, field), VECTOR)
    other = {"value.width": 8, "n_epochs": 3, "policy.trained_steps": 1}
    check_changes(tuned, changed(tuned, other, "setting"), VECTOR)


@pytest.mark.slow
def test_a_game_refuses_it_of_the_agent_inside() -> None:
    task = make_task("digits", pretraining=PRETRAINING)
    with pytest.raises(ValueError, match=r"policy\.width belongs to a policy of kind 'correction'"):
        DxMI(task, agent_settings={"policy.width": 8})
    assert DxMI(task, agent_settings={"policy.fine_tuning_rate": 1e-6}).agent.config.policy.fine_tuning_rate == 1e-6


@pytest.mark.parametrize("settings", [{"policy.width": 8}, {"policy": {"width": 8}}, {"policy.learning_rate": 1e-4}])
def test_agents_refuse_it_too(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="changes nothing in a 'fine-tuned' one"):
        make_agent("ppo", learned_task(), **{"policy.kind": "fine-tuned"}, **settings)
    with pytest.raises(ValueError, match="changes nothing in a 'correction' one"):
        make_agent("ppo", "8gaussians", **{"policy.fine_tuning_rate": 1e-4})


@pytest.mark.parametrize(
    ("config", "settings", "error", "text"),
    [
        (PolicyConfig, {"kind": "fine tuned"}, UnknownNameError, "unknown policy.kind 'fine tuned'. Did you mean"),
        (PolicyConfig, {"width": 0}, ValueError, "policy.width must be >= 1"),
        (PolicyConfig, {"depth": 2.0}, TypeError, "policy.depth must be an integer"),
        (PolicyConfig, {"fourier": -1}, ValueError, "policy.fourier must be >= 0"),
        (PolicyConfig, {"coordinate_width": -1}, ValueError, "policy.coordinate_width must be >= 0"),
        (PolicyConfig, {"trained_steps": 0}, ValueError, "policy.trained_steps must be >= 1"),
        (PolicyConfig, {"sigma_fine_tuning_rate": math.inf}, ValueError, "policy.sigma_fine_tuning_rate must be"),
        (MeanConfig, {"learning_rate": -1e-3}, ValueError, "policy.learning_rate must be finite and >= 0"),
        (ValueConfig, {"width": 0}, ValueError, "value.width must be >= 1"),
        (ValueConfig, {"fourier": -1}, ValueError, "value.fourier must be >= 0"),
        (ValueConfig, {"learning_rate": math.nan}, ValueError, "value.learning_rate must be finite"),
        (ValueConfig, {"convolutional": True}, ValueError, "value.fourier must be 0 for a convolutional value, got 4"),
        (
            ValueConfig, {"convolutional": True, "fourier": 0, "coordinate_width": 8}, ValueError,
            "value.coordinate_width must be 0 for a convolutional value, got 8",
        ),
    ],
)  # fmt: skip
def test_bad_settings_are_named(config: Any, settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text.replace(".", r"\.")):
        config(**settings)


@pytest.mark.parametrize(
    ("task", "config", "text"),
    [
        ({}, PolicyConfig(kind="fine-tuned"), "needs a base sampler with a denoiser network"),
        ({"base": None}, PolicyConfig(kind="fine-tuned"), "needs a base sampler with a denoiser network"),
        ({"base": "ddim", "eta": 0.0}, PolicyConfig(), "a deterministic base sampler"),
    ],
)
def test_base_samplers_that_cannot_start_a_policy(task: dict[str, Any], config: PolicyConfig, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_policy(make_task("8gaussians", **task).mdp, config)


@pytest.mark.parametrize(
    ("field", "value", "allowed"), [("coordinate_width", 8, "0"), ("energy_gradient", True, "False")]
)
def test_a_fine_tuned_network_has_no_further_inputs(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"policy\.{field} must be {allowed}.* for a fine-tuned network, got {value}"):
        make_policy(learned_task().mdp, PolicyConfig(kind="fine-tuned", **{field: value}))


# Policies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["ddpm", None])
@pytest.mark.parametrize(
    "config", [PolicyConfig(width=8), PolicyConfig(width=8, state_dependent_sigma=False), MeanConfig()]
)
def test_a_correction_starts_as_the_base_sampler(config: MeanConfig, base: str | None) -> None:
    mdp = make_task("8gaussians", base=base).mdp
    policy = make_policy(mdp, config)
    assert isinstance(policy, CorrectionPolicy) and policy.sees_gradient == (base is None)
    x, t = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 5
    mean, log_std = policy.moments(x, t)
    torch.testing.assert_close(mean, mdp.base.mean(x, t))
    torch.testing.assert_close(log_std.exp().expand(20, 2), mdp.base.sigma[t, None].expand(20, 2))
    assert policy.log_sigma.requires_grad == isinstance(config, PolicyConfig)


@pytest.mark.parametrize("kind", ["correction", "fine-tuned"])
@pytest.mark.parametrize("steps", [None, 2])
def test_moments_along_a_rollout_are_those_of_its_states(kind: str, steps: int | None) -> None:
    agent: Any = small("ppo", learned_task(), policy={"kind": kind, "trained_steps": steps})
    with seeded(0), torch.no_grad():
        for parameter in agent.policy.mean_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trajectory = collect(agent, agent.policy, 6)
    x, x_next, t = trajectory.transitions()
    with torch.no_grad():
        mean, log_std = agent.policy.moments_along(trajectory)
        alone = [agent.policy.moments(x[row : row + 1], int(t[row])) for row in range(30)]
    torch.testing.assert_close(mean, torch.cat([moments[0] for moments in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_std, torch.cat([moments[1].expand(1, 2) for moments in alone]), rtol=1e-4, atol=1e-4)
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(x_next).sum(1)
    torch.testing.assert_close(log_prob, trajectory.log_prob.flatten(), rtol=1e-3, atol=1e-3)
    rows = torch.tensor([3, 29, 3, 0])
    with torch.no_grad():
        part = agent.policy.moments_along(trajectory, rows)
    for some, every in zip(part, (mean, log_std), strict=True):
        torch.testing.assert_close(some, every[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "config", "rates"),
    [
        ("correction", PolicyConfig, [1e-3, 3e-3]),
        ("fine-tuned", PolicyConfig, [3e-5, 3e-4]),
        ("correction", MeanConfig, [1e-3]),
        ("fine-tuned", MeanConfig, [3e-5]),
    ],
)
def test_rates_of_mean_and_sigma(kind: str, config: type[MeanConfig], rates: list[float]) -> None:
    policy = make_policy(learned_task().mdp, config(kind=kind))
    groups = policy_optimizer(policy, config(kind=kind)).param_groups
    assert [group["peak"] for group in groups] == [group["lr"] for group in groups] == rates
    assert groups[0]["params"] == policy.mean_parameters()
    if config is PolicyConfig:
        assert len(groups[1]["params"]) == 1 and groups[1]["params"][0] is policy.log_sigma
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    own = policy.base.denoiser.parameters()  # type: ignore[union-attr]
    assert all(parameter.requires_grad == isinstance(policy, FineTunedPolicy) for parameter in own)


# The rollout of an iteration ------------------------------------------------------------------------------------------


def test_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base means are recorded; x_T is handed on before the kernel is fitted; timesteps are added."""
    agent: Any = small("ppo")
    events: list[tuple[str, Tensor]] = []
    monkeypatch.setattr(agent.mdp.kernel, "fit", lambda x, x_next, t: events.append(("fit", x_next)))
    start = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    trajectory = collect(
        agent, agent.policy, 7, lambda final: events.append(("final", final)), kernel_steps=2, start=start
    )
    assert [name for name, _ in events] == ["final", "fit", "fit"]
    assert torch.equal(events[0][1], trajectory.final) and torch.equal(events[1][1], trajectory.x[1:].flatten(0, 1))
    assert torch.equal(trajectory.x[0], start) and not trajectory.x.requires_grad
    assert agent.costs.timesteps == 35
    x, _, t = trajectory.transitions()
    torch.testing.assert_close(trajectory.base_means(), agent.mdp.base.mean(x, t), rtol=1e-4, atol=1e-4)


def test_a_fine_tuned_network_has_no_base_means() -> None:
    agent: Any = small("ppo", learned_task(), policy={"kind": "fine-tuned"})
    assert collect(agent, agent.policy, 3).base_mean is None
