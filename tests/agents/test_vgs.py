"""The value gradient sampler: one step and one target against hand-written algebra, its values in closed form."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import pytest
import torch
from lqg_cases import START_STD, B, P, Quadratic
from torch import Tensor

from dxmi_rl import VGS, evaluate, make_task
from dxmi_rl.tasks import Task

SMALL = {"n_trajectories": 32, "value.width": 16, "value.depth": 2}


def noising(task: Task) -> tuple[list[float], list[float]]:
    """a_t and s_t of the kernel N(x' / a_t, s_t^2 I), from the schedule's alpha and s."""
    alpha, s = (part.double().tolist() for part in (task.mdp.base.schedule.alpha, task.mdp.base.schedule.s))
    a = [after / before for before, after in itertools.pairwise(alpha)]
    return a, [math.sqrt(s[t] ** 2 - (s[t + 1] / a[t]) ** 2) for t in range(len(a))]


def value(agent: VGS, x: Tensor, t: int, spread: list[float]) -> Tensor:
    """V_t(x) by hand, V_T = E."""
    if t == agent.mdp.horizon:
        return agent.mdp.energy(x)
    gaussian = agent.mdp.tau * x.square().sum(1) / (2 * spread[t])
    return gaussian + agent.mdp.tau * 2 * agent.policy.network(x, t)[:, 0]


def slope(agent: VGS, x: Tensor, t: int, spread: list[float]) -> Tensor:
    """grad V_t at x by central differences."""
    found = torch.zeros_like(x)
    for i in range(x.shape[1]):
        step = torch.zeros_like(x)
        step[:, i] = 1e-5
        found[:, i] = (value(agent, x + step, t, spread) - value(agent, x - step, t, spread)) / 2e-5
    return found


def limited_slope(agent: VGS, x: Tensor, t: int, spread: list[float]) -> Tensor:
    """``slope``, for t < T with an expected x_T that stays within two scales."""
    found = slope(agent, x, t, spread)
    if t == agent.mdp.horizon:
        return found
    schedule = agent.mdp.base.schedule
    alpha, variance = float(schedule.alpha[t]), float(schedule.s[t]) ** 2 / agent.mdp.tau
    reach = 2 * agent.mdp.scale
    return (x - alpha * ((x - variance * found) / alpha).clamp(-reach, reach)) / variance


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize(("name", "base"), [("cosine", "ddpm"), ("karras", "ddpm"), ("geometric", None)])
def test_a_step_and_a_target_by_hand(name: str, base: str | None, tau: float) -> None:
    task = make_task("8gaussians", schedule=name, tau=tau, horizon=4, base=base)
    agent = VGS(task, seed=0, **SMALL)
    torch.nn.init.normal_(agent.policy.network.last.weight, std=0.05)
    a, s = noising(task)
    spread = [task.mdp.scale**2]
    for t in reversed(range(4)):
        spread.insert(0, spread[0] / a[t] ** 2 + s[t] ** 2)
    trajectory = agent.sample_trajectory(6, seed=1)
    means, wanted, gradients = torch.zeros_like(trajectory.x[:-1]), [], []
    state = agent.generator.get_state()
    last = torch.randn(6, 2, generator=agent.generator)
    noise = torch.cat([torch.randn(18, 2, generator=agent.generator), last]).view(4, 6, 2)
    agent.generator.set_state(state)
    with torch.no_grad():
        for t in range(4):
            x = trajectory.x[t]
            share = spread[t + 1] / (spread[t + 1] + (s[t] * a[t]) ** 2)
            std, point = s[t] * a[t] * math.sqrt(share), share * a[t] * x
            rest = limited_slope(agent, point, t + 1, spread) / tau - point / spread[t + 1]
            means[t] = point - std * (std * rest).clamp(-5, 5)
            mean, log_std = agent.policy.moments(x, t)
            assert torch.allclose(mean, means[t], atol=1e-6)
            assert float(log_std.exp()) == pytest.approx(std)
            by_row = agent.policy.moments(trajectory.x[:-1].flatten(0, 1), trajectory.t)[0].view(4, 6, 2)
            assert torch.allclose(by_row[t], mean, atol=1e-12)
            cost = (means[t] - a[t] * x).square().sum(1) / (2 * (s[t] * a[t]) ** 2) - 2 * math.log(a[t])
            cost += share - 1 - math.log(share)
            both = [means[t] + sign * std * noise[t] for sign in (1, -1)]
            wanted.append(sum(value(agent, point, t + 1, spread) for point in both) / 2 + tau * cost)
            gradients.append(a[t] * sum(limited_slope(agent, point, t + 1, spread) for point in both) / 2)
    targets = agent.value_targets(trajectory, means, agent.last_values(means[-1]))
    assert torch.allclose(targets[0], torch.cat(wanted), atol=1e-6)
    assert torch.allclose(targets[1], torch.cat(gradients), atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_the_running_cost_is_that_of_the_mdp() -> None:
    """E[log pi - log qb] over next states is ``step_cost``, for the kernel that the policy reverses."""
    task = make_task("8gaussians", horizon=3, backward="forward")
    agent = VGS(task, seed=0, **SMALL)
    x = torch.randn(1, 2).expand(200_000, 2)
    generator = torch.Generator().manual_seed(0)
    for t in range(3):
        mean, log_std = agent.policy.moments(x[:1], t)
        noise = torch.randn(x.shape, generator=generator)
        log_pi = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(1)
        sampled = log_pi - task.mdp.kernel.log_prob(x, mean + log_std.exp() * noise, t)
        cost = float(agent.policy.step_cost(x[:1], mean, torch.tensor([t])))
        error = float(sampled.std()) / math.sqrt(len(x))
        assert abs(float(sampled.mean()) - cost) < 4 * error + 1e-9


def quadratic_task() -> Task:
    """Of several curvatures, in 20 steps."""
    options = {"level_max": START_STD, "level_min": 0.2}
    return make_task(Quadratic(), base=None, horizon=20, schedule="geometric", schedule_options=options, tau=1.0)


def closed_form(task: Task, *, linearised: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(p, b, c) of V_t = sum p x^2 / 2 + b x + c for t = 0..T, of the sampler or of the best policy.

    The sampler's next state is N(m - w (p m + b - m / S), w) with m = r x, w = r v, r = S / (S + v), the best policy's
    N((x - v b) / (1 + v p), v / (1 + v p)).
    """
    p, b, c = torch.tensor(P).double(), torch.tensor(B).double(), torch.zeros(2).double()
    found, spread = [(p, b, c)], task.mdp.scale**2
    for v in reversed([s * s for s in noising(task)[1]]):
        if linearised:
            share = spread / (spread + v)
            gain, shift = share * (1 - share * v * (p - 1 / spread)), -share * v * b
            c = c + p * (share * v + shift**2) / 2 + b * shift + shift**2 / (2 * v) + (share - 1 - math.log(share)) / 2
            p, b = p * gain**2 + (gain - 1) ** 2 / v, p * gain * shift + b * gain + (gain - 1) * shift / v
            spread += v
        else:  # -log of the integral of exp(-V_{t+1}(x')) N(x'; x, v)
            total = 1 + v * p
            c = c + total.log() / 2 - v * b**2 / total / 2
            p, b = p / total, b / total
        found.insert(0, (p, b, c))
    return found


@pytest.mark.slow
def test_its_values_on_the_linear_quadratic_task_are_the_closed_form() -> None:
    """Within 5 % of the spread of V on its own states, at every step."""
    task = quadratic_task()
    settings = {"value.width": 64, "value.fourier": 0, "value.learning_rate": 2e-3, "n_trajectories": 128}
    agent = VGS(task, seed=0, reach=10.0, exploration=0.0, ema=0.8, **settings)
    agent.learn(800_000)
    trajectory = agent.sample_trajectory(20_000, seed=1)
    for t, (p, b, c) in enumerate(closed_form(task, linearised=True)[:-1]):
        x = trajectory.x[t]
        wanted = (p * x.double() ** 2 / 2 + b * x + c).sum(1)
        with torch.no_grad():
            error = (agent.policy.value(x, t) - wanted).square().mean().sqrt()
        assert float(error / wanted.std()) < 0.05


def test_its_own_value_bounds_the_soft_value_from_above() -> None:
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None].expand(-1, 2)
    own, best = (closed_form(quadratic_task(), linearised=linearised) for linearised in (True, False))
    for (p, b, c), (q, d, e) in zip(own, best, strict=True):
        assert float(((p - q) * x**2 / 2 + (b - d) * x + c - e).sum(1).min()) > -1e-9


