"""DxDP: diffusion by dynamic programming, soft value iteration (Yoon et al. 2024, arXiv 2407.00626, section 4).

This is the strong agent; ``dxdp_paper.py`` is the published one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.guidance import GuidedPolicy, guide
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.values import Lookahead, ValueFunction, value_network
from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.live_energy import Energy
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_real
from dxmi_rl.utils.torch_tools import frozen, gradient_step

MAX_WARMUP = 0.1
"""Largest part of a budget that goes into warming up."""


@dataclass(frozen=True)
class DxDPConfig:
    """Settings of DxDP."""

    n_trajectories: int = 32
    """Trajectories per iteration, and per value or policy step."""
    td_lambda: float = 0.5
    """Mixing of n-step soft returns in the value target."""
    value_steps: int = 4
    """Value regressions per rollout; 0, for ``lookahead_value`` only: V is the look-ahead alone."""
    policy_steps: int = 16
    """Policy steps per rollout, each with fresh next states."""
    replay: int = 4
    """Rollouts that are kept; with more than the last one, targets carry truncated importance weights (V-trace)."""
    value_resampling: bool = False
    """One-step targets with a fresh next state at each regression, instead of the rollout's own."""
    lookahead_value: bool = False
    """V_t(x) = E(D_t(x)) + v_t(x): the energy of what the denoiser expects in the end (the policy's denoiser, or the
    base sampler's under a correction), plus the network, which starts at 0 and learns the rest. For images, where a
    randomly initialised network follows a learned energy too late. It costs a denoiser call and an energy evaluation
    per value."""
    correction: bool = True
    """Add a policy gradient of V's errors, returns minus V: with td_lambda = 1 and replay = 1 the gradient of the first
    policy step is then unbiased for any V that was not fitted to this very rollout. In the plane it changes little; it
    is for many dimensions, where the gradient of V is poor (the preset ``ablations`` compares)."""
    clip_range: float = 0.2
    """PPO's epsilon, on the importance ratio of the correction."""
    warmup_iterations: int = 20
    """First rollouts that train only the value, on the base sampler's states; at most a tenth of ``learn``'s budget."""
    warmup_value_steps: int = 60
    """Value regressions per warm-up rollout."""
    max_grad_norm: float = 1.11
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(learning_rate=0.00663, sigma_learning_rate=0.00392)
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(fourier=None, learning_rate=0.00159))
    """The value network."""

    def __post_init__(self) -> None:
        check_integer("n_trajectories", self.n_trajectories, minimum=2 if self.correction else 1)
        for key in ("policy_steps", "replay", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_integer("value_steps", self.value_steps, minimum=1 - self.lookahead_value)
        for key in ("warmup_iterations", "warmup_value_steps"):
            check_integer(key, getattr(self, key), minimum=0)
        check_fraction("td_lambda", self.td_lambda)
        for key in ("clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)


class DxDP(Agent[DxDPConfig]):
    """Soft value iteration, where the backward kernel bounds the entropy: nothing is back-propagated through time.

        V_T = E
        V_t(x) = E_{x' ~ pi}[V_{t+1}(x') - tau log qb(x | x') + tau log pi(x' | x)]                 (evaluation)
        min over theta of
            E_{x_t, x' ~ pi_theta}[V_{t+1}(x') - tau log qb(x_t | x') + tau log pi_theta(x' | x_t)]  (improvement)

    Evaluation is a regression on soft TD(lambda) returns. Improvement is reparameterised through one step, with any
    number of fresh next states, which do not count as transitions. Both use the sampled log pi, not its mean -H: near
    the optimum the three terms cancel on every single path, so targets and gradients lose their variance. To the
    gradient through V ``correction`` adds PPO's clipped likelihood-ratio gradient of V's errors on the rollouts.
    """

    name: ClassVar[str] = "dxdp"
    Config = DxDPConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        config = self.config
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        network = value_network(self.mdp, config.value)
        self.lookahead: Lookahead | None = None
        if config.lookahead_value:
            self.lookahead = Lookahead(self.mdp, self.policy)
            nn.init.zeros_(network.last.weight)
            nn.init.zeros_(network.last.bias)
        self.value = ValueFunction(self.mdp, config.value, network=network)
        self.warmup_left = config.warmup_iterations if config.value_steps else 0
        self.memory: Trajectory | None = None

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer, "value": self.value.optimizer}

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"value": self.value}

    def values(self, x: Tensor, t: Tensor | int, *, trained: bool = False) -> Tensor:
        """V_t(x): ``[batch]``; ``trained`` promises that no step is frozen (Lookahead)."""
        learned: Tensor = self.value(x, t)
        return learned if self.lookahead is None else learned + self.lookahead(x, t, trained=trained)

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, log = self.config, Log()
        latest = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        kept = self.remember(latest, energy_moved=on_final is not None)
        warming = self.warmup_left > 0 and self.progress < MAX_WARMUP
        self.warmup_left -= warming
        value_steps = config.warmup_value_steps if warming else config.value_steps
        policy_steps = 0 if warming else config.policy_steps
        fits = value_steps > 0 and not config.value_resampling
        targets = self.value_targets(kept) if config.correction or fits else torch.zeros_like(kept.log_prob)
        steps = max(value_steps, policy_steps)
        for step in range(steps):
            if ops.due(step, value_steps, steps):
                part, wanted = self.pick(kept, targets)
                log["value_loss"] = self.update_value(part, wanted)
            if ops.due(step, policy_steps, steps):
                part, wanted = self.pick(kept, targets)
                log["policy_loss"] = self.update_policy(part, wanted)
        return log

    # -- rollouts that are kept --------------------------------------------------------------------------------

    def remember(self, latest: Trajectory, energy_moved: bool = False) -> Trajectory:
        """All kept rollouts, the latest last; ``energy_moved``: the energy has changed since the others were played."""
        if self.config.replay == 1:
            return latest
        if self.memory is not None:
            if energy_moved and self.policy.sees_energy_gradient:  # base means hold grad E
                x, _, t = self.memory.transitions()
                base_mean = self.policy.base_mean(x, t)
                assert base_mean is not None
                self.memory.base_mean = base_mean.unflatten(0, (self.mdp.horizon, -1))
            latest = self.memory.cat(latest)
        self.memory = latest.select(slice(-self.config.replay * self.config.n_trajectories, None))
        return self.memory

    def pick(self, kept: Trajectory, targets: Tensor) -> tuple[Trajectory, Tensor]:
        """``n_trajectories`` of the kept ones, with the same columns of ``targets`` ``[T, N]``."""
        n = self.config.n_trajectories
        if n >= kept.n:
            return kept, targets
        chosen = torch.randperm(kept.n, generator=self.generator, device=targets.device)[:n]
        return kept.select(chosen), targets[:, chosen]

    # -- evaluation --------------------------------------------------------------------------------------------

    def step_cost(self, x: Tensor, x_next: Tensor, t: Tensor, log_prob: Tensor) -> Tensor:
        """tau log pi(x_{t+1} | x_t) - tau log qb(x_t | x_{t+1}): ``[batch]``."""
        return self.mdp.tau * log_prob - self.mdp.running_reward(x, x_next, t)

    @torch.no_grad()
    def value_targets(self, trajectory: Trajectory) -> Tensor:
        """Soft TD(lambda) returns ``[T, n]`` with V_T = E (``ops.td_lambda_returns``), off-policy with V-trace."""
        x, x_next, t = trajectory.transitions()
        n, log_prob, ratios = trajectory.n, trajectory.log_prob.flatten(), None
        if self.config.replay > 1:
            behaviour = log_prob
            log_prob = gaussian_log_prob(x_next, *self.policy.moments(x, t, trajectory.base_means()))
            ratios = (log_prob - behaviour).clamp_max(0.0).exp().view(-1, n)
        costs = self.step_cost(x, x_next, t, log_prob).view(-1, n)
        first = n if ratios is None else 0  # on-policy, V_0 cancels
        values = self.values(x[first:], t[first:]).view(-1, n)
        values = torch.cat([values, self.mdp.finite_energy(trajectory.final)[None]])
        return ops.td_lambda_returns(costs, values, self.config.td_lambda, ratios)

    @torch.no_grad()
    def resampled_targets(self, trajectory: Trajectory) -> Tensor:
        """One-step targets c_t + V_{t+1}(x') with fresh x' ~ pi(. | x_t): ``[T, n]``."""
        x, _, t = trajectory.transitions()
        n = trajectory.n
        x_next, log_prob, _ = self.draw(trajectory)
        future = torch.cat([self.values(x_next[:-n], t[:-n] + 1), self.mdp.energy(x_next[-n:])])
        return (future + self.step_cost(x, x_next, t, log_prob)).view(-1, n)

    def update_value(self, trajectory: Trajectory, targets: Tensor) -> Tensor:
        """One regression of V on ``targets`` ``[T, n]``, or on resampled ones; returns the loss."""
        x, _, t = trajectory.transitions()
        if self.config.value_resampling:
            targets = self.resampled_targets(trajectory)
        wanted = targets.flatten()
        if self.lookahead is not None:  # the network learns what the look-ahead leaves
            with torch.no_grad():
                wanted = wanted - self.lookahead(x, t)
        return self.value.fit(x, t, wanted)

    # -- improvement -------------------------------------------------------------------------------------------

    def draw(self, trajectory: Trajectory) -> tuple[Tensor, Tensor, ops.Moments]:
        """Fresh reparameterised x' ~ pi(. | x_t) at every state, log pi of it at fixed parameters, (mu, log sigma)."""
        mean, log_std = self.policy.moments_along(trajectory)
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device, dtype=mean.dtype)
        x_next = mean + log_std.exp() * noise
        count_draws(len(x_next))
        # At fixed parameters: the direct score has mean zero and would only add variance (Roeder et al. 2017,
        # arXiv 1703.09194).
        return x_next, gaussian_log_prob(x_next, mean.detach(), log_std.detach()), (mean, log_std)

    def policy_loss(self, trajectory: Trajectory, returns: Tensor) -> Tensor:
        """Mean of V_{t+1}(x') + c_t(x_t, x') over fresh x' ~ pi(. | x_t) at every given state.

        With ``correction`` also the mean of rho_t (G_{t+1} - V_{t+1}), clipped, over the rollout's own x_{t+1}, G_t its
        ``returns`` ``[T, n]``. The policy gradient is then that of V plus the likelihood-ratio gradient of V's errors,
        so V is a control variate (as in Q-Prop, Gu et al. 2017, arXiv 1611.02247).
        """
        x, x_next, t = trajectory.transitions()
        n = trajectory.n
        fresh, log_prob, moments = self.draw(trajectory)
        loss = self.step_cost(x, fresh, t, log_prob).sum() + self.mdp.energy(fresh[-n:]).sum()
        if trajectory.horizon > 1:
            loss = loss + self.values(fresh[:-n], t[:-n] + 1, trained=True).sum()
            if self.config.correction:
                error = self.value_error(trajectory, returns)
                log_new = gaussian_log_prob(x_next, *moments)
                ratio = ops.importance_ratio(log_new, trajectory.log_prob.flatten())[:-n]
                clipped = ratio.clamp(1 - self.config.clip_range, 1 + self.config.clip_range)
                loss = loss + torch.maximum(ratio * error, clipped * error).sum()
        return loss / len(x)

    @torch.no_grad()
    def value_error(self, trajectory: Trajectory, returns: Tensor) -> Tensor:
        """G_t - V_t less the mean of the others at the same step, t = 1..T-1 (V_T = E is exact): ``[(T - 1) n]``.

        V is the one that the policy step differentiates: only then do its errors cancel.
        """
        x, _, t = trajectory.transitions()
        n = trajectory.n
        error = (returns.flatten()[n:] - self.values(x[n:], t[n:], trained=True)).view(-1, n)
        # The mean of the others: a mean that holds the trajectory's own error would shrink the gradient.
        return (error - error.mean(1, keepdim=True)).flatten() * n / (n - 1)

    def update_policy(self, trajectory: Trajectory, returns: Tensor) -> Tensor:
        """One reparameterised policy step at the steps that are trained; V, the kernel and the energy stay fixed."""
        first = self.policy.frozen_steps
        fixed = [*self.value.parameters(), *self.mdp.kernel.parameters(), *self.mdp.energy.parameters()]
        with frozen(fixed):
            loss = self.policy_loss(trajectory.from_step(first), returns[first:])
            return gradient_step(self.policy_optimizer, self.policy, loss, self.config.max_grad_norm)

    # -- guidance, checkpoints ---------------------------------------------------------------------------------

    def guided(
        self, weight: float, *, policy: nn.Module | None = None, energy: Energy | None = None
    ) -> GuidedPolicy:  # fmt: skip
        """The policy (or another one) moved by the gradients of V_t, at the end of the live energy (or another one)."""
        return guide(self, weight, policy=policy, energy=energy)

    def sample(self, n: int, *, seed: int | None = None, guidance: float = 0.0) -> Tensor:
        """Samples x_T ``[n, *event_shape]``; with ``guidance`` > 0, lambda, moved by the values' gradients
        (GuidedPolicy).
        """
        if not guidance:
            return super().sample(n, seed=seed)
        return self.mdp.sample(self.guided(guidance), n, self.generator_of(seed))

    def extra_tensors(self) -> dict[str, Tensor]:
        kept = self.memory
        memory = {} if kept is None else {"x": kept.x, "log_prob": kept.log_prob, "base_mean": kept.base_mean}
        return {"warmup_left": torch.tensor(self.warmup_left)} | {k: v for k, v in memory.items() if v is not None}

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.warmup_left = int(tensors["warmup_left"])
        if "x" in tensors:
            parts = {key: value.to(self.mdp.device) for key, value in tensors.items()}
            self.memory = Trajectory(parts["x"], parts["log_prob"], parts.get("base_mean"))
