"""What the agents of TorchRL share: actors and critics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.utils.checks import require


def require_torchrl() -> None:
    """Raises MissingExtraError when torchrl or tensordict is absent."""
    require("tensordict", "torchrl")
    require("torchrl", "torchrl")


def make_actor(env: Any, mdp: DenoisingMDP, width: int, distribution: type, std: float, **arguments: Any) -> Any:
    """A ProbabilisticActor with mean 0 and standard deviation ``std``, before any squashing; both depend on the state.

    It starts there with a last layer of zeros.
    """
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.modules import ProbabilisticActor

    network = perceptron(mdp.dim + 1, 2 * mdp.dim, width)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    moments = nn.Sequential(network, NormalParamExtractor(scale_mapping=f"biased_softplus_{std}"))
    return ProbabilisticActor(
        TensorDictModule(moments.to(mdp.device), in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=distribution,
        distribution_kwargs=arguments,
        spec=env.action_spec_unbatched,
        return_log_prob=True,
    )


class ActionValue(nn.Module):
    """Q(observation, action)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.network = perceptron(2 * dim + 1, 1, width)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """``[batch, d + 1]``, ``[batch, d]`` -> ``[batch, 1]``."""
        value: Tensor = self.network(torch.cat([observation, action], dim=-1))
        return value


def perceptron(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Two hidden layers, as SB3's."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)
    )
