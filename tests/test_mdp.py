"""DenoisingMDP: its pieces agree with each other, gradients with differences, and bad input has one clear answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dxmi_rl.agents.policies import CorrectionPolicy
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.agents.untrained.base_sampler import BasePolicy
from dxmi_rl.diffusion import KERNELS, Brownian, IdentitySampler, make_kernel, make_schedule, sample_base
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.mdp import COORDINATES, DenoisingMDP, EnergyError
from dxmi_rl.rollout import Trajectory
from dxmi_rl.tasks import make_task
from dxmi_rl.utils.checks import NonFiniteError
from dxmi_rl.utils.registry import UnknownNameError

KERNEL_NAMES = KERNELS.names()


@pytest.fixture(name="mdp", params=KERNEL_NAMES)
def mdp_with_every_kernel(request: pytest.FixtureRequest) -> DenoisingMDP:
    return make_task("8gaussians", horizon=3, backward=request.param, tau=0.7).mdp


def small_policy(mdp: DenoisingMDP, seed: int = 0) -> CorrectionPolicy:
    """A policy away from the base sampler, with a mean and a sigma that depend on the state."""
    torch.manual_seed(seed)
    policy = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=2))
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Consistency ----------------------------------------------------------------------------------------------------------


def test_steps_of_an_episode_give_the_rewards_of_its_rollout(mdp: DenoisingMDP) -> None:
    trajectory = mdp.rollout(small_policy(mdp), 16, rng())
    rewards = mdp.rewards(trajectory)
    assert rewards.shape == (3, 16)
    for coordinates in COORDINATES:
        x = trajectory.x[0]
        for t in range(3):
            action = mdp.action(x, t, trajectory.x[t + 1], coordinates)
            x, reward = mdp.step(x, t, action, coordinates=coordinates)
            assert torch.allclose(x, trajectory.x[t + 1], atol=1e-5)
            assert torch.allclose(reward, rewards[t].detach(), atol=1e-3, rtol=1e-4)


def test_rewards_are_the_definition(mdp: DenoisingMDP) -> None:
    """r_t = tau log qb(x_t | x_{t+1}); the last one also has -E(x_T)."""
    trajectory = mdp.rollout(small_policy(mdp), 8, rng())
    rewards = mdp.rewards(trajectory)
    for t in range(3):
        wanted = 0.7 * mdp.kernel.log_prob(trajectory.x[t], trajectory.x[t + 1], t)
        if t == 2:
            wanted = wanted - mdp.energy(trajectory.final)
        assert torch.allclose(rewards[t], wanted, rtol=1e-5, atol=1e-4)


def test_log_weights_and_soft_return_are_the_definition(mdp: DenoisingMDP) -> None:
    policy = small_policy(mdp)
    trajectory = mdp.rollout(policy, 8, rng())
    log_weights = -mdp.energy(trajectory.final) - gaussian_log_prob(
        trajectory.x[0], torch.zeros(2), torch.tensor(math.log(mdp.start_std))
    )
    soft = -mdp.energy(trajectory.final)
    for t in range(3):
        x, x_next = trajectory.x[t], trajectory.x[t + 1]
        mean, log_std = policy.moments(x, t)
        forward = torch.distributions.Normal(mean, log_std.exp()).log_prob(x_next).sum(1)
        assert torch.allclose(trajectory.log_prob[t], forward, atol=1e-4)
        log_weights = log_weights + mdp.kernel.log_prob(x, x_next, t) - forward
        soft = soft + 0.7 * (mdp.kernel.log_prob(x, x_next, t) - forward)
    assert torch.allclose(mdp.log_weights(trajectory), log_weights, atol=1e-3)
    assert torch.allclose(mdp.soft_return(trajectory), soft, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_soft_return_is_the_kl_bound() -> None:
    """At tau = 1: KL bound = log Z - ELBO, and ELBO = E[soft return] + H(x_0), the same paths on both sides."""
    mdp = make_task("8gaussians").mdp
    trajectory = mdp.rollout(small_policy(mdp), 4000, rng())
    start = trajectory.x[0]
    difference = mdp.log_weights(trajectory) - mdp.soft_return(trajectory)
    assert torch.allclose(difference, -mdp.start_log_prob(start))
    entropy = math.log(2 * math.pi * math.e * mdp.start_std**2)
    standard_error = float(mdp.start_log_prob(start).std()) / math.sqrt(4000)
    assert float(difference.mean()) == pytest.approx(entropy, abs=4 * standard_error)


def test_one_step_number_or_one_per_row(mdp: DenoisingMDP) -> None:
    x, action = torch.randn(9, 2, generator=rng(0)), torch.randn(9, 2, generator=rng(1))
    t = torch.arange(3).repeat(3)
    for coordinates in COORDINATES:
        x_next, reward = mdp.step(x, t, action, coordinates=coordinates)
        for i in range(9):
            one_next, one_reward = mdp.step(x[i : i + 1], int(t[i]), action[i : i + 1], coordinates=coordinates)
            assert torch.allclose(one_next[0], x_next[i], atol=1e-5)
            assert float(one_reward) == pytest.approx(float(reward[i]), rel=1e-4, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    t=st.integers(0, 4),
    x=st.lists(st.floats(-30, 30), min_size=2, max_size=2),
    a=st.lists(st.floats(-30, 30), min_size=2, max_size=2),
)
def test_coordinates_are_each_others_inverse(t: int, x: list[float], a: list[float]) -> None:
    mdp = MDP
    state, action = torch.tensor([x], dtype=torch.float64), torch.tensor([a], dtype=torch.float64)
    for coordinates in COORDINATES:
        x_next = mdp.next_state(state, t, action, coordinates)
        assert torch.allclose(mdp.action(state, t, x_next, coordinates), action, atol=1e-9, rtol=1e-9)


def _double_mdp() -> DenoisingMDP:
    mdp = make_task("8gaussians").mdp
    mdp.base.double()
    return mdp


MDP = _double_mdp()


def test_standard_normal_noise_is_the_base_sampler() -> None:
    """Same generator, same numbers: N(0, I) noise, BasePolicy's rollout and sample_base are one thing."""
    mdp = make_task("8gaussians").mdp
    generator = rng()
    x = mdp.reset(64, generator)
    for t in range(mdp.horizon):
        x, _ = mdp.step(x, t, torch.randn(64, 2, generator=generator))
    sampled = sample_base(mdp.base, 64, (2,), rng())
    assert torch.allclose(x, sampled, atol=1e-5)
    assert torch.allclose(mdp.rollout(BasePolicy(mdp), 64, rng()).final, sampled, atol=1e-5)
    untrained = CorrectionPolicy(mdp, PolicyConfig(width=8, depth=2))
    assert torch.allclose(mdp.rollout(untrained, 64, rng()).final, sampled, atol=1e-5)


