"""TorchRL's SAC (Haarnoja et al. 2018, arXiv 1812.05905, equations 3, 5 and 7) on the denoising chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.wrapped.action_density import ActionDensity, torchrl_density
from dxmi_rl.agents.wrapped.library import OffPolicyData, OwnRandomness, copied, explore_by_policy, squashed_start_std
from dxmi_rl.agents.wrapped.settings import ReplayConfig
from dxmi_rl.agents.wrapped.torchrl import ActionValue, make_actor, require_torchrl
from dxmi_rl.costs import count_draws
from dxmi_rl.envs.observations import observe
from dxmi_rl.utils.torch_tools import adam


@dataclass(frozen=True)
class TorchRLSACConfig(ReplayConfig):
    """Settings of TorchRLSAC."""

    learning_rate: float = 0.00857
    """Peak rate of actor and critics."""
    target_rate: float = 0.0253
    """Rate at which target networks follow (the libraries' ``tau``, which is no temperature)."""


class TorchRLSAC(Agent[TorchRLSACConfig]):
    """torchrl's SACLoss with its temperature fixed at tau and two critics, in noise coordinates.

    Q_t(x, a) is the soft value after the action, so this is the soft return of docs/method.md itself, off-policy. A
    TanhNormal squashes actions to the box +-``action_bound``; their standard deviation starts at 1, that of the base
    sampler. Rollouts are drawn in bulk on the device, rewards on replay are those of the present MDP. Raises
    MissingExtraError when torchrl is absent.
    """

    name: ClassVar[str] = "torchrl-sac"
    Config = TorchRLSACConfig
    __deepcopy__ = copied

    def _build(self) -> None:
        require_torchrl()
        self.random = OwnRandomness(self.seed, self.mdp.device)
        with self.random.lent(self.seed):
            self._make_parts()

    def _make_parts(self) -> None:
        from torchrl.modules import TanhNormal, ValueOperator
        from torchrl.objectives import SACLoss, SoftUpdate

        from dxmi_rl.envs.torchrl import TorchRLEnv

        config, mdp, tau = self.config, self.mdp, float(self.mdp.tau)
        self.env: Any = TorchRLEnv(self.task, action_bound=config.action_bound)
        self.data = OffPolicyData(self, config.buffer_size, config.batch_size)
        box, std = self.env.action_spec_unbatched.space, squashed_start_std(config.action_bound)
        self.policy: Any = make_actor(self.env, mdp, config.width, TanhNormal, std=std, low=box.low, high=box.high)
        critic = ActionValue(mdp.dim, config.width).to(mdp.device)
        loss: Any = SACLoss(
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
        self.targets: Any = SoftUpdate(loss, tau=config.target_rate)
        self.actor_optimizer = adam([(list(self.policy.parameters()), config.learning_rate)])
        self.critic_optimizer = adam([(list(loss.qvalue_network_params.parameters()), config.learning_rate)])

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        self.data.collect(explore_by_policy, on_final)
        with self.random.lent():
            log = self.update()
        count_draws(2 * self.config.gradient_steps * self.data.rows)  # at x_t and at x_{t+1}
        return log

    def update(self) -> Log:
        """``gradient_steps`` of actor and critics."""
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

        batch, mdp = self.data.draw(), self.mdp
        done = batch.last[:, None]
        following = {"observation": observe(mdp, batch.x_next, batch.t + 1), "reward": batch.reward[:, None]}
        entries = {
            "observation": observe(mdp, batch.x, batch.t),
            "action": batch.action,
            "next": following | {"done": done, "terminated": done},
        }
        return TensorDict(entries, [len(done)], device=mdp.device)

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return torchrl_density(self.policy if policy is None else policy, self.mdp)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"actor": self.actor_optimizer, "critic": self.critic_optimizer}

    def modules(self) -> dict[str, nn.Module]:
        critics = {"critic": self.loss.qvalue_network_params, "critic_target": self.loss.target_qvalue_network_params}
        return super().modules() | critics

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.random.tensors() | self.data.tensors()

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.random.restore(tensors)
        self.data.restore(tensors)
