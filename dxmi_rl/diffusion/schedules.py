"""Noise schedules: x_t = alpha_t x_clean + s_t eps, t = 0 (noise) .. T (clean)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import Registry, UnknownNameError


class Schedule(nn.Module):
    """``alpha`` and ``s``, both ``[T + 1]``, with s_t / alpha_t falling in t; ``start_std`` is s0 of x_0.

    ``codes``, ``[T, C]``, is what networks are told of each step where they serve several horizons (``level_codes``) or
    classes (``tell_class``); None: its number, one-hot.

    Raises ValueError unless the noise levels s / alpha fall strictly and alpha is positive.
    """

    alpha: Tensor
    s: Tensor
    codes: Tensor | None
    class_code: Tensor | None
    """The class among several, one-hot ``[L]``; None with one."""

    def __init__(self, alpha: np.ndarray, s: np.ndarray, start_std: float) -> None:
        super().__init__()
        alpha, s = np.asarray(alpha, dtype=np.float64), np.asarray(s, dtype=np.float64)
        if alpha.shape != s.shape or alpha.ndim != 1 or len(alpha) < 2:
            raise ValueError(f"alpha and s must both have shape [T + 1], got {alpha.shape} and {s.shape}.")
        levels = s / alpha
        if not (np.isfinite(levels).all() and (alpha > 0).all() and (np.diff(levels) < 0).all() and levels[-1] >= 0):
            raise ValueError(f"noise levels s / alpha must be finite and fall strictly, got {levels}.")
        self.start_std = start_std
        self._numbers = list(zip(alpha.tolist(), s.tolist(), strict=True))
        dtype = torch.get_default_dtype()
        self.register_buffer("alpha", torch.as_tensor(alpha, dtype=dtype))
        self.register_buffer("s", torch.as_tensor(s, dtype=dtype))
        self.register_buffer("codes", None, persistent=False)
        self.register_buffer("class_code", None, persistent=False)

    @property
    def horizon(self) -> int:
        """Number of steps T."""
        return len(self.alpha) - 1

    @property
    def several_horizons(self) -> bool:
        """Whether it is one of several numbers of steps."""
        return self.codes is not None and self.class_code is None

    def tell_class(self, place: int, classes: int) -> None:
        """Let networks be told that this is the class at ``place`` of so many."""
        self.class_code = torch.eye(classes, dtype=self.alpha.dtype, device=self.alpha.device)[place]
        self.codes = self.class_codes(self.horizon)

    def class_codes(self, steps: int) -> Tensor | None:
        """The numbers of so many steps, one-hot, with the class: ``[steps, steps + L]``; None with one class."""
        if self.class_code is None:
            return None
        own = torch.eye(steps, dtype=self.alpha.dtype, device=self.alpha.device)
        return torch.cat([own, self.class_code.expand(steps, -1)], dim=1)

    @property
    def levels(self) -> Tensor:
        """Noise levels s_t / alpha_t, ``[T + 1]``."""
        return self.s / self.alpha

    def at(self, t: Tensor | int) -> tuple[float | Tensor, float | Tensor]:
        """alpha_t and s_t: numbers for an int t, which costs no work on the device, tensors ``[batch]`` otherwise."""
        return self._numbers[t] if isinstance(t, int) else (self.alpha[t], self.s[t])

    def forward_kernel(self) -> tuple[Tensor, Tensor]:
        """Coefficients of q(x_t | x_{t+1}) = N(a_t x_{t+1}, v_t I), both ``[T]`` (docs/method.md, Forward)."""
        a = self.alpha[:-1] / self.alpha[1:]
        return a, self.s[:-1] ** 2 - a**2 * self.s[1:] ** 2


def level_codes(schedule: Schedule, lowest: float, highest: float) -> Tensor:
    """The noise levels l_t and l_{t+1} of every step as networks of several horizons are told them: ``[T, 5]``.

    Either level is given as (1 - p, p), p its place between ``lowest`` and ``highest`` in log l; the last number is 1
    where l_{t+1} is 0, and its place 0 and 0. So a level between two others has a code between theirs.
    """
    levels = schedule.levels.double()[:, None]
    place = ((levels.clamp_min(lowest) / lowest).log() / math.log(highest / lowest)).clamp_max(1)
    weights = torch.where(levels == 0, 0.0, torch.cat([1 - place, place], dim=1))
    return torch.cat([weights[:-1], weights[1:], (levels[1:] == 0).double()], dim=1).to(schedule.alpha.dtype)


FAR = 0.15
"""Steps farther than this from all trained ones, in places from 0 to 1, are leaps that no training has taught."""
CHOICES = 201
"""Levels that a ladder for another number of steps chooses from."""


def trained_ladder(own: Schedule, trained: Sequence[Schedule]) -> Schedule:
    """The noise levels for a number of steps T that networks of several horizons were not trained for.

    A step leads from one level to the next, each told by its place between the lowest and the highest in log l
    (``level_codes``); two steps are as far from each other as their two places (Euclidean). Where every step of
    ``own``, the schedule's levels for T, is near one of ``trained``, that is ``own``. Elsewhere it has the T steps with
    the least sum of squared distances from trained steps, by dynamic programming over levels even in log l; their
    log alpha is interpolated between those of ``trained``.
    """
    known_alpha, known_s = np.array([pair for one in trained for pair in one._numbers]).T
    known_levels = known_s / known_alpha
    noisy = np.argsort(known_levels)[np.count_nonzero(known_levels == 0) :]
    highest, lowest = known_levels[noisy[-1]], known_levels[noisy[0]]

    def steps(one: Schedule) -> np.ndarray:
        levels = np.array([s / alpha for alpha, s in one._numbers])
        places = np.log(np.maximum(levels, lowest) / lowest) / np.log(highest / lowest)
        places = np.where(levels == 0, -1.0, places)  # apart from all others
        return np.stack([places[:-1], places[1:]], axis=-1)

    taught = np.concatenate([steps(one) for one in trained])

    def squared(wanted: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.square(wanted[..., None, :] - taught).sum(-1).min(-1)
        return found

    if squared(steps(own)).max() <= FAR**2:
        return own
    places = np.append(np.linspace(1, 0, CHOICES), -1.0)
    costs = squared(np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1))
    costs[np.tril_indices(len(places))] = np.inf  # levels fall
    least, before = np.where(places == 1, 0.0, np.inf), []
    for _ in range(own.horizon):
        sums = least[:, None] + costs
        least = sums.min(0)
        before.append(sums.argmin(0))
    path = [len(places) - 1]
    for choice in reversed(before):
        path.insert(0, int(choice[path[0]]))
    levels = lowest * (highest / lowest) ** places[path[:-1]]
    alpha = np.exp(np.interp(np.log(levels), np.log(known_levels[noisy]), np.log(known_alpha[noisy])))
    clean = known_alpha[known_levels == 0].max()
    return Schedule(np.append(alpha, clean), np.append(levels * alpha, 0.0), own.start_std)


def per_step(table: Tensor, t: Tensor | int, x: Tensor) -> Tensor:
    """``table[t]`` shaped to broadcast against ``x``: a scalar for an int t, ``[batch, 1, ...]`` for a LongTensor."""
    return table[t] if isinstance(t, int) else table[t].view(-1, *[1] * (x.dim() - 1))


def _variance_preserving(levels: np.ndarray, scale: float) -> Schedule:
    alpha = 1 / np.sqrt(1 + (levels / scale) ** 2)
    return Schedule(alpha, levels * alpha, start_std=scale)


def variance_exploding(schedule: Schedule) -> Schedule:
    """The same noise levels with alpha = 1, as EDM's samplers run: x_t = x_clean + level_t eps, x_0 of std level_0.

    With it DDIM(eta) is the Euler ancestral sampler that EDM's and consistency models' users know, sigma_up =
    eta level_{t+1} sqrt(level_t^2 - level_{t+1}^2) / level_t (Karras et al. 2022, arXiv 2206.00364, in k-diffusion).
    """
    levels = schedule.levels.double().cpu().numpy()
    return Schedule(np.ones_like(levels), levels, start_std=float(levels[0]))


def _from_betas(betas: np.ndarray) -> Schedule:
    """betas run from clean to noisy, as in the literature; our t runs from noise to clean."""
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])[::-1]
    return Schedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), start_std=1.0)


def karras(
    horizon: int, *, level_max: float = 10.0, level_min: float = 0.15, rho: float = 3.0, scale: float = 1.0
) -> Schedule:
    """Karras et al. 2022 (arXiv 2206.00364, equation 5) noise levels, then 0, in variance-preserving coordinates.

    ``scale`` is the standard deviation of x_0; alpha_t = (1 + (level / scale)^2)^(-1/2).
    """
    root = np.linspace(level_max ** (1 / rho), level_min ** (1 / rho), horizon)
    return _variance_preserving(np.append(root**rho, 0.0), scale)


def cosine(horizon: int, *, alpha_bar_min: float = 0.01) -> Schedule:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672, equation 17), from the time where alpha-bar is ``alpha_bar_min``.

    Their own clipping of beta plays the same part: at alpha-bar = 0 a denoiser's x_clean has no meaning.
    """
    if not 0 < alpha_bar_min < 1:
        raise ValueError(f"alpha_bar_min must lie in (0, 1), got {alpha_bar_min}.")
    offset = 0.008 / 1.008 * math.pi / 2
    last = math.acos(math.sqrt(alpha_bar_min) * math.cos(offset))
    alpha_bar = (np.cos(np.linspace(last, offset, horizon + 1)) / math.cos(offset)) ** 2
    alpha_bar[-1] = 1.0
    return Schedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), start_std=1.0)


