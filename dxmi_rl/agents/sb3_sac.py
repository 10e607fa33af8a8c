"""Stable-Baselines3's SAC (Haarnoja et al. 2018, arXiv 1812.05905, equations 3, 5 and 7) on the denoising chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dxmi_rl.agents.library import ReplayConfig
from dxmi_rl.agents.sb3 import SB3ReplayAgent


@dataclass(frozen=True)
class SB3SACConfig(ReplayConfig):
    """Settings of SB3SAC."""

    learning_rate: float = 3e-3
    """Peak Adam rate of actor and critics."""


class SB3SAC(SB3ReplayAgent):
    """stable_baselines3.SAC with its temperature fixed at tau, in noise coordinates.

    Q_t(x, a) is the soft value after the action, so this is the soft return of docs/method.md itself, off-policy. Its
    actions are squashed to the box +-``action_bound``. A fresh SAC fills that (standard deviation 3.2 on +-5); this one
    starts near the base sampler, with mean 0 and an action's standard deviation of 1.
    """

    name: ClassVar[str] = "sb3-sac"
    Config: ClassVar[type] = SB3SACConfig
    config: SB3SACConfig

    def make_model(self, sb3: Any) -> Any:
        return sb3.SAC("MlpPolicy", self.env, ent_coef=float(self.mdp.tau), **self._arguments())

    def start_at_the_base_sampler(self) -> None:
        actor = self.model.actor
        for layer, bias in ((actor.mu, 0.0), (actor.log_std, math.log(self.start_std))):
            layer.weight.zero_()
            layer.bias.fill_(bias)
