"""Stable-Baselines3's TD3 (Fujimoto et al. 2018, arXiv 1802.09477, algorithm 1) on the denoising chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.wrapped.action_density import ActionDensity
from dxmi_rl.agents.wrapped.sb3 import SB3ReplayAgent
from dxmi_rl.agents.wrapped.settings import ReplayConfig
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class SB3TD3Config(ReplayConfig):
    """Settings of SB3TD3. Actions count in noise coordinates."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    learning_rate: float = 0.0051
    """Peak rate of actor and critics."""
    batch_size: int = 1024
    """Transitions per gradient step, rounded up to a multiple of T: every step t has as many."""
    target_rate: float = 0.043
    """Rate at which target networks follow (the libraries' ``tau``, which is no temperature)."""
    exploration_noise: float = 0.824
    """Standard deviation of the noise on actions in rollouts; 1 is the base sampler's own noise."""
    target_noise: float = 1.02
    """Standard deviation of the noise on the target's actions (SB3's ``target_policy_noise``, 0.2 of the box)."""
    target_noise_clip: float = 2.5
    """Where that noise is clipped (SB3's ``target_noise_clip``, 0.5 of the box)."""
    policy_delay: int = 2
    """Critic steps per policy step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("policy_delay", self.policy_delay)
        for key in ("exploration_noise", "target_noise", "target_noise_clip"):
            check_real(key, getattr(self, key))


class SB3TD3(SB3ReplayAgent[SB3TD3Config]):
    """stable_baselines3.TD3, in noise coordinates: a deterministic actor, which has no density.

    Its samples are those of the policy without exploration, x_{t+1} = mu_t(x_t) + sigma_t a(x_t, t): all their
    randomness is that of x_0. It optimises the plain sum of rewards, without entropy, so nothing keeps it from
    collapsing to the deepest modes, as sample metrics show. It starts with a = 0, the mean of the base sampler.
    """

    name: ClassVar[str] = "sb3-td3"
    Config = SB3TD3Config
    has_density = False

    def make_model(self, sb3: Any) -> Any:
        config = self.config
        return sb3.TD3(
            "MlpPolicy",
            self.env,
            policy_delay=config.policy_delay,
            target_policy_noise=config.target_noise / config.action_bound,
            target_noise_clip=config.target_noise_clip / config.action_bound,
            **self.arguments(),
        )

    def start_at_the_base_sampler(self) -> None:
        for actor in (self.model.actor, self.model.actor_target):
            last = [module for module in actor.mu if isinstance(module, torch.nn.Linear)][-1]
            last.weight.zero_()
            last.bias.zero_()

    def explore(self, density: ActionDensity, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        action, bound = density.act(x, t, noise)[0], self.config.action_bound
        return (action + self.config.exploration_noise * noise.flatten(1)).clamp(-bound, bound)

    def draws_per_row(self) -> int:
        """The target's action at x_{t+1} in every step, and the actor's at x_t in the steps that update the actor."""
        done, steps, delay = self.model._n_updates, self.config.gradient_steps, self.config.policy_delay
        return int(steps + done // delay - (done - steps) // delay)
