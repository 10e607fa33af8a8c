"""Stable-Baselines3's PPO and ours with matched settings: do their learning curves agree?

    python benchmarks/compare/ppo_parity.py

Both train on 8gaussians with the Forward kernel from the same settings: 256 trajectories, four full-batch epochs, clip
range 0.2, lambda 0.95, Adam at 1e-3 with a cosine, networks of two layers of 64 SiLU units on [x, 1 - t / T] in noise
coordinates, one standard deviation per coordinate for all steps. Gradients are not clipped, as SB3 would clip those of
actor and critic together, and the entropy enters as SB3 has it, as a bonus in the loss. With ``--sampled`` it enters as
in our PPO: sampled, in the advantages, with tau KL(pi || pi_old) in the loss. Keys of ``--json FILE``:

    command            the command line
    machine, versions    what it ran on
    timesteps          transitions at the points of the curves
    curves             {"ppo", "sb3-ppo": [[kl_bound at each point] per seed]}
    intervals          {"ppo", "sb3-ppo": [[low, mean, high] at each point]}: 95 % t intervals over seeds
    overlap            whether the intervals overlap, at each point
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: imports are from the root of the repository
    sys.path[0] = str(Path(__file__).parents[2])

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.scripts import command_line, header
from dxmi_rl.agents import PPO, SB3PPO, Agent, ops
from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.benchmark.sweep import one_thread
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.evaluation import quick_scores
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, require, resolve_device
from dxmi_rl.utils.progress import progress
from dxmi_rl.utils.storage import write_json
from dxmi_rl.utils.torch_tools import adam, seeded

SHARED: dict[str, Any] = {
    "n_trajectories": 256, "n_epochs": 4, "n_minibatches": 1, "clip_range": 0.2, "gae_lambda": 0.95,
}  # fmt: skip
"""Settings of both."""
RATE = 1e-3
UNCLIPPED = 1e9
"""A gradient norm that never clips."""


@dataclass(frozen=True)
class Arguments:
    """What the command line sets."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of both."""
    budget: int = 256_000
    """Transitions per run."""
    points: int = 8
    """Points of the learning curves."""
    device: str = "cpu"
    """Torch device."""
    sampled: bool = False
    """Leave our PPO's treatment of the entropy as it is."""
    json: Path | None = None
    """File for the results."""


