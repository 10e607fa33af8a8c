"""Every function of agents/ops.py against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dxmi_rl.agents import A2CConfig, GRPOConfig, PPOConfig, REINFORCEConfig, ops
from dxmi_rl.diffusion import Brownian
from dxmi_rl.live_energy import EnergyError
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.registry import UnknownNameError

# Rewards --------------------------------------------------------------------------------------------------------------


def two_steps(energy: Any = lambda x: x.square().sum(1), tau: float = 0.5) -> DenoisingMDP:
    """T = 2 steps in one dimension, qb(x | x') = N(x', 1 / (2 pi)) and then N(x', 2 / pi): -log qb = pi (x - x')^2 and
    log 2 + pi (x - x')^2 / 4."""
    mdp = make_task(energy, dim=1, horizon=2, tau=tau).mdp
    mdp.kernel = Brownian(torch.tensor([1 / (2 * math.pi), 2 / math.pi]))
    return mdp


def episodes() -> Trajectory:
    """Two of them: 0, 1, 3 and 2, 2, 1."""
    x = torch.tensor([[[0.0], [2.0]], [[1.0], [2.0]], [[3.0], [1.0]]])
    return Trajectory(x, torch.tensor([[-1.0, 0.5], [2.0, -3.0]]))


def test_soft_rewards() -> None:
    """tau log qb - temperature log pi, the last less E: 9 and 1."""
    pi, log2 = math.pi, math.log(2)
    wanted = [
        [-0.5 * pi + 0.5, 0.0 - 0.25],
        [-0.5 * (log2 + pi) - 1.0 - 9, -0.5 * (log2 + pi / 4) + 1.5 - 1],
    ]
    found = ops.soft_rewards(two_steps(), episodes(), 0.5)
    torch.testing.assert_close(found, torch.tensor(wanted))
    half = ops.soft_rewards(two_steps(), episodes(), 0.25)
    torch.testing.assert_close(half - found, 0.25 * episodes().log_prob)


def test_terminal_rewards() -> None:
    wanted = torch.tensor([[0.0, 0.0], [-9.0, -1.0]])
    assert torch.equal(ops.terminal_rewards(two_steps(), episodes()), wanted)
    assert torch.equal(ops.soft_rewards(two_steps(), episodes(), 0.0), wanted)


@pytest.mark.parametrize("temperature", [0.5, 0.0])
def test_rewards_that_are_not_finite_are_told(temperature: float) -> None:
    mdp = two_steps()
    mdp.set_energy(lambda x: x.sum(1) / 0.0)
    with pytest.raises(EnergyError, match="NaN or infinite"):
        ops.soft_rewards(mdp, episodes(), temperature)


def test_rewards_carry_no_gradient() -> None:
    trajectory = episodes()
    trajectory.log_prob.requires_grad_()
    assert not ops.soft_rewards(two_steps(), trajectory, 0.5).requires_grad


def test_the_temperature_of_an_objective() -> None:
    assert ops.temperature_of("soft", 0.3) == 0.3 and ops.temperature_of("terminal", 0.3) == 0.0
    with pytest.raises(UnknownNameError, match=r"unknown objective 'sof'\. Did you mean 'soft'"):
        ops.temperature_of("sof", 0.3)
    with pytest.raises(UnknownNameError, match="Known: soft, terminal"):
        ops.check_objective("entropy")


@pytest.mark.parametrize("config", [PPOConfig, A2CConfig, REINFORCEConfig, GRPOConfig])
def test_settings_know_their_objectives(config: Any) -> None:
    assert config(objective="terminal").objective == "terminal"
    with pytest.raises(UnknownNameError, match="unknown objective 'sof'"):
        config(objective="sof")


# Returns and advantages -----------------------------------------------------------------------------------------------

REWARDS = torch.tensor([[1.0, 0.0], [2.0, -1.0], [4.0, 3.0]])


def test_returns_to_go() -> None:
    assert ops.returns_to_go(REWARDS).tolist() == [[7.0, 2.0], [6.0, 2.0], [4.0, 3.0]]


@pytest.mark.parametrize(
    ("mix", "wanted"),
    [
        # delta = (1 + 3 - 2, 2 + 1 - 3, 4 - 1) = (2, 0, 3) and (0 + 2 - 1, -1 + 0 - 2, 3 - 0) = (1, -3, 3)
        (0.0, [[2.0, 1.0], [0.0, -3.0], [3.0, 3.0]]),
        (0.5, [[2.75, 0.25], [1.5, -1.5], [3.0, 3.0]]),
        (1.0, [[5.0, 1.0], [3.0, 0.0], [3.0, 3.0]]),  # returns-to-go less V
    ],
)
def test_gae(mix: float, wanted: list[list[float]]) -> None:
    values = torch.tensor([[2.0, 1.0], [3.0, 2.0], [1.0, 0.0]])
    advantages, returns = ops.gae(REWARDS, values, mix)
    assert advantages.tolist() == wanted
    assert torch.equal(returns, advantages + values)
    if mix == 1.0:
        assert torch.equal(returns, ops.returns_to_go(REWARDS))


VALUES = torch.tensor([[2.0], [3.0], [1.0], [5.0]])
"""V_0 .. V_3 of one episode; its costs are 1, 2, 4."""


@pytest.mark.parametrize(
    ("mix", "wanted"),
    [
        (0.0, [4.0, 3.0, 9.0]),  # c_t + V_{t+1}
        (0.5, [6.0, 7.0, 9.0]),  # 9; 2 + 0.5 * 1 + 0.5 * 9; 1 + 0.5 * 3 + 0.5 * 7
        (1.0, [12.0, 11.0, 9.0]),  # the whole cost to go
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_td_lambda_on_policy(mix: float, wanted: list[float], first: int) -> None:
    """V_0 cancels, whether it is given or not."""
    assert ops.td_lambda_returns(REWARDS[:, :1], VALUES[first:], mix).flatten().tolist() == wanted


@pytest.mark.parametrize(
    ("mix", "wanted"),
    [
        # errors c_t + V_{t+1} - V_t = 2, 0, 8; rho = 0.5, 1, 0.25: d_2 = 2, d_1 = lambda 2, d_0 = 0.5 (2 + lambda d_1)
        (0.0, [3.0, 3.0, 3.0]),
        (0.5, [3.25, 4.0, 3.0]),
        (1.0, [4.0, 5.0, 3.0]),
    ],
)
def test_v_trace(mix: float, wanted: list[float]) -> None:
    ratios = torch.tensor([[0.5], [1.0], [0.25]])
    assert ops.td_lambda_returns(REWARDS[:, :1], VALUES, mix, ratios).flatten().tolist() == wanted


def test_v_trace_at_its_ends() -> None:
    """A ratio of 1 is on-policy; one of 0 leaves V itself."""
    plain = ops.td_lambda_returns(REWARDS[:, :1], VALUES, 0.7)
    torch.testing.assert_close(ops.td_lambda_returns(REWARDS[:, :1], VALUES, 0.7, torch.ones(3, 1)), plain)
    assert torch.equal(ops.td_lambda_returns(REWARDS[:, :1], VALUES, 0.7, torch.zeros(3, 1)), VALUES[:3])


def test_less_mean_of_others() -> None:
    """1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2; of equal numbers nothing is left."""
    found = ops.less_mean_of_others(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(found, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


# Ratios, surrogate, divergence ----------------------------------------------------------------------------------------


def test_importance_ratio() -> None:
    new, old = torch.tensor([-1.0, -2.0, 0.0, 0.0, -500.0]), torch.tensor([-1.0, -1.0, -math.log(3), -500.0, 0.0])
    wanted = torch.tensor([1.0, math.exp(-1), 3.0, math.exp(20), 0.0])
    torch.testing.assert_close(ops.importance_ratio(new, old), wanted)


def test_a_bounded_ratio_has_no_gradient() -> None:
    new = torch.tensor([500.0, 1.0], requires_grad=True)
    ops.importance_ratio(new, torch.zeros(2)).sum().backward()
    assert new.grad is not None and new.grad.tolist() == [0.0, pytest.approx(math.e)]


def test_clipped_surrogate() -> None:
    """The smaller of rho A and clip(rho) A; gradients where the first is taken."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], requires_grad=True)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 10.0])
    loss = ops.clipped_surrogate(ratio, advantages, 0.2)
    assert float(loss.detach()) == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6 + 11.0) / 5)
    loss.backward()
    assert ratio.grad is not None and ratio.grad.tolist() == pytest.approx([0.0, 0.4, -0.4, 0.0, -2.0])


def test_clipped_loss() -> None:
    """With the ratio of two Gaussians' densities, by torch.distributions; equal ones give a ratio of exactly 1."""
    generator = torch.Generator().manual_seed(0)
    x, *moments = torch.randn(5, 6, 2, generator=generator).unbind()
    new, old = (moments[0], 0.1 * moments[1]), (moments[2], 0.1 * moments[3])
    advantages = torch.arange(6.0) - 2
    log_new, log_old = (torch.distributions.Normal(m, s.exp()).log_prob(x).sum(1) for m, s in (new, old))
    wanted = ops.clipped_surrogate((log_new - log_old).exp(), advantages, 0.2)
    assert torch.allclose(ops.clipped_loss(x, new, old, advantages, 0.2), wanted, rtol=1e-4)
    assert torch.equal(ops.clipped_loss(x, old, old, advantages, 0.2), -advantages.mean())


def test_gaussian_kl() -> None:
    """log(sigma' / sigma) + (sigma^2 + (mu - mu')^2) / (2 sigma'^2) - 1 / 2, added over coordinates."""
    log2 = math.log(2)
    new = torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.tensor([[0.0, log2], [0.0, 0.0]])
    old = torch.tensor([[0.0, 3.0], [3.0, 0.0]]), torch.tensor([[log2, 0.0], [0.0, 0.0]])
    wanted = [(log2 + 1 / 8 - 0.5) + (-log2 + (4 + 4) / 2 - 0.5), 0.0]
    assert ops.gaussian_kl(new, old).tolist() == pytest.approx(wanted)


def test_gaussian_kl_of_images_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    parts: list[Tensor] = [torch.randn(4, 1, 3, 3, generator=generator) for _ in range(4)]
    normals = [torch.distributions.Normal(mean, log_std.exp()) for mean, log_std in (parts[:2], parts[2:])]
    wanted = torch.distributions.kl_divergence(*normals).flatten(1).sum(1)
    torch.testing.assert_close(ops.gaussian_kl((parts[0], parts[1]), (parts[2], parts[3])), wanted)


# Outliers -------------------------------------------------------------------------------------------------------------


def test_outliers_count_a_tenth_of_their_logarithm() -> None:
    """Median 2 and median deviation 1, so beyond -3 and 7; row by row."""
    far = 5 * math.expm1(2)
    rows = torch.tensor([[0.0, 1.0, 2.0, 3.0, 7 + far], [0.0, 1.0, 2.0, 3.0, 7.0]])
    assert ops.compress_outliers(rows).flatten().tolist() == pytest.approx([0, 1, 2, 3, 8, 0, 1, 2, 3, 7])
    low = ops.compress_outliers(torch.tensor([-3 - far, 1.0, 2.0, 3.0, 4.0]))
    assert low.tolist() == pytest.approx([-4, 1, 2, 3, 4])
    huge = ops.compress_outliers(torch.tensor([0.0, 1.0, 2.0, 3.0, 1e30]))
    assert 30 < float(huge[-1]) < 50, "bounded influence"


@pytest.mark.parametrize("values", [[0.0, 10.0], [0.0] * 20 + [10.0] * 12, [3.0] * 4, [0.0] * 9 + [2.0]])
def test_where_half_of_the_values_are_equal_none_is_erased(values: list[float]) -> None:
    """Rewards of two levels, or two paths: the median deviation is 0."""
    x = torch.tensor(values)
    assert ops.deviation(x, x.median()).tolist() == pytest.approx([float((x - x.median()).abs().mean())])
    assert ops.compressed(x).tolist() == values
    limited = ops.compress_outliers(x)
    assert limited.tolist()[:-1] == pytest.approx(values[:-1]) and float(limited.max()) >= 0.5 * max(values)


def test_high_energies_grow_as_their_logarithm() -> None:
    """Above 2 + 20; low ones stay, and order and slope at the limit are kept."""
    energy = torch.tensor([-1e6, 1.0, 2.0, 3.0, 22.0, 22.0 + 20 * math.expm1(1), 1e30])
    assert ops.compressed(energy[:5]).tolist() == energy[:5].tolist()
    energy = torch.tensor([0.0, 1.0, 2.0, 3.0, 22.0 + 20 * math.expm1(1)])
    assert ops.compressed(energy).tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0, 42.0])
    steep = ops.compressed(torch.tensor([0.0, 1.0, 2.0, 3.0, 1e30]))
    assert 1000 < float(steep[-1]) < 2000


def test_tempering_is_the_largest_power_with_half_the_paths() -> None:
    """Of n log-weights; equal ones are left alone, and one that has all the weight leaves none."""
    log_weights = torch.stack([torch.zeros(64), torch.linspace(0, 6, 64), 1e4 * torch.linspace(0, 6, 64)])
    beta = ops.tempering(log_weights)
    assert beta.shape == (3, 1) and float(beta[0]) == 1
    for power in beta[1:].flatten().tolist():
        for factor, enough in ((1.0, True), (1.3, False)):
            weights = (factor * power * (log_weights[1] if power > 0.01 else log_weights[2])).double().softmax(0)
            assert (1 / float(weights.square().sum()) >= 32) is enough
    assert float(beta[2]) == pytest.approx(1e-4 * float(beta[1]), rel=0.3)
    assert float(ops.tempering(torch.tensor([0.0] * 63 + [1e12]))) == pytest.approx(1e-6)


# Events among steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "steps", "wanted"), [(0, 3, []), (1, 4, [0]), (2, 4, [0, 2]), (3, 4, [0, 1, 2]), (4, 4, [0, 1, 2, 3])]
)
def test_due(count: int, steps: int, wanted: list[int]) -> None:
    assert [step for step in range(steps) if ops.due(step, count, steps)] == wanted


@given(st.integers(1, 60), st.data())
def test_events_are_evenly_spread(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, steps))
    when = [step for step in range(steps) if ops.due(step, count, steps)]
    assert len(when) == count
    if count:
        assert when[0] == 0
        gaps = [b - a for a, b in zip(when, [*when[1:], steps], strict=True)]
        assert max(gaps) - min(gaps) <= 1


def test_no_function_is_left_out() -> None:
    """Those of ops.py that this file calls are all that it has."""
    own = {name for name, value in vars(ops).items() if getattr(value, "__module__", "") == ops.__name__}
    text = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in own if f"ops.{name}(" not in text} == set()
