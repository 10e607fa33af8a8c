"""Stable-Baselines3's PPO on the same interface as the other agents, through the environment's adapter."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.agents.action_density import ActionDensity, sb3_density
from dxmi_rl.agents.base import Agent, FinalStateHook
from dxmi_rl.checks import check_integer, check_real, require


@dataclass(frozen=True)
class SB3PPOConfig:
    """Settings of SB3PPO; the names in parentheses are Stable-Baselines3's."""

    batch_size: int = 256
    """Trajectories per iteration, one per environment (``n_envs``)."""
    learning_rate: float = 1e-3
    """Peak Adam rate of the shared optimizer."""
    epochs: int = 4
    """Passes over each rollout (``n_epochs``)."""
    minibatches: int = 1
    """Minibatches per pass."""
    gae_lambda: float = 0.95
    """Mixing of n-step advantages; the discount is 1."""
    clip_ratio: float = 0.2
    """``clip_range``."""
    width: int = 64
    """Units of each of the two hidden layers of actor and critic."""
    anneal: bool = True
    """Cosine learning rate over ``learn``'s budget."""


class SB3PPO(Agent):
    """stable_baselines3.PPO with ``ent_coef = tau`` and unscaled advantages, in noise coordinates.

    Its N(0, I) start is the base sampler. SB3 clips what the environment receives to the action box; ``sample`` and
    ``evaluate`` use the unclipped Gaussian.
    """

    name: ClassVar[str] = "sb3-ppo"
    Config: ClassVar[type] = SB3PPOConfig
    config: SB3PPOConfig
    _torch_state: Tensor
    _cuda_state: Tensor | None = None
    _numpy_state: Any

    def _build(self) -> None:
        sb3 = require("stable_baselines3", "sb3")
        from dxmi_rl.envs.sb3 import make_sb3_env

        config = self.config
        for key in ("batch_size", "epochs", "minibatches", "width"):
            check_integer(key, getattr(config, key))
        check_real("learning_rate", config.learning_rate)
        self.env = make_sb3_env(self.task, num_envs=config.batch_size, fit_backward=True)
        rollout_size = config.batch_size * self.mdp.horizon
        with self._own_randomness(fresh=True):
            self.model = sb3.PPO(
                "MlpPolicy",
                self.env,
                learning_rate=lambda _: config.learning_rate * self._rate_factor(),
                n_steps=self.mdp.horizon,
                batch_size=max(2, math.ceil(rollout_size / config.minibatches)),
                n_epochs=config.epochs,
                gamma=1.0,
                gae_lambda=config.gae_lambda,
                clip_range=config.clip_ratio,
                ent_coef=self.mdp.tau,
                normalize_advantage=False,
                policy_kwargs={"net_arch": [config.width, config.width], "activation_fn": nn.SiLU},
                seed=self.seed,
                device=self.mdp.device,
            )
        self.policy = self.model.policy

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        if on_final is not None:
            on_final(self.sample(self.config.batch_size))
            self.costs.policy_draws += self.timesteps_per_iteration
            self.costs.denoiser_calls += self.timesteps_per_iteration * self.mdp.base.denoiser_calls
        with self._own_randomness():
            # Start from a seeded reset, so that the environment has no state that a checkpoint would need.
            self.env.seed(int(torch.randint(2**31, (), generator=self.generator, device=self.mdp.device)))
            self.model._last_obs = None
            self.model.learn(self.timesteps_per_iteration, reset_num_timesteps=False)
        n = self.timesteps_per_iteration
        self.costs.timesteps += n
        self.costs.policy_draws += n
        self.costs.denoiser_calls += n * self.mdp.base.denoiser_calls
        self.costs.energy_evals += self.config.batch_size
        values = self.model.logger.name_to_value
        return {"policy_loss": values["train/policy_gradient_loss"], "value_loss": values["train/value_loss"]}

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return sb3_density(self.policy if policy is None else policy, self.mdp)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.model.policy.optimizer}

    def _set_progress(self, progress: float) -> None:
        self.progress = progress  # SB3 reads the rate through its own schedule, _rate_factor
        self.mdp.kernel.set_progress(progress if self.config.anneal else 0.0)

    @contextlib.contextmanager
    def _own_randomness(self, fresh: bool = False) -> Iterator[None]:
        """SB3 draws from the global generators of torch and numpy: lend it this agent's and give the user's back."""
        numpy_state: Any = np.random.get_state()
        device = self.mdp.device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            if not fresh:
                torch.set_rng_state(self._torch_state)
                if self._cuda_state is not None:
                    torch.cuda.set_rng_state(self._cuda_state, device)
                np.random.set_state(self._numpy_state)
            try:
                yield
            finally:
                self._torch_state, self._numpy_state = torch.get_rng_state(), np.random.get_state()
                self._cuda_state = torch.cuda.get_rng_state(device) if cuda else None
                np.random.set_state(numpy_state)

    def _extra_tensors(self) -> dict[str, Tensor]:
        _, keys, position, _, _ = self._numpy_state
        return ({} if self._cuda_state is None else {"cuda_state": self._cuda_state}) | {
            "torch_state": self._torch_state,
            "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
            "numpy_position": torch.tensor(position),
        }

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._torch_state = tensors["torch_state"]
        if self.mdp.device.type == "cuda":  # a checkpoint from a CPU has none: then the fresh one goes on
            self._cuda_state = tensors.get("cuda_state", self._cuda_state)
        keys = tensors["numpy_keys"].numpy().astype(np.uint32)
        self._numpy_state = ("MT19937", keys, int(tensors["numpy_position"]), 0, 0.0)
        self.model.num_timesteps = self.costs.timesteps
