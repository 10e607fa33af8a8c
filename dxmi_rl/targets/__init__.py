"""Targets: densities with exact constants and data sets. One file per family and one registry line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import cast, get_type_hints

from dxmi_rl.targets.base import MissingDataError, Modes, Target, TargetError
from dxmi_rl.targets.cox import LogGaussianCox
from dxmi_rl.targets.custom import DataTarget, EnergyTarget
from dxmi_rl.targets.digits import Digits
from dxmi_rl.targets.funnel import Funnel
from dxmi_rl.targets.image_set import ImageSet
from dxmi_rl.targets.images import cifar10, emoji32, fashion_mnist, mnist5k
from dxmi_rl.targets.manywell import ManyWell, manywell32, manywell64, manywell128
from dxmi_rl.targets.mixtures import GaussianMixture, eight_gaussians, gmm9, gmm25, gmm40, gmm40_50
from dxmi_rl.targets.own_images import load_images
from dxmi_rl.targets.particles import DoubleWell4, LennardJones, LennardJones13, LennardJones55, ParticleTarget
from dxmi_rl.targets.planar import PlanarSet, checkerboard, moons, rings, two_spirals
from dxmi_rl.targets.rewards import QuadraticReward, WithinData
from dxmi_rl.targets.stored import StoredRows
from dxmi_rl.targets.student import StudentMixture, mos10, mos10_50
from dxmi_rl.targets.tilted import (
    REWARDS,
    Reward,
    RewardEnergy,
    Tilted,
    TiltedMixture,
    eight_gaussians_proxy,
    eight_gaussians_tilted,
    gmm25_posterior,
    gmm25_tilted,
    make_reward,
    tilt,
)
from dxmi_rl.utils.registry import Registry, UnknownNameError

__all__ = [
    "REWARDS",
    "TARGETS",
    "DataTarget",
    "Digits",
    "DoubleWell4",
    "EnergyTarget",
    "Funnel",
    "GaussianMixture",
    "ImageSet",
    "LennardJones",
    "LennardJones13",
    "LennardJones55",
    "LogGaussianCox",
    "ManyWell",
    "MissingDataError",
    "Modes",
    "ParticleTarget",
    "PlanarSet",
    "QuadraticReward",
    "Reward",
    "RewardEnergy",
    "StoredRows",
    "StudentMixture",
    "Target",
    "TargetError",
    "Tilted",
    "TiltedMixture",
    "WithinData",
    "cifar10",
    "emoji32",
    "fashion_mnist",
    "list_targets",
    "load_images",
    "make_reward",
    "make_target",
    "mnist5k",
    "target_class",
    "tilt",
]

TARGETS: Registry[Callable[..., Target]] = Registry("target")
TARGETS.add("8gaussians", eight_gaussians)
TARGETS.add("gmm9", gmm9)
TARGETS.add("gmm25", gmm25)
TARGETS.add("gmm40", gmm40)
TARGETS.add("gmm40-50", gmm40_50)
TARGETS.add("8gaussians-tilted", eight_gaussians_tilted)
TARGETS.add("8gaussians-proxy", eight_gaussians_proxy)
TARGETS.add("gmm25-tilted", gmm25_tilted)
TARGETS.add("gmm25-posterior", gmm25_posterior)
TARGETS.add("mos10", mos10)
TARGETS.add("mos10-50", mos10_50)
TARGETS.add("funnel10", Funnel)
TARGETS.add("manywell32", manywell32)
TARGETS.add("manywell64", manywell64)
TARGETS.add("manywell128", manywell128)
TARGETS.add("dw4", DoubleWell4)
TARGETS.add("lj13", LennardJones13)
TARGETS.add("lj55", LennardJones55)
TARGETS.add("lgcp40", LogGaussianCox)
TARGETS.add("checkerboard", checkerboard)
TARGETS.add("2spirals", two_spirals)
TARGETS.add("rings", rings)
TARGETS.add("moons", moons)
TARGETS.add("digits", Digits)


def _mnist5k(size: int) -> Callable[..., ImageSet]:
    def build() -> ImageSet:
        return mnist5k(size)

    return build


def _fashion_mnist(size: int) -> Callable[..., ImageSet]:
    def build(folder: str | None = None) -> ImageSet:
        return fashion_mnist(folder, size=size)

    return build


for _size, _end in ((28, ""), (14, "-14")):  # sizes have names of their own, as tasks hang on them
    TARGETS.add(f"mnist5k{_end}", _mnist5k(_size), optional=True)
    TARGETS.add(f"fashion-mnist{_end}", _fashion_mnist(_size), optional=True)
TARGETS.add("emoji32", emoji32, optional=True)


def list_targets(*, optional: bool = False) -> list[str]:
    """Names of the targets that ``make_target`` builds, with ``optional`` also of those that need an extra or files."""
    return TARGETS.names(optional=optional)


def target_class(name: str) -> type[Target]:
    """The class of a target, which says what it has, without building it: its builder, or what that returns."""
    builder = TARGETS[name]
    return cast(type[Target], builder if inspect.isclass(builder) else get_type_hints(builder)["return"])


def check_options(what: str, builder: Callable[..., Target], options: Mapping[str, object]) -> None:
    """Raise UnknownNameError for an option that the builder of a target does not take."""
    known = [key for key, one in inspect.signature(builder).parameters.items() if one.default is not one.empty]
    for key in options:
        if key not in known:
            raise UnknownNameError(f"option of {what}", key, known)


def make_target(name: str, **options: object) -> Target:
    """Build the target ``name`` with ``options`` of its builder, such as ``linear_below`` of "lj13".

    Raises UnknownNameError (a ValueError) with the near names for an unknown target or option, TypeError or ValueError
    for values that the builder does not allow, MissingExtraError or MissingDataError (a ValueError) where data are
    missing.
    """
    builder = TARGETS[name]
    check_options(f"target {name!r}", builder, options)
    target = builder(**options)
    target.name, target.options = name, dict(options)
    return target