class LibraryPolicy(GaussianPolicy):
    """SB3's MlpPolicy: mu_base + sigma_t m([x, 1 - t / T]), log sigma_t + l, initialised as theirs."""

    def __init__(self, mdp: DenoisingMDP, width: int = 64) -> None:
        super().__init__()
        self.base, self.horizon = mdp.base, mdp.horizon
        layers = [nn.Linear(mdp.dim + 1, width), nn.Linear(width, width), nn.Linear(width, mdp.dim)]
        for layer, gain in zip(layers, (math.sqrt(2), math.sqrt(2), 0.01), strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        self.net = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        self.log_sigma = nn.Parameter(torch.zeros(mdp.dim))

    def base_mean(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """The base sampler's mean."""
        return self.base.mean(x, t)

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log sigma of x_{t+1}."""
        mean = self.base.mean(x, t) if base_mean is None else base_mean
        steps = t if isinstance(t, Tensor) else torch.full((len(x),), t, device=x.device)
        observation = torch.cat([x, (1 - steps.to(x.dtype) / self.horizon)[:, None]], dim=1)
        sigma = per_step(self.base.sigma, t, x)
        return mean + sigma * self.net(observation), sigma.log() + self.log_sigma


class BonusPPO(PPO):
    """PPO with the entropy as a bonus in the loss and none in the rewards."""

    def _build(self) -> None:
        super()._build()
        self.temperature = 0.0  # no tau KL(pi || pi_old)

    @torch.no_grad()
    def advantages(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Generalised advantages of r_t alone, and the returns that they imply, ``[T, n]`` each."""
        rewards = self.mdp.rewards(trajectory)
        x, _, t = trajectory.transitions()
        return ops.gae(rewards, self.value(x, t).view_as(rewards), self.config.gae_lambda)

    def policy_loss(self, trajectory: Trajectory, *arguments: Any) -> Tensor:
        """The clipped surrogate minus tau H(pi), up to a constant."""
        _, log_std = self.policy.moments_along(trajectory)
        return super().policy_loss(trajectory, *arguments) - self.mdp.tau * log_std.sum(1).mean()


def matched_ppo(seed: int, device: str, kind: type[PPO]) -> PPO:
    """Our PPO with SB3's network and optimizer settings."""
    agent = kind(
        "8gaussians", seed=seed, device=device, max_grad_norm=UNCLIPPED, kernel_steps=1, policy={"depth": 2},
        value={"depth": 2, "fourier": 0}, **SHARED,
    )  # fmt: skip
    with seeded(seed):
        agent.policy = LibraryPolicy(agent.mdp).to(agent.mdp.device)
    agent.policy_optimizer = adam_of(agent.policy)
    agent.value.optimizer = adam_of(agent.value)
    return agent


def adam_of(module: nn.Module) -> torch.optim.Adam:
    """Adam with SB3's eps."""
    optimizer = adam([(list(module.parameters()), RATE)])
    for group in optimizer.param_groups:
        group["eps"] = 1e-5
    return optimizer


def their_ppo(seed: int, device: str, kind: type[PPO]) -> SB3PPO:
    """SB3's with the same settings."""
    agent = SB3PPO("8gaussians", seed=seed, device=device, learning_rate=RATE, **SHARED)
    agent.model.max_grad_norm = UNCLIPPED
    return agent


def curve(agent: Agent, arguments: Arguments, seed: int) -> list[float]:
    """kl_bound after each part of the budget."""
    found: list[float] = []

    def note(agent: Agent) -> None:
        if agent.costs.timesteps >= (len(found) + 1) * arguments.budget / arguments.points:
            found.append(quick_scores(agent, seed=10_000 + 100 * seed + len(found))["kl_bound"])

    agent.learn(arguments.budget, callback=note)
    return found


def intervals(curves: list[list[float]]) -> list[list[float]]:
    """[low, mean, high] of the 95 % t interval over seeds, at each point."""
    values = np.array(curves)
    mean, half = values.mean(0), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values, axis=0)
    return np.stack([mean - half, mean, mean + half], axis=1).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare and print; exit status 1 when intervals do not overlap somewhere, 2 for bad arguments."""
    import tyro

    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    try:
        check_integer("points", arguments.points)
        check_integer("budget", arguments.budget)
        resolve_device(arguments.device)
        if len(arguments.seeds) < 2:
            raise ValueError(f"seeds must be at least two, got {list(arguments.seeds)}.")
        require("stable_baselines3", "sb3")
    except (ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    curves: dict[str, list[list[float]]] = {"ppo": [], "sb3-ppo": []}
    with one_thread(), progress("PPO and SB3's", 2 * len(arguments.seeds), completed=0, show=True) as advance:
        for seed in arguments.seeds:
            for name, make in (("ppo", matched_ppo), ("sb3-ppo", their_ppo)):
                agent: Agent = make(seed, arguments.device, PPO if arguments.sampled else BonusPPO)
                curves[name].append(curve(agent, arguments, seed))
                advance(sum(map(len, curves.values())))
    bounds = {name: intervals(values) for name, values in curves.items()}
    overlap = [a[0] <= b[2] and b[0] <= a[2] for a, b in zip(*bounds.values(), strict=True)]
    timesteps = [round((i + 1) * arguments.budget / arguments.points) for i in range(arguments.points)]
    print(f"kl_bound on 8gaussians, mean [95 % t interval] over {len(arguments.seeds)} seeds")
    for i, steps in enumerate(timesteps):
        texts = [f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]" for name, (low, mean, high) in
                 ((name, values[i]) for name, values in bounds.items())]  # fmt: skip
        print(f"{steps:>9,} transitions: {', '.join(texts)}{'' if overlap[i] else '  NO OVERLAP'}")
    if arguments.json is not None:
        results = {"timesteps": timesteps, "curves": curves, "intervals": bounds, "overlap": overlap}
        write_json(arguments.json, header(command_line(__file__, argv), arguments.device) | results)
    return 0 if all(overlap) else 1


if __name__ == "__main__":
    sys.exit(main())
