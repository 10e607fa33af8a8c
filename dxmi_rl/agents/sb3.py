"""What the agents of Stable-Baselines3 share: environment, networks, learning rates, density, replay."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents.action_density import ActionDensity, observe, sb3_density
from dxmi_rl.agents.library import LibraryAgent, OnPolicyAgent, ReplayAgent
from dxmi_rl.utils.checks import require


class SB3Agent(LibraryAgent):
    """An algorithm of Stable-Baselines3, ``model``, whose policy this agent samples.

    Raises MissingExtraError when stable-baselines3 is absent.
    """

    model: Any

    @abc.abstractmethod
    def make_model(self, sb3: Any) -> Any:
        """The algorithm on ``self.env``."""

    def _arguments(self) -> dict[str, Any]:
        """Arguments that all algorithms get. No seed: SB3 would seed Python's generator, which is the user's."""
        config = self.config
        rate: Callable[[float], float] = lambda _: config.learning_rate * self._rate_factor()  # noqa: E731
        return {
            "learning_rate": rate,
            "gamma": 1.0,
            "policy_kwargs": {"net_arch": [config.width, config.width], "activation_fn": nn.SiLU},
            "device": self.mdp.device,
        }

    def _make(self, sb3: Any) -> None:
        with self._own_randomness(fresh=True):
            self.model = self.make_model(sb3)
        # Without a logger of its own SB3 makes a folder in /tmp for every call of learn.
        self.model.set_logger(sb3.common.logger.Logger(folder=None, output_formats=[]))
        self.policy = self.model.policy

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return sb3_density(self.policy if policy is None else policy, self.mdp)

    def _set_progress(self, progress: float) -> None:
        self.progress = progress  # SB3 reads the rate through its own schedule, _rate_factor
        self.mdp.kernel.set_progress(progress if self.config.anneal else 0.0)

    def _logged(self, policy_loss: str, value_loss: str) -> dict[str, float | Tensor]:
        values = self.model.logger.name_to_value
        return {"policy_loss": values[f"train/{policy_loss}"], "value_loss": values[f"train/{value_loss}"]}


class SB3OnPolicyAgent(SB3Agent, OnPolicyAgent):
    """PPO and A2C, through the environment's adapter to SB3's VecEnv.

    Their N(0, I) start is the base sampler. SB3 clips what the environment receives to the action box; ``sample`` and
    ``evaluate`` use the unclipped Gaussian.
    """

    def _build(self) -> None:
        sb3 = require("stable_baselines3", "sb3")
        from dxmi_rl.envs.sb3 import make_sb3_env

        self._check_settings()
        self.env = make_sb3_env(self.task, num_envs=self.config.batch_size, fit_backward=True)
        self._make(sb3)

    def _arguments(self) -> dict[str, Any]:
        objective = {"ent_coef": self.mdp.tau, "normalize_advantage": False, "gae_lambda": self.config.gae_lambda}
        return super()._arguments() | objective | {"n_steps": self.mdp.horizon}

    def _learn(self, seed: int) -> None:
        """One rollout of T steps in every environment, and SB3's updates on it."""
        self.env.seed(seed)
        self.model._last_obs = None
        self.model.learn(self.timesteps_per_iteration, reset_num_timesteps=False)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.model.policy.optimizer}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        super()._set_extra_tensors(tensors)
        self.model.num_timesteps = self.costs.timesteps


class SB3ReplayAgent(SB3Agent, ReplayAgent):
    """SAC and TD3: SB3's networks and its ``train`` on an EpisodeReplay, whose rewards are those of the present MDP.

    Rollouts are drawn in bulk on the device and not by SB3's loop: the same law, without its work per environment.
    """

    def _build(self) -> None:
        sb3 = require("stable_baselines3", "sb3")
        from dxmi_rl.envs.sb3 import make_sb3_env

        self._check_settings()
        self.env = make_sb3_env(
            self.task, num_envs=1, action_bound=self.config.action_bound
        )  # says what the spaces are
        self._make_replay()
        self._make(sb3)
        self.model.replay_buffer = SB3Replay(self)
        with torch.no_grad():
            self.start_at_the_base_sampler()

    @abc.abstractmethod
    def start_at_the_base_sampler(self) -> None:
        """Set the actor's last layers: a fresh one fills its box."""

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"tau": self.config.target_rate, "buffer_size": 1}  # SB3's own one is not used

    def update(self) -> dict[str, float | Tensor]:
        self.model.train(self.config.gradient_steps, self.config.minibatch_size)
        return self._logged("actor_loss", "critic_loss")

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.model.actor.optimizer, "critic": self.model.critic.optimizer}

    def _extra_tensors(self) -> dict[str, Tensor]:
        return super()._extra_tensors() | {"updates": torch.tensor(self.model._n_updates)}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        super()._set_extra_tensors(tensors)
        self.model._n_updates = int(tensors["updates"])  # TD3 counts them for its delayed policy steps


class SB3Replay:
    """What SB3's ``train`` samples from; actions in units of the box, as its critics take them."""

    def __init__(self, agent: SB3ReplayAgent) -> None:
        from stable_baselines3.common.type_aliases import ReplayBufferSamples

        self.agent, self.kind = agent, ReplayBufferSamples

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Observations, actions, next observations, dones and rewards, ``[rows, ...]``; the agent knows how many."""
        mdp, batch = self.agent.mdp, self.agent.draw()
        return self.kind(
            observations=observe(mdp, batch.x, batch.t),
            actions=batch.action / self.agent.config.action_bound,
            next_observations=observe(mdp, batch.x_next, batch.t + 1),
            dones=batch.last[:, None].to(mdp.dtype),
            rewards=batch.reward[:, None],
        )
