"""Trajectory balance (Malkin et al. 2022, arXiv 2201.13259) for diffusion samplers (Sendera et al. 2024, arXiv
2402.05098).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_real


@dataclass(frozen=True)
class TrajectoryBalanceConfig(GFlowNetConfig):
    """Settings of TrajectoryBalance."""

    gradient_steps: int = 4
    """Gradient steps on each batch; the loss holds off-policy."""
    exploration: float = 0.5
    """Extra standard deviation of the rollouts' steps, in units of the base step's sigma, added in quadrature. More
    finds modes that are lost otherwise, and costs accuracy where none are."""
    max_grad_norm: float = 0.544
    """Largest norm of a policy gradient."""
    conditional: bool = True
    """Learn log Z + f(x_0) rather than one number: without f, off-policy batches move the optimum (see log_weights)."""
    log_z_learning_rate: float = 0.0149
    """Peak rate of log Z."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.000828, sigma_learning_rate=0.0233)
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.00373))
    """The network f(x_0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("log_z_learning_rate", self.log_z_learning_rate)


class TrajectoryBalance(GFlowNet[TrajectoryBalanceConfig]):
    """One squared loss per path: log Z + log p_0 + sum log pi against -E / tau + sum log qb.

    On-policy its gradient in the policy is twice that of the reverse KL, whatever log Z and f are: they are a baseline.
    """

    name: ClassVar[str] = "trajectory-balance"
    Config = TrajectoryBalanceConfig

    def learns_flows(self) -> bool:
        return self.config.conditional

    def log_z_learning_rate(self) -> float | None:
        return self.config.log_z_learning_rate

    def loss(self, paths: Trajectory, log_targets: Tensor, start: Tensor) -> Tensor:
        """Mean of (log Z - log w)^2, both papers' trajectory balance loss, with log Z + f(x_0) when ``conditional``.

        Both parts, the policy's and that of log Z and f, are those of ``path_residuals``: outliers count little.
        """
        assert self.log_z is not None
        policy, flow = self.path_residuals(paths, log_targets, start, self.log_z.value)
        return policy.square().mean() + flow.square().mean()
