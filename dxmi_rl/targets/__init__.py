"""Targets: densities with exact constants and data sets. One file and one registry line each."""

from __future__ import annotations

from collections.abc import Callable

from dxmi_rl.registry import Registry
from dxmi_rl.targets.base import Target, TargetError
from dxmi_rl.targets.digits import Digits
from dxmi_rl.targets.mixtures import GaussianMixture, eight_gaussians, gmm25

__all__ = ["TARGETS", "Digits", "GaussianMixture", "Target", "TargetError", "list_targets", "make_target"]

TARGETS: Registry[Callable[[], Target]] = Registry("target")
TARGETS.add("8gaussians", eight_gaussians)
TARGETS.add("gmm25", gmm25)
TARGETS.add("digits", Digits)


def list_targets() -> list[str]:
    """Names of all targets that ``make_target`` builds."""
    return TARGETS.names()


def make_target(name: str) -> Target:
    """Build the target ``name``; raises UnknownNameError (a ValueError) with the near names for an unknown one."""
    target = TARGETS[name]()
    target.name = name
    return target
