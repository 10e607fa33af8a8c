"""The parts that a configuration of a task names: target, denoiser, base sampler, backward kernel."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dxmi_rl.diffusion import (
    KERNELS,
    SCHEDULES,
    BackwardKernel,
    BaseReference,
    BaseSampler,
    DenoiserMLP,
    DenoiserUNet,
    FlowSDE,
    IdentitySampler,
    MixtureDenoiser,
    ReverseSampler,
    make_kernel,
    make_schedule,
    mixture_sigma_last,
    pretrained_denoiser,
)
from dxmi_rl.diffusion.schedules import Schedule, variance_exploding
from dxmi_rl.targets import (
    REWARDS,
    DataTarget,
    GaussianMixture,
    ImageSet,
    Reward,
    Target,
    Tilted,
    make_reward,
    make_target,
    tilt,
)
from dxmi_rl.tasks.config import BASES, FROM_SCRATCH, TaskConfig
from dxmi_rl.utils.checks import check_real
from dxmi_rl.utils.registry import UnknownNameError


def reference_target(config: TaskConfig, device: torch.device | None = None) -> Target:
    """The target of a configuration with all that it has; scoring uses it on both tracks. ``device`` moves it there."""
    target = _whole_target(config)
    if config.label is not None:
        if not isinstance(target, ImageSet):
            raise ValueError(f"label must be None for target {target.name!r}, which is no set of images.")
        target = target.of_classes(labels_of(config))
    if device is not None:
        target = target.to(device)
    if config.reward is not None and config.rewarded:
        if config.backward == "base":  # the base sampler is what the reward tilts
            return target
        reward = task_reward(config, target)
        return tilt(target, reward, config.beta, differentiable=config.differentiable)
    for name, idle in (("beta", config.beta == 1.0), ("differentiable", config.differentiable is None),
                       ("reward_options", not config.reward_options)):  # fmt: skip
        if not idle:
            value = getattr(config, name)
            raise ValueError(f"{name} belongs to a reward; got {value!r} with reward={config.reward!r}.")
    return target


def _whole_target(config: TaskConfig) -> Target:
    """With the images of all classes."""
    if isinstance(config.target, Target):
        return config.target
    if not isinstance(config.target, str):
        raise TypeError(f"target must be a target's name or a Target, got {config.target!r}.")
    return make_target(config.target, **config.target_options)


def task_denoiser(config: TaskConfig, target: Target, device: torch.device) -> nn.Module:
    """The denoiser that ``config.denoiser`` names, made, trained (once), or read from a file, or is.

    Raises ValueError for a target that it does not fit, UnknownNameError for a file that is not there.
    """
    if config.denoiser == "exact":
        if not isinstance(target, GaussianMixture):
            raise ValueError(f"denoiser 'exact' needs a Gaussian mixture, not target {target.name!r}; use 'learned'.")
        denoiser: nn.Module = MixtureDenoiser(target)
    elif config.denoiser == "learned":
        if not target.has_samples:
            raise ValueError(f"target {target.name!r} has no data to train a denoiser on: pass base=None.")
        if config.pretraining.conditional and config.label is None:
            raise ValueError("label must be a class of the images with a conditional pretraining, got None.")
        whole = target if config.label is None else _whole_target(config)
        denoiser = pretrained_denoiser(whole, config.pretraining, device=device)
    elif isinstance(config.denoiser, nn.Module):
        denoiser = config.denoiser.eval()  # noise of its own would be in no density
    else:
        if not isinstance(config.denoiser, (str, os.PathLike)):
            raise TypeError(f"denoiser must be a name, a path or a module, got {config.denoiser!r}.")
        denoiser = _load(config.denoiser)
    if isinstance(denoiser, DenoiserUNet) and denoiser.event_shape != target.event_shape:
        raise ValueError(
            f"denoiser is for images {denoiser.event_shape}, and target {target.name!r} has {target.event_shape}."
        )
    return told_class(denoiser, next(iter(labels_of(config)), None))


def _load(path: str) -> nn.Module:
    file = Path(path)
    if not file.exists():
        raise UnknownNameError("denoiser", path, ["exact", "learned", "the path of a folder or file that exists"])
    if file.is_dir():
        denoiser = DenoiserUNet.from_pipeline(file)
    elif file.suffix == ".pt":
        denoiser = DenoiserUNet.from_consistency_models(file)
    else:
        denoiser = DenoiserUNet.load(file)
    return denoiser.requires_grad_(False).eval()


def labels_of(config: TaskConfig) -> tuple[int, ...]:
    """The classes, rising; none where the task does not tell them apart."""
    return config.label if isinstance(config.label, tuple) else () if config.label is None else (config.label,)


def task_reward(config: TaskConfig, target: Target) -> Reward:
    """The reward r(x) of a configuration with one class or none; what has an argument ``label`` is told the class."""
    reward, options, label = config.reward, config.reward_options, config.label
    assert reward is not None
    if isinstance(label, int):
        called = REWARDS[reward] if isinstance(reward, str) else getattr(reward, "forward", reward)
        if "label" in inspect.signature(called).parameters:
            if isinstance(reward, str):
                options = {"label": label} | options
            else:
                reward = ToldReward(reward, label)
    return make_reward(reward, target, **options)


class ToldReward(nn.Module):
    """A reward r(x, label), a function or module, at one class."""

    def __init__(self, reward: Callable[..., Tensor], label: int) -> None:
        super().__init__()
        self.reward, self.label = reward, label

    def forward(self, x: Tensor) -> Tensor:
        """r(x), ``[batch]``."""
        return self.reward(x, label=self.label)


def told_class(denoiser: nn.Module, label: int | None) -> nn.Module:
    """The denoiser as it is told this class; weights are shared, as other tasks may have other classes.

    Raises ValueError for a class that it does not know.
    """
    if isinstance(denoiser, (DenoiserUNet, DenoiserMLP)) and denoiser.classes is not None:
        if label is None or label >= denoiser.classes:
            raise ValueError(f"label must be a class of the denoiser, 0 to {denoiser.classes - 1}, got {label!r}.")
        denoiser = copy.copy(denoiser)
        denoiser.label = label
    elif label is not None:
        raise ValueError(f"label must be None with a denoiser that is told no class, got {label!r}.")
    return denoiser


def build_kernel(config: TaskConfig, target: Target, base: BaseSampler) -> BackwardKernel:
    """A new backward kernel for this base sampler; a network is initialised from torch's present stream."""
    if KERNELS[config.backward] is BaseReference:
        if config.backward_options:
            raise ValueError(f"backward_options must be empty with backward 'base', got {config.backward_options!r}.")
        return BaseReference(base)
    scale = of_base(config, target).scale
    return make_kernel(config.backward, base.schedule, target.event_shape, scale, base.sigma, **config.backward_options)