def test_reset_draws_the_start() -> None:
    mdp = make_task("gmm25").mdp
    x = mdp.reset(50_000, rng())
    assert x.shape == (50_000, 2)
    start_std = mdp.base.schedule.start_std
    assert x.std(0).tolist() == pytest.approx([start_std, start_std], rel=0.02)
    wanted = torch.distributions.Normal(0.0, start_std).log_prob(x).sum(1)
    assert torch.allclose(mdp.start_log_prob(x), wanted, atol=1e-4)


@pytest.mark.slow
def test_backward_rollout_is_drawn_by_the_kernel_and_scored_by_the_policy(mdp: DenoisingMDP) -> None:
    policy = small_policy(mdp)
    final = torch.randn(3, 2, generator=rng())
    chains = mdp.backward_rollout(policy, final, rng(1))
    assert torch.equal(chains.final, final)
    generator, x = rng(1), final
    for t in reversed(range(3)):
        x_next, x = x, mdp.kernel.sample(x, t, generator)
        assert torch.equal(chains.x[t], x.detach())
        assert torch.allclose(chains.log_prob[t], gaussian_log_prob(x_next, *policy.moments(x, t)).detach(), atol=1e-4)
    assert not chains.x.requires_grad


def test_weights_and_chains_of_another_kernel_or_energy(mdp: DenoisingMDP) -> None:
    """Those of an MDP that has them; the MDP keeps its own."""
    other = make_task("8gaussians", horizon=3, backward="brownian", tau=0.2).mdp
    other.set_energy(lambda x: 3 * x[:, 0])
    policy, own = small_policy(mdp), mdp.rollout(small_policy(mdp), 8, rng())
    final = torch.randn(8, 2, generator=rng())
    chains = mdp.backward_rollout(policy, final, rng(1), kernel=other.kernel)
    torch.testing.assert_close(chains.x, other.backward_rollout(policy, final, rng(1)).x)
    for trajectory in (own, chains):
        before = mdp.log_weights(trajectory)
        wanted = other.log_weights(trajectory)
        found = mdp.log_weights(trajectory, kernel=other.kernel, energy=lambda x: 3 * x[:, 0])
        torch.testing.assert_close(found, wanted)
        assert torch.equal(mdp.log_weights(trajectory), before)
    with pytest.raises(EnergyError, match=r"must return a tensor of shape \[8\], got \[8, 2\]"):
        mdp.log_weights(own, energy=lambda x: x)


