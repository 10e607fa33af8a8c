"""Best of N: the base sampler's best sample of several, without training (Stiennon et al. 2020, arXiv 2009.01325)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.untrained.base_sampler import Base
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings of BestOfN."""

    choices: int = 16
    """N: samples of the base sampler for each that is kept, and evaluations of the energy."""

    def __post_init__(self) -> None:
        check_integer("choices", self.choices)


class BestOfN(Agent[BestOfNConfig]):
    """Draws N samples of the base sampler for each of its own and keeps the one of lowest energy.

    Its divergence from the base sampler is at most log N - (N - 1) / N, whatever the energy (Beirami et al. 2024,
    arXiv 2401.01879). It has no density. ``learn`` changes nothing: all its costs are those of sampling.
    """

    name: ClassVar[str] = "best-of-n"
    trains: ClassVar[bool] = False
    Config = BestOfNConfig

    def _build(self) -> None:
        self.require_energy()
        self.has_density = False
        self.base = Base(self.task, seed=self.seed)
        self.policy = self.base.policy

    @property
    def denoiser_calls(self) -> int:
        return self.config.choices * super().denoiser_calls

    @torch.no_grad()
    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        best = self.base._sample(n, generator)
        lowest = self.mdp.finite_energy(best)
        for _ in range(self.config.choices - 1):
            x = self.base._sample(n, generator)
            energy = self.mdp.finite_energy(x)
            better = energy < lowest
            best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x, best)
            lowest = torch.minimum(lowest, energy)
        return best

    @property
    def timesteps_per_iteration(self) -> int:
        """0: there are no iterations."""
        return 0

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        raise TypeError(f"agent {self.name!r} is not trained.")

    def density(self, policy: nn.Module | None = None) -> Any:
        raise TypeError(f"agent {self.name!r} has no density and no action for a single step: it has sample only.")
