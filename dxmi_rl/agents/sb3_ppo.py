"""Stable-Baselines3's PPO (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9) on the denoising chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dxmi_rl.agents.library import OnPolicyConfig
from dxmi_rl.agents.sb3 import SB3OnPolicyAgent
from dxmi_rl.utils.checks import check_real


@dataclass(frozen=True)
class SB3PPOConfig(OnPolicyConfig):
    """Settings of SB3PPO; the names in parentheses are Stable-Baselines3's."""

    epochs: int = 4
    """Passes over each rollout (``n_epochs``)."""
    minibatches: int = 1
    """Minibatches per pass."""
    clip_ratio: float = 0.2
    """``clip_range``."""


class SB3PPO(SB3OnPolicyAgent):
    """stable_baselines3.PPO with ``ent_coef = tau`` and unscaled advantages, in noise coordinates.

    The entropy is a bonus of the loss, -tau H(pi(.|x_t)) at the visited states (equation 9), and no part of the
    advantages: entropies that a step makes possible later are left out, which is a bias where H depends on x_t or t.
    SB3's Gaussian has one standard deviation for all of them, so its H does not.
    """

    name: ClassVar[str] = "sb3-ppo"
    Config: ClassVar[type] = SB3PPOConfig
    config: SB3PPOConfig

    def _check_settings(self, *positive: str) -> None:
        super()._check_settings("epochs", "minibatches", *positive)
        check_real("clip_ratio", self.config.clip_ratio, strict=True)

    def make_model(self, sb3: Any) -> Any:
        config = self.config
        return sb3.PPO(
            "MlpPolicy",
            self.env,
            batch_size=max(2, math.ceil(self.timesteps_per_iteration / config.minibatches)),
            n_epochs=config.epochs,
            clip_range=config.clip_ratio,
            **self._arguments(),
        )

    def update(self, seed: int) -> dict[str, float | Tensor]:
        self._learn(seed)
        return self._logged("policy_gradient_loss", "value_loss")