def test_transitions_are_time_major() -> None:
    x = torch.arange(3.0)[:, None, None] * 10 + torch.arange(2.0)[None, :, None]
    before, after, t = Trajectory(x, torch.zeros(2, 2)).transitions()
    assert before.flatten().tolist() == [0, 1, 10, 11]
    assert after.flatten().tolist() == [10, 11, 20, 21]
    assert t.tolist() == [0, 0, 1, 1]


def test_the_state_scale_is_that_of_noised_data() -> None:
    mdp = make_task("8gaussians").mdp
    target = make_task("8gaussians").target
    schedule = mdp.base.schedule
    clean = target.sample(20_000, rng())
    for t in range(6):
        x = schedule.alpha[t] * clean + schedule.s[t] * torch.randn(clean.shape, generator=rng(1))
        assert float(x.std()) == pytest.approx(float(mdp.state_scale[t]), rel=0.03)


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backward", KERNEL_NAMES)
def test_path_wise_gradients_against_differences(backward: str) -> None:
    """d/d theta of the mean soft return of whole rollouts at fixed noise, in random directions of theta."""
    mdp = make_task("8gaussians", horizon=3, backward=backward, tau=0.7).mdp
    policy = small_policy(mdp)
    parameters = [p for p in policy.parameters() if p.requires_grad]

    def value() -> Tensor:
        return mdp.soft_return(mdp.rollout(policy, 16, rng(), differentiable=True)).mean()

    gradient = torch.autograd.grad(value(), parameters)
    for seed in range(3):
        directions = [torch.randn(p.shape, generator=rng(seed)) for p in parameters]
        h, ends = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(sign * h * d)
                ends.append(float(value()))
                for p, d in zip(parameters, directions, strict=True):
                    p.sub_(sign * h * d)
        wanted = (ends[0] - ends[1]) / (2 * h)
        got = float(sum((g * d).sum() for g, d in zip(gradient, directions, strict=True)))
        assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("t", [0, 2])
