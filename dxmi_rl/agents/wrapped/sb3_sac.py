"""Stable-Baselines3's SAC (Haarnoja et al. 2018, arXiv 1812.05905, equations 3, 5 and 7) on the denoising chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dxmi_rl.agents.wrapped.library import squashed_start_std
from dxmi_rl.agents.wrapped.sb3 import SB3ReplayAgent
from dxmi_rl.agents.wrapped.settings import ReplayConfig


@dataclass(frozen=True)
class SB3SACConfig(ReplayConfig):
    """Settings of SB3SAC."""

    learning_rate: float = 0.00768
    """Peak rate of actor and critics."""
    target_rate: float = 0.0286
    """Rate at which target networks follow (the libraries' ``tau``, which is no temperature)."""


class SB3SAC(SB3ReplayAgent[SB3SACConfig]):
    """stable_baselines3.SAC with its temperature fixed at tau, in noise coordinates.

    Q_t(x, a) is the soft value after the action, so this is the soft return of docs/method.md itself, off-policy. Its
    actions are squashed to the box +-``action_bound``. A fresh SAC fills that (standard deviation 3.2 on +-5); this one
    starts near the base sampler, with mean 0 and an action's standard deviation of 1.
    """

    name: ClassVar[str] = "sb3-sac"
    Config = SB3SACConfig

    def make_model(self, sb3: Any) -> Any:
        return sb3.SAC("MlpPolicy", self.env, ent_coef=float(self.mdp.tau), **self.arguments())

    def start_at_the_base_sampler(self) -> None:
        actor, start = self.model.actor, math.log(squashed_start_std(self.config.action_bound))
        for layer, bias in ((actor.mu, 0.0), (actor.log_std, start)):
            layer.weight.zero_()
            layer.bias.fill_(bias)
