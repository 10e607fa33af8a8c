"""Detailed balance (Bengio et al. 2023, arXiv 2111.09266) for diffusion samplers (Sendera et al. 2024, arXiv
2402.05098).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Log
from dxmi_rl.agents.gflownet import GFlowNet, GFlowNetConfig
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class DetailedBalanceConfig(GFlowNetConfig):
    """Settings of DetailedBalance."""

    max_grad_norm: float = 0.159
    """Largest norm of a policy gradient."""
    log_z_learning_rate: float = 0.0253
    """Peak rate of log Z, the flows' common constant."""
    detach_next: bool = True
    """Hold F_{t+1} fixed in the balance of step t, and train the policy on residuals less their batch mean; False, as
    published: one square trains everything (see the class)."""
    warmup_iterations: int = 20
    """First rollouts that train only the flows, on their log-weights; at most a tenth of ``learn``'s budget."""
    warmup_value_steps: int = 10
    """Flow regressions per warm-up rollout."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.0042, sigma_learning_rate=0.00815)
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(learning_rate=0.0116))
    """The network of flows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # With ``detach_next`` residuals are centred over the batch.
        check_integer("n_trajectories", self.n_trajectories, minimum=2 if self.detach_next else 1)
        for key in ("warmup_iterations", "warmup_value_steps"):
            check_integer(key, getattr(self, key), minimum=0)
        check_real("log_z_learning_rate", self.log_z_learning_rate)


class DetailedBalance(GFlowNet[DetailedBalanceConfig]):
    """One squared loss per step: log F_t(x_t) + log pi against log F_{t+1}(x_{t+1}) + log qb, log F_T = -E / tau.

    log F_t = log Z + log N(x; 0, scale_t^2 I) + d net(x, t), a rough density of the noised target and a correction.
    F_0 is learned like the others, not tied to Z p_0, as p_0 is given. At the optimum tau log F_t
    is minus the soft value V_t of DxDP.

    Two things are ours. Where a Gaussian step cannot balance exactly, the published loss bends F_{t+1} towards what
    such a step can match; with ``detach_next`` the flows are, on-policy, soft TD(0) values, and the policy
    minimises the variance of each step's residual, which on-policy has the same gradient. And a warm-up: flows far
    from balance push the policy away from its own samples, and it may never come back.
    """

    name: ClassVar[str] = "detailed-balance"
    Config = DetailedBalanceConfig

    def _build(self) -> None:
        super()._build()
        self.warmup_left = self.config.warmup_iterations

    def log_z_learning_rate(self) -> float | None:
        return self.config.log_z_learning_rate

    def train(self, paths: Trajectory, log_targets: Tensor) -> Log:
        if self.warmup_left == 0 or self.progress >= ops.MAX_WARMUP:
            return super().train(paths, log_targets)
        self.warmup_left -= 1
        with torch.no_grad():
            wanted = ops.returns_to_go(log_targets - self.log_forward(paths))
        loss = wanted.new_zeros(())
        for _ in range(self.config.warmup_value_steps):
            loss = (self.log_flows(paths) - wanted).square().sum(0).mean()
            self.descend(loss, paths)
        return {"flow_loss": loss.detach()}

    def log_flows(self, paths: Trajectory) -> Tensor:
        """log F_t(x_t), t < T: ``[T, n]``."""
        x, _, t = paths.transitions()
        return self.predict_values(x, t).view(self.mdp.horizon, -1) / self.mdp.tau

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        """tau log F_t(x): ``[batch]``."""
        assert self.log_z is not None and self.value is not None
        log_scale = per_step(self.mdp.state_scale, t, x).log()
        rough = gaussian_log_prob(x, torch.zeros_like(x), log_scale)
        learned: Tensor = self.value(x, t)
        return self.mdp.tau * (self.log_z.value + rough) + learned

    def loss(self, paths: Trajectory, log_targets: Tensor, start: Tensor) -> Tensor:
        """Mean over paths of sum_t (log F_t + log pi - log F_{t+1} - log qb)^2, the papers' detailed balance loss.

        With ``detach_next`` that is the flows' part; the policy's has the same residuals, centred, tempered and without
        outliers, as in ``path_residuals``, step by step. Where steps are frozen F_{t+1} is constant in any case: it
        would bend towards what they happen to do.
        """
        first = self.policy.frozen_steps
        log_flows, log_forward = self.log_flows(paths), self.log_forward(paths)
        after = torch.cat([log_flows[1:], torch.zeros_like(log_flows[:1])])  # log F_T is in the last target
        if not self.config.detach_next:
            after = torch.cat([after[:first].detach(), after[first:]])
            return (log_flows + log_forward - after - log_targets).square().sum(0).mean()
        flow_loss = (log_flows + log_forward.detach() - after.detach() - log_targets).square().sum(0).mean()
        known = (after - log_flows).detach() + log_targets - start
        policy = ops.tempering(known) * ops.compress_outliers(known) - (log_forward - start)
        return flow_loss + (policy - policy.detach().mean(1, keepdim=True)).square().sum(0).mean()

    def extra_tensors(self) -> dict[str, Tensor]:
        return super().extra_tensors() | {"warmup_left": torch.tensor(self.warmup_left)}

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        super().set_extra_tensors(tensors)
        self.warmup_left = int(tensors["warmup_left"])
