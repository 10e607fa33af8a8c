"""What the agents of TorchRL share: networks, actor, environment, density."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.agents.action_density import ActionDensity, torchrl_density
from dxmi_rl.agents.library import LibraryAgent
from dxmi_rl.utils.checks import require
from dxmi_rl.utils.torch_tools import adam


class TorchRLAgent(LibraryAgent):
    """Losses of TorchRL on a TorchRLEnv, with a ProbabilisticActor that this agent samples.

    Its standard deviation depends on the state. Actors start as the base sampler, with a last layer of zeros. Raises
    MissingExtraError when torchrl is absent.
    """

    env: Any
    loss: nn.Module

    def _build(self) -> None:
        require("tensordict", "torchrl")
        require("torchrl", "torchrl")
        self._check_settings()
        with self._own_randomness(fresh=True):
            self.make_parts()

    def make_parts(self) -> None:
        """Make ``env``, ``policy``, ``loss`` and optimizers."""
        raise TypeError(f"{type(self).__name__} must define make_parts.")

    def make_env(self, **arguments: Any) -> Any:
        """The task as a TorchRLEnv."""
        from dxmi_rl.envs.torchrl import TorchRLEnv

        return TorchRLEnv(self.task, **arguments)

    def make_actor(self, distribution: type, std: float, **arguments: Any) -> Any:
        """A ProbabilisticActor with mean 0 and standard deviation ``std``, before any squashing."""
        from tensordict.nn import NormalParamExtractor, TensorDictModule
        from torchrl.modules import ProbabilisticActor

        network = perceptron(self.mdp.dim + 1, 2 * self.mdp.dim, self.config.width)
        last = network[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
        moments = nn.Sequential(network, NormalParamExtractor(scale_mapping=f"biased_softplus_{std}"))
        return ProbabilisticActor(
            TensorDictModule(moments.to(self.mdp.device), in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=distribution,
            distribution_kwargs=arguments,
            spec=self.env.action_spec_unbatched,
            return_log_prob=True,
        )

    def make_optimizer(self, parameters: Any) -> torch.optim.Adam:
        """Adam at the settings' rate."""
        return adam([(list(parameters), self.config.learning_rate)])

    def density(self, policy: nn.Module | None = None) -> ActionDensity:
        return torchrl_density(self.policy if policy is None else policy, self.mdp)


class Quality(nn.Module):
    """Q(observation, action)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.network = perceptron(2 * dim + 1, 1, width)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """``[batch, d + 1]``, ``[batch, d]`` -> ``[batch, 1]``."""
        return self.network(torch.cat([observation, action], dim=-1))


def perceptron(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Two hidden layers, as SB3's."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)
    )
