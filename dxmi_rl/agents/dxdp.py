"""DxDP: diffusion by dynamic programming, soft value iteration (Yoon et al. 2024, arXiv 2407.00626, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig, Rollout, importance_ratio
from dxmi_rl.agents.guidance import GuidedPolicy
from dxmi_rl.agents.policy import FineTunedPolicy, GaussianPolicy
from dxmi_rl.agents.tuned import tuned_settings
from dxmi_rl.diffusion import ReverseSampler
from dxmi_rl.diffusion.gaussian import HALF_LOG_TWO_PI, gaussian_log_prob
from dxmi_rl.mdp import Energy
from dxmi_rl.networks import StepConv, StepMLP
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.torch_tools import frozen

MAX_WARMUP = 0.1
"""Largest part of a budget that goes into warming up."""
ENSEMBLES = ["mean", "max"]
LOW_DIMENSIONS = 3
"""Up to here a value network has Fourier frequencies unless told otherwise."""


@dataclass(frozen=True)
class DxDPConfig(GaussianConfig):
    """Settings of DxDP; ``DxDP.paper()`` has the paper's, ``DxDP.default()`` those that paid (docs/agents/dxdp.md)."""

    tau1: float | None = None
    """Entropy coefficient per dimension, the paper's; None: the task's tau (times d)."""
    tau2: float | None = None
    """Running-cost coefficient per dimension, the paper's; None: the task's tau (times d)."""
    sampled_entropy: bool = True
    """log pi of the drawn state stands for minus the entropy; False: the entropy itself, as in the paper."""
    td_lambda: float = 0.9
    """Mixing of n-step soft returns in the value target; 0 is the paper's one-step target."""
    value_steps: int = 2
    """Value regressions per rollout; 0, with ``lookahead_value``: the look-ahead is all."""
    policy_steps: int = 4
    """Policy steps per rollout, each with fresh next states."""
    policy_trajectories: int | None = None
    """Trajectories that a policy step sees, drawn from the kept rollouts; None: ``batch_size``."""
    replay: int = 4
    """Rollouts that are kept; with more than the last one, targets carry truncated importance weights (V-trace)."""
    exploration: float = 0.0
    """Further noise of rollouts over the base sampler's sigma, added in variance and corrected by the same weights;
    falls to 0 over half of the budget."""
    value_resampling: bool = False
    """One-step targets with a fresh next state at each regression, instead of the rollout's own."""
    entropy_in_value: bool = True
    """Entropy terms belong to the value target; the policy step always has them."""
    cost_in_value: bool = True
    """Running costs belong to the value target; the policy step always has them."""
    time_cost: float = 0.0
    """Nats c of the sigmoid time cost c [s(T // 2 - t) - s(T // 2 - t - 1)] in the value target, s the sigmoid."""
    time_dependent_value: bool = True
    """V_t(x); False: one V(x) for all steps (beside a look-ahead, whose denoiser knows the step)."""
    lookahead_value: bool = False
    """V_t(x) = E(D_t(x)) + v_t(x): the energy of what the denoiser expects in the end (the policy's own, or that of the
    base sampler under a correction), and the network, from 0, learns the rest. For images, where a network that starts
    from nothing follows a learned energy too late; it costs a denoiser call and an energy evaluation per value."""
    ensemble: int = 1
    """Value networks, independently initialised."""
    ensemble_value: str = "mean"
    """"mean" or "max" (the most pessimistic cost, as twin critics do) of the ensemble."""
    target_average: float = 0.0
    """Decay of the average of value weights that targets bootstrap from; 0: the weights themselves."""
    correction: bool = True
    """Add the likelihood-ratio gradient of what V misses: with td_lambda = 1, on-policy, the gradient of the first
    policy step is then unbiased for any V that was not fitted to this very rollout. In the plane it changes little; it
    is for many dimensions, where the gradient of V is poor (the preset ``ablations`` has both)."""
    correction_clip: float = 0.2
    """Clipping of its importance ratio, as PPO's."""
    warmup_iterations: int = 20
    """First rollouts that train only the value, on the base sampler's states; at most a tenth of ``learn``'s budget."""
    warmup_value_steps: int = 30
    """Value regressions per warm-up rollout."""


