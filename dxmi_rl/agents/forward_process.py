"""Noised samples, for agents that regress on the forward process: no likelihood of the steps that made the samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dxmi_rl.agents.policies import CorrectionPolicy, GaussianPolicy
from dxmi_rl.diffusion.samplers import ReverseSampler
from dxmi_rl.diffusion.schedules import per_step
from dxmi_rl.mdp import DenoisingMDP


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
