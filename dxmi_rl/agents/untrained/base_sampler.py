"""Base: the untrained few-step sampler, the row every table starts with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion import sample_base
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class BaseConfig:
    """Settings of Base."""

    n_trajectories: int = 256
    """Trajectories per iteration, when DxMI trains an energy against it."""

    def __post_init__(self) -> None:
        check_integer("n_trajectories", self.n_trajectories)


class BasePolicy(GaussianPolicy):
    """The base sampler as a policy: mu_t and sigma_t, nothing trained."""

    log_base: Tensor

    def __init__(self, mdp: DenoisingMDP) -> None:
        super().__init__()
        self.base = copy.deepcopy(mdp.base).requires_grad_(False)
        self.register_buffer("log_base", self.base.sigma.log(), persistent=False)

    def moments(self, x: Tensor, t: Tensor | int, base_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.base.mean(x, t), per_step(self.log_base, t, x)


class Base(Agent[BaseConfig]):
    """The base sampler of the task (DDPM, DDIM or a random walk) as an agent; ``learn`` changes nothing."""

    name: ClassVar[str] = "base"
    Config = BaseConfig
    trains: ClassVar[bool] = False
    policy: BasePolicy

    def _build(self) -> None:
        self.policy = BasePolicy(self.mdp).to(self.mdp.device)
        self.has_density = not self.mdp.base.deterministic

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        if self.has_density:
            return super()._sample(n, generator)
        check_integer("n", n)
        count_draws(n * self.mdp.horizon)
        return sample_base(self.mdp.base, n, self.mdp.event_shape, generator, last_noise=False)

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        final = self.sample(self.config.n_trajectories)
        if on_final is not None:
            on_final(final)
        self.costs.timesteps += self.timesteps_per_iteration
        return {}