def of_base(config: TaskConfig, target: Target) -> Target:
    """What the base sampler samples: the target; where a reward tilts it and there is a denoiser, the untilted one."""
    return target.untilted if isinstance(target, Tilted) and config.base is not None else target


def build_base(
    config: TaskConfig, target: Target, horizon: int, device: torch.device, denoiser: nn.Module | None = None,
    schedule: Schedule | None = None,
) -> BaseSampler:  # fmt: skip
    """The base sampler of so many steps; ``denoiser`` is one that was made before, ``schedule`` replaces the config's.

    Raises UnknownNameError for unknown names, ValueError for settings that do not go together.
    """
    base = "none" if config.base is None else config.base
    SCHEDULES[config.schedule]  # a typo is an error, also where the base has a ladder of its own
    if base not in [*BASES, "none"]:
        raise UnknownNameError("base sampler", base, [*BASES, "None"])
    if check_real("eta", config.eta) != TaskConfig.eta and base not in ("ddim", "edm", "flow-sde"):
        raise ValueError(
            f"eta belongs to base 'ddim', 'edm' and 'flow-sde': it must be {TaskConfig.eta} with {base!r}, got "
            f"{config.eta}."
        )
    if base == "none" or config.track in FROM_SCRATCH:
        if base != "none":
            raise ValueError(
                f"track {config.track!r} gives no denoiser: base must be None, got {config.base!r} (or "
                "track='fine-tune')."
            )
        if schedule is None:
            asked = config.schedule_options if config.schedule == "geometric" else {}  # others are the denoiser's
            schedule = make_schedule("geometric", horizon, **(_ladder(target) | asked))
        return IdentitySampler(schedule.to(device))
    target = of_base(config, target)
    if schedule is None:
        schedule = make_schedule(config.schedule, horizon, **config.schedule_options)
        schedule = variance_exploding(schedule) if base == "edm" else schedule
    if denoiser is None:
        _warn_of_misfit(target, schedule.levels)
        denoiser = task_denoiser(config, target, device)
    sigma_last = config.sigma_last
    if sigma_last is None:
        narrowest = target.smallest_scale if config.denoiser == "exact" else None
        sigma_last = 0.05 if narrowest is None else mixture_sigma_last(narrowest, float(schedule.levels[-2]))
    eta = 1.0 if base == "ddpm" else config.eta
    kind = FlowSDE if base == "flow-sde" else ReverseSampler
    sampler = kind(schedule, denoiser, eta=eta, sigma_last=sigma_last)
    return sampler.to(device)


def _warn_of_misfit(target: Target, levels: Tensor) -> None:
    """Warn of samples that the highest noise level does not hide, or of data that the lowest one blurs."""
    highest, lowest = float(levels[0]), float(levels[-2])
    size, blurred, data = target.scale, False, f"samples of {target.name!r}"
    if isinstance(target, DataTarget):
        size = float(target.train_rows.double().square().mean().sqrt())
        blurred, data = target.scale < 2 * lowest, f"data of root mean square {size:.3g}"
    if size > highest or blurred:
        warnings.warn(
            f"{data} and standard deviation {target.scale:.3g} do not fit noise levels from {highest:.3g} to "
            f"{lowest:.3g}: subtract the mean and divide by the standard deviation, or change schedule_options.",
            stacklevel=5,  # the caller of make_task
        )


def _ladder(target: Target) -> dict[str, float]:
    """From-scratch levels: from beyond the target's spread to near its narrowest scale."""
    low = target.smallest_scale if target.smallest_scale is not None else 0.05
    return {"level_max": max(1.25 * target.scale, 2 * low), "level_min": low}
