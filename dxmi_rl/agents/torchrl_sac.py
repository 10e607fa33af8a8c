"""TorchRL's SAC (Haarnoja et al. 2018, arXiv 1812.05905, equations 3, 5 and 7) on the denoising chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.action_density import observe
from dxmi_rl.agents.library import ReplayAgent, ReplayConfig
from dxmi_rl.agents.torchrl_common import Quality, TorchRLAgent


@dataclass(frozen=True)
class TorchRLSACConfig(ReplayConfig):
    """Settings of TorchRLSAC."""

    learning_rate: float = 3e-3
    """Peak Adam rate of actor and critics."""


class TorchRLSAC(TorchRLAgent, ReplayAgent):
    """torchrl's SACLoss with its temperature fixed at tau and two critics, in noise coordinates.

    Q_t(x, a) is the soft value after the action, so this is the soft return of docs/method.md itself, off-policy. A
    TanhNormal squashes actions to the box +-``action_bound``; their standard deviation starts at 1, that of the base
    sampler. Rollouts are drawn in bulk on the device, rewards on replay are those of the present MDP.
    """

    name: ClassVar[str] = "torchrl-sac"
    Config: ClassVar[type] = TorchRLSACConfig
    config: TorchRLSACConfig

    def make_parts(self) -> None:
        from torchrl.modules import TanhNormal, ValueOperator
        from torchrl.objectives import SACLoss, SoftUpdate

        config, tau = self.config, float(self.mdp.tau)
        self.env = self.make_env(action_bound=config.action_bound)
        self._make_replay()
        box = self.env.action_spec_unbatched.space
        self.policy = self.make_actor(TanhNormal, std=self.start_std, low=box.low, high=box.high)
        critic = Quality(self.mdp.dim, config.width).to(self.mdp.device)
        loss = SACLoss(
            self.policy,
            ValueOperator(critic, in_keys=["observation", "action"]),
            num_qvalue_nets=2,
            loss_function="l2",
            alpha_init=tau or 1.0,
            fixed_alpha=True,
            target_entropy=0.0,  # not used where alpha is fixed
        )
        if tau == 0:
            loss.log_alpha.fill_(-math.inf)
        loss.make_value_estimator(gamma=1.0)
        self.loss = loss
        self.targets = SoftUpdate(loss, tau=config.target_rate)
        self.actor_optimizer = self.make_optimizer(self.policy.parameters())
        self.critic_optimizer = self.make_optimizer(loss.qvalue_network_params.parameters())

    def update(self) -> dict[str, float | Tensor]:
        for _ in range(self.config.gradient_steps):
            losses = self.loss(self.minibatch())
            for optimizer in self.optimizers().values():
                optimizer.zero_grad(set_to_none=True)
            (losses["loss_actor"] + losses["loss_qvalue"]).backward()
            for optimizer in self.optimizers().values():
                optimizer.step()
            self.targets.step()
        return {"policy_loss": losses["loss_actor"].detach(), "value_loss": losses["loss_qvalue"].detach()}

    def minibatch(self) -> Any:
        """Transitions of the replay as a tensordict ``[rows]``."""
        from tensordict import TensorDict

        batch, mdp = self.draw(), self.mdp
        done = batch.last[:, None]
        following = {"observation": observe(mdp, batch.x_next, batch.t + 1), "reward": batch.reward[:, None]}
        entries = {
            "observation": observe(mdp, batch.x, batch.t),
            "action": batch.action,
            "next": following | {"done": done, "terminated": done},
        }
        return TensorDict(entries, [len(done)], device=mdp.device)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "critic": self.critic_optimizer}

    def modules(self) -> dict[str, nn.Module]:
        loss: Any = self.loss
        critics = {"critic": loss.qvalue_network_params, "critic_target": loss.target_qvalue_network_params}
        return super().modules() | critics
