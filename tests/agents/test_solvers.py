"""Training-free samplers: orders of convergence, closed forms, the algebra of one step, what they cost."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from dxmi_rl import evaluate, list_agents, make_agent, make_task
from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.untrained.solvers import Solver
from dxmi_rl.costs import Costs, counting
from dxmi_rl.diffusion import SCHEDULES, sample_base
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.targets import GaussianMixture
from dxmi_rl.tasks import Task

SOLVERS = ["ddpm", "ddim", "edm-heun", "dpm-solver"]
ODE_SOLVERS = SOLVERS[1:]
MEAN, STD = (0.5, -1.0), 0.4
INTERVALS = (32, 64, 128)
"""Steps between the first and the last noise level; the step to sigma = 0 is the same for all of them."""


def solver(name: str, task: Any = "8gaussians", seed: int = 0, **changes: Any) -> Solver:
    built = task if isinstance(task, Task) else make_task(task, **changes)
    agent = make_agent(name, built, seed=seed)
    assert isinstance(agent, Solver)
    return agent


def one_gaussian(**changes: Any) -> Task:
    return make_task(GaussianMixture(torch.tensor([MEAN]), STD, plot_range=(-3, 3)), **changes)


def noise(n: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def solved(name: str, task: Task, x: Tensor) -> Tensor:
    agent = solver(name, task)
    return agent.solve(x, agent.generator)


# Mathematics ----------------------------------------------------------------------------------------------------------


def closed_form(task: Task, x: Tensor) -> Tensor:
    """The probability-flow ODE of N(m, c^2 I), y = m + (y_0 - m) sqrt((c^2 + l^2) / (c^2 + l_0^2)), down to the last
    level l, and the denoiser's mean there."""
    schedule, mean = task.mdp.base.schedule, torch.tensor(MEAN)
    first, last = float(schedule.levels[0]), float(schedule.levels[-2])
    y = mean + (x / schedule.at(0)[0] - mean) * math.sqrt((STD**2 + last**2) / (STD**2 + first**2))
    return mean + STD**2 / (STD**2 + last**2) * (y - mean)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("target", ["8gaussians", "one Gaussian"])
@pytest.mark.parametrize(
    ("name", "order", "horizon", "tolerance"),
    [
        ("ddim", 1, lambda steps: steps + 1, 0.25),
        ("dpm-solver", 2, lambda steps: steps + 1, 0.25),
        ("edm-heun", 2, lambda steps: 2 * steps + 1, 0.25),
        ("edm-heun", 2, lambda steps: 2 * steps, 0.6),  # some are Euler's, whose error cancels part of the others'
    ],
    ids=["ddim", "dpm-solver", "edm-heun", "edm-heun, even"],
)
def test_order_of_convergence(name: str, order: int, horizon: Any, tolerance: float, target: str) -> None:
    """RMS errors fall by 2^order when the number of steps doubles."""
    x = noise(500)

    def task(horizon: int) -> Task:
        return one_gaussian(horizon=horizon) if target == "one Gaussian" else make_task(target, horizon=horizon)

    exact = closed_form(task(5), x) if target == "one Gaussian" else solved("edm-heun", task(2 * 1024 + 1), x)
    errors = [
        float((solved(name, task(horizon(steps)), x) - exact).square().sum(1).mean().sqrt()) for steps in INTERVALS
    ]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert measured == pytest.approx([order] * (len(INTERVALS) - 1), abs=tolerance), errors


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ODE_SOLVERS)
def test_of_one_gaussian_they_reach_its_samples(name: str) -> None:
    """With levels from far beyond the Gaussian's scale to far below it, x_T is the closed form at sigma = 0,
    m + c (y_0 - m) / sqrt(c^2 + l_0^2), up to 1 % of c with 401 calls (5 % for DDIM): samples of N(m, c^2 I)."""
    options = {"level_max": 40.0, "level_min": 1e-3, "rho": 7.0}
    task = one_gaussian(horizon=401, schedule_options=options)
    x, mean = noise(2000), torch.tensor(MEAN)
    y = x / task.mdp.base.schedule.at(0)[0]
    exact = mean + (y - mean) * STD / math.sqrt(STD**2 + 40.0**2)
    error = (solved(name, task, x) - exact).abs().max()
    assert float(error) < (0.05 if name == "ddim" else 0.01) * STD


