"""Detailed balance (Bengio et al. 2023, arXiv 2111.09266) for diffusion samplers (Sendera et al. 2024, arXiv
2402.05098).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.gaussian import Rollout
from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.utils.checks import check_integer

MAX_WARMUP = 0.1
"""Largest part of a budget that goes into warming up."""


@dataclass(frozen=True)
class DetailedBalanceConfig(GFlowNetConfig):
    """Settings of DetailedBalance."""

    value_learning_rate: float = 5e-3
    """Peak rate of the flow network."""
    log_z_learning_rate: float = 0.1
    """Peak rate of log Z, the flows' common constant."""
    detach_next: bool = True
    """Hold F_{t+1} fixed in the balance of step t, and train the policy on residuals less their batch mean; False, as
    published: one square trains everything (see the class)."""
    warmup_iterations: int = 20
    """First rollouts that train only the flows, on their log-weights; at most a tenth of ``learn``'s budget."""
    warmup_value_steps: int = 10
    """Flow regressions per warm-up rollout."""


class DetailedBalance(GFlowNet):
    """One squared loss per step: log F_t(x_t) + log pi against log F_{t+1}(x_{t+1}) + log qb, log F_T = -E / tau.

    log F_t = log Z + log N(x; 0, scale_t^2 I) + d net(x, t), the noised target's rough density and its correction. F_0
    is learned like the others, not tied to Z p_0: the start is not the policy's to choose. At the optimum tau log F_t
    is minus the soft value V_t of DxDP.

    Two things are ours. Where a Gaussian step cannot balance exactly, the published loss bends F_{t+1} towards what
    such a step can match; with ``detach_next`` the flows are, on-policy, soft TD(0) values, and the policy
    minimises the variance of each step's residual, which on-policy has the same gradient. (8gaussians, learned
    kernel, 20 CPU-seconds: ELBO -1.0 as published, -0.55 so.) And a warm-up: flows far from balance push the policy
    away from its own samples, and it may never come back.
    """

    name: ClassVar[str] = "detailed-balance"
    Config: ClassVar[type] = DetailedBalanceConfig
    learns_log_z: ClassVar[bool] = True
    config: DetailedBalanceConfig

    def _build(self) -> None:
        super()._build()
        for key in ("warmup_iterations", "warmup_value_steps"):
            check_integer(key, getattr(self.config, key), minimum=0)
        if self.config.detach_next:  # residuals are centred over the batch
            check_integer("batch_size", self.config.batch_size, minimum=2)
        self.warmup_left = self.config.warmup_iterations

    def train(self, paths: Rollout, log_targets: Tensor) -> dict[str, float | Tensor]:
        if self.warmup_left == 0 or self.progress >= MAX_WARMUP:
            return super().train(paths, log_targets)
        self.warmup_left -= 1
        with torch.no_grad():
            steps = log_targets - self.log_forward(paths)
        if self.owns_denoiser:
            self.costs.denoiser_calls += len(paths.x)
        with torch.no_grad():
            wanted = steps.flip(0).cumsum(0).flip(0)
        loss = steps.new_zeros(())
        for _ in range(self.config.warmup_value_steps):
            loss = (self.log_flows(paths) - wanted).square().sum(0).mean()
            self.descend(loss, 0)
        return {"flow_loss": loss.detach()}

    def log_flows(self, paths: Rollout) -> Tensor:
        """log F_t(x_t), t < T: ``[T, n]``."""
        return self.values(paths.x, paths.t).view(self.mdp.horizon, -1) / self.mdp.tau

    def values(self, x: Tensor, t: Tensor | int) -> Tensor:
        """tau log F_t(x): ``[batch]``."""
        log_scale = per_step(self.mdp.state_scale, t, x).log()
        rough = gaussian_log_prob(x, torch.zeros_like(x), log_scale)
        return self.mdp.tau * (self.log_z.value + rough) + super().values(x, t)

    def loss(self, paths: Rollout, log_targets: Tensor) -> Tensor:
        """Mean over paths of sum_t (log F_t + log pi - log F_{t+1} - log qb)^2, the papers' detailed balance loss.

        With ``detach_next`` that is the flows' part; the policy's has the same residuals, centred. Where steps are held
        F_{t+1} is constant in any case: it would bend towards what they happen to do.
        """
        held = self.policy.held_steps
        log_flows, log_forward = self.log_flows(paths), self.log_forward(paths)
        after = torch.cat([log_flows[1:], torch.zeros_like(log_flows[:1])])  # log F_T is in the last target
        if not self.config.detach_next:
            after = torch.cat([after[:held].detach(), after[held:]])
            return (log_flows + log_forward - after - log_targets).square().sum(0).mean()
        flow_loss = (log_flows + log_forward.detach() - after.detach() - log_targets).square().sum(0).mean()
        residual = (log_flows - after).detach() + log_forward - log_targets
        return flow_loss + (residual - residual.detach().mean(1, keepdim=True)).square().sum(0).mean()

    def _extra_tensors(self) -> dict[str, Tensor]:
        return super()._extra_tensors() | {"warmup_left": torch.tensor(self.warmup_left)}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        super()._set_extra_tensors(tensors)
        self.warmup_left = int(tensors["warmup_left"])
