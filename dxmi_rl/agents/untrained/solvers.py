"""What training-free samplers share: the task's denoiser on the task's noise levels, T denoiser calls per sample."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.diffusion import ReverseSampler, Schedule, make_schedule
from dxmi_rl.diffusion.schedules import variance_exploding


@dataclass(frozen=True)
class SolverConfig:
    """Solvers have no settings: the task says denoiser, noise levels and number of steps."""


class Solver(Agent[SolverConfig]):
    """A sampler that steps from noise to sigma = 0 with the task's denoiser; ``learn`` changes nothing.

    Unlike Base it adds no noise at its last step. It therefore has no density, and only sample metrics score it.
    Subclasses define ``solve``, ``eta`` when they draw noise on the way, and ``steps_within`` when a step is not one
    denoiser call.

    Raises ValueError on a task without a denoiser.
    """

    Config = SolverConfig
    trains: ClassVar[bool] = False
    needs_denoiser: ClassVar[bool] = True
    eta: ClassVar[float] = 0.0
    """Stochasticity: 0 follows the probability-flow ODE, 1 is DDPM's."""
    policy: ReverseSampler

    def _build(self) -> None:
        self.has_density = False
        base = self.mdp.base
        if not isinstance(base, ReverseSampler):
            raise ValueError(
                f"agent {self.name!r} needs a denoiser, and task {self.task.name!r} has none (its base sampler is "
                "None): use a task with one, such as '8gaussians', or an agent that learns from the energy."
            )
        sampler = ReverseSampler(self._schedule(), copy.deepcopy(base.denoiser), eta=self.eta, sigma_last=0.0)
        self.policy = sampler.to(self.mdp.device).requires_grad_(False)

    def _schedule(self) -> Schedule:
        """The task's noise levels, or what its schedule gives for another number of steps."""
        steps, config = self.steps_within(self.mdp.horizon), self.task.config
        if steps == self.mdp.horizon:
            return copy.deepcopy(self.mdp.base.schedule)
        schedule = make_schedule(config.schedule, steps, **config.schedule_options)
        return variance_exploding(schedule) if config.base == "edm" else schedule

    @staticmethod
    def steps_within(calls: int) -> int:
        """Number of steps that ``calls`` denoiser calls pay for."""
        return calls

    @property
    def schedule(self) -> Schedule:
        """Noise levels of the steps."""
        return self.policy.schedule

    @property
    def steps(self) -> int:
        """Number of steps from x_0 to the sample."""
        return self.schedule.horizon

    def solve(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Samples x_T from x_0: ``[n, *event_shape]`` to the same."""
        raise TypeError(f"{type(self).__name__} must define solve.")

    def denoised(self, x: Tensor, t: int) -> Tensor:
        """D(x_t, t): one denoiser call."""
        return self.policy.denoised(x, t)

    @torch.no_grad()
    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.solve(self.mdp.reset(n, generator), generator)

    @property
    def timesteps_per_iteration(self) -> int:
        """0: there are no iterations."""
        return 0

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        raise TypeError(f"agent {self.name!r} is not trained.")

    def density(self, policy: nn.Module | None = None) -> Any:
        raise TypeError(f"agent {self.name!r} has no density and no action for a single step: it has sample only.")
