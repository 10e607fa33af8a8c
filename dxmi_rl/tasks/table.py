"""The named tasks and their settings, and those of a target without a task of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.targets import TARGETS, Target, make_target, target_class
from dxmi_rl.tasks.config import TaskConfig
from dxmi_rl.utils.registry import Registry

DATA_TAU = 0.1
"""Temperature per dimension where the energy is learned from data: the paper's."""
IMAGE_TAU = 0.03
"""Temperature per dimension of image sets, found on digits, where samples blur at 0.1."""
LAST_NOISE = 0.01
"""Last sigma of image sets: a grey level of 256. Features of photographs see noise of 0.05, those of digits do not."""
LARGE = 28
"""Images of this height and width, or larger, have a U-Net on patches of 2 x 2 pixels: at equal seconds its loss is
lower."""

TASKS: Registry[TaskConfig] = Registry("task")
TASKS.add("8gaussians", TaskConfig("8gaussians"))
TASKS.add("gmm9", TaskConfig("gmm9", schedule_options={"level_max": 12.0, "level_min": 0.5, "scale": 4.0}))
TASKS.add("gmm25", TaskConfig("gmm25", schedule_options={"level_max": 20.0, "level_min": 0.5, "scale": 7.0}))
TASKS.add("gmm40", TaskConfig("gmm40", schedule_options={"level_max": 65.0, "level_min": 1.2, "scale": 23.0}))
TASKS.add("gmm40-50", TaskConfig("gmm40-50", schedule_options={"level_max": 65.0, "level_min": 1.0, "scale": 23.0}))
for _name in ("8gaussians-tilted", "8gaussians-proxy", "gmm25-tilted", "gmm25-posterior"):
    TASKS.add(_name, replace(TASKS[_name.partition("-")[0]], target=_name))  # the base sampler is that of the data
TASKS.add(
    "8gaussians-data",
    TaskConfig(
        "8gaussians",
        schedule_options={"level_max": 4.3, "level_min": 0.23, "rho": 7.0},
        denoiser="learned",
        reward=None,
        sigma_last=0.15,
        backward="learned",
        tau=DATA_TAU / 2,
    ),
)
# Found on a grid: the overlap with the data's histogram, and sliced W2, of the base sampler at T = 5 and 10.
for _name, _level_max, _level_min, _sigma_last in (
    ("checkerboard", 3.5, 0.25, 0.1),
    ("2spirals", 2.4, 0.2, 0.07),
    ("rings", 2.2, 0.17, 0.07),
    ("moons", 2.3, 0.25, 0.15),
):
    TASKS.add(
        _name,
        TaskConfig(
            _name,
            schedule_options={"level_max": _level_max, "level_min": _level_min},
            denoiser="learned",
            reward=None,
            sigma_last=_sigma_last,
            backward="learned",
            tau=DATA_TAU / 2,
            pretraining=PretrainingConfig(batch_size=512, learning_rate=2e-3, depth=2, fourier=4),
        ),
    )
TASKS.add(
    "digits",
    TaskConfig(
        "digits",
        horizon=4,
        schedule="cosine",
        denoiser="learned",
        reward=None,
        backward="forward",
        tau=DATA_TAU / 64,
        pretraining=PretrainingConfig(iterations=6000, batch_size=128, width=256),
    ),
)


for _name, _reward, _options, _beta in (
    ("digits-class", "digit-class", {"label": 3}, 1.0),  # at beta = 1 the class's own digits
    ("digits-stroke", "stroke-width", {}, 0.25),  # strokes 0.7 standard deviations wider than the base sampler's
    ("digits-inpainting", "inpainting", {}, 1.0),  # at beta = 1 the posterior
    ("digits-super-resolution", "super-resolution", {}, 1.0),
):
    TASKS.add(
        _name,
        replace(TASKS["digits"], reward=_reward, reward_options=_options, beta=_beta, backward="base", tau=1.0),
    )
