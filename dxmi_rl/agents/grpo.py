"""GRPO on the denoising chain: group-relative policy optimisation (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300,
section 4.1), as Flow-GRPO uses it on SDE samplers (Liu et al. 2025, arXiv 2505.05470).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.policy_gradient import ClippedAgent, ClippedConfig, PolicyGradientConfig, returns_to_go
from dxmi_rl.rollout import Trajectory, play
from dxmi_rl.utils.checks import NonFiniteError, all_finite, check_integer, check_real


@dataclass(frozen=True)
class GRPOConfig(ClippedConfig, PolicyGradientConfig):
    """Settings of GRPO."""

    group_size: int = 16
    """Trajectories that share one start x_0; ``batch_size`` is a multiple of it."""
    normalise: bool | None = None
    """Divide advantages by the standard deviation of the group's returns, as the papers do; None: with the terminal
    objective only, as a division that differs from group to group changes the optimum of the soft return."""
    kl_weight: float = 0.0
    """Weight of KL(pi || base sampler) at the visited states, the papers' beta."""


class GRPO(ClippedAgent):
    """Clipped policy gradient with advantages relative to a group instead of a value network.

    In the papers a group is the answers to one prompt. There is no prompt here: a group shares its start x_0, and
    differs in the noise of the steps. The group's mean is then an estimate of the value of x_0.
    """

    name: ClassVar[str] = "grpo"
    Config: ClassVar[type] = GRPOConfig
    config: GRPOConfig
    uses_value: bool = False

    def _build(self) -> None:
        super()._build()
        config = self.config
        check_integer("group_size", config.group_size, minimum=2)
        if config.batch_size % config.group_size:
            raise ValueError(
                f"batch_size must be a multiple of group_size = {config.group_size}, got {config.batch_size}."
            )
        if not (config.normalise is None or isinstance(config.normalise, bool)):
            raise TypeError(f"normalise must be True, False or None, got {config.normalise!r}.")
        self.normalise = config.objective == "terminal" if config.normalise is None else config.normalise
        self.base_weight = check_real("kl_weight", config.kl_weight)

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        return self.update(rollout, self.advantages(rollout))

    def episodes(self, policy: Any, n: int) -> Trajectory:
        """n episodes, ``group_size`` in a row from each start."""
        start = self.mdp.reset(n // self.config.group_size, self.generator)
        start = start.repeat_interleave(self.config.group_size, 0)
        noises = (
            torch.randn(start.shape, generator=self.generator, device=start.device, dtype=start.dtype)
            for _ in range(self.mdp.horizon)
        )
        states, log_probs = play(policy, start, noises, whole=True)
        trajectory = Trajectory(torch.stack(states), torch.stack(log_probs))
        if not all_finite(trajectory.x, trajectory.log_prob):
            raise NonFiniteError("the policy left the finite numbers during a rollout: its states are NaN or infinite.")
        return trajectory

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> Tensor:
        """Soft return-to-go minus the group's mean at the same step: ``[T n]``, time-major.

        ``normalise`` divides by the standard deviation of the group's whole returns. With the terminal objective this
        is the papers' (R - mean R) / std R, the same at every step (DeepSeekMath section 4.1.2, outcome supervision).
        """
        returns = returns_to_go(self.soft_rewards(rollout)).unflatten(1, (-1, self.config.group_size))
        advantages = returns - returns.mean(2, keepdim=True)
        if self.normalise:
            advantages = advantages / (returns[0].std(1, keepdim=True) + 1e-6)
        return advantages.flatten()