def var_betas(horizon: int, shape: str, beta_0: float = 1e-4, beta_last: float = 0.02, steps: int = 1000) -> np.ndarray:
    """FastDPM's VAR betas (Kong and Ping 2021, arXiv 2106.00132), clean to noisy, ``[horizon]``.

    Linear: beta_0 .. x; quadratic: beta_0 (1 + i x)^2; x is solved so that the product of (1 - beta) equals that of
    the ``steps``-step DDPM schedule, within FastDPM's caps on x (0.99, and 0.95 / (T sqrt(beta_0))).
    """
    from scipy.optimize import brentq

    check_integer("horizon", horizon, minimum=2)  # one step from beta_0 would start almost clean
    wanted = float(np.log1p(-np.linspace(beta_0, beta_last, steps)).sum())

    def betas(x: float) -> np.ndarray:
        if shape == "linear":
            return np.linspace(beta_0, x, horizon)
        return beta_0 * (1 + np.arange(horizon) * x) ** 2

    low, high = (beta_0, 0.99) if shape == "linear" else (0.0, 0.95 / (horizon * math.sqrt(beta_0)))

    def excess(x: float) -> float:
        return float(np.log1p(-betas(x)).sum()) - wanted

    return betas(high if excess(high) >= 0 else brentq(excess, low, high))


