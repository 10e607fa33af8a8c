"""Settings of DxMI and of its energy, and what makes that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dxmi_rl.agents import AGENTS
from dxmi_rl.live_energy import LiveEnergy
from dxmi_rl.networks import EnergyConv, EnergyDenoiser, EnergyMLP, EnergyNetwork, EnergyPerHorizon
from dxmi_rl.targets import ImageSet, Target
from dxmi_rl.tasks import Task
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True)
class EnergyConfig:
    """The energy's network."""

    width: int = 128
    """Units per layer, or channels of a convolutional energy."""
    depth: int = 3
    """Hidden layers (blocks when ``residual``), or blocks per stage of a convolutional energy."""
    fourier: int = 0
    """Fourier frequencies of the input; they sharpen low-dimensional energies."""
    residual: bool = False
    """Residual blocks."""
    convolutional: bool = False
    """A residual convolutional network, for images (32 channels and one block per stage are a start); without
    ``fourier`` and ``residual``, which are about MLPs."""
    denoiser: bool = False
    """The energy starts as sum_k |x - D(x, l_k)|^2 with the base sampler's denoiser D (EnergyDenoiser), low on data
    from the start; ``width`` and other settings of the network then change nothing."""
    levels: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Noise levels l_k of ``denoiser``, in standard deviations of the data. Each costs a denoiser call per energy. The
    energy does not see structure far below the lowest level, such as faint noise on samples."""
    level_power: float = 0.0
    """p: the initial weight of level l_k is l_k^-p; with 2 each level counts in units of its own noise."""
    clip: bool | None = False
    """Clip images to [-1, 1] before the energy sees them, as files and distances do: a sampler then makes a pixel black
    by any value below -1, and faint noise on black disappears. None: clip sets of images, and nothing else, as other
    targets have no such limits."""
    spectral_norm: bool = False
    """Every layer has spectral norm one, as far as power iteration keeps up with training (Miyato et al. 2018, arXiv
    1802.05957), so that the slope of an MLP in its inputs (with Fourier features) is bounded; not with ``residual``.
    The slope of a convolutional energy becomes smaller, but is not bounded, as its blocks add up."""

    def __post_init__(self) -> None:
        for key in ("width", "depth"):
            check_integer(f"energy.{key}", getattr(self, key))
        check_integer("energy.fourier", self.fourier, minimum=0)
        if not isinstance(self.levels, (tuple, list)):
            raise TypeError(f"energy.levels must be a tuple of numbers > 0, got {self.levels!r}.")
        if not self.levels:
            raise ValueError(f"energy.levels must have at least one level, got {self.levels!r}.")
        for level in self.levels:
            check_real("energy.levels", level, strict=True)
        check_real("energy.level_power", self.level_power)


def make_energy(target: Target, config: EnergyConfig, denoiser: nn.Module | None = None) -> EnergyNetwork:
    """A new energy network for the target; ``denoiser`` is the base sampler's.

    Raises ValueError for settings that it cannot have.
    """
    energy = _network(target, config, denoiser)
    has_limits = isinstance(target, ImageSet)
    if config.clip and not has_limits:
        raise ValueError(f"energy.clip must be False or None for target {target.name!r}, which is no set of images.")
    if config.clip or (config.clip is None and has_limits):
        energy.limits = target.plot_range
    return energy.eval()


def _network(target: Target, config: EnergyConfig, denoiser: nn.Module | None) -> EnergyNetwork:
    if config.denoiser:
        if denoiser is None:
            raise ValueError("energy.denoiser must be False where the base sampler has no denoiser network.")
        if config.spectral_norm:
            raise ValueError("energy.spectral_norm must be False with energy.denoiser.")
        return EnergyDenoiser(denoiser, target.scale, levels=config.levels, power=config.level_power)
    for key in ("levels", "level_power"):
        if (value := getattr(config, key)) != getattr(EnergyConfig, key):
            raise ValueError(f"energy.{key} belongs to energy.denoiser=True alone, got {value!r} without.")
    if config.convolutional:
        for key in ("fourier", "residual"):
            if getattr(config, key):
                raise ValueError(f"energy.{key} must be off for a convolutional energy, got {getattr(config, key)!r}.")
        return EnergyConv(
            target.event_shape, target.scale, width=config.width, depth=config.depth,
            spectral_norm=config.spectral_norm,
        )  # fmt: skip
    return EnergyMLP(
        target.dim, target.scale, width=config.width, depth=config.depth, fourier=config.fourier,
        residual=config.residual, spectral_norm=config.spectral_norm,
    )  # fmt: skip


@dataclass(frozen=True)
class DxMIConfig:
    """Settings of the joint loop."""

    recipe: str = ""
    """Name of the recipe that the other settings start from (``dxmi_rl.irl.list_recipes()``); "": none."""
    agent: str = "dxdp"
    """Name of the agent that trains the sampler."""
    agent_settings: Any = field(default_factory=lambda: AGENTS["dxdp"].Config())
    """All settings of that agent, its Config."""
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    """The energy's network."""
    loss: str = "contrastive"
    """Name of the energy's loss."""
    gamma: float | None = None
    """Weight of the energy's squared magnitude; None: 1 for the contrastive loss (at 0.1 it is not stable), 0 for the
    others."""
    noise_ratio: float | None = None
    """M of loss "n2ce", which alone has one; None: 100."""
    gradient_penalty: float = 0.0
    """Weight of the mean squared gradient of the energy on data and samples, in units of 1 / the target's scale."""
    anchor: float = 0.0
    """Decay of an average of the energy. The loss is that of the energy minus this average, so gamma and the gradient
    penalty hold only the difference small. For players that can do anything (a sampler that draws from
    exp(-E / tau), no ``data_noise``) the game then ends at the data themselves, E = -tau log p_data + c, at any gamma
    and tau. 0: no average, as in the paper; the sampler ends a little broader than the data."""
    energy_learning_rate: float = 1e-3
    """Adam rate of the energy."""
    energy_steps: int = 1
    """Energy steps per rollout, each on fresh data."""
    data_noise: float | None = 0.0
    """Standard deviation of Gaussian noise on the data in the energy's loss. Images have grey levels and the sampler's
    last step has noise: without it the energy learns to tell the two by that alone. None: the sampler's last sigma."""
    augmentation: float = 0.0
    """Probability p of each random change of each image that the energy's loss sees, data and samples alike, so that it
    does not learn the data by heart (Karras et al. 2020, arXiv 2006.06676): small translations, scalings and rotations,
    brightness and contrast. For images only; policy, values and ``score`` see images as they are."""
    augmentation_target: float | None = None
    """Adjusts p, which then starts at ``augmentation``, also at 0: p rises while 2 AUC - 1 of the energy between data
    and samples is above this, and falls while it is below. In (0, 1); None: p stays."""
    augmentation_flip: bool = False
    """Mirror images are among the changes: for things that have no left and right, not for digits."""
    replay: int = 0
    """Number of past rollouts that are kept for the energy: each of its steps sees as many samples of these, drawn at
    random, as present ones, so that it does not forget regions that the policy has left. 0: only present samples."""
    ema: float = 0.99
    """Decay of the averaged policy that ``sample`` and ``predict`` use, and of the averaged energy of ``score``, per
    iteration; with several numbers of steps, of the largest, and those of the others count by their transitions. 0 uses
    the last iterates."""
    anneal: bool = False
    """Cosine rate of the energy over ``learn``'s budget."""

    def __post_init__(self) -> None:
        for key in ("gradient_penalty", "energy_learning_rate"):
            check_real(key, getattr(self, key))
        if self.data_noise is not None:
            check_real("data_noise", self.data_noise)
        check_integer("replay", self.replay, minimum=0)
        check_integer("energy_steps", self.energy_steps)
        for key in ("ema", "anchor"):
            if not 0 <= check_real(key, getattr(self, key)) < 1:
                raise ValueError(f"{key} must lie in [0, 1), got {getattr(self, key)}.")


