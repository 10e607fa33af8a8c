"""Base: the untrained few-step sampler, the row every table starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.base import Agent, FinalStateHook
from dxmi_rl.agents.policy import BasePolicy
from dxmi_rl.diffusion import sample_base
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class BaseConfig:
    """Settings of Base."""

    batch_size: int = 256
    """Trajectories per iteration, when DxMI trains an energy against it."""


class Base(Agent):
    """The base sampler of the task (DDPM, DDIM or a random walk) as an agent; ``learn`` changes nothing."""

    name: ClassVar[str] = "base"
    Config: ClassVar[type] = BaseConfig
    trains: ClassVar[bool] = False

    def _build(self) -> None:
        self.policy = BasePolicy(self.mdp).to(self.mdp.device)
        self.has_density = not self.mdp.base.deterministic

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        if self.has_density:
            return super().sample(n, seed=seed)
        check_integer("n", n)
        return sample_base(self.mdp.base, n, self.mdp.event_shape, self._generator(seed), last_noise=False)

    def _set_progress(self, progress: float) -> None:
        self.progress = progress

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        final = self.sample(self.config.batch_size)
        if on_final is not None:
            on_final(final)
        self.costs.timesteps += self.timesteps_per_iteration
        self.costs.policy_draws += self.timesteps_per_iteration
        self.costs.denoiser_calls += self.config.batch_size * self.denoiser_calls
        return {}
