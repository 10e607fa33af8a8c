"""DiffusionNFT, negative-aware fine-tuning (Zheng et al. 2025, arXiv 2509.16117): regression on the forward process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dxmi_rl.agents.forward_process import ForwardProcessAgent, ForwardProcessConfig, NoisedSamples, reverse_sampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.utils.checks import check_real

SMALLEST_ERROR = 1e-5
"""Least mean error that a loss is divided by."""


@dataclass(frozen=True)
class DiffusionNFTConfig(ForwardProcessConfig):
    """Settings of DiffusionNFT."""

    mixing: float = 1.0
    """The paper's beta: how far the positive and the negative policy lie from the one before the iteration."""
    advantage_clip: float = 5.0
    """Standard deviations of the reward at which a sample is wholly good or wholly bad."""
    kl_weight: float = 1e-2
    """Weight of the squared distance of denoised states from the base sampler's, in units of the data's scale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("mixing", "advantage_clip"):
            check_real(key, getattr(self, key), strict=True)
        check_real("kl_weight", self.kl_weight)


class DiffusionNFT(ForwardProcessAgent[DiffusionNFTConfig]):
    """Contrasts good and bad samples of its own in the denoising loss; no likelihood at all.

    With D_old the denoised state of the policy before the iteration and b = ``mixing``, the positive policy has
    D+ = D_old + b (D_theta - D_old) and the negative one D- = D_old - b (D_theta - D_old). The loss is

        [r |D+ - x_T|^2 / e+ + (1 - r) |D- - x_T|^2 / e-] / b + kl_weight |D_theta - D_base|^2,

    on noised samples, with r = 1/2 + A / (2 ``advantage_clip``) in [0, 1], A the reward -E in standard deviations from
    the batch's mean, and e the mean absolute errors, as constants (the paper's self-normalisation). Its aim is the
    largest reward, and no temperature holds it back; kl_weight and the number of iterations do. The policy of each
    iteration draws the samples (the paper's average of policies with rate 0).
    """

    name: ClassVar[str] = "diffusion-nft"
    held_by_beta: ClassVar[bool] = False
    Config = DiffusionNFTConfig

    def sample_weights(self, rewards: Tensor) -> Tensor:
        """r, in [0, 1]: ``[n]``; one half for all where rewards do not differ."""
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        return (0.5 + advantages / (2 * self.config.advantage_clip)).clamp(0.0, 1.0)

    def policy_loss(self, noised: NoisedSamples, weights: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """The loss above, over ``rows``; ``weights`` are r, ``before`` the old policy's means."""
        config, final = self.config, noised.final[rows]
        new, old, base = (self._denoised(noised, mean, rows) for mean in
                          (noised.mean(self.policy, rows), before[rows], noised.base[rows]))  # fmt: skip
        move = config.mixing * (new - old)
        r = weights[noised.sample[rows]]
        errors = [_normalised_error(old + sign * move - final) for sign in (1.0, -1.0)]
        contrast = (r * errors[0] + (1 - r) * errors[1]) / config.mixing
        distance = ((new - base) / self.mdp.scale).flatten(1).square().mean(1)
        return (contrast / self.mdp.scale + config.kl_weight * distance).mean()

    def _denoised(self, noised: NoisedSamples, mean: Tensor, rows: Tensor) -> Tensor:
        """D of a policy with this mean of x_{t+1}: the state that the base sampler's step would move to it."""
        base, x, t = reverse_sampler(self.mdp), noised.x[rows], noised.t[rows]
        return (mean - per_step(base.mean_x, t, x) * x) / per_step(base.mean_denoised, t, x)


def _normalised_error(error: Tensor) -> Tensor:
    """Mean square over mean absolute value, the latter a constant: ``[rows]``."""
    flat = error.flatten(1)
    return flat.square().mean(1) / flat.abs().mean(1).detach().clamp_min(SMALLEST_ERROR)
