"""Settings that agents share: of the policy and of the value network. Algorithms compose them in their own Config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dxmi_rl.tasks.config import TaskConfig
from dxmi_rl.utils.checks import check_integer, check_real
from dxmi_rl.utils.registry import UnknownNameError
from dxmi_rl.utils.settings import changed, flat_settings

KINDS = ["auto", "correction", "fine-tuned"]
CORRECTION_ONLY = {
    "width", "depth", "fourier", "coordinate_width", "state_dependent_sigma", "learning_rate", "sigma_learning_rate",
}  # fmt: skip
FINE_TUNING_ONLY = {"fine_tuning_rate", "sigma_fine_tuning_rate"}
NOT_OF_PARTICLES = {"fourier", "residual", "coordinate_width", "convolutional"}
"""Settings of other networks that a ParticleMLP does not have; that of a value has one round, and so no depth, too."""


@dataclass(frozen=True)
class MeanConfig:
    """Settings of a policy whose sigma is the base sampler's. Of a network for particles, width and depth are set."""

    kind: str = "auto"
    """"correction" (a network on top of the fixed base mean), "fine-tuned" (the pretrained network itself), or "auto":
    fine-tuned for images, correction for vectors."""
    width: int = 64
    """Units per layer of a correction."""
    depth: int = 3
    """Hidden layers of a correction; rounds of one for particles (ParticleMLP)."""
    fourier: int = 0
    """Fourier frequencies of a correction's input."""
    coordinate_width: int = 0
    """Units per layer of a second network of the correction, which sees one coordinate at a time and is shared between
    all; 0: none. Where the energy is nearly a sum over coordinates, in many dimensions, it learns far faster (give the
    kernel "learned" one, too: ``backward_options={"coordinate_width": 32}``)."""
    energy_gradient: bool | None = None
    """A correction is given grad E at the current state, one more evaluation per transition; None: where the base
    sampler is None, as only the energy says there where to go (`dxdp` with ``value_input``: grad V instead), but not
    on track "energy"."""
    trained_steps: int | None = None
    """Train the last steps only, this many; those before stay the base sampler's, as in DPPO (Ren et al. 2024, arXiv
    2409.00588). None, or more than there are: all."""
    learning_rate: float = 1e-3
    """Peak rate of a correction's mean."""
    fine_tuning_rate: float = 3e-5
    """Peak rate of the mean of a fine-tuned network, which takes the place of ``learning_rate``."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("policy.kind", self.kind, KINDS)
        for key, minimum in {"width": 1, "depth": 1, "fourier": 0, "coordinate_width": 0}.items():
            check_integer(f"policy.{key}", getattr(self, key), minimum=minimum)
        if self.trained_steps is not None:
            check_integer("policy.trained_steps", self.trained_steps)
        for field in fields(self):
            if field.name.endswith("_rate"):
                check_real(f"policy.{field.name}", getattr(self, field.name))


@dataclass(frozen=True)
class PolicyConfig(MeanConfig):
    """Settings of a policy that learns its sigma, too."""

    state_dependent_sigma: bool = True
    """A correction also shapes sigma, per dimension."""
    fixed_last_sigma: bool = False
    """Keep sigma_{T-1}, the smallest, at the base sampler's."""
    sigma_learning_rate: float = 3e-3
    """Peak rate of a correction's log sigma_t."""
    sigma_fine_tuning_rate: float = 3e-4
    """Peak rate of the log sigma_t of a fine-tuned network, which takes the place of ``sigma_learning_rate``."""


def check_mean(policy: MeanConfig) -> None:
    """Raise TypeError for settings of a policy with a sigma of its own."""
    if isinstance(policy, PolicyConfig):
        raise TypeError(f"policy must be a MeanConfig, whose sigma is the base sampler's, got {policy!r}.")


def policy_kind(config: MeanConfig, event_shape: tuple[int, ...]) -> str:
    """The kind of policy on states of this shape: "correction" or "fine-tuned", never "auto"."""
    if config.kind != "auto":
        return config.kind
    return "fine-tuned" if len(event_shape) == 3 else "correction"


