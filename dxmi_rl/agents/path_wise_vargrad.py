"""Path-wise, then VarGrad: to the modes along the energy's gradient, then by a loss that vanishes at the optimum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig
from dxmi_rl.agents.path_wise import Path, PathConfig, path_step
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.vargrad import log_variance
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_open_fraction


@dataclass(frozen=True)
class PathWiseVarGradConfig(GFlowNetConfig):
    """Settings of PathWiseVarGrad; the path-wise phase does not explore."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    gradient_steps: int = 4
    """Gradient steps on each batch of the VarGrad phase; its loss holds off-policy."""
    conditional: bool = True
    """Subtract a learned f(x_0) from log w: without it, off-policy batches move the optimum (see log_weights)."""
    path_wise_fraction: float = 0.1
    """Part of the budget (as learning rates see it) for the path-wise phase at its beginning. That phase finds modes
    fast and, where it goes on for long, loses some again."""
    path: PathConfig = field(default_factory=PathConfig)
    """Gradients through the rollouts of the path-wise phase; later all steps are trained."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(learning_rate=0.005, sigma_learning_rate=0.0075))
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.005))
    """The network f(x_0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_trajectories", self.n_trajectories, minimum=2)
        check_open_fraction("path_wise_fraction", self.path_wise_fraction)


class PathWiseVarGrad(GFlowNet[PathWiseVarGradConfig]):
    """Path-wise descent for ``path_wise_fraction`` of the budget, the log-variance loss from then on.

    Each covers the other's weakness. Far from the optimum the log-variance loss is dominated by a few outliers (at
    rates that pay later it may diverge within its first iterations), and path-wise gradients are not. Near it, and
    where the network is given grad E, path-wise gradients stay noisy, or biased with ``path.detach_energy_gradient``,
    while log w (less f(x_0), see VarGrad) becomes a constant on all paths and the log-variance loss loses its noise.
    On-policy both descend the same reverse KL.
    """

    name: ClassVar[str] = "path-wise-vargrad"
    needs_gradient: ClassVar[bool] = True
    Config = PathWiseVarGradConfig

    def _build(self) -> None:
        super()._build()
        self.path = Path(self.mdp, self.policy, self.config.path)

    def learns_flows(self) -> bool:
        return self.config.conditional

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        if self.progress >= self.config.path_wise_fraction:
            return super().iterate(on_final)
        return path_step(self, self.path, on_final)

    def loss(self, paths: Trajectory, log_targets: Tensor, start: Tensor) -> Tensor:
        return log_variance(self, paths, log_targets, start)
