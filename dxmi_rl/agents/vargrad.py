"""VarGrad, the log-variance loss (Richter et al. 2020, arXiv 2010.10436; Richter and Berner 2024, arXiv 2307.01198)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig
from dxmi_rl.utils.checks import check_integer


@dataclass(frozen=True)
class VarGradConfig(GFlowNetConfig):
    """Settings of VarGrad."""

    conditional: bool = True
    """Take a learned f(x_0) off log w: without it, off-policy batches move the optimum (see log_weights)."""


class VarGrad(GFlowNet):
    """Trajectory balance with the batch's own log Z: nothing else is learned unless ``conditional``."""

    name: ClassVar[str] = "vargrad"
    Config: ClassVar[type] = VarGradConfig
    config: VarGradConfig

    def _build(self) -> None:
        self.uses_value = self.config.conditional
        super()._build()
        check_integer("batch_size", self.config.batch_size, minimum=2)

    def loss(self, paths: Rollout, log_targets: Tensor) -> Tensor:
        """Unbiased variance of log w over the batch; on-policy, too, its gradient is twice the reverse KL's."""
        return self.log_weights(paths, log_targets, self.config.conditional).var()
