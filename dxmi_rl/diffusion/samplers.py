"""Base samplers: the reverse kernels p(x_{t+1} | x_t) = N(mu_t(x_t), sigma_t^2 I) that a policy starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dxmi_rl.costs import count_denoiser
from dxmi_rl.diffusion.schedules import Schedule, per_step
from dxmi_rl.utils.checks import check_real


class BaseSampler(nn.Module):
    """N(mu_t(x), sigma_t^2 I); subclasses give ``mean`` and call ``_set_sigma``.

    Attributes:
        schedule: the noise levels.
        sigma: ``[T]``.
        deterministic: True when some sigma_t is 0 (eta = 0 or sigma_last = 0): no density, no noise coordinates.
        denoiser_calls: denoiser evaluations per step and sample.
    """

    schedule: Schedule
    sigma: Tensor
    deterministic: bool = False
    denoiser_calls: int = 0

    def mean(self, x: Tensor, t: Tensor | int) -> Tensor:
        """mu_t(x): ``[batch, *event]``, t an int or LongTensor ``[batch]``."""
        raise TypeError(f"{type(self).__name__} must define mean.")

    def step(self, x: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """mu_t(x) + sigma_t noise."""
        if isinstance(t, int):
            return torch.add(self.mean(x, t), noise, alpha=self._sigmas[t])
        return self.mean(x, t) + per_step(self.sigma, t, x) * noise

    def _set_sigma(self, sigma: Tensor) -> None:
        self.register_buffer("sigma", sigma)
        self._sigmas: list[float] = sigma.tolist()  # numbers cost no work on the device


class ReverseSampler(BaseSampler):
    """DDIM(eta) reverse kernels (Song et al. 2021, arXiv 2010.02502, equations 12 and 16); eta = 1 is DDPM.

    With a = alpha_t / alpha_{t+1}, v = s_t^2 - a^2 s_{t+1}^2 and D = D(x_t, t):
    sigma_t^2 = eta^2 s_{t+1}^2 v / s_t^2,  mu_t = alpha_{t+1} D + sqrt(s_{t+1}^2 - sigma_t^2) (x_t - alpha_t D) / s_t.
    The last sigma, which is 0 there, is ``sigma_last``.
    """

    denoiser_calls = 1
    mean_denoised: Tensor
    mean_x: Tensor

    def __init__(self, schedule: Schedule, denoiser: nn.Module, *, eta: float = 1.0, sigma_last: float = 0.05) -> None:
        super().__init__()
        if check_real("eta", eta) > 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}: beyond 1 the marginals are not the schedule's.")
        check_real("sigma_last", sigma_last)
        self.schedule, self.denoiser, self.eta = schedule, denoiser, eta
        alpha = schedule.alpha
        sigma, direction = self._coefficients(schedule, eta)
        sigma[-1] = sigma_last
        self.deterministic = eta == 0 or sigma_last == 0
        self._set_sigma(sigma)
        self.register_buffer("mean_x", direction)
        self.register_buffer("mean_denoised", alpha[1:] - direction * alpha[:-1])
        self._factors = list(zip(self.mean_denoised.tolist(), self.mean_x.tolist(), strict=True))

    def _coefficients(self, schedule: Schedule, eta: float) -> tuple[Tensor, Tensor]:
        """sigma_t, and what x_t - alpha_t D is multiplied by in mu_t: ``[T]`` each."""
        _, v = schedule.forward_kernel()
        s = schedule.s
        sigma = eta * s[1:] * v.sqrt() / s[:-1]
        return sigma, (s[1:] ** 2 - sigma**2).clamp_min(0).sqrt() / s[:-1]

    def denoised(self, x: Tensor, t: Tensor | int) -> Tensor:
        """D_t(x), the denoiser's expected clean state: ``[batch, *event]``; one counted call per row."""
        count_denoiser(len(x))
        prediction: Tensor = self.denoiser(x, *self.schedule.at(t))
        return prediction

    def mean(self, x: Tensor, t: Tensor | int) -> Tensor:
        denoised = self.denoised(x, t)
        if isinstance(t, int):
            factor, factor_x = self._factors[t]
            return torch.add(factor * denoised, x, alpha=factor_x)
        return per_step(self.mean_denoised, t, x) * denoised + per_step(self.mean_x, t, x) * x


class FlowSDE(ReverseSampler):
    """Euler steps of the stochastic rectified flow that Flow-GRPO samples with (Liu et al. 2025, arXiv 2505.05470):

    dx = [v + g^2 / (2 s) (x + (1 - s) v)] ds + g dw,  g^2 = eta^2 s / (1 - s),  v = (x - D) / s

    on the schedule "flow". With d = s_t - s_{t+1} and eps = (x_t - alpha_t D) / s_t,
    mu_t = alpha_{t+1} D + (s_{t+1} - d eta^2 / (2 (1 - s_t))) eps, sigma_t^2 = eta^2 d s_t / (1 - s_t).
    DDIM's mu_t and sigma_t are the same to first order in d, and keep the schedule's marginals for any d; these
    overshoot where d is large and s near 1, the more the larger eta is. The last step is DDIM's. Raises ValueError for
    another schedule.
    """

    def _coefficients(self, schedule: Schedule, eta: float) -> tuple[Tensor, Tensor]:
        alpha, s = schedule.alpha, schedule.s
        if not torch.allclose(alpha + s, torch.ones_like(s)):
            raise ValueError("schedule must be 'flow' with base 'flow-sde', whose alpha is 1 - s.")
        step = s[:-1] - s[1:]
        sigma = eta * (step * s[:-1] / alpha[:-1]).sqrt()
        direction = (s[1:] - step * eta**2 / (2 * alpha[:-1])) / s[:-1]
        direction[-1] = 0.0
        return sigma, direction


class IdentitySampler(BaseSampler):
    """``base=None``: mu_t(x) = x on a variance-exploding ladder, sigma_t^2 = level_t^2 - level_{t+1}^2."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        levels = schedule.levels
        self._set_sigma((levels[:-1] ** 2 - levels[1:] ** 2).sqrt())

    def mean(self, x: Tensor, t: Tensor | int) -> Tensor:
        return x


def mixture_sigma_last(mode_std: float, level_min: float) -> float:
    """Posterior standard deviation of x_clean at level ``level_min`` inside one mode: (1/std^2 + 1/level^2)^(-1/2)."""
    return 1 / math.sqrt(1 / mode_std**2 + 1 / level_min**2)


@torch.no_grad()
def sample_base(
    base: BaseSampler,
    n: int,
    event_shape: tuple[int, ...],
    generator: torch.Generator | None,
    *,
    last_noise: bool = True,
) -> Tensor:
    """Draw ``[n, *event_shape]``; ``last_noise=False`` takes the last step's mean, as training-free samplers do."""
    sigma = base.sigma
    x = base.schedule.start_std * torch.randn(
        n, *event_shape, generator=generator, device=sigma.device, dtype=sigma.dtype
    )
    steps = len(sigma)
    for t in range(steps):
        if t == steps - 1 and not last_noise:
            return base.mean(x, t)
        x = base.step(x, t, torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype))
    return x
