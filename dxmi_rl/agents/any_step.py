"""Any number of steps: one set of weights that samples with every horizon of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from dxmi_rl.agents import AGENTS
from dxmi_rl.agents.base import Agent
from dxmi_rl.agents.policies import FineTunedPolicy, GaussianPolicy
from dxmi_rl.agents.shared import SharedAgents
from dxmi_rl.diffusion.schedules import Schedule, trained_ladder
from dxmi_rl.envs.observations import observed_horizon
from dxmi_rl.rollout import Policy, Trajectory
from dxmi_rl.smc import Twist
from dxmi_rl.utils.checks import check_fraction


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


class AnyStep(SharedAgents[AnyStepConfig]):
    """An algorithm on a task with several horizons: one policy, value and kernel for all of them.

    It holds one agent per horizon, an ordinary one on its own ladder of noise levels. All have the same weights, and
    the same optimizers; networks are told the noise levels of a step and of the next (``level_codes``) in place of its
    number. A denoiser that is fine-tuned as the policy is told the level of the step alone, as it was pretrained, and
    has other weights for the first step than for those below. Each iteration is for one horizon, the one that
    is furthest behind its ``share`` of the transitions.
    ``at(T)`` is the agent of one horizon, which may be any number between the smallest and the largest. Where the
    schedule's ladder for a T that was not trained has steps far from all trained ones, it is given the levels whose
    steps are nearest to these (``trained_ladder``), but for a fine-tuned denoiser.

        task = make_task("8gaussians", horizon=(1, 2, 4, 8))
        agent = AnyStep(task, agent="dxdp").learn(100_000)
        agent.sample(1000, horizon=3)

    Raises ValueError for an algorithm without a Gaussian policy of this package, such as those of other libraries.
    """

    name: ClassVar[str] = "any-step"
    Config = AnyStepConfig
    takes_horizons: ClassVar[bool] = True

    def _build(self) -> None:
        inner = AGENTS[self.config.agent]
        source = self._made(self.task.horizons[-1]) if inner.trains and not inner.takes_horizons else None
        if source is None or not isinstance(source.policy, GaussianPolicy):
            raise ValueError(
                f"agent must train a Gaussian policy of this package, got {self.config.agent!r} (agents of other "
                "libraries train on environments with several horizons, such as make_sb3_env's)."
            )
        agents = {horizon: self._made(horizon) for horizon in self.task.horizons[:-1]}
        self._between: dict[int, Agent[Any]] = {}
        self.task = self.task.with_parts(kernel=source.mdp.kernel)
        self.mdp = self.task.mdp
        self.has_density = source.has_density
        self._adopt(agents | {source.mdp.horizon: source}, source.mdp.horizon)

    def _made(self, horizon: int, schedule: Schedule | None = None) -> Agent[Any]:
        """An agent on one horizon, with weights of its own."""
        task = self.task.at(horizon, schedule)
        return AGENTS[self.config.agent](task, seed=self.seed, config=self.config.agent_settings)

    def at(self, horizon: int) -> Agent[Any]:
        """The agent with this number of steps, which shares the weights; any from the smallest to the largest.

        Raises ValueError for another.
        """
        self.task.at(horizon)
        if horizon in self.agents:
            return self.agents[horizon]
        if horizon not in self._between:
            own = self.task.at(horizon).mdp.base.schedule
            trained = [agent.mdp.base.schedule for agent in self.agents.values()]
            fine_tuned = isinstance(self.agents[self._main].policy, FineTunedPolicy)
            ladder = own if fine_tuned else trained_ladder(own, trained)
            self._between[horizon] = self._made(horizon, None if ladder is own else ladder)
        self._share(self._between.values())
        # The rest of the training state, such as how far DxDP's tempering is.
        self._between[horizon].set_extra_tensors(self.agents[self._main].extra_tensors())
        return self._between[horizon]

    def share_of(self, case: int) -> float:
        return float(case**self.config.share)

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
        return agent.sample_trajectory(n, seed=seed, policy=self._policy_of(agent.mdp.horizon, agent, policy))

    def density(self, policy: nn.Module | None = None) -> Policy:
        """The policy of the largest horizon, or that of a copy of ``self.policy`` with other weights."""
        source = self.agents[self.mdp.horizon]
        return source.density(self._policy_of(self.mdp.horizon, source, policy))

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor | None:
        """With the largest number of steps; ``at(T)`` has those of another."""
        return self.agents[self.mdp.horizon].predict_values(x, t)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False, *,
        coordinates: str = "noise",
    ) -> tuple[np.ndarray[Any, Any], Any]:  # fmt: skip
        """As an agent's, for observations of an environment of this task, all of one horizon."""
        agent = self.at(observed_horizon(self.mdp, observation))
        return agent.predict(observation, state, episode_start, deterministic, coordinates=coordinates)
