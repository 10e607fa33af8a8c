"""All classes: one set of weights that samples every class of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.policies import GaussianPolicy
from dxmi_rl.agents.shared import SharedAgents, sample_of_all
from dxmi_rl.envs.observations import observed_label
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.smc import Twist


@dataclass(frozen=True)
class AnyClassConfig:
    """Settings of AnyClass."""

    agent: str = "dxdp"
    """The algorithm: an agent with a Gaussian policy of this package, or one that is not trained."""
    agent_settings: Any = field(default_factory=lambda: AGENTS["dxdp"].Config())
    """Its settings."""


class AnyClass(SharedAgents[AnyClassConfig]):
    """An algorithm on a task with several classes: one policy and one value for all of them.

    It holds one agent per class, an ordinary one on the images and the reward of that class. All have the same weights,
    and the same optimizers; denoisers and networks are told the class. Each iteration is for one class, in turn.
    ``of_class(c)`` is the agent of one class.

        task = make_task("digits", label=tuple(range(10)), reward="digit-class", backward="base")
        agent = AnyClass(task, agent="dpok").learn(100_000)
        agent.sample(1000, label=3)

    On a task with one class, or none, it is that agent. Raises ValueError for an algorithm without a Gaussian policy of
    this package, such as those of other libraries.
    """

    name: ClassVar[str] = "any-class"
    Config = AnyClassConfig
    takes_labels: ClassVar[bool] = True

    def _build(self) -> None:
        name, settings = self.config.agent, self.config.agent_settings
        inner = AGENTS[name]
        if inner.takes_labels or inner.takes_horizons:
            raise ValueError(f"agent must work on one class, got {name!r}.")
        labels = self.task.labels or (0,)
        made = {label: inner(task, seed=self.seed, config=settings)
                for label, task in zip(labels, self.task.cases, strict=True)}  # fmt: skip
        source = made[labels[0]]
        self.trains = inner.trains  # type: ignore[misc]
        if inner.trains and not isinstance(source.policy, GaussianPolicy):
            raise ValueError(f"agent must have a Gaussian policy of this package, got {name!r}.")
        if len(labels) == 1:
            self.task = source.task
            self.mdp = self.task.mdp
        # Which of several classes a sample is of is not known, so there is no density of all.
        self.has_density = source.has_density and len(labels) == 1
        self._adopt(made, labels[0])

    def of_class(self, label: int) -> Agent[Any]:
        """The agent of one class, which shares the weights. Raises ValueError for another."""
        self.task.of_class(label)
        return self.agents[label]

    def sample(
        self, n: int, *, seed: int | None = None, particles: int | None = None, twist: Twist | None = None,
        label: int | None = None,
    ) -> Tensor:  # fmt: skip
        """As an agent's, of one class; None: of all, as many of each, in random order."""
        if label is not None:
            return self.of_class(label).sample(n, seed=seed, particles=particles, twist=twist)
        if len(self.agents) == 1:
            return self.agents[self._main].sample(n, seed=seed, particles=particles, twist=twist)
        return sample_of_all(self.agents.values(), n, self.generator_of(seed), particles=particles, twist=twist)

    def sample_trajectory(
        self, n: int, *, seed: int | None = None, policy: nn.Module | None = None, label: int | None = None
    ) -> Trajectory:
        """n whole episodes of one class with their log-probabilities; ``policy`` as in ``density``.

        Raises ValueError without a class where there are several.
        """
        case = self._only_case() if label is None else label
        agent = self.agents[case] if label is None else self.of_class(label)
        return agent.sample_trajectory(n, seed=seed, policy=self._policy_of(case, agent, policy))

    def density(self, policy: nn.Module | None = None) -> Policy:
        """As an agent's, of a task with one class; raises ValueError where there are several."""
        source = self.agents[self._only_case()]
        return source.density(self._policy_of(self._main, source, policy))

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """As an agent's, of a task with one class; raises ValueError where there are several."""
        return self.agents[self._only_case()].predict_values(x, t)

    def _only_case(self) -> int:
        if len(self.agents) > 1:
            raise ValueError(f"label must be a class, one of {list(self.agents)}, got None: see of_class.")
        return self._main

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False, *,
        coordinates: str = "noise",
    ) -> tuple[np.ndarray[Any, Any], Any]:  # fmt: skip
        """As an agent's, for observations of an environment of this task, all of one class."""
        agent = self.agents[self._main]
        if len(self.agents) > 1:
            agent = self.of_class(observed_label(self.mdp, self.task.labels, observation))
        return agent.predict(observation, state, episode_start, deterministic, coordinates=coordinates)
