"""Any number of steps: one set of weights that samples with every horizon of a task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.envs.observations import observed_horizon
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.smc import Twist
from dxmi_rl.utils.checks import check_fraction
from dxmi_rl.utils.settings import changed
from dxmi_rl.utils.torch_tools import share_optimizer, share_parameters


@dataclass(frozen=True)
class AnyStepConfig:
    """Settings of AnyStep."""

    agent: str = "dxdp"
    """The algorithm: an agent with a Gaussian policy of this package."""
    agent_settings: Any = field(default_factory=lambda: AGENTS["dxdp"].Config())
    """Its settings."""
    share: float = 0.0
    """Transitions are shared in proportion to T to this power: 0 gives all horizons as many, 1 as many iterations."""

    def __post_init__(self) -> None:
        check_fraction("share", self.share)


class AnyStep(Agent[AnyStepConfig]):
    """An algorithm on a task with several horizons: one policy, value and kernel for all of them.

    It holds one agent per horizon, an ordinary one on its own ladder of noise levels. All have the same weights, and
    the same optimizers; networks are told the noise levels of a step and of the next (``level_codes``) in place of its
    number. Each iteration is for one horizon, the one that is furthest behind its ``share`` of the transitions.
    ``at(T)`` is the agent of one horizon, which may be any number between the smallest and the largest.

        task = make_task("8gaussians", horizon=(1, 2, 4, 8))
        agent = AnyStep(task, agent="dxdp").learn(100_000)
        agent.sample(1000, horizon=3)

    Raises ValueError for an algorithm without a Gaussian policy of this package, such as those of other libraries.
    """

    name: ClassVar[str] = "any-step"
    Config = AnyStepConfig
    takes_horizons: ClassVar[bool] = True
    policy: SharedWeights

    def default_config(self, settings: Mapping[str, Any]) -> AnyStepConfig:
        """The defaults of the agent that ``settings`` name."""
        return _defaults(settings)

    @classmethod
    def parse_config(cls, values: Mapping[str, Any]) -> AnyStepConfig:
        return changed(_defaults(values), values, f"setting of {cls.name!r}")

    def _build(self) -> None:
        inner = AGENTS[self.config.agent]
        source = self._made(self.task.horizons[-1]) if inner.trains and not inner.takes_horizons else None
        if source is None or not isinstance(source.policy, GaussianPolicy):
            raise ValueError(
                f"agent must train a Gaussian policy of this package on one horizon, got {self.config.agent!r}."
            )
        self.agents = {horizon: self._made(horizon) for horizon in self.task.horizons[:-1]}
        """Those that are trained, by horizon."""
        self.agents[source.mdp.horizon] = source
        self._between: dict[int, Agent[Any]] = {}
        self.task = self.task.with_parts(kernel=source.mdp.kernel)
        self.mdp = self.task.mdp
        self.has_density = source.has_density
        self.trained = dict.fromkeys(self.task.horizons, 0)
        """Transitions of each horizon so far."""
        self._share()
        self._modules = {
            name: SharedWeights({horizon: agent.modules()[name] for horizon, agent in self.agents.items()})
            for name in source.modules()
        }
        self.policy = self._modules["policy"]

    def _made(self, horizon: int) -> Agent[Any]:
        """An agent on one horizon, with weights of its own."""
        return AGENTS[self.config.agent](self.task.at(horizon), seed=self.seed, config=self.config.agent_settings)

    def _share(self) -> None:
        """Let all agents have the weights and optimizers of the one with the largest horizon, and what this one has."""
        source = self.agents[self.task.horizons[-1]]
        weights, optimizers = source.modules(), source.all_optimizers()
        for agent in (*self.agents.values(), *self._between.values()):
            agent.generator, agent.costs, agent.progress = self.generator, self.costs, self.progress
            if agent is source:
                continue
            for name, module in agent.modules().items():
                share_parameters(module, weights[name])
            for name, optimizer in agent.all_optimizers().items():
                share_optimizer(optimizer, optimizers[name])

    def at(self, horizon: int) -> Agent[Any]:
        """The agent with this number of steps, which shares the weights; any from the smallest to the largest.

        Raises ValueError for another.
        """
        self.task.at(horizon)
        if horizon in self.agents:
            return self.agents[horizon]
        if horizon not in self._between:
            self._between[horizon] = self._made(horizon)
        self._share()
        return self._between[horizon]

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        horizon = min(self.trained, key=lambda steps: self.trained[steps] / steps**self.config.share)
        before = self.costs.timesteps
        log = self.agents[horizon].iterate(on_final)
        self.trained[horizon] += self.costs.timesteps - before
        return log

    @property
    def timesteps_per_iteration(self) -> int:
        """Transitions of an iteration with the largest horizon."""
        return self.agents[self.task.horizons[-1]].timesteps_per_iteration

    # -- samples -----------------------------------------------------------------------------------------------

    def sample(
        self, n: int, *, seed: int | None = None, particles: int | None = None, twist: Twist | None = None,
        horizon: int | None = None,
    ) -> Tensor:  # fmt: skip
        """As an agent's, in so many steps; None: the largest number."""
        agent = self.at(self.mdp.horizon if horizon is None else horizon)
        return agent.sample(n, seed=seed, particles=particles, twist=twist)

    def sample_trajectory(
        self, n: int, *, seed: int | None = None, policy: nn.Module | None = None, horizon: int | None = None
    ) -> Trajectory:
        """n whole episodes with their log-probabilities; ``policy`` as in ``density``."""
        agent = self.at(self.mdp.horizon if horizon is None else horizon)
        return agent.sample_trajectory(n, seed=seed, policy=self._policy_at(agent, policy))

    def density(self, policy: nn.Module | None = None) -> Policy:
        """The policy of the largest horizon, or that of a copy of ``self.policy`` with other weights."""
        source = self.agents[self.mdp.horizon]
        return source.density(self._policy_at(source, policy))

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """With the largest number of steps; ``at(T)`` has those of another."""
        return self.agents[self.mdp.horizon].predict_values(x, t)

    def _policy_at(self, agent: Agent[Any], policy: nn.Module | None) -> nn.Module | None:
        return policy.at(agent.mdp.horizon, agent.policy) if isinstance(policy, SharedWeights) else policy

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False, *,
        coordinates: str = "noise",
    ) -> tuple[np.ndarray[Any, Any], Any]:  # fmt: skip
        """As an agent's, for observations of an environment of this task, all of one horizon."""
        agent = self.at(observed_horizon(self.mdp, observation))
        return agent.predict(observation, state, episode_start, deterministic, coordinates=coordinates)

    # -- training state ----------------------------------------------------------------------------------------

    def set_progress(self, progress: float) -> None:
        self.progress = progress
        for agent in self.agents.values():
            agent.set_progress(progress)

    def modules(self) -> dict[str, nn.Module]:
        return dict(self._modules)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return self.agents[self.task.horizons[-1]].optimizers()

    def extra_tensors(self) -> dict[str, Tensor]:
        """Of every horizon that is trained, and how much it was."""
        tensors = {"trained": torch.tensor(list(self.trained.values()))}
        for horizon in self.task.horizons:
            tensors |= {f"{horizon}/{name}": value for name, value in self.agents[horizon].extra_tensors().items()}
        return tensors

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.trained = dict(zip(self.task.horizons, tensors["trained"].tolist(), strict=True))
        for horizon in self.task.horizons:
            start = f"{horizon}/"
            own = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
            self.agents[horizon].set_extra_tensors(own)
        self._share()  # optimizers that were restored have other states, and the costs are others