def test_it_learns_and_counts() -> None:
    agent = VGS(make_task("8gaussians", horizon=10), seed=0)
    agent.learn(2560)
    assert agent.costs.energy_grad_evals == agent.costs.energy_evals == 256 * 3
    assert agent.costs.policy_draws == 2560 + 2 * 256 + 3 * 2 * (2560 - 256) and agent.costs.timesteps == 2560


def test_a_learned_kernel_is_fitted_to_trajectories_that_do_not_explore() -> None:
    agent = VGS(make_task("8gaussians", horizon=10, backward="learned"), seed=0)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    agent.mdp.kernel.fit = lambda x, x_next, t: seen.append((x, x_next))
    untrained = copy.deepcopy(agent.policy)
    agent.learn(2560)
    x, x_next = (part.view(10, 64, 2) for part in seen[0])
    assert len(seen) == 16 and agent.costs.timesteps == 2560
    noise = torch.cat([(x_next[t] - untrained.moments(x[t], t)[0]) / untrained.std[t] for t in range(10)])
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_kernel_of_training_bounds_no_worse_than_the_noising_kernel() -> None:
    elbo = {}
    for backward in ("forward", "learned"):
        agent = VGS(make_task("gmm25", horizon=10, backward=backward, track="sample"), seed=0).learn(100_000)
        with warnings.catch_warnings(action="ignore"):  # of few effective trajectories
            elbo[backward] = evaluate(agent, samples=1000, trajectories=4000, fit=False, floors=False, draws=1)["elbo"]
    assert elbo["learned"] > elbo["forward"] + 0.5, elbo


