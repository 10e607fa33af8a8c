"""TorchRL's PPO (Schulman et al. 2017, arXiv 1707.06347, equations 7, 9 and 11) on the denoising chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.library import OnPolicyAgent, OnPolicyConfig
from dxmi_rl.agents.torchrl_common import TorchRLAgent, perceptron
from dxmi_rl.utils.checks import check_real


@dataclass(frozen=True)
class TorchRLPPOConfig(OnPolicyConfig):
    """Settings of TorchRLPPO."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Minibatches per pass."""
    clip_ratio: float = 0.2
    """PPO's epsilon on the importance ratio."""
    value_coefficient: float = 0.5
    """Weight of the value's loss."""
    clip_gradient: float = 0.5
    """Largest norm of a gradient."""


class TorchRLPPO(TorchRLAgent, OnPolicyAgent):
    """torchrl's ClipPPOLoss and GAE with ``entropy_coeff = tau`` and unscaled advantages, in noise coordinates.

    The bonus of equation 9 is the entropy of the present step. Those of later steps, on which an action has influence
    as the standard deviation depends on the state, are in the rewards of GAE as -tau log pi_old: together they are the
    soft return of docs/method.md.
    """

    name: ClassVar[str] = "torchrl-ppo"
    Config: ClassVar[type] = TorchRLPPOConfig
    config: TorchRLPPOConfig

    def _check_settings(self, *positive: str) -> None:
        super()._check_settings("epochs", "minibatches", *positive)
        for key in ("clip_ratio", "clip_gradient"):
            check_real(key, getattr(self.config, key), strict=True)
        check_real("value_coefficient", self.config.value_coefficient)

    def make_parts(self) -> None:
        from torchrl.modules import IndependentNormal, ValueOperator
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value import GAE

        config = self.config
        self.env = self.make_env(num_envs=config.batch_size, fit_backward=True)
        self.policy = self.make_actor(IndependentNormal, std=1.0)
        value = perceptron(self.mdp.dim + 1, 1, config.width).to(self.mdp.device)
        self.value = ValueOperator(value, in_keys=["observation"])
        self.gae = GAE(gamma=1.0, lmbda=config.gae_lambda, value_network=self.value)
        self.loss = ClipPPOLoss(
            self.policy,
            self.value,
            clip_epsilon=config.clip_ratio,
            entropy_coeff=float(self.mdp.tau),
            critic_coeff=config.value_coefficient,
            loss_critic_type="l2",
            normalize_advantage=False,
        )
        self.parameters = [*self.policy.parameters(), *self.value.parameters()]
        self.optimizer = self.make_optimizer(self.parameters)

    def update(self, seed: int) -> dict[str, float | Tensor]:
        data = self.rollout(seed)
        self.advantages(data)
        flat = data.flatten()
        for _ in range(self.config.epochs):
            order = torch.randperm(len(flat), generator=self.generator, device=self.mdp.device)
            for rows in order.chunk(self.config.minibatches):
                losses = self.loss(flat[rows])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, self.config.clip_gradient)
                self.optimizer.step()
        return {"policy_loss": losses["loss_objective"].detach(), "value_loss": losses["loss_critic"].detach()}

    def rollout(self, seed: int) -> Any:
        """T steps of all environments, a tensordict ``[n, T]``."""
        from torchrl.envs.utils import ExplorationType, set_exploration_type

        self.env.set_seed(seed)
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):  # else it plays its mean
            return self.env.rollout(self.mdp.horizon, self.policy)

    @torch.no_grad()
    def advantages(self, data: Any) -> None:
        """Soft advantages, without the present step's own entropy, and the soft returns as targets of the value."""
        entropy = -self.mdp.tau * data["action_log_prob"].unsqueeze(-1)
        data["next", "reward"] = data["next", "reward"] + entropy
        self.gae(data)
        data["advantage"] = data["advantage"] - entropy

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}