TASKS.add(
    "digits-classes",
    replace(
        TASKS["digits"], label=tuple(range(10)), pretraining=replace(TASKS["digits"].pretraining, conditional=True)
    ),
)
TASKS.add("lgcp40-whitened", TaskConfig("lgcp40", target_options={"whitened": True}, base=None, track="sample"))


def default_config(target: str | Target) -> TaskConfig:
    """The settings of a task on a target that has none of its own: those of its ``task_kind``."""
    kind = target_class(target) if isinstance(target, str) else type(target)
    return DEFAULTS[kind.task_kind or ("energy" if kind.has_energy else "data")](target)


def _of_mixture(target: str | Target) -> TaskConfig:
    return TaskConfig(target)


def _of_energy(target: str | Target) -> TaskConfig:
    return TaskConfig(target, base=None, track="sample")


def _of_data(target: str | Target) -> TaskConfig:
    built = make_target(target) if isinstance(target, str) else target
    return TaskConfig(target, denoiser="learned", reward=None, tau=DATA_TAU / built.dim)


def _of_digits(target: str | Target) -> TaskConfig:
    return replace(TASKS["digits"], target=target)


def _of_images(target: str | Target) -> TaskConfig:
    built = make_target(target) if isinstance(target, str) else target
    return _image_config(target, built.event_shape)


def _image_config(target: str | Target, event_shape: tuple[int, ...]) -> TaskConfig:
    """That of the digits with a U-Net; stages halve the sides, in patches, twice or as often as these are even."""
    patch = 2 if min(event_shape[1:]) >= LARGE and not any(side % 2 for side in event_shape[1:]) else 1
    sides = [side // patch for side in event_shape[1:]]
    halvings = min(2, *((side & -side).bit_length() - 1 for side in sides))
    channels = PretrainingConfig.channels[: halvings + 1]
    unet = PretrainingConfig(network="unet", iterations=8000, batch_size=64, channels=channels, patch=patch)
    tau = IMAGE_TAU / math.prod(event_shape)
    return replace(TASKS["digits"], target=target, tau=tau, pretraining=unet, sigma_last=LAST_NOISE)


DEFAULTS: Registry[Callable[[str | Target], TaskConfig]] = Registry("kind of task")
"""Settings of a task by the target's ``task_kind``."""
DEFAULTS.add("mixture", _of_mixture)  # an exact denoiser
DEFAULTS.add("energy", _of_energy)  # from scratch
DEFAULTS.add("data", _of_data)  # a learned denoiser
DEFAULTS.add("images", _of_images)  # a U-Net
DEFAULTS.add("digits", _of_digits)

for _name in TARGETS:  # a target without an entry above is a task of its own name, too
    if _name not in TASKS:
        TASKS.add(_name, default_config(_name))
for _name, _shape in (  # said here, as reading a set takes a while, or cannot be done
    ("mnist5k", (1, 28, 28)), ("fashion-mnist", (1, 28, 28)), ("mnist5k-14", (1, 14, 14)),
    ("fashion-mnist-14", (1, 14, 14)), ("emoji32", (3, 32, 32)),
):  # fmt: skip
    TASKS.add(_name, _image_config(_name, _shape), optional=True)
# Black box and colour. An MLP trains ten times as fast as a U-Net. A last step with little noise would be far from the
# base sampler's, in nats, at once.
TASKS.add(
    "fashion-mnist-14-compressibility",
    replace(
        TASKS["fashion-mnist-14"], reward="compressibility", beta=0.01, backward="base", sigma_last=0.05, tau=1.0,
        pretraining=PretrainingConfig(iterations=6000, batch_size=128, width=256),
    ),
    optional=True,
)  # fmt: skip
TASKS.add(
    "emoji32-color",
    replace(TASKS["emoji32"], reward="mean-color", beta=0.05, backward="base", tau=1.0, sigma_last=0.05),
    optional=True,
)