def check_changes(before: Any, after: Any, event_shape: tuple[int, ...], *, particles: bool = False) -> None:
    """Raise ValueError for a changed setting, such as "policy.width", that changes nothing in this kind of policy, or
    in the networks that ``particles`` have.

    For settings that are given one by one; a whole config, as of a recipe or a checkpoint, may hold such values.
    ``before`` and ``after`` are settings of an agent, or of a game with an agent inside (``agent_settings``).
    """
    inner = getattr(after, "agent_settings", after)
    old = flat_settings(getattr(before, "agent_settings", before))
    moved = {name for name, value in flat_settings(inner).items() if value != old.get(name, value)}
    for name in sorted(moved if particles else ()):
        group, _, setting = name.rpartition(".")
        if (group in ("", "policy", "value") and setting in NOT_OF_PARTICLES) or name == "value.depth":
            raise ValueError(f"{name} changes nothing for particles, whose networks do not have it (ParticleMLP).")
    if not isinstance(config := getattr(inner, "policy", None), MeanConfig):
        return
    kind, other = policy_kind(config, event_shape), "correction"
    idle = CORRECTION_ONLY
    if kind == other:
        idle, other = FINE_TUNING_ONLY, "fine-tuned"
    for name in sorted(moved):
        group, _, setting = name.partition(".")
        if group == "policy" and setting in idle:
            raise ValueError(f"{name} belongs to a policy of kind {other!r}, and changes nothing in a {kind!r} one.")


@dataclass(frozen=True)
class ValueConfig:
    """Settings of a value network. Of one for particles only the width is set."""

    width: int = 64
    """Units per layer, or channels of a convolutional network."""
    depth: int = 3
    """Hidden layers (blocks when ``residual``), or blocks per stage of a convolutional network."""
    fourier: int | None = 4
    """Fourier frequencies of the input; None: 4 in up to 3 dimensions, else 0."""
    residual: bool = False
    """Residual blocks."""
    coordinate_width: int = 0
    """Units per layer of a second network, which sees one coordinate at a time and is averaged over all; 0: none."""
    convolutional: bool = False
    """A residual convolutional network, for images; with ``fourier=0`` and neither ``residual`` nor coordinates."""
    learning_rate: float = 2e-3
    """Peak rate."""

    def __post_init__(self) -> None:
        for key in ("width", "depth"):
            check_integer(f"value.{key}", getattr(self, key))
        check_integer("value.coordinate_width", self.coordinate_width, minimum=0)
        if self.fourier is not None:
            check_integer("value.fourier", self.fourier, minimum=0)
        check_real("value.learning_rate", self.learning_rate)
        if self.convolutional:
            for key in ("fourier", "coordinate_width", "residual"):
                if value := getattr(self, key):
                    none = type(value)()  # 0 or False
                    raise ValueError(f"value.{key} must be {none} for a convolutional value, got {value!r}.")


WORDS = {
    "verbose": "use learn(..., progress_bar=True)",
    "n_steps": "use n_trajectories: rollouts hold whole episodes",
    "lr": 'use policy={"learning_rate": ...} and value={"learning_rate": ...}',
    "learning_rate": 'use policy={"learning_rate": ...} and value={"learning_rate": ...}',
    "policy_kwargs": 'use policy={"width": ..., "depth": ...}',
    "gamma": "the discount is 1",
    "ent_coef": "use make_task(..., tau=...), the weight of the entropy",
}
"""What Stable-Baselines3 calls settings, and what stands for them here."""


def configured(kind: Any, task: Any, config: Any, settings: Mapping[str, Any]) -> Any:
    """``config`` with ``settings`` changed, for an agent, or a class of agents, on a task.

    Raises TypeError for a config of another agent and for settings of the task, UnknownNameError for unknown settings,
    ValueError for values that are not allowed or change nothing.
    """
    if not isinstance(config, kind.Config):
        raise TypeError(f"config of {kind.name!r} must be a {kind.Config.__qualname__}, got {config!r}.")
    for key in settings:
        if key not in vars(config) and (key == "energy" or key in TaskConfig.__dataclass_fields__):
            raise TypeError(f"{key!r} belongs to the task: pass task=make_task({task.name!r}, {key}=...).")
        if key in WORDS and key not in vars(config) and {"policy", "n_trajectories"} <= vars(config).keys():
            raise TypeError(f"{kind.name!r} has no setting {key!r}: {WORDS[key]}.")
    result = changed(config, settings, f"setting of {kind.name!r}")
    check_changes(config, result, task.mdp.event_shape, particles=task.mdp.particles is not None)
    return result
