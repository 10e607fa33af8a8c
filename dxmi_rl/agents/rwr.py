"""Reward-weighted regression, RWR (Peters and Schaal 2007; on diffusion models Lee et al. 2023, arXiv 2302.12192, and
as a baseline of DDPO, Black et al. 2024, arXiv 2305.13301): regression on the forward process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.forward_process import ForwardProcessAgent, ForwardProcessConfig, NoisedSamples
from dxmi_rl.utils.checks import check_real


@dataclass(frozen=True)
class RWRConfig(ForwardProcessConfig):
    """Settings of RWR."""

    beta: float | None = None
    """Temperature of the weights, in nats; None: the task's tau."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None:
            check_real("beta", self.beta, strict=True)


class RWR(ForwardProcessAgent[RWRConfig]):
    """Fits the policy to its own samples, weighted by exp(-E / beta): a denoising loss in which good ones count more.

    Samples x_T are noised afresh, x_t = alpha_t x_T + s_t eps, and each has the weight w = softmax(-E(x_T) / beta) over
    the batch. The loss is sum w |mu_theta(x_t) - mu_t(x_t, x_T)|^2 / (2 sigma_t^2): a weighted negative ELBO. Where it
    is wholly minimised and steps are many, one iteration leads from p to p exp(-E / beta), the next to
    p exp(-2 E / beta), and so on: no temperature holds it back, only the number of iterations does. In few steps every
    iteration also narrows p, whatever the energy: the steps lead to the mean of what x_T may be, and their sigma stays.
    """

    name: ClassVar[str] = "rwr"
    held_by_beta: ClassVar[bool] = False
    Config = RWRConfig

    def _build(self) -> None:
        self.beta = self.mdp.tau if self.config.beta is None else self.config.beta
        if self.beta == 0:
            raise ValueError("beta must be given, as the task's tau is 0: the weights are exp(-E / beta).")
        super()._build()

    def sample_weights(self, rewards: Tensor) -> Tensor:
        """exp(-E / beta), of mean 1: ``[n]``."""
        return (rewards / self.beta).softmax(0) * len(rewards)

    def policy_loss(self, noised: NoisedSamples, weights: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """The weighted mismatch over ``rows``."""
        return (weights[noised.sample[rows]] * self.mismatch(noised, noised.mean(self.policy, rows), rows)).mean()
