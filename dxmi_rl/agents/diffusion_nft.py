"""DiffusionNFT, negative-aware fine-tuning (Zheng et al. 2025, arXiv 2509.16117): regression on the forward process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents import ops
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.forward_process import NoisedSamples, noised_samples, reverse_sampler
from dxmi_rl.agents.policies import GaussianPolicy, collect, make_policy, policy_optimizer
from dxmi_rl.agents.settings import PolicyConfig
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import gradient_step

SMALLEST_ERROR = 1e-5
"""Least mean error that a loss is divided by."""


@dataclass(frozen=True)
class DiffusionNFTConfig:
    """Settings of DiffusionNFT."""

    n_trajectories: int = 64
    """Samples per iteration."""
    mixing: float = 1.0
    """The paper's beta: how far the positive and the negative policy lie from the one before the iteration."""
    advantage_clip: float = 5.0
    """Standard deviations of the reward at which a sample is wholly good or wholly bad."""
    kl_weight: float = 1e-2
    """Weight of the squared distance of denoised states from the base sampler's, in units of the data's scale."""
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
        for key in ("mixing", "advantage_clip", "max_grad_norm"):
            check_real(key, getattr(self, key), strict=True)
        check_real("kl_weight", self.kl_weight)


class DiffusionNFT(Agent[DiffusionNFTConfig]):
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
    needs_denoiser: ClassVar[bool] = True
    Config = DiffusionNFTConfig
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
            good = self.goodness(ops.terminal_rewards(self.mdp, trajectory)[-1])
            noised = noised_samples(self.mdp, self.policy, trajectory.final, config.draws, self.generator)
            before = noised.mean(self.policy)
        for _ in range(config.n_epochs):
            order = torch.randperm(len(noised.x), generator=self.generator, device=noised.x.device)
            for rows in order.chunk(config.n_minibatches):
                loss = self.policy_loss(noised, good, before, rows)
                log["policy_loss"] = gradient_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm)
        return log

    def goodness(self, rewards: Tensor) -> Tensor:
        """r, in [0, 1]: ``[n]``; one half for all where rewards do not differ."""
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        return (0.5 + advantages / (2 * self.config.advantage_clip)).clamp(0.0, 1.0)

    def policy_loss(self, noised: NoisedSamples, good: Tensor, before: Tensor, rows: Tensor) -> Tensor:
        """The loss above, over ``rows``; ``before`` are the old policy's means."""
        config, final = self.config, noised.final[rows]
        new, old, base = (self._denoised(noised, mean, rows) for mean in
                          (noised.mean(self.policy, rows), before[rows], noised.base[rows]))  # fmt: skip
        move = config.mixing * (new - old)
        r = good[noised.sample[rows]]
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
