"""Adjoint matching: reward fine-tuning of the base sampler as stochastic optimal control (Domingo-Enrich et al. 2025,
arXiv 2409.08861, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.aims import warn_of_density
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import MeanConfig, check_mean
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.live_energy import require_finite
from dxmi_rl.rollout import Trajectory
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import gradient_step


@dataclass(frozen=True)
class AdjointMatchingConfig:
    """Settings of AdjointMatching."""

    n_trajectories: int = 64
    """Trajectories per iteration."""
    beta: float | None = None
    """Temperature of the energy against the KL to the base sampler, in nats; None: the task's tau."""
    max_grad_norm: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; the objective does not use it, but evaluation does."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: MeanConfig = field(default_factory=lambda: MeanConfig(learning_rate=0.005))
    """The policy; its sigma is the base sampler's."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        if self.beta is not None:
            check_real("beta", self.beta, strict=True)
        check_mean(self.policy)


class AdjointMatching(Agent[AdjointMatchingConfig]):
    """Regression of the control on the lean adjoint along the policy's own episodes.

    The policy is the controlled base sampler, x_{t+1} = mu_t(x_t) + sigma_t (u_t(x_t) + noise), its cost
    J(u) = E[ E(x_T) / beta + sum_t |u_t|^2 / 2 ], which is KL(pi || p_base exp(-E / beta) / Z) of whole episodes
    (up to a constant). With the lean adjoint, which knows neither u nor the policy's Jacobian,

        a_T = grad E(x_T) / beta,    a_t = (d mu_t / dx)^T a_{t+1},    loss = E sum_t |u_t(x_t) + sigma_t a_{t+1}|^2.

    What it converges to. At the fixed point, u_t(x) = -sigma_t E[a_{t+1} | x_t = x]. The full adjoint, dJ / dx_t, has
    the further terms (du_t / dx)^T (u_t + sigma_t a_{t+1}), whose mean given x_t is zero there: so in T steps, too, it
    is a stationary point of J among Gaussian policies with the base's sigma (the minimum, if it is the only one). It is
    not p_base exp(-E / beta) itself: the optimal kernel p_base(x_{t+1} | x_t) exp(-V_{t+1}(x_{t+1})) is narrower where
    V is convex, by the order of sigma_t^2, which vanishes as T grows.

    And that limit tilts p_base given x_0, which keeps its law: x_T has the law p_base(x_T) exp(-E / beta) / Z only
    where the base sampler forgets its start (memoryless: DDPM from pure noise; section 4), else it is biased by the
    value V_0(x_0). Of the samplers here, DDPM (eta = 1) on a schedule from a high noise level forgets; DDIM with
    eta < 1 and ``base=None``, a random walk from x_0, do not.

    So it aims at p_base exp(-E / beta), not at exp(-E / tau): where the base already samples exp(-E / beta), the policy
    ends at the square of that density.
    """

    name: ClassVar[str] = "adjoint-matching"
    needs_gradient: ClassVar[bool] = True
    Config = AdjointMatchingConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        warn_of_density(self.name, self.task)
        config = self.config
        self.beta = self.mdp.tau if config.beta is None else config.beta
        if self.beta == 0:
            raise ValueError("beta, the temperature of the energy, is the task's tau, which is 0 here: pass beta=.")
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config = self.config
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        loss = self.policy_loss(trajectory, *self.lean_adjoint(trajectory))
        return {"policy_loss": gradient_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm)}

    def lean_adjoint(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """mu_t(x_t) and a_{t+1} of all transitions, both ``[T n, *event]``, time-major."""
        x, base = trajectory.x, self.mdp.base
        means, adjoints = torch.empty_like(x[:-1]), torch.empty_like(x[:-1])
        with torch.enable_grad():
            final = trajectory.final.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.mdp.finite_energy(final).sum(), final)
        require_finite(slope)
        adjoint = slope / self.beta
        for t in reversed(range(self.mdp.horizon)):
            adjoints[t] = adjoint
            with torch.set_grad_enabled(t > 0):
                state = x[t].detach().requires_grad_(t > 0)
                mean = base.mean(state, t)
            means[t] = mean.detach()
            if t > 0:
                (adjoint,) = torch.autograd.grad(mean, state, adjoint)
        return means.flatten(0, 1), adjoints.flatten(0, 1)

    def policy_loss(self, trajectory: Trajectory, base_mean: Tensor, adjoint: Tensor) -> Tensor:
        """Mean of |u_t(x_t) + sigma_t a_{t+1}|^2 over all transitions."""
        x, _, t = trajectory.transitions()
        mean, _ = self.policy.moments(x, t, trajectory.base_means())
        sigma = per_step(self.mdp.base.sigma, t, x)
        control = (mean - base_mean) / sigma
        return (control + sigma * adjoint).square().flatten(1).sum(1).mean()
