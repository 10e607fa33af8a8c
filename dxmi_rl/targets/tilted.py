"""Rewards as targets: a density tilted by a reward, q(x) proportional to p(x) exp(r(x) / beta)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from dxmi_rl.targets.base import Modes, Target, TargetError, digest_of_function
from dxmi_rl.targets.image_rewards import (
    Compressibility,
    DigitClass,
    Inpainting,
    MeanColor,
    StrokeWidth,
    SuperResolution,
)
from dxmi_rl.targets.mixtures import GaussianMixture, eight_gaussians, gmm25
from dxmi_rl.targets.rewards import QuadraticReward, WithinData
from dxmi_rl.utils.checks import check_real
from dxmi_rl.utils.registry import Registry, UnknownNameError
from dxmi_rl.utils.torch_tools import evaluation_mode

Reward = Callable[[Tensor], Tensor]
"""r(x), ``[batch, *event_shape] -> [batch]``; larger is better."""
PROBES = 16
"""Normal states at which a reward's gradient is looked at."""
NEGLIGIBLE = 1e-3
"""Weight below which a component of a tilted mixture is not counted among its modes."""


class RewardEnergy(nn.Module):
    """E(x) = -r(x) / beta: the energy of a reward alone, which tilts a base sampler (backward "base").

    Args:
        reward: r, a function or module ``[batch, *event_shape] -> [batch]``. A module becomes a submodule and is called
            in eval mode.
        beta: strength of the pull to what is tilted, in units of r.
        target: what says the shape, dtype and device of x.
        differentiable: whether r has a gradient in x; None: found out by trying (a step function, such as a rounded
            reward, has none). False: the energy gives none, so agents treat it as a black box.

    Raises TypeError for a reward that is not callable; TargetError for one that fails on states of zeros or returns
    another shape or kind of numbers, and for one that is said to have a gradient and has none; ValueError for
    beta <= 0.
    """

    def __init__(
        self, reward: Reward, beta: float, target: Target, *, differentiable: bool | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        if not callable(reward):
            raise TypeError(f"reward must be a function or module [batch, ...] -> [batch], got {reward!r}.")
        self.reward = reward.to(target.device) if isinstance(reward, nn.Module) else reward
        self.beta = check_real("beta", beta, strict=True)
        rows = 3 if target.event_shape[0] != 3 else 4  # another number than that of any coordinate
        has_gradient = self._has_gradient(target.anchor.new_zeros(rows, *target.event_shape), target.scale)
        if differentiable and not has_gradient:
            raise TargetError("the reward has no gradient in x: pass differentiable=False, or None.")
        self.differentiable = has_gradient if differentiable is None else differentiable

    def _has_gradient(self, x: Tensor, scale: float) -> bool:
        with torch.no_grad():
            self.rewards(x)  # any failure without gradients is raised
        with torch.enable_grad():
            try:
                values = self.rewards(x.requires_grad_())
            except TargetError:
                return False
            if not values.requires_grad or torch.autograd.grad(values.sum(), x, allow_unused=True)[0] is None:
                return False
            draws = torch.randn(PROBES, *x.shape[1:], generator=torch.Generator().manual_seed(0))
            values = self.rewards(x := (scale * draws).to(x).requires_grad_())
            slope = torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
            # A step function has slope 0 where it has one; where all values are the same it says nothing.
            return (slope is not None and bool(slope.any())) or bool((values == values[0]).all())

    def rewards(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]`` in the dtype of x. Raises TargetError when it fails or returns something else."""
        return _values("reward", self.reward, x)

    def digest(self, target: Target) -> str:
        """Sixteen hex digits that tell rewards apart (``digest_of_function``)."""
        return digest_of_function(self.rewards, target)

    def forward(self, x: Tensor) -> Tensor:
        """E(x), ``[batch]``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            return -self.rewards(x) / self.beta


class Tilted(Target):
    """A density p tilted by a reward: E(x) = E_p(x) - r(x) / beta, so q(x) = p(x) exp(r(x) / beta) / Z.

    q maximises E_q[r] - beta KL(q || p). The base sampler of tasks on it is that of p. log Z is log E_p[exp(r / beta)],
    relative to p's; for any r it is unknown, and there are no samples.

    Args:
        untilted: p, with an energy.
        reward, beta, differentiable: as of RewardEnergy; where r has no gradient, the whole energy has none.
        true_reward: what ``reward`` stands for, when it is a proxy.

    Samples have scores of their own: ``reward``, the mean of r, and with a ``true_reward`` its mean.

    Raises TargetError for p without an energy, and what RewardEnergy does.
    """

    has_energy: ClassVar[bool] = True

    def __init__(
        self, untilted: Target, reward: Reward, beta: float = 1.0, *, differentiable: bool | None = None,
        true_reward: Reward | None = None,
    ) -> None:  # fmt: skip
        if isinstance(untilted, Tilted):
            raise TargetError(f"target {untilted.name!r} has a reward already: tilt the target that it tilts.")
        if not untilted.has_energy:
            raise TargetError(
                f"target {untilted.name!r} has no density that a reward could tilt: pass backward='base', which tilts "
                "the base sampler (track 'fine-tune')."
            )
        super().__init__(
            untilted.event_shape, scale=untilted.scale, smallest_scale=untilted.smallest_scale,
            plot_range=untilted.plot_range,
        )  # fmt: skip
        self.untilted, self.true_reward = untilted, true_reward
        self.tilting = RewardEnergy(reward, beta, untilted, differentiable=differentiable)
        """-r(x) / beta."""
        self.name = f"{untilted.name} tilted"

    @property
    def reward(self) -> Reward:
        """r."""
        return self.tilting.reward

    @property
    def beta(self) -> float:
        """Strength of the pull to p."""
        return self.tilting.beta

    @property
    def differentiable(self) -> bool:
        """Whether the energy has a gradient."""
        return self.tilting.differentiable

    def _energy(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            tilting: Tensor = self.tilting(x)
            return self.untilted.energy(x) + tilting

    def own_scores(self, x: Tensor) -> dict[str, float]:
        """``reward``, and ``true_reward`` where there is one: means over x ``[n, *event_shape]``."""
        with torch.no_grad():
            scores = {"reward": float(self.tilting.rewards(x).double().mean())}
            if self.true_reward is not None:
                scores["true_reward"] = float(_values("true_reward", self.true_reward, x).double().mean())
        return scores


class TiltedMixture(Tilted):
    """An isotropic Gaussian mixture tilted by a quadratic reward, which is a Gaussian mixture again.

    With p = sum_k w_k N(m_k, s^2 I) and r(x) = c + b . x - x^T A x / 2, component k becomes N(L^-1 h_k, L^-1), with
    L = I / s^2 + A / beta and h_k = m_k / s^2 + b / beta, at a log weight of
    log w_k + (h_k^T L^-1 h_k - |m_k|^2 / s^2 - log det(s^2 L)) / 2 + c / beta; log Z is their logsumexp. So there are
    exact samples, log Z and the exact mean reward. Scores of samples have ``over_optimisation``, too: the mean of r
    beyond the exact one. Modes are components of a weight of at least a thousandth.

    Raises ValueError where L is not positive definite: r grows faster than log p falls.
    """

    has_sampler: ClassVar[bool] = True
    task_kind: ClassVar[str | None] = "mixture"
    untilted: GaussianMixture
    means: Tensor
    root: Tensor
    weights: Tensor

    def __init__(
        self, untilted: GaussianMixture, reward: QuadraticReward, beta: float = 1.0, *,
        differentiable: bool | None = None, true_reward: Reward | None = None,
    ) -> None:  # fmt: skip
        super().__init__(untilted, reward, beta, differentiable=differentiable, true_reward=true_reward)
        means, variance = untilted.means.cpu().double(), untilted.std**2
        linear, curvature = reward.linear.cpu(), reward.curvature.cpu()
        precision = torch.eye(self.dim, dtype=torch.float64) / variance + curvature / self.beta
        if float(torch.linalg.eigvalsh(precision).min()) <= 0:
            raise ValueError(f"beta must be so large that p(x) exp(r(x) / beta) is a density, got {beta!r}.")
        covariance = torch.linalg.inv(precision)
        h = means / variance + linear / self.beta
        centers = h @ covariance
        log_weights = untilted.weights.cpu().double().log() + reward.constant / self.beta
        log_weights = log_weights + ((h * centers).sum(1) - means.square().sum(1) / variance) / 2
        log_weights = log_weights - torch.logdet(variance * precision) / 2
        self.log_z = float(log_weights.logsumexp(0))
        weights = log_weights.softmax(0)
        squares = (centers @ curvature * centers).sum(1) + (curvature * covariance).sum()
        self.mean_reward = float(weights @ (centers @ linear - squares / 2)) + reward.constant
        """The exact mean of r."""
        spread = (centers - weights @ centers).square().T @ weights
        self.scale = float((spread.mean() + covariance.diagonal().mean()).sqrt())
        eigenvalues = torch.linalg.eigvalsh(covariance)
        self.smallest_scale = float(eigenvalues.min().sqrt())
        self.largest_scale = float(eigenvalues.max().sqrt())
        dtype = untilted.means.dtype
        like = {"dtype": dtype, "device": untilted.device}
        self.register_buffer("means", centers.to(**like))
        self.register_buffer("root", torch.linalg.cholesky(covariance).to(**like))
        self.register_buffer("weights", weights.to(**like), persistent=False)

    @property
    def modes(self) -> Modes:
        """Its components that are not negligible; ``std`` is the largest over directions."""
        kept = self.weights >= min(NEGLIGIBLE, float(self.weights.max()))
        weights = self.weights[kept]
        return Modes(self.means[kept], self.largest_scale, weights / weights.sum())

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        modes = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, device=self.device, dtype=self.means.dtype)
        return self.means[modes] + noise @ self.root.T

    def own_scores(self, x: Tensor) -> dict[str, float]:
        scores = super().own_scores(x)
        return scores | {"over_optimisation": scores["reward"] - self.mean_reward}


REWARDS: Registry[Callable[..., nn.Module]] = Registry("reward")
"""Named rewards: ``REWARDS[name](target, **options)`` is r."""
REWARDS.add("digit-class", DigitClass)
REWARDS.add("stroke-width", StrokeWidth)
REWARDS.add("mean-color", MeanColor)
REWARDS.add("compressibility", Compressibility)
REWARDS.add("inpainting", Inpainting)
REWARDS.add("super-resolution", SuperResolution)


def make_reward(reward: Reward | str, target: Target, **options: object) -> Reward:
    """A named reward for states of ``target``, or a function or module of your own, which has no options.

    Raises UnknownNameError for an unknown name or option, ValueError for one that is missing, TypeError for what is
    neither.
    """
    if callable(reward):
        if options:
            raise ValueError(f"reward_options belong to a named reward, got {options!r}.")
        return reward
    if not isinstance(reward, str):
        raise TypeError(f"reward must be a name, a function or a module [batch, ...] -> [batch], got {reward!r}.")
    builder = REWARDS[reward]
    known = list(inspect.signature(builder).parameters)[1:]
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of reward {reward!r}", key, known)
    for key, parameter in list(inspect.signature(builder).parameters.items())[1:]:
        if parameter.default is parameter.empty and key not in options:
            raise ValueError(f"reward {reward!r} needs an option: reward_options={{{key!r}: ...}}.")
    return builder(target, **options)


def tilt(target: Target, reward: Reward, beta: float = 1.0, *, differentiable: bool | None = None) -> Tilted:
    """p(x) exp(r(x) / beta) / Z of a target p: exact where p is a mixture and r quadratic, else its energy alone."""
    if isinstance(target, GaussianMixture) and isinstance(reward, QuadraticReward):
        return TiltedMixture(target, reward, beta, differentiable=differentiable)
    return Tilted(target, reward, beta, differentiable=differentiable)


def _values(name: str, function: Reward, x: Tensor) -> Tensor:
    with evaluation_mode(function):
        try:
            value = function(x.clone())  # one that works in place changes nothing of ours
        except Exception as error:
            raise TargetError(
                f"the {name} fails for a batch of shape {list(x.shape)}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(value, Tensor) or value.shape != x.shape[:1] or value.is_complex():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(f"the {name} must return a tensor of shape [{len(x)}], got {found}.")
    return value.to(x.dtype)


def eight_gaussians_tilted(beta: float = 1.0) -> TiltedMixture:
    """8gaussians tilted toward its rightmost mode: r(x) = -|x - (2.83, 0)|^2 / 2."""
    return TiltedMixture(eight_gaussians(), QuadraticReward.near((4 / 1.414, 0.0)), beta)


def eight_gaussians_proxy(beta: float = 1.0) -> TiltedMixture:
    """8gaussians tilted to the right by a proxy, r(x) = x_1.

    The true reward agrees within three standard deviations of a mode, and falls by u^2 / 2 at u standard deviations
    beyond: what gains r by leaving the data loses there.
    """
    mixture = eight_gaussians()
    reward = QuadraticReward((1.0, 0.0))
    return TiltedMixture(mixture, reward, beta, true_reward=WithinData(reward, mixture))


def gmm25_tilted(beta: float = 1.0) -> TiltedMixture:
    """gmm25 tilted to the right: r(x) = 0.2 x_1."""
    return TiltedMixture(gmm25(), QuadraticReward((0.2, 0.0)), beta)


def gmm25_posterior(beta: float = 1.0) -> TiltedMixture:
    """gmm25 given a measurement of its second coordinate, 2 with noise of standard deviation 1 (inpainting).

    At beta = 1 it is the posterior of the mixture; the first coordinate is free.
    """
    return TiltedMixture(gmm25(), QuadraticReward.measurement([[0.0, 1.0]], [2.0], 1.0), beta)
