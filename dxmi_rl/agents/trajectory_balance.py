"""Trajectory balance (Malkin et al. 2022, arXiv 2201.13259) for diffusion samplers (Sendera et al. 2024, arXiv
2402.05098).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig


@dataclass(frozen=True)
class TrajectoryBalanceConfig(GFlowNetConfig):
    """Settings of TrajectoryBalance."""

    conditional: bool = True
    """Learn log Z + f(x_0) rather than one number: without f, off-policy batches move the optimum (see log_weights)."""
    log_z_learning_rate: float = 0.1
    """Peak rate of log Z."""


class TrajectoryBalance(GFlowNet):
    """One squared loss per path: log Z + log p_0 + sum log pi against -E / tau + sum log qb.

    On-policy its gradient in the policy is twice that of the reverse KL, whatever log Z and f are: they are a baseline.
    """

    name: ClassVar[str] = "trajectory-balance"
    Config: ClassVar[type] = TrajectoryBalanceConfig
    learns_log_z: ClassVar[bool] = True
    config: TrajectoryBalanceConfig

    def _build(self) -> None:
        self.uses_value = self.config.conditional
        super()._build()

    def loss(self, paths: Rollout, log_targets: Tensor) -> Tensor:
        """Mean of (log Z - log w)^2, both papers' trajectory balance loss; with log Z + f(x_0) when ``conditional``."""
        return (self.log_z.value - self.log_weights(paths, log_targets, self.config.conditional)).square().mean()
