"""Path-wise, then VarGrad: to the modes along the energy's gradient, then by a loss that vanishes at the optimum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.path_wise import PathWise, PathWiseConfig
from dxmi_rl.agents.vargrad import VarGrad, VarGradConfig


@dataclass(frozen=True)
class PathWiseVarGradConfig(PathWiseConfig, VarGradConfig):
    """Settings of PathWiseVarGrad."""

    exploration: float = 0.0
    """As VarGrad's; the path-wise phase does not explore, and the start is wide where only an energy is given."""
    path_wise_part: float = 0.1
    """Part of the budget (as learning rates see it) for the path-wise phase at its beginning. That phase finds modes
    fast and, where it goes on for long, loses some again."""
    last_steps: int | None = None
    """Steps at the end that the path-wise phase trains (DRaFT's K), None: all of them; afterwards all are trained."""
    checkpointing: bool = False
    """Recompute each step in the backward pass of the path-wise phase: less memory there."""
    sticking: bool = True
    """In the path-wise phase, log pi at fixed parameters (PathWise)."""


class PathWiseVarGrad(PathWise, VarGrad):
    """Path-wise descent for ``path_wise_part`` of the budget, the log-variance loss from then on.

    Each covers the other's weakness. Far from the optimum the log-variance loss is dominated by a few outliers (at
    rates that pay later it may diverge within its first iterations), and path-wise gradients are not. Near it, and
    where the network is given grad E, path-wise gradients stay noisy, or biased with ``detach_energy_gradient``, while
    log w (less f(x_0), see VarGrad) becomes a constant on all paths and the log-variance loss loses its noise.
    On-policy both descend the same reverse KL.
    """

    name: ClassVar[str] = "path-wise-vargrad"
    Config: ClassVar[type] = PathWiseVarGradConfig
    config: PathWiseVarGradConfig
    uses_value: bool = True

    def _build(self) -> None:
        super()._build()
        if not 0 < self.config.path_wise_part < 1:
            part = self.config.path_wise_part
            raise ValueError(f"path_wise_part must lie strictly between 0 and 1, got {part}.")

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        phase = PathWise if self.progress < self.config.path_wise_part else VarGrad
        return phase.iterate(self, on_final)
