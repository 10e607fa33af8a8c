"""Adjoint matching: reward fine-tuning of the base sampler as stochastic optimal control (Domingo-Enrich et al. 2025,
arXiv 2409.08861, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.base import FinalStateHook
from dxmi_rl.agents.gaussian import GaussianAgent, GaussianConfig, Rollout
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.utils.checks import check_real
from dxmi_rl.utils.torch_tools import adam


@dataclass(frozen=True)
class AdjointMatchingConfig(GaussianConfig):
    """Settings of AdjointMatching. It has no value network: ``value_*`` and ``residual`` change nothing."""

    state_dependent_sigma: bool = False
    """Must stay False, and ``sigma_learning_rate`` None: sigma is the base sampler's."""
    beta: float | None = None
    """Temperature of the energy against the KL to the base sampler, in nats; None: the task's tau."""


class AdjointMatching(GaussianAgent):
    """Regression of the control on the lean adjoint along the policy's own episodes.

    The policy is the controlled base sampler, x_{t+1} = mu_t(x_t) + sigma_t (u_t(x_t) + noise), its cost
    J(u) = E[ E(x_T) / beta + sum_t |u_t|^2 / 2 ], which is KL(pi || p_base exp(-E / beta) / Z) of whole episodes
    (up to a constant). With the lean adjoint, which knows neither u nor the policy's Jacobian,

        a_T = grad E(x_T) / beta,    a_t = (d mu_t / dx)^T a_{t+1},    loss = E sum_t |u_t(x_t) + sigma_t a_{t+1}|^2.

    What it converges to. At the fixed point, u_t(x) = -sigma_t E[a_{t+1} | x_t = x]. The full adjoint, dJ / dx_t, has
    the further terms (du_t / dx)^T (u_t + sigma_t a_{t+1}), whose mean given x_t is zero there: so in T steps, too, it
    is a stationary point of J among Gaussian policies with the base's sigma (the minimum, where J has but one). It is
    not p_base exp(-E / beta) itself: the optimal kernel p_base(x_{t+1} | x_t) exp(-V_{t+1}(x_{t+1})) is narrower where
    V is convex, by the order of sigma_t^2, which vanishes as T grows.

    And that limit tilts p_base given x_0, which keeps its law: x_T has the law p_base(x_T) exp(-E / beta) / Z only
    where the base sampler forgets its start (memoryless: DDPM from pure noise; section 4), else it is biased by the
    value V_0(x_0). Of the samplers here, DDPM (eta = 1) on a schedule from a high noise level forgets; DDIM with
    eta < 1 and ``base=None``, a random walk from x_0, do not.

    So it aims at p_base exp(-E / beta), not at exp(-E / tau): where the base samples the target already, at its square.
    """

    name: ClassVar[str] = "adjoint-matching"
    Config: ClassVar[type] = AdjointMatchingConfig
    config: AdjointMatchingConfig
    uses_value: bool = False  # the future is differentiated, not estimated

    def _build(self) -> None:
        config = self.config
        if config.state_dependent_sigma or config.sigma_learning_rate is not None:
            raise ValueError(
                "adjoint matching keeps the base sampler's sigma: leave state_dependent_sigma False and "
                "sigma_learning_rate None."
            )
        if config.beta is None and self.mdp.tau == 0:
            raise ValueError("beta, the temperature of the energy, is the task's tau, which is 0 here: pass beta=.")
        self.beta = self.mdp.tau if config.beta is None else check_real("beta", config.beta, strict=True)
        super()._build()
        rate = self.policy_optimizer.param_groups[0]["peak"]
        self.policy.log_sigma.requires_grad_(False)
        self.policy_optimizer = adam([(self.policy.mean_parameters(), rate)])

    def iterate(self, on_final: FinalStateHook | None = None) -> dict[str, float | Tensor]:
        rollout = self.collect(on_final)
        base_mean, adjoint = self.lean_adjoint(rollout)
        return {"policy_loss": self.step_policy(self.policy_loss(rollout, base_mean, adjoint), len(rollout.x))}

    def lean_adjoint(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """mu_t(x_t) and a_{t+1} of all transitions, both ``[T n, *event]``, time-major."""
        x, base = rollout.trajectory.x, self.mdp.base
        means, adjoints = torch.empty_like(x[:-1]), torch.empty_like(x[:-1])
        with torch.enable_grad():
            final = rollout.trajectory.final.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.mdp.finite_energy(final).sum(), final)
        self.mdp.require_finite(slope)
        adjoint = slope / self.beta
        for t in reversed(range(self.mdp.horizon)):
            adjoints[t] = adjoint
            with torch.set_grad_enabled(t > 0):
                state = x[t].detach().requires_grad_(t > 0)
                mean = base.mean(state, t)
            means[t] = mean.detach()
            if t > 0:
                (adjoint,) = torch.autograd.grad(mean, state, adjoint)
        self.costs.energy_grad_evals += len(adjoint)  # collect has counted them as evaluations
        self.costs.denoiser_calls += len(rollout.x) * base.denoiser_calls
        return means.flatten(0, 1), adjoints.flatten(0, 1)

    def policy_loss(self, rollout: Rollout, base_mean: Tensor, adjoint: Tensor) -> Tensor:
        """Mean of |u_t(x_t) + sigma_t a_{t+1}|^2 over all transitions."""
        mean, _ = self.policy.moments(rollout.x, rollout.t, rollout.reference)
        sigma = per_step(self.mdp.base.sigma, rollout.t, rollout.x)
        control = (mean - base_mean) / sigma
        return (control + sigma * adjoint).square().flatten(1).sum(1).mean()
