"""What a task is made of: the schema of all its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dxmi_rl.diffusion import PretrainingConfig
from dxmi_rl.targets import Reward, Target

TRACKS = ["fine-tune", "sample", "energy"]
BASES = ["ddpm", "ddim", "edm", "flow-sde"]
FROM_SCRATCH = ("sample", "energy")
"""Tracks without a denoiser."""
OTHER_WORDS = {
    **dict.fromkeys(("T", "n_steps", "num_steps", "steps"), ("horizon",)),
    **dict.fromkeys(("temperature", "ent_coef"), ("tau",)),
}
"""What others call settings of a task, and their names here."""


@dataclass(frozen=True)
class TaskConfig:
    """Defaults of a task; every field is an argument of ``make_task`` and of ``gym.make``."""

    target: str | Target
    """Name of a target, or a Target of your own."""
    target_options: dict[str, Any] = field(default_factory=dict)
    """Options of the target's builder; for an energy of your own those of EnergyTarget: scale, plot_range, ..."""
    horizon: int | tuple[int, ...] = 5
    """Number of denoising steps T; or several, such as (1, 2, 4, 8), for one sampler that works with any number from
    the smallest to the largest (AnyStep; environments draw one of them for every episode)."""
    schedule: str = "karras"
    """Name of the noise schedule; with base None it is "geometric", between levels of the target's widths."""
    schedule_options: dict[str, float] = field(default_factory=dict)
    """Options of the schedule."""
    base: str | None = "ddpm"
    """Base sampler: "ddpm", "ddim", "edm" and "flow-sde" (with eta), or None for training from scratch."""
    eta: float = 1.0
    """Stochasticity of "ddim" and "edm", where 1 is DDPM's, and of "flow-sde", where Flow-GRPO has 0.7."""
    sigma_last: float | None = None
    """Standard deviation of the last base step; None: exact for mixtures, 0.05 for data."""
    denoiser: str | nn.Module = "exact"
    """"exact" (Gaussian mixtures), "learned" (trained on the target's data by the DDPM loss), for images a path (the
    folder of a diffusers DDPMPipeline, a ".pt" file of an EDM network in consistency_models' format, or a
    ".safetensors" file of DenoiserUNet.save), or a network D(x, alpha, s), such as a VelocityDenoiser or an EDMDenoiser
    around yours."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Settings of the learned denoiser."""
    label: int | tuple[int, ...] | None = None
    """A class of images with labels: the target is its images, and the denoiser, which was trained on all images with
    their classes, is told this one; so is a reward with an argument of this name. Several, such as (0, 1, 2), for one
    sampler of all of them (AnyClass; environments draw one of them for every episode)."""
    backward: str = "forward"
    """Name of the backward kernel, or "base": agents stay near the base sampler, whose density takes the kernel's
    place."""
    backward_options: dict[str, Any] = field(default_factory=dict)
    """Options of the backward kernel."""
    tau: float = 1.0
    """Temperature in nats of entropy and running cost."""
    reward: str | Reward | None = "target"
    """"target" (the target's own energy), None (data only: an energy must be given or learned), or a reward r(x), a
    function or module ``[batch, *event_shape] -> [batch]`` or a name of REWARDS. The aim is then p(x) exp(r(x) / beta)
    with p the target's density (Tilted; exact for a mixture and a QuadraticReward), or with ``backward="base"`` the
    base sampler's."""
    reward_options: dict[str, Any] = field(default_factory=dict)
    """Options of a named reward."""
    beta: float = 1.0
    """Strength of the pull to p with a reward, in units of r."""
    differentiable: bool | None = None
    """Whether the reward has a gradient; None: found out by trying, False: agents get none."""
    track: str = "fine-tune"
    """"fine-tune" (a denoiser is given), "sample" (only the energy and its gradient are given: base is None and the
    target, as the task has it, refuses to give samples or data) or "energy" (the same without gradients: the reward is
    a black box)."""

    @property
    def rewarded(self) -> bool:
        """Whether there is a reward beside, or in place of, the target's own energy."""
        return self.reward not in ("target", None)
