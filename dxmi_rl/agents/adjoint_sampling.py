"""Adjoint sampling (Havens et al. 2025, arXiv 2504.11713): many gradient steps per energy evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dxmi_rl.agents.aims import check_own_steps
from dxmi_rl.agents.base import Agent, FinalStateHook, Log
from dxmi_rl.agents.policies import CorrectionPolicy, GaussianPolicy, collect, policy_optimizer
from dxmi_rl.agents.settings import MeanConfig
from dxmi_rl.diffusion.samplers import BaseSampler
from dxmi_rl.diffusion.schedules import Schedule, per_step
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.torch_tools import gradient_step

LARGEST_SHIFT = 5.0
"""Largest change of a mean that is aimed at, in sigmas per dimension (root mean square)."""


@dataclass(frozen=True)
class AdjointSamplingConfig:
    """Settings of AdjointSampling."""

    n_trajectories: int = 32
    """Trajectories per iteration."""
    policy_steps: int = 32
    """Policy steps per rollout, on final states of the replay."""
    batch_size: int = 256
    """Pairs (x_t, x_T) per policy step."""
    replay: int = 10_000
    """Final states that are kept with their gradients."""
    max_grad_norm: float = 1.0
    """Largest norm of a policy gradient."""
    kernel_steps: int = 4
    """Fits of the backward kernel per rollout; the objective does not use it, but evaluation does."""
    anneal: bool = True
    """Cosine learning rates over ``learn``'s budget; False keeps them constant."""
    width: int = 64
    """Units per layer of the policy's network."""
    depth: int = 3
    """Its hidden layers."""
    fourier: int = 0
    """Fourier frequencies of its input."""
    coordinate_width: int = 0
    """Units per layer of a second network, which sees one coordinate at a time and is shared between all; 0: none."""
    learning_rate: float = 3e-3
    """Peak rate of the policy."""

    def __post_init__(self) -> None:
        for key in ("n_trajectories", "policy_steps", "batch_size", "replay", "kernel_steps", "width", "depth"):
            check_integer(key, getattr(self, key))
        for key in ("fourier", "coordinate_width"):
            check_integer(key, getattr(self, key), minimum=0)
        check_real("max_grad_norm", self.max_grad_norm, strict=True)
        check_real("learning_rate", self.learning_rate)

    @property
    def policy(self) -> MeanConfig:
        """The policy: a correction of the reference, whose sigma stays."""
        return MeanConfig(
            kind="correction", width=self.width, depth=self.depth, fourier=self.fourier,
            coordinate_width=self.coordinate_width, energy_gradient=False, learning_rate=self.learning_rate,
        )  # fmt: skip


class GaussianReference(BaseSampler):
    """The exact reversal r of the noising kernel from x_T ~ N(0, c^2 I), c the MDP's scale: a linear sampler.

    With the noising kernel N(a_t x_{t+1}, v_t I), G_t the product of a_t .. a_{T-1} and W_t the variance of x_t given
    x_T: r(x_t | x_T) = N(G_t x_T, W_t I), r(x_t) = N(0, S_t I) with S_t = G_t^2 c^2 + W_t, and
    r(x_{t+1} | x_t) = N((a_t S_{t+1} / S_t) x_t, (v_t S_{t+1} / S_t) I).

    Attributes:
        gain, std: G_t and sqrt(W_t), ``[T + 1]``.
        expected: d E[x_T | x_t] / dx_t = G_t c^2 / S_t, ``[T + 1]``.
        shrink: a_t S_{t+1} / S_t, ``[T]``.
        scale: c.
    """

    gain: Tensor
    std: Tensor
    expected: Tensor
    shrink: Tensor

    def __init__(self, schedule: Schedule, scale: float) -> None:
        super().__init__()
        self.schedule, self.scale = schedule, scale
        a, v = schedule.forward_kernel()
        gain, variance = [torch.ones_like(a[0])], [torch.zeros_like(a[0])]
        for t in reversed(range(schedule.horizon)):
            gain.insert(0, a[t] * gain[0])
            variance.insert(0, a[t] ** 2 * variance[0] + v[t])
        total = torch.stack(gain) ** 2 * scale**2 + torch.stack(variance)
        self.register_buffer("gain", torch.stack(gain))
        self.register_buffer("std", torch.stack(variance).sqrt())
        self.register_buffer("expected", self.gain * scale**2 / total)
        self.register_buffer("shrink", a * total[1:] / total[:-1])
        self._set_sigma((v * total[1:] / total[:-1]).sqrt())

    def mean(self, x: Tensor, t: Tensor | int) -> Tensor:
        return per_step(self.shrink, t, x) * x