@pytest.mark.usefixtures("float64")
def test_ddpm_of_one_gaussian_has_the_moments_of_its_linear_chain() -> None:
    """D is linear, so every x_t is Gaussian: its mean and variance by recursion, within 4 standard errors of draws."""
    task, n = one_gaussian(horizon=6), 200_000
    agent, schedule = solver("ddpm", task), task.mdp.base.schedule
    mean, variance = torch.zeros(2), schedule.start_std**2
    m = torch.tensor(MEAN)
    for t in range(6):
        (alpha, s), (alpha_next, s_next) = schedule.at(t), schedule.at(t + 1)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + s**2)  # D = m + gain (x - alpha m)
        forward = s**2 - (alpha / alpha_next) ** 2 * s_next**2
        drawn = s_next**2 * forward / s**2
        direction = math.sqrt(s_next**2 - drawn) / s
        slope = alpha_next * gain + direction * (1 - alpha * gain)
        mean = slope * mean + (alpha_next - direction * alpha) * (1 - gain * alpha) * m
        variance = slope**2 * variance + drawn
    x = agent.sample(n, seed=0)
    assert float((x.mean(0) - mean).abs().max()) < 4 * math.sqrt(variance / n)
    assert float((x.var(0) / variance - 1).abs().max()) < 4 * math.sqrt(2 / n)


@pytest.mark.usefixtures("float64")
def test_a_multistep_step_is_the_papers() -> None:
    """DPM-Solver++(2M), lines 4 to 10 of algorithm 2, written out for three steps: first order, second, first."""
    agent = solver("dpm-solver", horizon=3)
    schedule, denoiser = agent.mdp.base.schedule, agent.mdp.base.denoiser
    alpha, sigma = schedule.alpha, schedule.s
    x0 = noise(50)
    lambdas = torch.log(alpha / sigma)[:3]
    h1, h2 = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
    r2 = h1 / h2
    d0 = denoiser(x0, float(alpha[0]), float(sigma[0]))
    x1 = sigma[1] / sigma[0] * x0 - alpha[1] * (torch.exp(-h1) - 1) * d0
    d1 = denoiser(x1, float(alpha[1]), float(sigma[1]))
    combined = (1 + 1 / (2 * r2)) * d1 - 1 / (2 * r2) * d0
    x2 = sigma[2] / sigma[1] * x1 - alpha[2] * (torch.exp(-h2) - 1) * combined
    x3 = alpha[3] * denoiser(x2, float(alpha[2]), float(sigma[2]))  # h = infinity
    torch.testing.assert_close(agent.solve(x0, agent.generator), x3, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("horizon", "corrected"), [(1, (False,)), (2, (False,) * 2), (3, (False,) * 3), (4, (True, False, False)),
    (5, (True, False, False, False)), (6, (True, True, False, False)), (7, (True, True, False, False, False))],
)  # fmt: skip
def test_heuns_corrected_steps_are_the_papers(horizon: int, corrected: tuple[bool, ...]) -> None:
    """Algorithm 1 with sigma(t) = t, s(t) = 1; the last two steps are Euler's, of an odd T the last three."""
    agent = solver("edm-heun", horizon=horizon)
    denoiser, schedule = agent.mdp.base.denoiser, agent.schedule
    levels, steps = schedule.levels.tolist(), len(corrected)
    assert steps + sum(corrected) == horizon
    places = [10 ** (1 / 3) + (0.15 ** (1 / 3) - 10 ** (1 / 3)) * t / max(1, steps - 1) for t in range(steps)]
    assert levels == pytest.approx([*(place**3 for place in places), 0])

    def d(y: Tensor, t: int) -> Tensor:  # D at alpha = 1 is D(x / alpha; s / alpha)
        return (y - denoiser(y, 1.0, levels[t])) / levels[t]

    x0 = noise(50)
    y = x0 / schedule.at(0)[0]
    for t in range(steps):
        step, slope = levels[t + 1] - levels[t], d(y, t)
        guess = y + step * slope
        y = y + step * (0.5 * slope + 0.5 * d(guess, t + 1)) if corrected[t] else guess
    torch.testing.assert_close(agent.solve(x0, agent.generator), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "base"), [("ddpm", {}), ("ddim", {"base": "ddim", "eta": 0.0})])
