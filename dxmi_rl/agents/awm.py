"""Advantage-weighted matching, AWM (Xue et al. 2025, arXiv 2509.25050): policy gradient on the forward process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.aims import warn_of_density
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.forward_process import NoisedSamples, noised_samples, reverse_sampler
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import gradient_step


@dataclass(frozen=True)
class AWMConfig:
    """Settings of AWM."""

    n_trajectories: int = 64
    """Samples per iteration."""
    beta: float | None = None
    """Weight of the divergence from the base sampler, in nats; None: the task's tau."""
    draws: int = 8
    """Noised copies of every sample, each at a step of its own."""
    n_epochs: int = 4
    """Passes over the noised copies."""
    n_minibatches: int = 4
    """Minibatches per pass."""
    clip_range: float = 0.05
    """PPO's epsilon on the ratio of likelihoods."""
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
    """The policy. Its sigma stays the base sampler's: the loss is on means alone."""

    def __post_init__(self) -> None:
        check_integer("n_trajectories", self.n_trajectories, minimum=2)
        for key in ("draws", "n_epochs", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        for key in ("clip_range", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)
        if self.beta is not None:
            check_real("beta", self.beta, strict=True)


class AWM(Agent[AWMConfig]):
    """Weights the denoising loss of its own samples by their advantages: no likelihood of the path that made them.

    Samples x_T are noised afresh, x_t = alpha_t x_T + s_t eps, and d_t = |mu_theta(x_t) - mu_t(x_t, x_T)|^2 /
    (2 sigma_t^2), with the mean mu_t(x_t, x_T) of x_{t+1} given both ends, is the sample's part of the negative ELBO at
    step t. With A = -E(x_T) less the batch's mean and rho = exp(d_t of the policy before - d_t), the loss is PPO's
    clipped surrogate in rho and A, plus beta |mu_theta - mu_base|^2 / (2 sigma_t^2): the divergence of chains from the
    base sampler's, at these states. To first order in E / beta, and where noised samples are the states that the policy
    visits, which many steps need, the optimum is p_base(x_T) exp(-E(x_T) / beta). Beyond, samples stay nearer to the
    base sampler: what a step changes of the divergence of later ones is left out. The paper divides A by its standard
    deviation, which leaves the aim open; here it is in nats.
    """

    name: ClassVar[str] = "awm"
    needs_denoiser: ClassVar[bool] = True
    Config = AWMConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        warn_of_density(self.name, self.task)
        config = self.config
        reverse_sampler(self.mdp)
        self.beta = self.mdp.tau if config.beta is None else config.beta
        if self.beta == 0:
            raise ValueError("beta must be given, as the task's tau is 0 and without the divergence is no optimum.")
        self.policy = make_policy(self.mdp, config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, log = self.config, Log()
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        with torch.no_grad():
            rewards = ops.terminal_rewards(self.mdp, trajectory)[-1]
            advantages = (rewards - rewards.mean()) / self.beta
            noised = noised_samples(self.mdp, self.policy, trajectory.final, config.draws, self.generator)
            before = self.mismatch(noised, noised.mean(self.policy))
        for _ in range(config.n_epochs):
            order = torch.randperm(len(noised.x), generator=self.generator, device=noised.x.device)
            for rows in order.chunk(config.n_minibatches):
                loss = self.policy_loss(noised, advantages, before, rows)
                log["policy_loss"] = gradient_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm)
        return log

    def mismatch(
        self, noised: NoisedSamples, mean: Tensor, rows: Tensor | slice = slice(None), *, base: bool = False
    ) -> Tensor:
        """|mean - mean given x_T|^2 / (2 sigma_t^2), or from the base sampler's mean: ``[rows]``."""
        goal = (noised.base if base else noised.posterior)[rows]
        scaled = (mean - goal) / per_step(self.mdp.base.sigma, noised.t[rows], mean)
        return scaled.flatten(1).square().sum(1) / 2

    def policy_loss(self, noised: NoisedSamples, advantages: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """PPO's clipped surrogate of ELBOs + the divergence from the base sampler, over ``rows``, in units of beta."""
        mean = noised.mean(self.policy, rows)
        ratio = ops.importance_ratio(-self.mismatch(noised, mean, rows), -before[rows])
        surrogate = ops.clipped_surrogate(ratio, advantages[noised.sample[rows]], self.config.clip_range)
        return surrogate + self.mismatch(noised, mean, rows, base=True).mean()
