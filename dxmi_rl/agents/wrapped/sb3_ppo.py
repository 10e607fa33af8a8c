"""Stable-Baselines3's PPO (Schulman et al. 2017, arXiv 1707.06347, equations 7 and 9) on the denoising chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dxmi_rl.agents.base import Log
from dxmi_rl.agents.wrapped.sb3 import SB3OnPolicyAgent, logged
from dxmi_rl.agents.wrapped.settings import OnPolicyConfig
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class SB3PPOConfig(OnPolicyConfig):
    """Settings of SB3PPO."""

    n_epochs: int = 16
    """Passes over each rollout."""
    n_minibatches: int = 1
    """Minibatches per pass."""
    clip_range: float = 0.2
    """PPO's epsilon on the importance ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("n_epochs", "n_minibatches"):
            check_integer(key, getattr(self, key))
        check_real("clip_range", self.clip_range, strict=True)


class SB3PPO(SB3OnPolicyAgent[SB3PPOConfig]):
    """stable_baselines3.PPO with ``ent_coef = tau`` and unscaled advantages, in noise coordinates.

    The entropy is a bonus of the loss, -tau H(pi(.|x_t)) at the visited states (equation 9), and no part of the
    advantages: entropies that a step makes possible later are left out, which is a bias where H depends on x_t or t.
    SB3's Gaussian has one standard deviation for all of them, so its H does not.
    """

    name: ClassVar[str] = "sb3-ppo"
    Config = SB3PPOConfig

    def make_model(self, sb3: Any) -> Any:
        config = self.config
        return sb3.PPO(
            "MlpPolicy",
            self.env,
            batch_size=max(2, math.ceil(self.timesteps_per_iteration / config.n_minibatches)),
            n_epochs=config.n_epochs,
            clip_range=config.clip_range,
            **self.arguments(),
        )

    def losses(self) -> Log:
        return logged(self.model, "policy_gradient_loss", "value_loss")