def test_the_step_is_differentiable_on_request(coordinates: str, t: int) -> None:
    mdp = make_task("8gaussians", horizon=3).mdp
    x, action = (torch.randn(3, 2, generator=rng(seed)).requires_grad_() for seed in (0, 1))

    def step(x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return mdp.step(x, t, action, coordinates=coordinates, differentiable=True)

    assert torch.autograd.gradcheck(step, (x, action))
    assert not any(part.requires_grad for part in mdp.step(x, t, action, coordinates=coordinates))


def test_rollouts_carry_no_gradient_unless_asked() -> None:
    mdp = make_task("8gaussians").mdp
    policy = small_policy(mdp)
    plain = mdp.rollout(policy, 4)
    assert not plain.x.requires_grad and not plain.log_prob.requires_grad
    assert mdp.rollout(policy, 4, differentiable=True).final.requires_grad
    with torch.no_grad():
        assert not mdp.rollout(policy, 4, differentiable=True).final.requires_grad


# The energy -----------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """An energy that answers differently in training mode, with one part that the user has frozen in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.frozen, self.weight = nn.Dropout(0.5), nn.Dropout(0.5), nn.Parameter(torch.tensor(0.5))
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.drop(x).square().sum(1)


def test_a_module_is_the_live_reward_in_eval_mode_and_gets_its_mode_back() -> None:
    mdp, energy = make_task("8gaussians").mdp, Restless()
    mdp.set_energy(energy)
    x = torch.randn(32, 2)
    assert torch.allclose(mdp.energy(x), 0.5 * x.square().sum(1))
    assert (energy.training, energy.drop.training, energy.frozen.training) == (True, True, False)
    with torch.no_grad():
        energy.weight.fill_(2.0)
    assert torch.allclose(mdp.energy(x), 2 * x.square().sum(1)), "trained in place, seen at once"
    _, reward = mdp.step(x, mdp.horizon - 1, x, coordinates="next_state")
    running = mdp.running_reward(x, x, mdp.horizon - 1)
    assert torch.allclose(reward, running - 2 * x.square().sum(1), atol=1e-3)
    mdp.set_energy(lambda x: torch.full((len(x),), 3.0))
    assert mdp.energy(x).tolist() == [3.0] * 32, "swapped"


def test_the_mode_comes_back_after_an_error() -> None:
    mdp, energy = make_task("8gaussians").mdp, Restless()
    mdp.set_energy(energy)
    energy.weight = None  # type: ignore[assignment]
    with pytest.raises(EnergyError, match="states of norm 0 to 0: TypeError"):
        mdp.energy(torch.zeros(2, 2))
    assert energy.training and energy.drop.training


@pytest.mark.parametrize(
    ("energy", "error", "text"),
    [
        (lambda x: x, EnergyError, r"shape \[2\], got \[2, 2\]"),
        (lambda x: x.sum(), EnergyError, r"got \[\]"),
        (lambda x: x.sum(1, keepdim=True), EnergyError, r"got \[2, 1\]"),
        (lambda x: [0.0] * len(x), EnergyError, "got list"),
        (3.0, TypeError, "energy must be a module or function, got 3.0"),
    ],
)
def test_a_wrong_energy_is_refused_and_the_old_one_kept(energy: Any, error: type[Exception], text: str) -> None:
    mdp = make_task("8gaussians").mdp
    before = mdp.energy(torch.zeros(2, 2))
    with pytest.raises(error, match=text):
        mdp.set_energy(energy)
    assert torch.equal(mdp.energy(torch.zeros(2, 2)), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_energy_is_an_error_of_the_rollout(value: float) -> None:
    mdp = make_task("8gaussians").mdp
    mdp.set_energy(lambda x: torch.where(x[:, 0] > 0, value, 0.0))
    trajectory = mdp.rollout(BasePolicy(mdp), 64, rng())
    with pytest.raises(EnergyError, match="NaN or infinite"):
        mdp.rewards(trajectory)
    with pytest.raises(EnergyError):
        mdp.soft_return(trajectory)


def test_without_an_energy() -> None:
    mdp = make_task("8gaussians", reward=None).mdp
    assert not mdp.has_energy
    trajectory = mdp.rollout(BasePolicy(mdp), 4, rng())
    with pytest.raises(EnergyError, match="pass energy="):
        mdp.rewards(trajectory)


def test_a_policy_that_leaves_the_numbers_is_an_error() -> None:
    mdp = make_task("8gaussians").mdp

    class Wild:
        def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
            return x / 0, torch.zeros(())

    with pytest.raises(NonFiniteError, match="left the finite numbers"):
        mdp.rollout(Wild(), 4)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [-1.0, -1e-9, float("nan"), float("inf")])
def test_tau_must_not_be_negative(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be finite and >= 0"):
        make_task("8gaussians", tau=tau)


@pytest.mark.parametrize(("tau", "error"), [("1", TypeError), (None, TypeError), (True, TypeError)])
def test_tau_must_be_a_number(tau: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="tau must be a real number"):
        make_task("8gaussians", tau=tau)


def test_tau_zero_has_no_running_reward() -> None:
    mdp = make_task("8gaussians", tau=0.0).mdp
    trajectory = mdp.rollout(BasePolicy(mdp), 4, rng())
    rewards = mdp.rewards(trajectory)
    assert float(rewards[:-1].abs().max()) == 0
    assert torch.allclose(rewards[-1], -mdp.energy(trajectory.final))


def test_parts_must_have_one_horizon() -> None:
    base = IdentitySampler(make_schedule("geometric", 4))
    with pytest.raises(ValueError, match="horizon must be the base sampler's 4, got 3"):
        DenoisingMDP(base, Brownian(torch.ones(3)), (2,))
    with pytest.raises(ValueError, match="scale must be finite and > 0"):
        DenoisingMDP(base, Brownian(torch.ones(4)), (2,), scale=0.0)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"action": torch.zeros(4, 3)}, ValueError, r"action must have shape \[4, 2\], got \[4, 3\]"),
        ({"action": torch.zeros(3, 2)}, ValueError, "action must have 4 rows, got 3"),
        ({"action": torch.zeros(2)}, ValueError, "action must have shape"),
        (
            {"action": torch.zeros(4, 2, dtype=torch.long)},
            TypeError,
            "action must have a floating dtype, got torch.int64",
        ),
        ({"action": torch.zeros(4, 2, device="meta")}, ValueError, "action must be on device 'cpu', got 'meta'"),
        ({"action": [[0.0, 0.0]] * 4}, TypeError, "action must be a torch.Tensor, got list"),
        ({"x": torch.zeros(4, 1)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(4, 2, dtype=torch.int32)}, TypeError, "x must have a floating dtype"),
        ({"t": 5}, ValueError, r"t must lie in 0\.\.4, got 5"),
        ({"t": -1}, ValueError, r"t must lie in 0\.\.4, got -1"),
        ({"coordinates": "nosie"}, UnknownNameError, "Did you mean 'noise'"),
    ],
)
def test_bad_steps_are_refused(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    mdp = make_task("8gaussians").mdp
    arguments = {"x": torch.zeros(4, 2), "t": 0, "action": torch.zeros(4, 2), **changes}
    with pytest.raises(error, match=text):
        mdp.step(**arguments)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_numbers_of_episodes_are_refused(n: Any, error: type[Exception]) -> None:
    mdp = make_task("8gaussians").mdp
    with pytest.raises(error, match="n must be"):
        mdp.reset(n)


def test_a_deterministic_base_has_no_noise_coordinates() -> None:
    mdp = make_task("8gaussians", base="ddim", eta=0.0).mdp
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="deterministic base sampler"):
        mdp.step(x, 0, x)
    assert torch.equal(mdp.step(x, 0, x, coordinates="next_state")[0], x)