class ValueEnsemble(nn.Module):
    """K independent V(x, t): ``[batch, K]``; without time all steps share one function of x."""

    def __init__(self, members: Sequence[nn.Module], time_dependent: bool) -> None:
        super().__init__()
        self.members, self.time_dependent = nn.ModuleList(members), time_dependent

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        if not self.time_dependent:
            t = torch.zeros_like(t) if isinstance(t, Tensor) else 0
        return torch.cat([member(x, t) for member in self.members], dim=1)


class DxDP(GaussianAgent):
    """Soft value iteration with the kernel's bound on the entropy: nothing is back-propagated through time.

        V_T = E
        V_t(x) = E_{x' ~ pi}[V_{t+1}(x') - tau log qb(x | x') + tau log pi(x' | x)]                 (evaluation)
        min over theta of
            E_{x_t, x' ~ pi_theta}[V_{t+1}(x') - tau log qb(x_t | x') + tau log pi_theta(x' | x_t)]  (improvement)

    Evaluation is a regression on soft TD(lambda) returns; improvement is reparameterised through one step, with as many
    fresh next states as one likes: they are no transitions. Both use the sampled log pi, not its mean -H: near the
    optimum the three terms cancel on every single path, so targets and gradients lose their variance. To the gradient
    through V ``correction`` adds PPO's clipped likelihood-ratio gradient of what V misses on the rollouts.
    """

    name: ClassVar[str] = "dxdp"
    Config: ClassVar[type] = DxDPConfig
    config: DxDPConfig

    @staticmethod
    def default() -> DxDPConfig:
        """What ``DxDP(task)`` starts from on vectors, the settings that tuning found; ``Config()`` has plain ones."""
        return DxDPConfig(**tuned_settings(DxDP, (1,), {}))

    @staticmethod
    def paper(**changes: Any) -> DxDPConfig:
        """The paper's: a TD(0) regression, a policy step on 256 transitions (of whole trajectories: 260 at T = 5).

        ``changes`` are fields. tau1 and tau2 are the task's temperature unless given; the paper's kernel is the task's
        ``backward="brownian"``. On images the paper has ``time_dependent_value=False, entropy_in_value=False,
        cost_in_value=False, time_cost=1.0``.
        """
        paper = {
            "sampled_entropy": False, "td_lambda": 0.0, "value_steps": 1, "policy_steps": 1, "policy_trajectories": 52,
            "warmup_iterations": 0, "state_dependent_sigma": False, "width": 128, "value_fourier": 0,
            "value_learning_rate": 1e-3, "clip_gradient": 0.1, "anneal": False, "batch_size": 256, "correction": False,
            "replay": 1,
        }  # fmt: skip
        return DxDPConfig(**paper | changes)

    def _build(self) -> None:
        config = self.config
        for key in ("policy_steps", "replay", "ensemble"):
            check_integer(key, getattr(config, key))
        check_integer("value_steps", config.value_steps, minimum=1 - config.lookahead_value)
        for key in ("warmup_iterations", "warmup_value_steps"):
            check_integer(key, getattr(config, key), minimum=0)
        for key in ("td_lambda", "target_average"):
            if not 0 <= check_real(key, getattr(config, key)) <= 1:
                raise ValueError(f"{key} must lie in [0, 1], got {getattr(config, key)}.")
        for key in ("exploration", "time_cost"):
            check_real(key, getattr(config, key))
        check_real("correction_clip", config.correction_clip, strict=True)
        if config.policy_trajectories is not None:
            check_integer("policy_trajectories", config.policy_trajectories)
        if config.correction:
            for key in ("batch_size", "policy_trajectories"):
                if getattr(config, key) == 1:
                    raise ValueError(f"{key} must be >= 2 with correction=True, which compares trajectories, got 1.")
        if config.lookahead_value and not isinstance(self.mdp.base, ReverseSampler):
            kind = type(self.mdp.base).__name__
            raise ValueError(f"lookahead_value must be False for base sampler {kind}, which has no denoiser, got True.")
        if config.ensemble_value not in ENSEMBLES:
            raise UnknownNameError("ensemble_value", config.ensemble_value, ENSEMBLES)
        super()._build()
        dim, horizon = self.mdp.dim, self.mdp.horizon
        self.entropy_weight = self.mdp.tau if config.tau1 is None else check_real("tau1", config.tau1) / dim
        self.cost_weight = self.mdp.tau if config.tau2 is None else check_real("tau2", config.tau2) / dim
        self.warmup_left = config.warmup_iterations if config.value_steps else 0
        steps_left = horizon // 2 - torch.arange(horizon + 1.0, device=self.mdp.device)
        self.time_costs = -config.time_cost * steps_left.sigmoid().diff()
        self.target_value = copy.deepcopy(self.value).requires_grad_(False) if config.target_average else self.value
        self.memory: dict[str, Tensor] = {}

    def make_value(self) -> nn.Module:
        config, scale = self.config, self.mdp.state_scale[:-1]
        steps = scale if config.time_dependent_value else scale[-1:]
        members: list[StepMLP | StepConv] = [self.value_network(steps) for _ in range(config.ensemble)]
        if config.lookahead_value:
            for member in members:
                nn.init.zeros_(member.last.weight)
                nn.init.zeros_(member.last.bias)
        plain = config.ensemble == 1 and config.time_dependent_value
        return members[0] if plain else ValueEnsemble(members, config.time_dependent_value)

    @property
    def value_frequencies(self) -> int:
        # The policy follows the gradient of V, which frequencies make rough where data are sparse.
        sparse = self.config.value_fourier is None and self.mdp.dim > LOW_DIMENSIONS
        return 0 if sparse else super().value_frequencies

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | ({"target_value": self.target_value} if self.config.target_average else {})

    def values(
        self, x: Tensor, t: Tensor | int, network: nn.Module | None = None, *, trained: bool = False
    ) -> Tensor:  # fmt: skip
        """V_t(x): ``[batch]``; of the averaged network when it is given. ``trained`` as in ``lookahead``."""
        learned = self.learned_values(x, t, network)
        return learned + self.lookahead(x, t, trained=trained) if self.config.lookahead_value else learned

    def learned_values(self, x: Tensor, t: Tensor | int, network: nn.Module | None = None) -> Tensor:
        """The network's part of V_t(x): ``[batch]``."""
        members = (self.value if network is None else network)(x, t)
        return self.value_unit * (members.amax(1) if self.config.ensemble_value == "max" else members.mean(1))

    def lookahead(
        self, x: Tensor, t: Tensor | int, policy: Any = None, energy: Energy | None = None, *, trained: bool = False
    ) -> Tensor:  # fmt: skip
        """E(D_t(x)) with the denoiser of ``policy`` (the agent's) and its ``energy`` or another one: ``[batch]``.

        It has a first derivative in x and none in the weights. It is the soft value of rewards at the posterior's mean,
        as Li et al. 2024 (arXiv 2408.08252) use it at sampling time. ``trained`` says that no step is held, which saves
        a tensor t the calls of the denoiser that is.
        """
        followed = self.policy if policy is None else policy
        tuned = followed if isinstance(followed, FineTunedPolicy) else None
        base = self.mdp.base if tuned is None else tuned.base
        assert isinstance(base, ReverseSampler)
        energy = self.mdp.energy if energy is None else energy

        def ahead_of(x: Tensor) -> Tensor:
            if tuned is None:
                return energy(base.denoiser(x, *base.schedule.at(t)))
            return energy(tuned.denoised(x, t, trained=trained))

        if not (torch.is_grad_enabled() and x.requires_grad):
            with torch.no_grad():
                return ahead_of(x)
        # Forward and backward in one place: while weights are held, and before ``rows_at_a_time`` runs them again.
        with frozen([*base.denoiser.parameters(), *self.mdp.energy_parameters()]):
            point = x.detach().requires_grad_()
            ahead = ahead_of(point)
            (slope,) = torch.autograd.grad(ahead.sum(), point)
        return ahead.detach() + ((x - x.detach()) * slope).flatten(1).sum(1)

    def count_lookahead(self, states: int, *, gradients: bool = False, trained: bool = False) -> None:
        """Costs of looking ahead from so many states, of all steps or of ``trained`` ones."""
        if self.config.lookahead_value:
            both = self.owns_denoiser and self.policy.held_steps and not trained
            self.costs.denoiser_calls += states * (2 if both else 1)
            self.costs.energy_evals += states
            self.costs.energy_grad_evals += states * gradients

    @torch.no_grad()
    def regressed(self, rollout: Rollout, targets: Tensor) -> Tensor:
        """What the value network is to learn of ``targets``: all, or what the look-ahead leaves of them: ``[T n]``."""
        if not self.config.lookahead_value:
            return targets
        self.count_lookahead(len(targets))
        return targets - self.lookahead(rollout.x, rollout.t)

    def guided(self, weight: float, *, policy: Any = None, energy: Energy | None = None) -> GuidedPolicy:
        """The policy (or another one) moved by the gradients of V_t, t < T, and at the end of the live energy (or
        another one).
        """
        last = self.mdp.finite_energy if energy is None else energy
        followed = self.policy if policy is None else policy

        def soft_value(x: Tensor, t: int) -> Tensor:
            if t == self.mdp.horizon:
                return last(x)
            learned = self.learned_values(x, t)
            return learned + self.lookahead(x, t, followed, last) if self.config.lookahead_value else learned

        return GuidedPolicy(followed, soft_value, weight)

    def sample(self, n: int, *, seed: int | None = None, guidance: float = 0.0) -> Tensor:
        """Samples x_T ``[n, *event_shape]``; with ``guidance`` > 0, lambda, moved by the values' gradients
        (GuidedPolicy).
        """
        if not guidance:
            return super().sample(n, seed=seed)
        return self.mdp.sample(self.guided(guidance), n, self._generator(seed))

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        config = self.config
        rollout = self.remember(self.collect(on_final, self.behaviour()), moved=on_final is not None)
        warming = self.warmup_left > 0 and self.progress < MAX_WARMUP
        self.warmup_left -= warming
        value_steps = config.warmup_value_steps if warming else config.value_steps
        policy_steps = 0 if warming else config.policy_steps
        steps = max(value_steps, policy_steps)
        fits = value_steps > 0 and not config.value_resampling
        targets = self.value_targets(rollout) if config.correction or fits else torch.zeros_like(rollout.log_prob)
        log: dict[str, float | Tensor] = {}
        for step in range(steps):
            if due(step, value_steps, steps):
                part, wanted = self.pick(rollout, targets, config.batch_size)
                if config.value_resampling:
                    wanted = self.resampled_targets(part)
                log["value_loss"] = self.update_value(part.x, part.t, self.regressed(part, wanted))
                self.average_value()
            if due(step, policy_steps, steps):
                part, wanted = self.pick(rollout, targets, config.policy_trajectories or config.batch_size)
                log["policy_loss"] = self.update_policy(part, wanted)
        return log

    # -- rollouts ----------------------------------------------------------------------------------------------

    def behaviour(self) -> GaussianPolicy:
        """The policy of the rollouts: wider in the first half of the budget when ``exploration`` says so."""
        return self.wider(self.config.exploration, 0.5)

    @property
    def off_policy(self) -> bool:
        """Whether rollouts may come from other policies than the present one."""
        return self.config.replay > 1 or self.config.exploration > 0

    def remember(self, rollout: Rollout, moved: bool = False) -> Rollout:
        """All kept rollouts as one, the latest last; ``moved``: the energy may have changed since the others came."""
        if self.config.replay == 1:
            return rollout
        horizon = self.mdp.horizon
        if moved and self.informed and self.memory:  # the policy's input is grad E
            x, _, t = Trajectory(self.memory["x"], self.memory["log_prob"]).transitions()
            reference = self.policy.reference(x, t)
            assert reference is not None
            self.memory["reference"] = reference.unflatten(0, (horizon, -1))
            self.count_references(len(x))
        latest = {"x": rollout.trajectory.x, "log_prob": rollout.trajectory.log_prob}
        if rollout.reference is not None:
            latest["reference"] = rollout.reference.unflatten(0, (horizon, -1))
        kept = self.config.replay * self.config.batch_size
        if self.memory:
            latest = {key: torch.cat([self.memory[key], value], dim=1) for key, value in latest.items()}
        self.memory = {key: value[:, -kept:] for key, value in latest.items()}
        return as_rollout(**self.memory)

    def pick(self, rollout: Rollout, labels: Tensor, n: int) -> tuple[Rollout, Tensor]:
        """n of the trajectories, with the same rows of ``labels`` ``[T N]``; all of them when there are no more."""
        kept = rollout.trajectory.x.shape[1]
        if n >= kept:
            return rollout, labels
        chosen = torch.randperm(kept, generator=self.generator, device=labels.device)[:n]
        horizon = self.mdp.horizon
        reference = None if rollout.reference is None else rollout.reference.unflatten(0, (horizon, kept))[:, chosen]
        part = as_rollout(rollout.trajectory.x[:, chosen], rollout.trajectory.log_prob[:, chosen], reference)
        return part, labels.view(horizon, kept)[:, chosen].flatten()

    # -- evaluation --------------------------------------------------------------------------------------------

    def step_cost(
        self, x: Tensor, x_next: Tensor, t: Tensor, log_prob: Tensor, log_std: Tensor | None = None
    ) -> Tensor:
        """-tau2 / d log qb(x_t | x_{t+1}) + tau1 / d log pi(x_{t+1} | x_t): ``[batch]``.

        Minus the entropy, from ``log_std``, takes the place of log pi without ``sampled_entropy``.
        """
        return self.entropy_cost(log_prob, log_std) + self.running_cost(x, x_next, t)

    def entropy_cost(self, log_prob: Tensor, log_std: Tensor | None) -> Tensor:
        """tau1 / d log pi(x_{t+1} | x_t), or its mean -tau1 / d H: ``[batch]``."""
        if self.config.sampled_entropy:
            return self.entropy_weight * log_prob
        assert log_std is not None
        return -self.entropy_weight * (
            log_std.expand(-1, *self.mdp.event_shape).flatten(1).sum(1) + self.mdp.dim * (HALF_LOG_TWO_PI + 0.5)
        )

    def running_cost(self, x: Tensor, x_next: Tensor, t: Tensor) -> Tensor:
        """-tau2 / d log qb(x_t | x_{t+1}): ``[batch]``."""
        if not self.cost_weight:
            return x.new_zeros(len(x))
        return -self.cost_weight * self.mdp.kernel.log_prob(x, x_next, t)

    def value_cost(self, x: Tensor, x_next: Tensor, t: Tensor, log_prob: Tensor, log_std: Tensor | None) -> Tensor:
        """Those of the step's costs that belong to the value target, and the time cost: ``[batch]``."""
        cost = self.time_costs[t]
        if self.config.entropy_in_value:
            cost = cost + self.entropy_cost(log_prob, log_std)
        return cost + self.running_cost(x, x_next, t) if self.config.cost_in_value else cost

    @torch.no_grad()
    def value_targets(self, rollout: Rollout) -> Tensor:
        """Soft TD(lambda) returns G_t: ``[T n]``, time-major.

        G_t = V_t + d_t,  d_t = rho_t (c_t + V_{t+1} - V_t + lambda d_{t+1}),  V_T = E,  d_T = 0
        with rho_t = min(1, pi / behaviour) (V-trace: Espeholt et al. 2018, arXiv 1802.01561, equation 1); on-policy
        rho_t = 1 and G_t = c_t + (1 - lambda) V_{t+1} + lambda G_{t+1}.
        """
        horizon, off_policy = self.mdp.horizon, self.off_policy
        n = rollout.trajectory.x.shape[1]
        log_prob, ratio = rollout.log_prob, None
        log_std: Tensor | None = None
        if off_policy:
            mean, log_std = self.policy.moments(rollout.x, rollout.t, rollout.reference)
            self.count_moments(len(mean))
            log_prob = gaussian_log_prob(rollout.x_next, mean, log_std)
            ratio = (log_prob - rollout.log_prob).clamp_max(0.0).exp().view(horizon, n)
        elif not self.config.sampled_entropy:
            log_std = self.policy.log_std(rollout.x, rollout.t, rollout.reference)
        cost = self.value_cost(rollout.x, rollout.x_next, rollout.t, log_prob, log_std).view(horizon, n)
        first = 0 if off_policy else n  # on-policy, V_0 cancels
        values = self.values(rollout.x[first:], rollout.t[first:], self.target_value).view(-1, n)
        self.count_lookahead(values.numel())
        values = torch.cat([values, self.mdp.finite_energy(rollout.trajectory.final)[None]])
        self.costs.energy_evals += n - self.config.batch_size
        targets, following = torch.empty_like(cost), values[-1]
        for t in reversed(range(horizon)):
            value = values[t - horizon]
            targets[t] = cost[t] + value + self.config.td_lambda * (following - value)
            if ratio is not None:
                targets[t] = values[t].lerp(targets[t], ratio[t])
            following = targets[t]
        return targets.flatten()

    @torch.no_grad()
    def resampled_targets(self, rollout: Rollout) -> Tensor:
        """One-step targets c_t + V_{t+1}(x') with fresh x' ~ pi(. | x_t): ``[T n]``."""
        n = rollout.trajectory.x.shape[1]
        x_next, log_prob, (_, log_std) = self.draw(rollout)
        self.count_moments(len(x_next))
        self.count_lookahead(len(x_next) - n)
        future = torch.cat([
            self.values(x_next[:-n], rollout.t[:-n] + 1, self.target_value), self.mdp.energy(x_next[-n:])
        ])  # fmt: skip
        self.costs.energy_evals += n
        return future + self.value_cost(rollout.x, x_next, rollout.t, log_prob, log_std)

    def count_moments(self, states: int) -> None:
        """Costs of the policy's moments at so many states, outside of rollouts and policy steps."""
        if self.owns_denoiser:
            self.costs.denoiser_calls += states

    @torch.no_grad()
    def average_value(self) -> None:
        """target <- decay target + (1 - decay) value."""
        decay = self.config.target_average
        if decay:
            torch._foreach_lerp_(list(self.target_value.parameters()), list(self.value.parameters()), 1 - decay)

    # -- improvement -------------------------------------------------------------------------------------------

    def draw(self, rollout: Rollout) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Fresh reparameterised x' ~ pi(. | x_t) at every state, log pi of it at fixed parameters, (mu, log sigma)."""
        mean, log_std = self.policy.moments(rollout.x, rollout.t, rollout.reference)
        log_std = log_std.expand_as(mean)
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device, dtype=mean.dtype)
        x_next = mean + log_std.exp() * noise
        self.costs.policy_draws += len(x_next)
        # At fixed parameters: the direct score has mean zero and would only add variance (Roeder et al. 2017).
        return x_next, gaussian_log_prob(x_next, mean.detach(), log_std.detach()), (mean, log_std)

    def policy_loss(self, rollout: Rollout, returns: Tensor | None = None) -> Tensor:
        """Mean of V_{t+1}(x') + c_t(x_t, x') over fresh x' ~ pi(. | x_t) at every given state.

        With ``correction`` also the mean of rho_t (G_{t+1} - V_{t+1}), clipped, over the rollout's own x_{t+1}, G_t its
        ``returns``: the policy gradient is that of V plus the likelihood ratio's of what V misses, so V is a control
        variate (as in Q-Prop, Gu et al. 2017, arXiv 1611.02247).
        """
        n = rollout.trajectory.x.shape[1]
        x_next, log_prob, moments = self.draw(rollout)
        cost = self.step_cost(rollout.x, x_next, rollout.t, log_prob, moments[1])
        self.costs.energy_evals += n
        self.costs.energy_grad_evals += n
        loss = cost.sum() + self.mdp.energy(x_next[-n:]).sum()
        if len(x_next) > n:
            future = self.values(x_next[:-n], rollout.t[:-n] + 1, trained=True)
            self.count_lookahead(len(future), gradients=True, trained=True)
            loss = loss + future.sum()
        if self.config.correction and returns is not None and len(x_next) > n:
            missed = self.missed(rollout, returns)
            ratio = importance_ratio(gaussian_log_prob(rollout.x_next, *moments), rollout.log_prob)[:-n]
            clipped = ratio.clamp(1 - self.config.correction_clip, 1 + self.config.correction_clip)
            loss = loss + torch.maximum(ratio * missed, clipped * missed).sum()
        return loss / len(x_next)

    @torch.no_grad()
    def missed(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """G_t - V_t less its mean per step, t = 1..T-1 (V_T = E misses nothing): ``[(T - 1) n]``.

        V is what the policy step differentiates, not what targets bootstrap from: only then do its errors cancel.
        """
        n = rollout.trajectory.x.shape[1]
        self.count_lookahead(len(returns) - n, trained=True)
        missed = (returns[n:] - self.values(rollout.x[n:], rollout.t[n:], trained=True)).view(-1, n)
        # The mean of the others, as the own one would take a part of the gradient away.
        return (missed - missed.mean(1, keepdim=True)).flatten() * n / (n - 1)

    def update_policy(self, rollout: Rollout, returns: Tensor | None = None) -> Tensor:
        """One reparameterised policy step at the steps that are trained; V, the kernel and the energy stay fixed."""
        if held := self.policy.held_steps:
            returns = None if returns is None else returns[held * rollout.trajectory.x.shape[1] :]
            rollout = rollout.late(held)
        with frozen([*self.value.parameters(), *self.mdp.kernel.parameters(), *self.mdp.energy_parameters()]):
            return self.step_policy(self.policy_loss(rollout, returns), len(rollout.x))

    def _extra_tensors(self) -> dict[str, Tensor]:
        return {"warmup_left": torch.tensor(self.warmup_left), **self.memory}

    def _set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.warmup_left = int(tensors["warmup_left"])
        self.memory = {key: value.to(self.mdp.device) for key, value in tensors.items() if key != "warmup_left"}


def due(step: int, count: int, steps: int) -> bool:
    """Whether one of ``count`` events, evenly spread over ``steps`` from the first one on, falls on this step."""
    return -(-step * count // steps) < -(-(step + 1) * count // steps)


def as_rollout(x: Tensor, log_prob: Tensor, reference: Tensor | None = None) -> Rollout:
    """A Rollout of states ``[T + 1, n, ...]``, log-probs ``[T, n]`` and references ``[T, n, ...]``."""
    trajectory = Trajectory(x, log_prob)
    rows = None if reference is None else reference.flatten(0, 1)
    return Rollout(trajectory, *trajectory.transitions(), log_prob.flatten(), rows)
