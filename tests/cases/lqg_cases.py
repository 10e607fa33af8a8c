"""The linear-quadratic Gaussian task, whose soft values, optimal policy and log Z are known in closed form.

E = x' P x / 2 + b' x with P = diag(2, 5), b = (1, -2); Brownian kernel with s^2 = (1, .8, .5, .3, .1); T = 5, tau = 1.
With these, exp(-V_t(x)) = integral exp(-V_{t+1}(x')) N(x; x', s_t^2 I) dx', so every V_t is a quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from agent_cases import plain_agent
from torch import Tensor

from dxmi_rl import make_task
from dxmi_rl.agents import Agent
from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.diffusion import BackwardKernel, Brownian
from dxmi_rl.targets import Target
from dxmi_rl.tasks import Task

P = (2.0, 5.0)
B = (1.0, -2.0)
VARIANCE = (1.0, 0.8, 0.5, 0.3, 0.1)
START_STD = 2.0


class Quadratic(Target):
    """q = N(-b / P, 1 / P), given as its unnormalised energy: log Z = sum (log 2 pi - log P + b^2 / P) / 2."""

    has_energy: ClassVar[bool] = True
    has_sampler: ClassVar[bool] = True

    def __init__(self, precision: tuple[float, float] = P) -> None:
        parts = [math.log(2 * math.pi) - math.log(p) + b * b / p for p, b in zip(precision, B, strict=True)]
        log_z = 0.5 * sum(parts)
        super().__init__((2,), scale=0.7, plot_range=(-3.0, 3.0), smallest_scale=5**-0.5, log_z=log_z)
        self.register_buffer("p", torch.tensor(precision))
        self.register_buffer("b", torch.tensor(B))

    def _energy(self, x: Tensor) -> Tensor:
        return (0.5 * self.p * x**2 + self.b * x).sum(1)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return -self.b / self.p + torch.randn(n, 2, generator=generator) / self.p.sqrt()


def lqg_task(precision: tuple[float, float] = P) -> Task:
    """x_0 ~ N(0, 4 I), no base sampler, the fixed Brownian variances (rate 1 keeps them)."""
    options = {"level_max": START_STD, "level_min": 0.35}
    task = make_task(Quadratic(precision), base=None, schedule="geometric", schedule_options=options, tau=1.0)
    task.mdp.kernel = Brownian(torch.tensor(VARIANCE), rate=1.0)
    return task


@dataclass
class Solution:
    """V_t(x) = sum p_t x^2 / 2 + b_t x + c_t (t = 0..T); policy N(gain_t x + shift_t, std_t^2), per coordinate."""

    p: list[Tensor]
    b: list[Tensor]
    c: list[Tensor]
    gain: list[Tensor]
    shift: list[Tensor]
    std: list[Tensor]

    def value(self, x: Tensor, t: int) -> Tensor:
        return (0.5 * self.p[t] * x**2 + self.b[t] * x + self.c[t]).sum(-1)

    def moments(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return self.gain[t] * x + self.shift[t], self.std[t].log()


def solve(precision: tuple[float, float] = P) -> Solution:
    """Backwards in t, completing the square of p x'^2 / 2 + b x' + c + (x - x')^2 / (2 v) + log(2 pi v) / 2 in x'."""
    p, b, c = ([torch.tensor(part, dtype=torch.float64)] for part in (precision, B, (0.0, 0.0)))
    gain, shift, std = [], [], []
    for v in reversed(VARIANCE):
        total = p[0] + 1 / v
        gain.insert(0, 1 / (v * total))
        shift.insert(0, -b[0] / total)
        std.insert(0, total.rsqrt())
        c.insert(0, c[0] + 0.5 * torch.log(v * total) - 0.5 * b[0] ** 2 / total)
        b.insert(0, b[0] / (v * total))
        p.insert(0, 1 / v - 1 / (v**2 * total))
    return Solution(p, b, c, gain, shift, std)


class Steps:
    """A Solution as a policy; t an int or one step per row."""

    frozen_steps = 0

    def __init__(self, solution: Solution) -> None:
        self.gain, self.shift, self.std = (torch.stack(part) for part in (solution.gain, solution.shift, solution.std))

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        return per(self.gain, t, x) * x + per(self.shift, t, x), per(self.std, t, x).log()


def per(table: Tensor, t: Tensor | int, x: Tensor) -> Tensor:
    return table[t].to(x).expand_as(x)


def errors(agent: Agent[Any], values: bool = False, solution: Solution | None = None) -> dict[str, float]:
    """Largest relative errors over t on the agent's own states: RMS of the policy's mean over the standard deviation
    of the optimal mean ("mean"), RMS of sigma / sigma* - 1 ("sigma") and, with ``values``, RMS of its predicted values
    over the standard deviation of the soft return-to-go ("value")."""
    solution = solve() if solution is None else solution
    trajectory, density = agent.sample_trajectory(20_000, seed=1), agent.density()
    rows: dict[str, list[float]] = {"mean": [], "sigma": []}
    with torch.no_grad():
        for t in range(5):
            x = trajectory.x[t]
            if values:
                value, wanted = agent.predict_values(x, t), -solution.value(x.double(), t)
                assert value is not None
                rows.setdefault("value", []).append(float((value - wanted).square().mean().sqrt() / wanted.std()))
            mean, log_std = density.moments(x, t)
            best, best_log_std = solution.moments(x.double(), t)
            rows["mean"].append(float((mean - best).square().sum(1).mean().sqrt() / best.var(0).sum().sqrt()))
            rows["sigma"].append(float(((log_std - best_log_std).exp() - 1).square().mean().sqrt()))
    return {key: max(values) for key, values in rows.items()}


SMALL = {"policy": {"width": 64, "depth": 2}, "n_trajectories": 256, "anneal": True}
SMALL_VALUE = {"value": {"width": 64, "depth": 2, "fourier": 0}}
"""For agents that have a value network."""
POLICY_RATES = {"policy.learning_rate": 3e-3, "policy.sigma_learning_rate": 3e-3}
RATES = POLICY_RATES | {"value.learning_rate": 1e-2}
"""For agents that have a value network."""


class OfPolicy:
    """V_t^pi of a fixed linear policy on the LQG, in closed form: quadratics again, by the evaluation recursion."""

    def __init__(self, gain: Tensor, shift: Tensor, std: Tensor) -> None:
        """gain, shift, std ``[T, 2]`` of N(gain x + shift, std^2)."""
        p, b, c = [torch.tensor(P)], [torch.tensor(B)], [torch.zeros(2)]
        for t in reversed(range(5)):
            v, g, h, s = VARIANCE[t], gain[t], shift[t], std[t]
            # E[p x'^2 / 2 + b x' + (x - x')^2 / (2 v)] + log(2 pi v) / 2 - log(2 pi e s^2) / 2, x' = g x + h + s e
            constant = 0.5 * p[0] * (h**2 + s**2) + b[0] * h + (h**2 + s**2) / (2 * v) + 0.5 * math.log(v)
            c.insert(0, c[0] + constant - 0.5 - s.log())
            new_b = g * (p[0] * h + b[0]) - (1 - g) * h / v
            p.insert(0, p[0] * g**2 + (1 - g) ** 2 / v)
            b.insert(0, new_b)
        self.p, self.b, self.c = torch.stack(p), torch.stack(b), torch.stack(c)

    def __call__(self, x: Tensor, t: Tensor | int) -> Tensor:
        return (0.5 * self.p[t] * x**2 + self.b[t] * x + self.c[t]).sum(-1)

    def parameters(self) -> list[torch.nn.Parameter]:
        return []


class Tabular(GaussianPolicy):
    """A trainable linear-Gaussian policy, as the agents' policies are in the LQG; its sigma is of each coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([[0.9, 0.6], [0.8, 0.9], [0.5, 0.7], [0.9, 0.4], [0.8, 0.6]]))
        self.shift = torch.nn.Parameter(torch.tensor([[0.1, 0.0], [0.0, 0.2], [-0.2, 0.0], [0.0, 0.1], [-0.1, 0.3]]))
        self.log_sigma = torch.nn.Parameter(
            torch.tensor([[0.1, -0.3], [-0.2, 0.0], [-0.5, -0.4], [-0.3, -0.8], [-1.0, -0.9]])
        )

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.gain[t] * x + self.shift[t], self.log_sigma[t]


def flat_gradient(loss: Tensor, policy: torch.nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def lqg_agent(monkeypatch: pytest.MonkeyPatch, name: str, **settings: object) -> tuple[Any, Tabular, OfPolicy]:
    """An agent whose policy is a Tabular and whose value, where it has one, is the exact V of that policy."""
    agent = plain_agent(name, lqg_task(), seed=0, **settings)
    policy = Tabular()
    agent.policy = policy
    value = OfPolicy(policy.gain.detach(), policy.shift.detach(), policy.log_sigma.detach().exp())
    if hasattr(agent, "value"):
        monkeypatch.setattr(agent, "value", value)
    return agent, policy, value


class LinearPolicy:
    """x_{t+1} ~ N(gain_t x + shift_t, std_t^2), ending in q: what the last step must be follows from x_{T-1}'s law."""

    frozen_steps = 0

    def __init__(self) -> None:
        p, b = torch.tensor(P), torch.tensor(B)
        self.gain = [torch.tensor(g) for g in ([0.7, -0.4], [1.2, 0.9], [0.3, 0.8], [0.6, 0.5])]
        self.shift = [torch.tensor(c) for c in ([0.1, 0.5], [-0.3, 0.0], [0.2, -0.6], [0.0, 0.1])]
        self.std = [torch.tensor(s) for s in ([0.9, 0.5], [0.4, 1.1], [0.8, 0.3], [0.5, 0.2])]
        self.mean, self.variance = [torch.zeros(2)], [torch.full((2,), START_STD**2)]
        for t in range(4):
            self.mean.append(self.gain[t] * self.mean[t] + self.shift[t])
            self.variance.append(self.gain[t] ** 2 * self.variance[t] + self.std[t] ** 2)
        gain = torch.sqrt(0.7 / p / self.variance[4])  # 70 % of the final variance comes from x_{T-1}
        self.gain.append(gain)
        self.shift.append(-b / p - gain * self.mean[4])
        self.std.append((0.3 / p).sqrt())

    def moments(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        gain, shift, std = (torch.stack(part) for part in (self.gain, self.shift, self.std))
        return gain[t] * x + shift[t], std[t].log()


class Posterior(BackwardKernel):
    """p(x_t | x_{t+1}) of a LinearPolicy's own chain, by Bayes' rule."""

    def __init__(self, policy: LinearPolicy) -> None:
        super().__init__()
        self.horizon, self.policy = 5, policy

    def moments(self, x_next: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        chain = self.policy
        gain, shift, std, mean, variance = (
            torch.stack(part) for part in (chain.gain, chain.shift, chain.std, chain.mean, chain.variance)
        )
        precision = 1 / variance[t] + gain[t] ** 2 / std[t] ** 2
        centre = (mean[t] / variance[t] + gain[t] / std[t] ** 2 * (x_next - shift[t])) / precision
        return centre, -0.5 * precision.log()
