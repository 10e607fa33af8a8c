"""DxDP: diffusion by dynamic programming, soft value iteration (Yoon et al. 2024, arXiv 2407.00626, section 4). This is
the strong agent; ``dxdp_paper.py`` is the published one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.agents import ops
from dxmi_rl.agents.adjoint import adjoint_along_paths, missed_along_paths
from dxmi_rl.agents.base import FinalStateHook, Log
from dxmi_rl.agents.energy_model import EnergyModel
from dxmi_rl.agents.gradients import ValueGradient
from dxmi_rl.agents.guidance import GuidedAgent
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.replay import KeptRollouts
from dxmi_rl.agents.settings import PolicyConfig, ValueConfig
from dxmi_rl.agents.trust_region import GUARD, policy_step
from dxmi_rl.agents.values import FADE, Lookahead, ValueFunction, value_network
from dxmi_rl.costs import count_draws
from dxmi_rl.diffusion.gaussian import gaussian_log_prob
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_fraction, check_integer, check_real
from dxmi_rl.utils.torch_tools import frozen, input_gradient

TEMPERING_START = 0.1
"""Weight of the energy at the start of ``tempering``."""


@dataclass(frozen=True)
class DxDPConfig:
    """Settings of DxDP."""

    n_trajectories: int = 128
    """Trajectories per iteration, and per value or policy step."""
    td_lambda: float = 0.5
    """Mixing of n-step soft returns in the value target."""
    value_steps: int = 16
    """Regressions of the value, and of the energy model, per rollout; 0, for ``lookahead_value`` without an energy
    model only: V is the look-ahead alone."""
    policy_steps: int = 16
    """Policy steps per rollout, each with fresh next states."""
    replay: int = 4
    """Rollouts that are kept; with more than the last one, targets carry truncated importance weights (V-trace)."""
    lookahead_value: bool = False
    """V_t(x) = E(D_t(x)) + v_t(x): the energy of what the denoiser expects in the end (the policy's denoiser, or the
    base sampler's under a correction), plus the network, which starts at 0 and learns the rest. For images, where a
    randomly initialised network follows a learned energy too late. It costs a denoiser call and an energy evaluation
    per value."""
    energy_model: bool = True
    """Improve the policy on a network fitted to one E and grad E per trajectory (EnergyModel), not on E itself."""
    gradient_weight: float = 1.0
    """Weight of gradient targets in the value's regression (``adjoint_along_paths``); 0: values only."""
    gradient_lambda: float = 0.9
    """Mixing of the gradient targets: 1 follows each trajectory to its end, 0 takes one step and the gradient of V."""
    tempering: float = 0.6
    """First part of the first budget, over which the energy's weight rises from TEMPERING_START to 1: modes are found
    before they are deep. 0: none."""
    value_input: bool = True
    """A correction is given grad V_{t+1} at the base mean, unless ``policy.energy_gradient`` is set."""
    correction: bool = True
    """Add a policy gradient of V's errors, returns minus V. With td_lambda = 1, on a rollout that V was not fitted to,
    the sum would be unbiased; here V is fitted to it first, which hides a part of its errors. In the plane it changes
    little; it is for many dimensions, where the gradient of V is poor (the preset ``ablations`` compares)."""
    clip_range: float = 0.2
    """PPO's epsilon, on the importance ratio of the correction."""
    path_correction: bool = False
    """For look-aheads: add what grad V misses along each path, the adjoint less grad V (docs/method.md). With
    gradient_lambda = 1 and value_steps = 0 the gradient of the first policy step is then unbiased."""
    warmup_iterations: int = 20
    """First rollouts that train only the value, on the base sampler's states; at most a tenth of ``learn``'s budget."""
    warmup_value_steps: int = 60
    """Regressions of the value, and of the energy model, per warm-up rollout."""
    max_grad_norm: float = 1.11
    """Largest norm of a policy gradient."""
    kernel_steps: int = 16
    """Fits of the backward kernel per rollout; one that lags behind its policy loosens the bound."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(
            learning_rate=0.01, sigma_learning_rate=0.006, fine_tuning_rate=1e-4, sigma_fine_tuning_rate=1e-3
        )
    )
    """The policy."""
    value: ValueConfig = field(default_factory=lambda: ValueConfig(fourier=None, learning_rate=0.0024))
    """The value network."""

    def __post_init__(self) -> None:
        check_integer("n_trajectories", self.n_trajectories, minimum=2 if self.correction else 1)
        for key in ("policy_steps", "replay", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_integer("value_steps", self.value_steps, minimum=1 - self.lookahead_value)
        for key in ("warmup_iterations", "warmup_value_steps"):
            check_integer(key, getattr(self, key), minimum=0)
        for key in ("td_lambda", "gradient_lambda", "tempering"):
            check_fraction(key, getattr(self, key))
        for key in ("gradient_weight", "clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=key != "gradient_weight")
        if self.lookahead_value and self.gradient_weight:
            raise ValueError(f"gradient_weight must be 0 with lookahead_value, got {self.gradient_weight}.")
        if self.path_correction and (self.correction or self.energy_model or self.replay > 1):
            raise ValueError("path_correction must be False with correction, energy_model or replay > 1, got True.")
        if self.energy_model and not self.value_steps:
            raise ValueError("energy_model must be False with value_steps=0, as nothing would fit it, got True.")


class DxDP(GuidedAgent[DxDPConfig]):
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
        config = self.config
        self.require_energy(gradient=not config.energy_model)
        self.energy_model = EnergyModel(self.mdp, config.value) if config.energy_model else None
        seen = ValueGradient(self.next_value, self.mdp.tau) if config.value_input else None
        self.policy = make_policy(self.mdp, config.policy, seen)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        network = value_network(self.mdp, config.value, fade=FADE if config.value_input else None)
        self.lookahead: Lookahead | None = None
        if config.lookahead_value:
            self.lookahead = Lookahead(self.mdp, self.policy)
            nn.init.zeros_(network.last.weight)
            nn.init.zeros_(network.last.bias)
        self.value = ValueFunction(self.mdp, config.value, network=network)
        self.warmup_left = config.warmup_iterations if config.value_steps else 0
        self.memory = KeptRollouts(config.replay * config.n_trajectories)
        self.tempered = config.tempering == 0

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        model = {} if self.energy_model is None else {"energy_model": self.energy_model.value.optimizer}
        return {"policy": self.policy_optimizer, "value": self.value.optimizer, **model}

    def modules(self) -> dict[str, nn.Module]:
        model = {} if self.energy_model is None else {"energy_model": self.energy_model}
        return {**super().modules(), "value": self.value, **model}

    def values(self, x: Tensor, t: Tensor | int, *, trained: bool = False) -> Tensor:
        """V_t(x): ``[batch]``; ``trained`` promises that no step is frozen (Lookahead)."""
        learned: Tensor = self.value(x, t)
        return learned if self.lookahead is None else learned + self.lookahead(x, t, trained=trained)

    def predict_values(self, x: Tensor, t: Tensor | int) -> Tensor:
        return -self.values(x, t)

    @property
    def energy_weight(self) -> float:
        """The factor of E, below 1 in the first part of the first budget (``tempering``)."""
        part = 1.0 if self.tempered else min(1.0, self.progress / self.config.tempering)
        return TEMPERING_START + (1 - TEMPERING_START) * part

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        self.tempered |= progress >= self.config.tempering

    def last_value(self, x: Tensor) -> Tensor:
        """V_T, the energy or its model, times ``energy_weight``: ``[batch]``."""
        return self.energy_weight * (self.mdp.energy(x) if self.energy_model is None else self.energy_model(x))

    def next_value(self, x: Tensor, t: Tensor | int) -> Tensor:
        """V_{t+1}(x): ``[batch]``."""
        last = self.mdp.horizon - 1
        if isinstance(t, int):
            return self.last_value(x) if t == last else self.values(x, t + 1)
        value, ends = self.values(x, (t + 1).clamp_max(last)), t == last  # E may not exist at earlier states
        return value.masked_scatter(ends, self.last_value(x[ends]).to(value.dtype)) if bool(ends.any()) else value

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, log = self.config, Log()
        latest = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        warming = self.warmup_left > 0 and self.progress < ops.MAX_WARMUP
        self.warmup_left -= warming
        value_steps = config.warmup_value_steps if warming else config.value_steps
        if moved := self.energy_swapped() or on_final is not None:
            self.renew()
        self.ask(latest, energy_moved=moved)
        if self.energy_model is not None:
            log["energy_model_loss"] = self.energy_model.fit(value_steps, self.generator)
        kept = self.memory.add(latest)
        policy_steps = 0 if warming else config.policy_steps
        targets = self.value_targets(kept) if config.correction or value_steps else torch.zeros_like(kept.log_prob)
        steps = max(value_steps, policy_steps)
        others = [module for name, module in self.modules().items() if name != "policy"]
        fixed = [*self.mdp.energy.parameters(), *(p for module in others for p in module.parameters())]
        for step in range(steps):
            if ops.due(step, value_steps, steps):
                part, wanted = self.memory.pick(config.n_trajectories, targets, self.generator)
                log["value_loss"] = self.update_value(part, wanted)
            if ops.due(step, policy_steps, steps):
                part, wanted = self.memory.pick(config.n_trajectories, targets, self.generator)
                with frozen(fixed):  # calls that are run again in parts would compute their weights' gradients
                    log["policy_loss"] = self.update_policy(part, wanted)
        return log

    def ask(self, latest: Trajectory, energy_moved: bool = False) -> None:
        """Note E(x_T) and gradient targets in the latest rollout, and its final states in the energy model.

        One evaluation per trajectory, with its gradient where it has one and it is of use. Raises ValueError where it
        has none, and no model, for gradients that are asked for.
        """
        config, model = self.config, self.energy_model
        adjoint = config.gradient_weight > 0 or (config.path_correction and self.mdp.horizon > 1)
        if model is None and not adjoint:
            if config.correction or config.value_steps:
                latest.energy = self.mdp.finite_energy(latest.final).detach()
            return
        latest.energy, last = self.mdp.energy.value_and_gradient(latest.final)
        if model is not None:
            if energy_moved:
                model.clear()
            model.add(latest.final, latest.energy, last)
            last = input_gradient(model, latest.final) if last is None else last
        if adjoint:
            if last is None:
                raise ValueError("gradient_weight must be 0, path_correction False, without grad E or an energy_model.")
            last, mixing = self.energy_weight * last, config.gradient_lambda
            latest.value_gradient = adjoint_along_paths(self.mdp, self.policy, self.values, latest, last, mixing)

    def renew(self) -> None:
        """Ask for an energy that moved again, and its gradients where policies see them; forget paths with adjoints."""
        kept = self.memory.trajectories
        if kept is None or self.config.replay == 1 or kept.value_gradient is not None:
            self.memory.trajectories = None
            return
        kept.energy = self.mdp.finite_energy(kept.final).detach()
        if self.policy.sees_gradient:
            x, _, t = kept.transitions()
            base_mean = self.policy.base_mean(x, t)
            assert base_mean is not None
            kept.base_mean = base_mean.unflatten(0, (self.mdp.horizon, -1))

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
        assert trajectory.energy is not None
        values = torch.cat([values, self.energy_weight * trajectory.energy[None]])
        return ops.td_lambda_returns(costs, values, self.config.td_lambda, ratios)

    def update_value(self, trajectory: Trajectory, targets: Tensor) -> Tensor:
        """One regression of V on ``targets`` ``[T, n]``, and on gradients where there are some; returns the loss."""
        x, _, t = trajectory.transitions()
        wanted = targets.flatten()
        if self.lookahead is not None:  # the network learns what the look-ahead leaves
            wanted = wanted - self.lookahead(x, t)
        if trajectory.value_gradient is None or not self.config.gradient_weight:
            return self.value.fit(x, t, wanted)
        gradients, scale = trajectory.value_gradient.flatten(0, 1), self.mdp.state_scale[:-1]
        return self.value.fit_gradients(x, t, wanted, gradients, scale=scale, weight=self.config.gradient_weight)

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
        loss = self.step_cost(x, fresh, t, log_prob).sum() + self.last_value(fresh[-n:]).sum()
        if trajectory.horizon > 1:
            loss = loss + self.values(fresh[:-n], t[:-n] + 1, trained=True).sum()
        if self.config.correction:
            error = self.value_error(trajectory, returns)
            if len(error):
                log_new = gaussian_log_prob(x_next, *moments)
                ratio = ops.importance_ratio(log_new, trajectory.log_prob.flatten())[: len(error)]
                loss = loss + len(error) * ops.clipped_surrogate(ratio, -error, self.config.clip_range)
        if self.config.path_correction and trajectory.horizon > 1:
            loss = loss + missed_along_paths(lambda x, t: self.values(x, t, trained=True), trajectory, moments)
        return loss / len(x)

    @torch.no_grad()
    def value_error(self, trajectory: Trajectory, returns: Tensor) -> Tensor:
        """G_t - V_t less the mean of the others at the same step, t = 1..T-1 (V_T = E is exact): ``[(T - 1) n]``.

        With an energy model also t = T, where G_T = E and V_T is the model: ``[T n]``. V is the one that the policy
        step differentiates: only then do its errors cancel.
        """
        x, _, t = trajectory.transitions()
        n = trajectory.n
        error = (returns.flatten()[n:] - self.values(x[n:], t[n:], trained=True)).view(-1, n)
        if self.energy_model is not None and trajectory.energy is not None:
            missed = trajectory.energy - self.energy_model(trajectory.final)
            error = torch.cat([error, self.energy_weight * missed[None]])
        return ops.less_mean_of_others(error).flatten()

    def update_policy(self, trajectory: Trajectory, returns: Tensor) -> Tensor:
        """One reparameterised policy step at the steps that are trained; V, the kernel and the energy stay fixed."""
        first = self.policy.frozen_steps
        loss, config = self.policy_loss(trajectory.from_step(first), returns[first:]), self.config
        radius = GUARD / config.policy_steps
        return policy_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm, trajectory, radius=radius)

    def extra_tensors(self) -> dict[str, Tensor]:
        model = {} if self.energy_model is None else self.energy_model.tensors()
        memory = self.memory.tensors() if self.config.replay > 1 else {}
        return {"warmup_left": torch.tensor(self.warmup_left), "tempered": torch.tensor(self.tempered)} | memory | model

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.warmup_left, self.tempered = int(tensors["warmup_left"]), bool(tensors.get("tempered", self.tempered))
        self.memory.restore(tensors, self.mdp.device)
        if self.energy_model is not None:
            self.energy_model.restore(tensors)