def with_new_energy(task: Task, config: DxMIConfig) -> tuple[Task, EnergyNetwork]:
    """The task with a new energy of its own, and the energy: one that is told the class, where there are several, and
    one for each of several numbers of steps.

    Raises ValueError for an energy that cannot be told the class, for an agent that learns one log Z or one model of
    the energy where each number of steps has another, and as ``make_energy``.
    """
    network = make_energy(task.target, config.energy, getattr(task.mdp.base, "denoiser", None)).to(task.device)
    task = task.with_own_energy()
    task.mdp.set_energy(network)
    if len(task.horizons) > 1:
        for key in ("energy_model", "log_z_learning_rate"):
            if value := getattr(config.agent_settings, key, None):
                raise ValueError(
                    f"agent must not have {key} in a game with several numbers of steps, whose energies differ, got "
                    f"{config.agent!r} with {key}={value}."
                )
        several = EnergyPerHorizon(network, task.horizons).eval()
        task.energies = {horizon: LiveEnergy(several.of_case(horizon)) for horizon in task.horizons}
        task.mdp.energy = task.energies[task.horizons[-1]]
        return task, several
    if len(task.labels) > 1:
        if not isinstance(network, EnergyDenoiser) or config.replay:
            raise ValueError(
                "label must be one class for an energy that is no denoiser, and with replay, got "
                f"{task.labels} with energy {type(network).__name__} and replay={config.replay}."
            )
        task.energies = {label: LiveEnergy(network.of_case(label)) for label in task.labels}
    return task, network
