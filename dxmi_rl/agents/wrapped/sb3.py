"""What the agents of Stable-Baselines3 share: environment, networks, learning rates, density, replay."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.wrapped.action_density import ActionDensity, sb3_density
from dxmi_rl.agents.wrapped.library import (
    OffPolicyData,
    OwnRandomness,
    copied,
    explore_by_policy,
    guarded,
    prepare_rollout,
)
from dxmi_rl.agents.wrapped.settings import OnPolicyConfig, ReplayConfig
from dxmi_rl.costs import count_draws
from dxmi_rl.envs.observations import observe
from dxmi_rl.utils.checks import require

OnPolicyT = TypeVar("OnPolicyT", bound=OnPolicyConfig)
ReplayT = TypeVar("ReplayT", bound=ReplayConfig)


def sb3_arguments(agent: Agent[Any]) -> dict[str, Any]:
    """Arguments that all algorithms get. No seed: SB3 would seed Python's generator, which is the user's."""
    config = agent.config
    rate: Callable[[float], float] = lambda _: config.learning_rate * agent.rate_factor()  # noqa: E731
    return {
        "learning_rate": rate,
        "gamma": 1.0,
        "policy_kwargs": {"net_arch": [config.width, config.width], "activation_fn": nn.SiLU},
        "device": agent.mdp.device,
    }


def require_sb3(agent: Agent[Any]) -> Any:
    """The package; raises MissingExtraError without it, TypeError for a task in another dtype than float32."""
    if agent.mdp.dtype != torch.float32 or torch.get_default_dtype() != torch.float32:
        raise TypeError(
            f"{agent.name} works in float32, as Stable-Baselines3's observations do, got {agent.mdp.dtype}: "
            "torch.set_default_dtype(torch.float32)."
        )
    return require("stable_baselines3", "sb3")


def without_logger(sb3: Any, model: Any) -> Any:
    """The model with an empty logger: without one of its own SB3 makes a folder in /tmp for every call of learn."""
    model.set_logger(sb3.common.logger.Logger(folder=None, output_formats=[]))
    return model


def logged(model: Any, policy_loss: str, value_loss: str) -> Log:
    """SB3's last losses."""
    values = model.logger.name_to_value
    return {"policy_loss": values[f"train/{policy_loss}"], "value_loss": values[f"train/{value_loss}"]}


class SB3OnPolicyAgent(Agent[OnPolicyT]):
    """PPO and A2C, through the environment's adapter to SB3's VecEnv.

    Their N(0, I) start is the base sampler. SB3 clips what the environment receives to the action box; ``sample`` and
    ``evaluate`` use the unclipped Gaussian. Raises MissingExtraError when stable-baselines3 is absent.
    """

    model: Any
    __deepcopy__ = copied

    def _build(self) -> None:
        sb3 = require_sb3(self)
        from dxmi_rl.envs.sb3 import make_sb3_env

        self.random = OwnRandomness(self.seed, self.mdp.device)
        self.env = make_sb3_env(self.task, num_envs=self.config.n_trajectories, fit_backward=self.config.kernel_steps)
        with self.random.lent(self.seed):
            self.model = self.make_model(sb3)
        self.policy = without_logger(sb3, self.model).policy

    @contextlib.contextmanager
    def _guarded_updates(self) -> Iterator[None]:
        """Limit what SB3's updates on a rollout change of the actor, inside; a saved ``model`` is SB3's own."""
        model, train = self.model, self.model.train
        actor = [weights for name, weights in self.policy.named_parameters() if "value" not in name]

        def updates() -> None:
            observations = torch.as_tensor(model.rollout_buffer.observations, device=model.device)
            with guarded(self.density(), observations.flatten(0, 1), actor):
                train()

        model.train = updates
        try:
            yield
        finally:
            del model.train

    @abc.abstractmethod
    def make_model(self, sb3: Any) -> Any:
        """The algorithm on ``self.env``."""

    @abc.abstractmethod
    def losses(self) -> Log:
        """What to log."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the model."""
        objective = {"ent_coef": self.mdp.tau, "normalize_advantage": False, "gae_lambda": self.config.gae_lambda}
        return sb3_arguments(self) | objective | {"n_steps": self.mdp.horizon}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        seed = prepare_rollout(self, on_final)
        with self.random.lent(), self._guarded_updates():  # one rollout of T steps in every environment, and updates
            self.env.seed(seed)
            self.model._last_obs = None
            self.model.learn(self.timesteps_per_iteration, reset_num_timesteps=False)
        return self.losses()

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return sb3_density(self.policy if policy is None else policy, self.mdp)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.model.policy.optimizer}

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.random.tensors()

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.random.restore(tensors)
        self.model.num_timesteps = self.costs.timesteps