def test_they_are_the_base_samplers_without_last_noise(name: str, base: dict[str, Any]) -> None:
    x = solver(name).sample(100, seed=3)
    wanted = sample_base(
        make_task("8gaussians", **base).mdp.base, 100, (2,), torch.Generator().manual_seed(3), last_noise=False
    )
    torch.testing.assert_close(x, wanted)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ODE_SOLVERS)
def test_the_scale_of_the_states_does_not_matter(name: str) -> None:
    """Variance-preserving and variance-exploding states of the same noise levels have the same solution."""
    preserving, exploding = make_task("8gaussians", horizon=7), make_task("8gaussians", horizon=7, base="edm")
    x = noise(100)
    y = x / preserving.mdp.base.schedule.at(0)[0]
    torch.testing.assert_close(solved(name, preserving, x), solved(name, exploding, y), rtol=1e-8, atol=1e-8)


# Cost and place -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_calls_are_the_horizon(name: str, horizon: int) -> None:
    agent = solver(name, horizon=horizon)
    rows: list[int] = []
    agent.policy.denoiser.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    with counting(spent := Costs()):
        x = agent.sample(7, seed=0)
    assert rows == [7] * horizon and agent.denoiser_calls == horizon
    assert spent == Costs(denoiser_calls=7 * horizon)
    assert x.shape == (7, 2) and bool(torch.isfinite(x).all()) and not x.requires_grad


@pytest.mark.parametrize("schedule", SCHEDULES.names())
@pytest.mark.parametrize("name", SOLVERS)
def test_every_schedule(name: str, schedule: str) -> None:
    x = solver(name, horizon=6, schedule=schedule).sample(100, seed=0)
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("name", SOLVERS)
def test_scores_are_of_samples_and_repeat(name: str) -> None:
    agent = solver(name)
    options: dict[str, Any] = {"samples": 500, "draws": 2, "floors": False}
    scores = evaluate(agent, **options)
    assert scores["denoiser_calls"] == 5 and {"sliced_w2", "mmd", "modes", "mode_tv"} <= scores.keys()
    assert not {"elbo", "eubo", "kl_bound", "kl_bound_fit", "log_z", "ess"} & scores.keys()
    agent.sample(10)
    assert evaluate(agent, **options) == scores, "whatever was drawn before"
    assert quick_scores(agent, samples=500).keys() == {"sliced_w2"}


@pytest.mark.slow
def test_more_calls_sample_better() -> None:
    """Sliced W2 to exact samples at T = 20 is near that of exact samples (0.048 with a spread of 0.015)."""
    for name in ("edm-heun", "dpm-solver"):
        few, many = (quick_scores(solver(name, horizon=horizon))["sliced_w2"] for horizon in (5, 20))
        assert many < 0.12 and many < few / 2, (name, few, many)


@pytest.mark.parametrize("name", SOLVERS)
def test_images(name: str) -> None:
    tiny = {"iterations": 2, "batch_size": 8, "width": 8, "depth": 1}
    assert solver(name, "digits", pretraining=tiny).sample(3, seed=0).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("name", SOLVERS)
def test_clear_errors(name: str) -> None:
    for task in (make_task("manywell32"), make_task("8gaussians", track="sample")):
        with pytest.raises(ValueError, match=f"agent '{name}' needs a denoiser, and task '{task.name}' has none"):
            make_agent(name, task)
    agent = solver(name)
    for attempt in (agent.density, lambda: agent.sample_trajectory(3), lambda: agent.predict([0.0, 0.0, 1.0])):
        with pytest.raises(TypeError, match=re.escape(f"agent '{name}' has no density")):
            attempt()
    with pytest.raises(ValueError, match=f"unknown setting of '{name}' 'n_trajectories'. Known: none."):
        make_agent(name, "8gaussians", n_trajectories=0)
    with pytest.raises(TypeError, match=f"agent '{name}' is not trained"):
        agent.iterate()
    with pytest.raises(ValueError, match=f"'{name}' has no policy to average"):
        make_agent("dxmi", "8gaussians", agent=name)


def test_of_untrained_agents_only_they_need_a_denoiser() -> None:
    untrained = [name for name in list_agents() if not AGENTS[name].trains]
    assert [name for name in untrained if AGENTS[name].needs_denoiser] == SOLVERS
