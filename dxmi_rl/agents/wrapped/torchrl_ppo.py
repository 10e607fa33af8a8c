"""TorchRL's PPO (Schulman et al. 2017, arXiv 1707.06347, equations 7, 9 and 11) on the denoising chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.wrapped.action_density import ActionDensity, torchrl_density
from dxmi_rl.agents.wrapped.library import OwnRandomness, copied, guarded, prepare_rollout
from dxmi_rl.agents.wrapped.settings import OnPolicyConfig
from dxmi_rl.agents.wrapped.torchrl import make_actor, perceptron, require_torchrl
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import adam


@dataclass(frozen=True)
class TorchRLPPOConfig(OnPolicyConfig):
    """Settings of TorchRLPPO."""

    n_trajectories: int = 32
    """Trajectories per iteration, one per environment."""
    learning_rate: float = 0.00249
    """Peak rate of the library's optimizers."""
    n_epochs: int = 1
    """Passes over each rollout."""
    n_minibatches: int = 1
    """Minibatches per pass."""
    clip_range: float = 0.379
    """PPO's epsilon on the importance ratio."""
    value_coefficient: float = 0.5
    """Weight of the value's loss."""
    max_grad_norm: float = 1.04
    """Largest norm of a gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("n_epochs", "n_minibatches"):
            check_integer(key, getattr(self, key))
        for key in ("clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)
        check_real("value_coefficient", self.value_coefficient)


class TorchRLPPO(Agent[TorchRLPPOConfig]):
    """torchrl's ClipPPOLoss and GAE with ``entropy_coeff = tau`` and unscaled advantages, in noise coordinates.

    The bonus of equation 9 is the entropy of the present step. Entropies of later steps, which an action influences
    because the standard deviation depends on the state, are in the rewards of GAE as -tau log pi_old. Together they are
    the soft return of docs/method.md. Raises MissingExtraError when torchrl is absent.
    """

    name: ClassVar[str] = "torchrl-ppo"
    Config = TorchRLPPOConfig
    __deepcopy__ = copied

    def _build(self) -> None:
        require_torchrl()
        self.random = OwnRandomness(self.seed, self.mdp.device)
        with self.random.lent(self.seed):
            self._make_parts()

    def _make_parts(self) -> None:
        from torchrl.modules import IndependentNormal, ValueOperator
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value import GAE

        from dxmi_rl.envs.torchrl import TorchRLEnv

        config, mdp = self.config, self.mdp
        self.env: Any = TorchRLEnv(self.task, num_envs=config.n_trajectories, fit_backward=config.kernel_steps)
        self.policy: Any = make_actor(self.env, mdp, config.width, IndependentNormal, std=1.0)
        value = perceptron(mdp.dim + 1, 1, config.width).to(mdp.device)
        self.value: Any = ValueOperator(value, in_keys=["observation"])
        self.gae: Any = GAE(gamma=1.0, lmbda=config.gae_lambda, value_network=self.value)
        self.loss: Any = ClipPPOLoss(
            self.policy,
            self.value,
            clip_epsilon=config.clip_range,
            entropy_coeff=float(mdp.tau),
            critic_coeff=config.value_coefficient,
            loss_critic_type="l2",
            normalize_advantage=False,
        )
        self.parameters = [*self.policy.parameters(), *self.value.parameters()]
        self.optimizer = adam([(self.parameters, config.learning_rate)])

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        seed = prepare_rollout(self, on_final)
        with self.random.lent():
            data = self.rollout(seed)
            self.advantages(data)
            observations = data["observation"].transpose(0, 1).flatten(0, 1)
            with guarded(self.density(), observations, self.policy.parameters()):
                return self.update(data.flatten())

    def rollout(self, seed: int) -> Any:
        """T steps of all environments, a tensordict ``[n, T]``."""
        from torchrl.envs.utils import ExplorationType, set_exploration_type

        self.env.set_seed(seed)
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):  # else it plays its mean
            return self.env.rollout(self.mdp.horizon, self.policy)

    @torch.no_grad()
    def advantages(self, data: Any) -> None:
        """Soft advantages without the present step's own entropy; targets of the value are the whole soft returns."""
        entropy = -self.mdp.tau * data["action_log_prob"].unsqueeze(-1)
        data["next", "reward"] = data["next", "reward"] + entropy
        self.gae(data)
        data["advantage"] = data["advantage"] - entropy

    def update(self, data: Any) -> Log:
        """``n_epochs`` passes over the transitions, a tensordict ``[n T]``."""
        config = self.config
        for _ in range(config.n_epochs):
            order = torch.randperm(len(data), generator=self.generator, device=self.mdp.device)
            for rows in order.chunk(config.n_minibatches):
                losses = self.loss(data[rows])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
                self.optimizer.step()
        return {"policy_loss": losses["loss_objective"].detach(), "value_loss": losses["loss_critic"].detach()}

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return torchrl_density(self.policy if policy is None else policy, self.mdp)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.random.tensors()

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.random.restore(tensors)