def test_an_energy_never_gets_an_empty_batch() -> None:
    """States of several steps, of which none is the last."""
    task = make_task("8gaussians", horizon=10)
    task.mdp.set_energy(lambda x: x.square().sum(1) + 0 * x.max())
    agent = VGS(task, seed=0)
    mean, _ = agent.policy.moments(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    assert bool(mean.isfinite().all())


@pytest.mark.parametrize(
    ("schedule", "base", "horizon"), [("geometric", None, 2), ("geometric", None, 10), ("cosine", "ddpm", 4)]
)
def test_untrained_it_is_the_sampler_of_a_gaussian(schedule: str, base: str | None, horizon: int) -> None:
    """x_T given x_0 is the posterior of a Gaussian of scale c, alpha_0 and noise s_0, in any number of steps. The last
    step follows the energy, which is tau |x|^2 / (2 c^2) here."""
    task = make_task("8gaussians", base=base, tau=1.0, horizon=horizon, schedule=schedule)
    ladder = task.mdp.base.schedule
    c, s, alpha = task.mdp.scale, float(ladder.s[0]), float(ladder.alpha[0])
    task.mdp.set_energy(lambda x: x.square().sum(1) / (2 * c**2))
    agent = VGS(task, seed=0, reach=10.0)
    torch.nn.init.zeros_(agent.policy.network.last.weight)
    torch.nn.init.zeros_(agent.policy.network.last.bias)
    spread = (alpha * c) ** 2 + s**2
    variance = (c * s) ** 2 / spread + (alpha * c**2 / spread * task.mdp.start_std) ** 2
    x = agent.sample(50_000, seed=0)
    assert float(x.std()) == pytest.approx(math.sqrt(variance), rel=0.01)
    assert float(x.mean().abs()) < 0.03 * c


def test_rollouts_explore_between_the_free_process_and_the_policy_and_beyond_its_noise() -> None:
    agent = VGS(make_task("8gaussians", horizon=10), seed=0, n_trajectories=2000)
    torch.nn.init.normal_(agent.policy.network.last.weight, std=0.05)
    explorer = agent._explorer()
    assert bool((explorer.control[:500] == 1).all() and (explorer.noise_scale[:500] == 1).all())
    followed = explorer.control == 1
    assert float(followed[500:].double().mean()) == pytest.approx(0.7, abs=0.05)
    assert float(explorer.control[~followed].mean()) == pytest.approx(0.5, abs=0.05)
    assert 1 < float(explorer.noise_scale[500:].min()) < 1.01 and 1.99 < float(explorer.noise_scale.max()) <= 2
    x = torch.randn(2000, 2)
    mean, log_std = explorer.moments(x, 3)
    own_mean, own_log_std = agent.policy.moments(x, 3)
    assert torch.equal(explorer.means[0], own_mean)
    free = agent.policy.gain[3] * x
    torch.testing.assert_close(mean - free, explorer.control * (own_mean - free))
    torch.testing.assert_close(log_std, own_log_std + explorer.noise_scale.log())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"noise_scale": 0.5}, "noise_scale must be >= 1"),
        ({"reach": 0.0}, "reach"),
        ({"exploration": 2}, "exploration"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGS(make_task("8gaussians"), **setting)


@pytest.mark.usefixtures("float64")
def test_a_constant_in_the_energy_changes_nothing() -> None:
    def trained(constant: float) -> VGS:
        task = make_task(lambda x: x.square().sum(1) + constant, dim=2, target_options={"scale": 1.0}, horizon=5)
        return VGS(task, seed=0, **SMALL).learn(5 * 32 * 5)

    one, two = trained(0.0), trained(1000.0)
    x = torch.randn(20, 2)
    for t in range(5):
        torch.testing.assert_close(two.policy.moments(x, t)[0], one.policy.moments(x, t)[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(two.predict_values(x, t), one.predict_values(x, t) - 1000, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_it_finds_all_modes_from_the_energy_alone() -> None:
    task = make_task("gmm9", track="sample", horizon=20)
    agent = VGS(task, seed=0)
    agent.learn(200_000)
    scores = evaluate(agent, samples=4000, trajectories=1000, fit=False, floors=False)
    assert scores["modes"] == 9
    assert scores["kl_marginal"] < 0.3


def test_tau_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="tau must be > 0 for vgs"):
        VGS(make_task("8gaussians", tau=0.0))