def test_kernels_are_held_by_reference_and_only_fit_changes_them() -> None:
    base = IdentitySampler(make_schedule("geometric", 3))
    kernel = make_kernel("brownian", base.schedule, (2,), 1.0, base.sigma)
    mdp = DenoisingMDP(base, kernel, (2,), energy=lambda x: x.square().sum(1))
    before = kernel.variance.clone()
    trajectory = mdp.rollout(BasePolicy(mdp), 16, rng())
    mdp.rewards(trajectory)
    mdp.log_weights(trajectory)
    assert mdp.kernel is kernel and torch.equal(kernel.variance, before)
    rewards = mdp.rewards(trajectory)
    kernel.fit(*trajectory.transitions())
    assert not torch.equal(mdp.rewards(trajectory), rewards), "a fitted kernel is seen at once"


def in_numpy(x: Tensor) -> Tensor:
    values = x.detach().numpy()
    values *= 2
    return torch.as_tensor((values**2).sum(1))


@pytest.mark.parametrize(
    "energy", [lambda x: x.mul_(2).square().sum(1), lambda x: x.data.mul_(2).square().sum(1), in_numpy]
)
def test_an_energy_that_works_in_place_changes_nothing_of_ours(energy: Any) -> None:
    mdp = make_task("8gaussians", energy=energy).mdp
    x = torch.randn(5, 2)
    before = x.clone()
    assert torch.allclose(mdp.energy(x), 4 * before.square().sum(1)) and torch.equal(x, before)
    value, _ = mdp.energy.value_and_gradient(x)
    assert torch.allclose(value, 4 * before.square().sum(1)) and torch.equal(x, before)


def test_an_energy_may_use_its_output_again() -> None:
    buffer = torch.empty(5)
    mdp = make_task("8gaussians", energy=lambda x: torch.sum(x.detach().square(), dim=1, out=buffer)).mdp
    first, second = torch.ones(5, 2), 2 * torch.ones(5, 2)
    kept = mdp.energy(first)
    mdp.energy(second)
    assert kept.tolist() == [2.0] * 5


def test_a_failure_that_does_not_come_again_leaves_an_energy_its_gradient() -> None:
    calls: list[int] = []

    def energy(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise OSError("licence server down")
        return x.square().sum(1)

    mdp = make_task("8gaussians", energy=energy).mdp
    x = torch.randn(3, 2)
    _, gradient = mdp.energy.value_and_gradient(x)
    assert gradient is not None and torch.allclose(gradient, 2 * x)


def test_an_energy_without_gradient_says_so_where_one_is_asked_for() -> None:
    mdp = make_task("8gaussians", energy=lambda x: torch.as_tensor((x.detach().numpy() ** 2).sum(1))).mdp
    with pytest.raises(EnergyError, match="no gradient in x"):
        mdp.energy.gradient(torch.randn(3, 2))
    assert mdp.energy.value_and_gradient(torch.randn(3, 2))[1] is None