class SharedWeights(nn.Module):
    """One module per horizon, all with the same parameters, which ``state_dict`` holds once."""

    def __init__(self, parts: dict[int, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({str(horizon): part for horizon, part in parts.items()})

    def at(self, horizon: int, unseen: nn.Module) -> nn.Module:
        """The module of a horizon; where there is none, a copy of ``unseen`` with these weights."""
        if str(horizon) in self.parts:
            return self.parts[str(horizon)]
        part = copy.deepcopy(unseen)
        share_parameters(part, next(iter(self.parts.values())))
        return part

    def state_dict(self, *arguments: Any, **settings: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters as "NAME", buffers as "T/NAME"."""
        state: dict[str, Any] = {}
        for horizon, part in self.parts.items():
            weights = _parameter_names(part)
            for name, value in part.state_dict().items():
                state[name if name in weights else f"{horizon}/{name}"] = value
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **settings: Any) -> Any:
        """Put back what ``state_dict`` gave; raises KeyError or RuntimeError for what does not fit."""
        if odd := state_dict.keys() - self.state_dict().keys():
            raise RuntimeError(f"tensors {sorted(odd)} have no place here.")
        for horizon, part in self.parts.items():
            weights = _parameter_names(part)
            names = list(part.state_dict())
            part.load_state_dict({name: state_dict[name if name in weights else f"{horizon}/{name}"] for name in names})


def _parameter_names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters(remove_duplicate=False)}


def _defaults(settings: Mapping[str, Any]) -> AnyStepConfig:
    agent = settings.get("agent", AnyStepConfig.agent)
    return AnyStepConfig(agent=agent, agent_settings=AGENTS[agent].Config())