def var_linear(horizon: int) -> Schedule:
    """FastDPM VAR schedule with linear betas."""
    return _from_betas(var_betas(horizon, "linear"))


def var_quadratic(horizon: int) -> Schedule:
    """FastDPM VAR schedule with quadratic betas (the DxMI paper's)."""
    return _from_betas(var_betas(horizon, "quadratic"))


def quadratic(horizon: int, *, beta_first: float = 0.05, beta_last: float = 0.8) -> Schedule:
    """Betas whose square roots are evenly spaced, clean to noisy; few steps of these still reach noise."""
    _check_betas(horizon, beta_first, beta_last)
    return _from_betas(np.linspace(math.sqrt(beta_first), math.sqrt(beta_last), horizon) ** 2)


def sigmoid(horizon: int, *, beta_first: float = 1e-5, beta_last: float = 1e-2) -> Schedule:
    """Betas beta_first + (beta_last - beta_first) s(u), u from -6 to 6 evenly, s the sigmoid, clean to noisy.

    In few steps the default barely noises the data, while x_0 stays N(0, I): a poor start on purpose.
    """
    _check_betas(horizon, beta_first, beta_last)
    shape = 1 / (1 + np.exp(-np.linspace(-6, 6, horizon)))
    return _from_betas(beta_first + (beta_last - beta_first) * shape)


def _check_betas(horizon: int, beta_first: float, beta_last: float) -> None:
    check_integer("horizon", horizon, minimum=2)  # one step would have beta_first only
    if not 0 < beta_first <= beta_last < 1:
        raise ValueError(f"betas must have 0 < beta_first <= beta_last < 1, got {beta_first} and {beta_last}.")


def geometric(horizon: int, *, level_max: float = 8.0, level_min: float = 0.4) -> Schedule:
    """The variance-exploding ladder of from-scratch tasks: alpha = 1, levels geometric from s0 to sigma_min."""
    levels = np.append(np.geomspace(level_max, level_min, horizon), 0.0)
    return Schedule(np.ones(horizon + 1), levels, start_std=level_max)


def flow(horizon: int, *, s_max: float = 0.95, shift: float = 1.0) -> Schedule:
    """Rectified flow (Liu et al. 2022, arXiv 2209.03003): x_s = (1 - s) x_clean + s eps, s even from ``s_max`` to 0.

    ``shift`` k moves them to k s / (1 + (k - 1) s), towards noise for k > 1 (Esser et al. 2024, arXiv 2403.03206). At
    s = 1 a state has no signal left, so s_max is below 1.
    """
    if not 0 < s_max < 1:
        raise ValueError(f"s_max must lie in (0, 1), got {s_max}.")
    s = np.linspace(s_max, 0.0, horizon + 1)
    s = shift * s / (1 + (shift - 1) * s)
    return Schedule(1 - s, s, start_std=math.hypot(1 - s[0], s[0]))


SCHEDULES: Registry[Callable[..., Schedule]] = Registry("schedule")
SCHEDULES.add("karras", karras)
SCHEDULES.add("cosine", cosine)
SCHEDULES.add("var-linear", var_linear)
SCHEDULES.add("var-quadratic", var_quadratic)
SCHEDULES.add("quadratic", quadratic)
SCHEDULES.add("sigmoid", sigmoid)
SCHEDULES.add("geometric", geometric)
SCHEDULES.add("flow", flow)


def make_schedule(name: str, horizon: int, **options: float) -> Schedule:
    """Build the schedule ``name`` with T = ``horizon`` steps.

    Raises UnknownNameError for an unknown name or option, ValueError for horizon < 1 or options out of range.
    """
    builder = SCHEDULES[name]
    check_integer("horizon", horizon)
    known = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in options.items():
        if key not in known:
            raise UnknownNameError(f"option of schedule {name!r}", key, known)
        check_real(key, value, strict=True)
    return builder(horizon, **options)
