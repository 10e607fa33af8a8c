"""Advantage-weighted matching, AWM (Xue et al. 2025, arXiv 2509.25050): policy gradient on the forward process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.aims import warn_of_density
from dxmi_rl.agents.forward_process import ForwardProcessAgent, ForwardProcessConfig, NoisedSamples
from dxmi_rl.utils.checks import check_real


@dataclass(frozen=True)
class AWMConfig(ForwardProcessConfig):
    """Settings of AWM."""

    n_epochs: int = 4
    """Passes over the noised copies."""
    beta: float | None = None
    """Weight of the divergence from the base sampler, in nats; None: the task's tau."""
    clip_range: float = 0.05
    """PPO's epsilon on the ratio of likelihoods."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_real("clip_range", self.clip_range, strict=True)
        if self.beta is not None:
            check_real("beta", self.beta, strict=True)


class AWM(ForwardProcessAgent[AWMConfig]):
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
    Config = AWMConfig

    def _build(self) -> None:
        warn_of_density(self.name, self.task)
        self.beta = self.mdp.tau if self.config.beta is None else self.config.beta
        if self.beta == 0:
            raise ValueError("beta must be given, as the task's tau is 0 and without the divergence is no optimum.")
        super()._build()

    def sample_weights(self, rewards: Tensor) -> Tensor:
        """The advantages, in units of beta."""
        return (rewards - rewards.mean()) / self.beta

    def policy_loss(self, noised: NoisedSamples, weights: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """PPO's clipped surrogate of ELBOs + the divergence from the base sampler, over ``rows``, in units of beta."""
        mean = noised.mean(self.policy, rows)
        old = self.mismatch(noised, before[rows], rows)
        ratio = ops.importance_ratio(-self.mismatch(noised, mean, rows), -old)
        surrogate = ops.clipped_surrogate(ratio, weights[noised.sample[rows]], self.config.clip_range)
        return surrogate + self.mismatch(noised, mean, rows, base=True).mean()
