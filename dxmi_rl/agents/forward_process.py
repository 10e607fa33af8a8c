"""Agents that regress on the forward process: noised samples, and no likelihood of the steps that made the samples."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import CorrectionPolicy, GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import MeanConfig, check_mean
from dxmi_rl.diffusion.samplers import ReverseSampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import gradient_step


@dataclass(frozen=True)
class ForwardProcessConfig:
    """Settings that all agents on the forward process share."""

    n_trajectories: int = 64
    """Samples per iteration."""
    draws: int = 8
    """Noised copies of every sample, each at a step of its own."""
    n_epochs: int = 1
    """Passes over the noised copies."""
    n_minibatches: int = 4
    """Minibatches per pass."""
    max_grad_norm: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; it plays no part in the objective, but scores are taken with it."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    policy: MeanConfig = field(default_factory=lambda: MeanConfig(learning_rate=2e-3))
    """The policy. Its sigma stays the base sampler's: the loss is on means alone."""

    def __post_init__(self) -> None:
        check_integer("n_trajectories", self.n_trajectories, minimum=2)
        for key in ("draws", "n_epochs", "n_minibatches", "kernel_steps"):
            check_integer(key, getattr(self, key))
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        check_mean(self.policy)


ForwardProcessConfigT = TypeVar("ForwardProcessConfigT", bound=ForwardProcessConfig)


@dataclass
class NoisedSamples:
    """x_t = alpha_t x_T + s_t eps of samples x_T at random steps t, ``[rows, ...]``, with what losses ask of them."""

    x: Tensor
    t: Tensor
    final: Tensor
    """x_T, the clean sample of each row."""
    sample: Tensor
    """Index of each row's sample, ``[rows]``."""
    posterior: Tensor
    """Mean of x_{t+1} given x_t and x_T: the base sampler's mean with x_T in its denoiser's place."""
    base: Tensor
    """mu_t(x_t) of the base sampler."""
    given: Tensor | None
    """What the policy asks of the base sampler, computed once."""

    def mean(self, policy: GaussianPolicy, rows: Tensor | slice = slice(None)) -> Tensor:
        """The policy's mean of x_{t+1} at ``rows``."""
        given = None if self.given is None else self.given[rows]
        return policy.moments(self.x[rows], self.t[rows], given)[0]


class ForwardProcessAgent(Agent[ForwardProcessConfigT]):
    """It regresses means: the policy's sigma stays the base sampler's.

    Subclasses define ``sample_weights``, what the loss is told of each sample, and ``policy_loss``.
    """

    needs_denoiser: ClassVar[bool] = True
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        reverse_sampler(self.mdp)
        self.policy = make_policy(self.mdp, self.config.policy)
        self.policy_optimizer = policy_optimizer(self.policy, self.config.policy)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, log = self.config, Log()
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        with torch.no_grad():
            weights = self.sample_weights(ops.terminal_rewards(self.mdp, trajectory)[-1])
            noised = noised_samples(self.mdp, self.policy, trajectory.final, config.draws, self.generator)
            before = noised.mean(self.policy)
        for _ in range(config.n_epochs):
            order = torch.randperm(len(noised.x), generator=self.generator, device=noised.x.device)
            for rows in order.chunk(config.n_minibatches):
                loss = self.policy_loss(noised, weights, before, rows)
                log["policy_loss"] = gradient_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm)
        return log

    @abc.abstractmethod
    def sample_weights(self, rewards: Tensor) -> Tensor:
        """From the rewards -E of the iteration's samples: ``[n] -> [n]``."""

    @abc.abstractmethod
    def policy_loss(self, noised: NoisedSamples, weights: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """The loss over ``rows``; ``before`` are the means of the policy before the iteration, at all rows."""

    def mismatch(
        self, noised: NoisedSamples, mean: Tensor, rows: Tensor | slice = slice(None), *, base: bool = False
    ) -> Tensor:
        """|mean - mean given x_T|^2 / (2 sigma_t^2), or from the base sampler's mean: ``[rows]``."""
        goal = (noised.base if base else noised.posterior)[rows]
        scaled = (mean - goal) / per_step(self.mdp.base.sigma, noised.t[rows], mean)
        return scaled.flatten(1).square().sum(1) / 2


@torch.no_grad()
def noised_samples(
    mdp: DenoisingMDP, policy: GaussianPolicy, final: Tensor, draws: int, generator: torch.Generator
) -> NoisedSamples:
    """``draws`` noised copies of every sample ``[n, *event_shape]``, each at a step of its own."""
    base = reverse_sampler(mdp)
    sample = torch.arange(len(final), device=final.device).repeat(draws)
    clean = final[sample]
    t = torch.randint(mdp.horizon, (len(clean),), generator=generator, device=final.device)
    noise = torch.randn(clean.shape, generator=generator, device=final.device, dtype=final.dtype)
    schedule = base.schedule
    x = per_step(schedule.alpha[:-1], t, clean) * clean + per_step(schedule.s[:-1], t, clean) * noise
    posterior = per_step(base.mean_denoised, t, x) * clean + per_step(base.mean_x, t, x) * x
    given = policy.base_mean(x, t)
    if isinstance(policy, CorrectionPolicy) and given is not None:
        mean = given[:, 0] if policy.sees_gradient else given
    else:
        mean = base.mean(x, t)
    return NoisedSamples(x, t, clean, sample, posterior, mean, given)


def reverse_sampler(mdp: DenoisingMDP) -> ReverseSampler:
    """The base sampler; raises ValueError for one without a denoiser or without noise."""
    if not isinstance(mdp.base, ReverseSampler) or mdp.base.deterministic:
        raise ValueError("base must be a sampler with a denoiser and noise, such as 'ddpm', for this agent.")
    return mdp.base