class SB3ReplayAgent(Agent[ReplayT]):
    """SAC and TD3: SB3's networks and its ``train`` on an EpisodeReplay, whose rewards are those of the present MDP.

    Rollouts are drawn in bulk on the device and not by SB3's loop: the same law, without its work per environment.
    Raises MissingExtraError when stable-baselines3 is absent.
    """

    model: Any
    __deepcopy__ = copied

    def _build(self) -> None:
        sb3 = require_sb3(self)
        from dxmi_rl.envs.sb3 import make_sb3_env

        config = self.config
        self.random = OwnRandomness(self.seed, self.mdp.device)
        # The environment only tells SB3 the spaces.
        self.env = make_sb3_env(self.task, num_envs=1, action_bound=config.action_bound)
        self.data = OffPolicyData(self, config.buffer_size, config.batch_size)
        with self.random.lent(self.seed):
            self.model = self.make_model(sb3)
        self.policy = without_logger(sb3, self.model).policy
        self.model.replay_buffer = SB3Replay(self)
        with torch.no_grad():
            self.start_at_the_base_sampler()

    @abc.abstractmethod
    def make_model(self, sb3: Any) -> Any:
        """The algorithm on ``self.env``."""

    @abc.abstractmethod
    def start_at_the_base_sampler(self) -> None:
        """Set the actor's last layers: a fresh one fills its box."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the model; SB3's own buffer is not used."""
        return sb3_arguments(self) | {"tau": self.config.target_rate, "buffer_size": 1}

    def explore(self, density: ActionDensity, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """The action of a rollout, ``[batch, d]``, from N(0, I) noise: the policy's own."""
        return explore_by_policy(density, x, t, noise)

    def draws_per_row(self) -> int:
        """Actions that the updates of one iteration draw at each row of a minibatch: at x_t and at x_{t+1}."""
        return 2 * self.config.gradient_steps

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        self.data.collect(self.explore, on_final)
        with self.random.lent():
            self.model.train(self.config.gradient_steps, self.config.batch_size)
        count_draws(self.draws_per_row() * self.data.rows)
        return logged(self.model, "actor_loss", "critic_loss")

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return sb3_density(self.policy if policy is None else policy, self.mdp)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.model.actor.optimizer, "critic": self.model.critic.optimizer}

    def extra_tensors(self) -> dict[str, Tensor]:
        updates = {"updates": torch.tensor(self.model._n_updates)}  # TD3 counts them for its delayed policy steps
        return self.random.tensors() | self.data.tensors() | updates

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.random.restore(tensors)
        self.data.restore(tensors)
        self.model._n_updates = int(tensors["updates"])


class SB3Replay:
    """What SB3's ``train`` samples from; actions in units of the box, as its critics take them."""

    def __init__(self, agent: SB3ReplayAgent[Any]) -> None:
        from stable_baselines3.common.type_aliases import ReplayBufferSamples

        self.agent, self.kind = agent, ReplayBufferSamples

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Observations, actions, next observations, dones and rewards, ``[rows, ...]``; the agent knows how many."""
        mdp, batch = self.agent.mdp, self.agent.data.draw()
        return self.kind(
            observations=observe(mdp, batch.x, batch.t),
            actions=batch.action / self.agent.config.action_bound,
            next_observations=observe(mdp, batch.x_next, batch.t + 1),
            dones=batch.last[:, None].to(mdp.dtype),
            rewards=batch.reward[:, None],
        )
