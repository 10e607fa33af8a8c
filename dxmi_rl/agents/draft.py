"""DRaFT (Clark et al. 2024, arXiv 2309.17400) and AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): the reward
alone, differentiated through the last steps of the rollout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.path_wise import Path, PathConfig, path_step
from dxmi_rl.agents.policies import GaussianPolicy, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError


@dataclass(frozen=True)
class DRaFTConfig:
    """Settings of DRaFT."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    last_steps: int | str = 1
    """Steps at the end that gradients flow through: DRaFT-K's K; or "random", a number from 1 to T drawn for every
    iteration, as in AlignProp."""
    checkpointing: bool = False
    """Keep only the states and compute each step again in the backward pass: less memory, more evaluations."""
    max_grad_norm: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; it plays no part in the objective, but scores are taken with it."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(
            learning_rate=2e-3, state_dependent_sigma=False, sigma_learning_rate=0.0, sigma_fine_tuning_rate=0.0
        )
    )
    """The policy. Its sigma stays the base sampler's."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        if not isinstance(self.last_steps, str):
            check_integer("last_steps", self.last_steps)
        elif self.last_steps != "random":
            raise UnknownNameError("last_steps", self.last_steps, ["random"])


class DRaFT(Agent[DRaFTConfig]):
    """Gradient ascent on the reward -E(x_T) through the last K steps of reparameterised episodes; nothing else counts.

    Earlier steps are run without gradients. Its aim is the largest reward: no temperature and no divergence hold it
    back, only the number of iterations does. ``path-wise`` is the same gradient with both.
    """

    name: ClassVar[str] = "draft"
    held_by_beta: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = True
    Config = DRaFTConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        if not isinstance(steps := self.config.last_steps, str) and steps > self.mdp.horizon:
            raise ValueError(f"last_steps must lie in 1..{self.mdp.horizon}, the horizon, got {steps}.")
        self.policy = make_policy(self.mdp, self.config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, self.config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        steps = self.config.last_steps
        if steps == "random":
            # The length of the graph must be known here, so this waits for the device, once per iteration.
            draw = torch.randint(1, self.mdp.horizon + 1, (), generator=self.generator, device=self.mdp.device)
            steps = int(draw)
        return path_step(self, self._path(int(steps)), on_final)

    def _path(self, last_steps: int) -> RewardPath:
        config = PathConfig(last_steps, checkpointing=self.config.checkpointing, score_free=False)
        return RewardPath(self.mdp, self.policy, config)


class RewardPath(Path):
    """A truncated path whose loss is the energy at its end."""

    def loss(self, trajectory: Trajectory) -> Tensor:
        """Mean E(x_T) per transition."""
        return self.mdp.finite_energy(trajectory.final).mean() / self.mdp.horizon
