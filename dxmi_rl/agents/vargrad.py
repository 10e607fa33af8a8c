"""VarGrad, the log-variance loss (Richter et al. 2020, arXiv 2010.10436; Richter and Berner 2024, arXiv 2307.01198)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class VarGradConfig(GFlowNetConfig):
    """Settings of VarGrad."""

    gradient_steps: int = 4
    """Gradient steps on each batch; the loss holds off-policy."""
    exploration: float = 0.5
    """Extra standard deviation of the rollouts' steps, in units of the base step's sigma, added in quadrature. More
    finds modes that are lost otherwise, and costs accuracy where none are."""
    exploration_fraction: float = 0.75
    """Part of the budget over which ``exploration`` falls linearly to 0."""
    max_grad_norm: float = 1.43
    """Largest norm of a policy gradient."""
    conditional: bool = True
    """Subtract a learned f(x_0) from log w: without it, off-policy batches move the optimum (see log_weights)."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.00348, sigma_learning_rate=0.000396)
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.00296))
    """The network f(x_0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_trajectories", self.n_trajectories, minimum=2)


class VarGrad(GFlowNet[VarGradConfig]):
    """Trajectory balance with the batch's own log Z: nothing else is learned unless ``conditional``."""

    name: ClassVar[str] = "vargrad"
    Config = VarGradConfig

    def learns_flows(self) -> bool:
        return self.config.conditional

    def loss(self, paths: Trajectory, log_targets: Tensor, start: Tensor) -> Tensor:
        return log_variance(self, paths, log_targets, start)


def log_variance(agent: GFlowNet[Any], paths: Trajectory, log_targets: Tensor, start: Tensor) -> Tensor:
    """Unbiased variance of log w over the batch for the policy, and of log w - f(x_0) for f, as ``path_residuals`` has
    them: tempered, and without outliers. Else its gradient on-policy is twice that of the reverse KL.
    """
    policy, flow = agent.path_residuals(paths, log_targets, start)
    return policy.var() if agent.value is None else policy.var() + flow.var()