class AdjointSampling(Agent[AdjointSamplingConfig]):
    """Regression of the policy's mean on gradients of E at replayed final states.

    The aim p* is exp(-E / tau) / Z noised, that is the reference r tilted by exp(-g(x_T)), g = E / tau + log r(x_T). By
    Stein's identity the mean of its reverse kernel is

        E_p*[x_{t+1} | x_t] = E_r[x_{t+1} | x_t] - Var_r(x_{t+1} | x_t) A_{t+1} E_p*[grad g(x_T) | x_t],

    A_t = d E_r[x_T | x_t] / dx_t. So the mean is regressed on the right side at pairs (x_t, x_T): x_T from the replay
    with the gradient that was paid for once, x_t ~ r(x_t | x_T) (the reciprocal projection). One evaluation with
    gradient per trajectory. On samples of p* the regression is exact for any T; the policy keeps the reference's sigma,
    though, which in few steps is not that of p*. It uses the energy, the noise levels and the scale of the MDP only, no
    denoiser.
    """

    name: ClassVar[str] = "adjoint-sampling"
    needs_gradient: ClassVar[bool] = True
    Config = AdjointSamplingConfig
    policy: GaussianPolicy

    def _build(self) -> None:
        self.require_energy()
        check_own_steps(self.name, self.mdp)
        config, mdp = self.config, self.mdp
        if mdp.tau == 0:
            raise ValueError("adjoint-sampling needs a task with tau > 0: it aims at exp(-E / tau).")
        self.reference = GaussianReference(mdp.base.schedule, mdp.scale).to(mdp.device)
        self.policy = CorrectionPolicy(mdp, config.policy, base=self.reference).to(mdp.device)
        self.policy.log_sigma.requires_grad_(False)
        self.policy_optimizer = policy_optimizer(self.policy, config.policy)
        self.final = self.gradient = torch.zeros(0, *mdp.event_shape, dtype=mdp.dtype, device=mdp.device)

    @property
    def denoiser_calls(self) -> int:
        return 0  # its reference is no denoiser

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy_optimizer}

    def iterate(self, on_final: FinalStateHook | None = None) -> Log:
        config, log = self.config, Log()
        trajectory = collect(self, self.policy, config.n_trajectories, on_final, kernel_steps=config.kernel_steps)
        if self.energy_swapped() or on_final is not None:  # a game's energy moves
            self.final, self.gradient = self.final[:0], self.gradient[:0]
        _, gradient = self.mdp.energy.value_and_gradient(trajectory.final)
        if gradient is None:
            raise ValueError("adjoint-sampling needs an energy with a gradient, and this one has none.")
        self.final = torch.cat([self.final, trajectory.final])[-config.replay :]
        self.gradient = torch.cat([self.gradient, gradient])[-config.replay :]
        for _ in range(config.policy_steps):
            loss = self.policy_loss()
            log["policy_loss"] = gradient_step(self.policy_optimizer, self.policy, loss, config.max_grad_norm)
        return log

    def policy_loss(self) -> Tensor:
        """Mean of |mean(x_t) - target|^2 / Var_r over pairs from the replay."""
        device, size = self.final.device, self.config.batch_size
        rows = torch.randint(len(self.final), (size,), generator=self.generator, device=device)
        t = torch.randint(self.mdp.horizon, (size,), generator=self.generator, device=device)
        final = self.final[rows]
        noise = torch.randn(final.shape, generator=self.generator, device=device, dtype=final.dtype)
        x = per_step(self.reference.gain, t, final) * final + per_step(self.reference.std, t, final) * noise
        mean, _ = self.policy.moments(x, t)
        error = (mean - self.target(x, t, final, self.gradient[rows])) / per_step(self.reference.sigma, t, x)
        return error.square().flatten(1).sum(1).mean()

    def target(self, x: Tensor, t: Tensor, final: Tensor, gradient: Tensor) -> Tensor:
        """E_r[x_{t+1} | x_t] - Var_r A_{t+1} (grad E(x_T) / tau + grad log r(x_T)): ``[batch, *event_shape]``."""
        reference = self.reference
        slope = gradient / self.mdp.tau - final / reference.scale**2
        sigma = per_step(reference.sigma, t, x)
        shift = sigma.square() * per_step(reference.expected, t + 1, x) * slope
        # One step down a steep gradient would overshoot, and the next one further: such a rollout explodes.
        longest = LARGEST_SHIFT * sigma * math.sqrt(self.mdp.dim)
        norm = shift.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1)).clamp_min(torch.finfo(x.dtype).tiny)
        found: Tensor = reference.mean(x, t) - shift * (longest / norm).clamp_max(1.0)
        return found

    def extra_tensors(self) -> dict[str, Tensor]:
        return {"replay/final": self.final, "replay/gradient": self.gradient}

    def set_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.final, self.gradient = (tensors[f"replay/{key}"].to(self.mdp.device) for key in ("final", "gradient"))
