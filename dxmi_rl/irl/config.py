"""Settings of DxMI and of its energy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dxmi_rl.networks import EnergyConv, EnergyDenoiser, EnergyMLP, EnergyNetwork
from dxmi_rl.targets import ImageSet, Target
from dxmi_rl.utils.checks import check_integer, check_real


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """The energy's network."""

    energy_width: int = 128
    """Units per layer of the energy."""
    energy_depth: int = 3
    """Hidden layers (blocks when ``energy_residual``)."""
    energy_fourier: int = 0
    """Fourier frequencies of the energy's input; they sharpen low-dimensional energies."""
    energy_residual: bool = False
    """Residual blocks in the energy."""
    energy_convolutional: bool = False
    """The energy of images is a residual convolutional network: ``energy_width`` channels, ``energy_depth`` blocks per
    stage (by default 32 and 1); without ``energy_fourier`` and ``energy_residual``, which are about MLPs."""
    energy_denoiser: bool = False
    """The energy starts as the base sampler's denoiser, sum_k |x - D(x, l_k)|^2 (EnergyDenoiser), whatever else is said
    here of its network; low on data from the start, it is for detecting what is no data."""
    energy_levels: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Noise levels l_k of ``energy_denoiser``, in standard deviations of the data. Each costs a denoiser call per
    energy; what lies far below the lowest, such as faint noise on samples, the energy does not see."""
    energy_level_power: float = 0.0
    """p: the levels count by l_k^-p at first. 2: each in units of its own noise."""
    energy_clip: bool = False
    """The energy sees images clipped to [-1, 1], as files and distances have them: a sampler then makes a pixel black
    by going beyond, where otherwise it must hit -1, and faint noise on black is gone. For images only."""
    energy_spectral_norm: bool = False
    """Every layer of the energy has spectral norm one, as far as power iteration keeps up with training (Miyato et al.
    2018, arXiv 1802.05957), so that an MLP's slope in what it sees (with the Fourier features) is bounded; not with
    ``energy_residual``. A convolutional energy's slope is held down only, as its blocks add up."""


def make_energy(target: Target, config: EnergyConfig, denoiser: nn.Module | None = None) -> EnergyNetwork:
    """A new energy network for the target; ``denoiser`` is the base sampler's.

    Raises TypeError or ValueError for settings that it cannot have.
    """
    energy = _network(target, config, denoiser)
    if config.energy_clip:
        if not isinstance(target, ImageSet):
            raise ValueError(f"energy_clip must be False for target {target.name!r}, which is no set of images.")
        energy.limits = target.plot_range
    return energy


def _network(target: Target, config: EnergyConfig, denoiser: nn.Module | None) -> EnergyNetwork:
    if config.energy_denoiser:
        if denoiser is None:
            raise ValueError("energy_denoiser must be False where the base sampler has no denoiser network.")
        if config.energy_spectral_norm:
            raise ValueError("energy_spectral_norm must be False with energy_denoiser.")
        if not isinstance(config.energy_levels, (tuple, list)):
            raise TypeError(f"energy_levels must be a tuple of numbers > 0, got {config.energy_levels!r}.")
        if not config.energy_levels:
            raise ValueError(f"energy_levels must have at least one level, got {config.energy_levels!r}.")
        levels = [check_real("energy_levels", level, strict=True) for level in config.energy_levels]
        power = check_real("energy_level_power", config.energy_level_power)
        return EnergyDenoiser(denoiser, target.scale, levels=levels, power=power).eval()
    for key in ("energy_levels", "energy_level_power"):
        if (value := getattr(config, key)) != getattr(EnergyConfig, key):
            raise ValueError(f"{key} belongs to energy_denoiser=True alone, got {value!r} without.")
    for key in ("energy_width", "energy_depth"):
        check_integer(key, getattr(config, key))
    if config.energy_convolutional:
        for key in ("energy_fourier", "energy_residual"):
            if getattr(config, key):
                raise ValueError(f"{key} must be off for a convolutional energy, got {getattr(config, key)!r}.")
        return EnergyConv(
            target.event_shape, target.scale, width=config.energy_width, depth=config.energy_depth,
            spectral_norm=config.energy_spectral_norm,
        ).eval()  # fmt: skip
    check_integer("energy_fourier", config.energy_fourier, minimum=0)
    return EnergyMLP(
        target.dim, target.scale, width=config.energy_width, depth=config.energy_depth, fourier=config.energy_fourier,
        residual=config.energy_residual, spectral_norm=config.energy_spectral_norm,
    ).eval()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DxMIConfig(EnergyConfig):
    """Settings of the joint loop."""

    agent: str = "dxdp"
    """Name of the agent that trains the sampler."""
    agent_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that agent."""
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
    """Decay of an average of the energy, which the loss then takes off: the energy learns, and gamma and the gradient
    penalty hold small, what is to be added to the average. For players that can do anything (a sampler that draws from
    exp(-E / tau), no ``data_noise``) the game then ends at the data themselves, E = -tau log p_data + c, at any gamma
    and tau. 0: no average, as in the paper; the sampler ends a little broader than the data."""
    energy_learning_rate: float = 1e-3
    """Adam rate of the energy."""
    energy_steps: int = 1
    """Energy steps per rollout, each on fresh data."""
    data_noise: float = 0.0
    """Standard deviation of Gaussian noise on the data in the energy's loss. Images have grey levels and the sampler's
    last step has noise: without it the energy learns to tell the two by that alone."""
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
    """Past rollouts from whose samples the energy sees as many again, drawn at random: it then does not forget what the
    policy has left. 0: only the present one."""
    ema: float = 0.99
    """Decay of the averaged policy that ``sample`` and ``predict`` use, and of the averaged energy of ``score``; 0 uses
    the last iterates."""
    anneal: bool = False
    """Cosine rate of the energy over ``learn``'s budget."""
