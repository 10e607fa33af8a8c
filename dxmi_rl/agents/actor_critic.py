"""A policy with a value network as its baseline, and passes over the transitions of a rollout in minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, ConfigT, Log
from dxmi_rl.agents.policies import GaussianPolicy, make_policy, policy_optimizer
from dxmi_rl.agents.trust_region import GUARD, policy_step
from dxmi_rl.agents.values import ValueFunction
from dxmi_rl.rollout import Trajectory


class ActorCritic(Agent[ConfigT]):
    """A value network stands beside the policy, with an optimizer of its own. It is fitted to the returns, and is the
    baseline of the advantages.
    """

    policy: GaussianPolicy
    value_unit: float | None = None
    """Unit of the values in nats; None: ValueFunction's own."""

    def _build(self) -> None:
        self.require_energy()
        config: Any = self.config
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        self.value = ValueFunction(self.mdp, config.value, unit=self.value_unit)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, "value": self.value.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        found: Tensor = self.value(x, t)
        return found

    @torch.no_grad()
    def generalised_advantages(
        self, rewards: Tensor, trajectory: Trajectory, gae_lambda: float
    ) -> tuple[Tensor, Tensor]:
        """Generalised advantages of ``rewards`` ``[T, n]`` and the returns that they imply, ``[T, n]`` each."""
        x, _, t = trajectory.transitions()
        return ops.gae(rewards, self.value(x, t).view_as(rewards), gae_lambda)


def minibatch_steps(
    agent: Any, trajectory: Trajectory, loss: Callable[[Tensor], Tensor], *, n_epochs: int = 1,
    returns: Tensor | None = None, clipped: bool = True,
) -> Log:  # fmt: skip
    """``n_epochs`` passes over all transitions, in ``n_minibatches`` parts in random order.

    For each part a policy step on ``loss(rows)`` and, with ``returns`` ``[T n]``, time-major, a value step. Without
    importance ratios that are ``clipped``, all steps may go one way: their divergence is then the square of their
    number times that of one, and the trust region allows for it. Returns the last losses.
    """
    config, log = agent.config, Log()
    steps = n_epochs * config.n_minibatches
    x, _, t = trajectory.transitions()
    for _ in range(n_epochs):
        order = torch.randperm(len(x), generator=agent.generator, device=x.device)
        for rows in order.chunk(config.n_minibatches):
            log["policy_loss"] = policy_step(
                agent.policy_optimizer, agent.policy, loss(rows), config.max_grad_norm, trajectory,
                radius=GUARD / (steps if clipped else steps**2),
            )  # fmt: skip
            if returns is not None:
                log["value_loss"] = agent.value.fit(x[rows], t[rows], returns[rows])
    return log
